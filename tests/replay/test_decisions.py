"""Decision replay: the same recorded calls under the same calibration are decided as they were when it was kept.

A refactoring shows no difference. A change that is meant to decide otherwise keeps new decisions, and its diff shows
which: `python tests/replay/test_decisions.py`.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
from recorded import lines, write

from smallfirst.acceptance import Acceptance
from smallfirst.budget import Allowance
from smallfirst.replay.calls import load
from smallfirst.replay.run import Bench, Settings, certified

SETTINGS = Settings("tiny", "gpt-4o", "other", alpha=0.15)
KEPT = Path(__file__).with_name("decisions.json")


def rows(n: int, seed: int) -> list[dict[str, Any]]:
    """Calls with answers of every kind: right, wrong, mended, not valid, and none."""
    made = lines(n, seed)
    for number, row in enumerate(made):
        said = row["answers"]["tiny"]
        arguments = said["tool_calls"][0]["arguments"]
        if number % 7 == 0:
            arguments["days"] = str(arguments["days"])
        elif number % 7 == 1:
            said.update(tool_calls=None, content="I cannot know the weather.", correct=False)
        elif number % 11 == 2:
            arguments.pop("city")
            said["correct"] = False
        elif number % 13 == 3:
            said["tool_calls"][0]["name"] = "get_wether"
            said["correct"] = False
    return made


def bench(folder: Path, n: int, seed: int) -> Bench:
    made = Bench(load(write(folder / f"{seed}.jsonl", rows(n, seed)), SETTINGS.models), SETTINGS)
    asyncio.run(made.prepare())
    return made


async def decisions(made: Bench, acceptance: Acceptance) -> dict[str, str]:
    """By call: why its route, what each attempt was found to be, and whose answer was served."""
    found = {}
    for call in made.calls:
        plan = made.plan(call, acceptance)
        outcome = await made.cascade.run(plan, call.request, Allowance(0.0))
        tried = ", ".join(f"{a.stage} {a.decision} {a.reason}" for a in outcome.attempts)
        served = "nothing" if outcome.served is None else outcome.attempts[outcome.served].stage
        found[call.id] = f"{plan.reason}: {tried}; {outcome.decision} {outcome.reason}, served {served}"
    return found


def test_recorded_calls_are_decided_as_before(tmp_path: Path) -> None:
    """Router, features, calibration, cascade and validators come to the kept decisions, call by call."""
    kept = json.loads(KEPT.read_bytes())
    now = asyncio.run(decisions(bench(tmp_path, 120, seed=2), Acceptance.from_json(kept["acceptance"])))
    differing = {call: (before, now[call]) for call, before in kept["decisions"].items() if now[call] != before}
    assert not differing
    assert now.keys() == kept["decisions"].keys()
    assert {text.rsplit(" ", 1)[1] for text in now.values()} == set(SETTINGS.models)


def keep(folder: Path) -> None:
    """Fit a calibration on some calls, decide others by it, and keep both."""
    acceptance = certified(bench(folder, 90, seed=1), np.arange(90), 120)
    found = asyncio.run(decisions(bench(folder, 120, seed=2), acceptance))
    rounded = json.loads(json.dumps(acceptance.to_json()), parse_float=lambda text: round(float(text), 4))
    KEPT.write_text(f'{{"acceptance": {json.dumps(rounded)},\n"decisions": {json.dumps(found, indent=0)}}}\n')


if __name__ == "__main__":
    import tempfile

    keep(Path(tempfile.mkdtemp()))
