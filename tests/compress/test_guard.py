"""When a shortened text may stand for the whole: signs, the certified threshold, audited calls, the command."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from random import Random

import pytest
from typer.testing import CliRunner

from smallfirst.acceptance import Acceptance
from smallfirst.cli import app
from smallfirst.compress import guard
from smallfirst.compress.audits import audited
from smallfirst.compress.guard import Guard, coverage, fit, grounded
from smallfirst.errors import CalibrationError, ConfigError
from smallfirst.guarantee import Certificate, Refusal
from smallfirst.store import open_store
from smallfirst.types import Attempt, Choice, Completion, Origin, Record, Request, Usage

CLI = CliRunner()
TEXT = "The Glenbywater runs through Glenby.\nThe mayor of Arden is old.\nFish is sold on 12 May."


def facts(chance: Random, good: bool) -> dict[str, float]:
    """Signs of a call: what is kept well keeps its answer mostly."""
    return {"coverage": chance.uniform(0.6, 1.0) if good else chance.uniform(0.0, 0.7), "mass": chance.random()}


def calls(n: int, changed_when_good: float, seed: int = 0) -> tuple[list[dict[str, float]], list[bool]]:
    """n audited calls, half of them well kept; of the others half change."""
    chance = Random(seed)
    good = [chance.random() < 0.5 for _ in range(n)]
    rows = [facts(chance, each) for each in good]
    return rows, [chance.random() > (changed_when_good if each else 0.5) for each in good]


def certify(n: int, changed: float, alpha: float = 0.1, seed: int = 0) -> Acceptance:
    rows, same = calls(n, changed, seed)
    return fit(rows, same, task="t", stage="short", alpha=alpha, delta=0.1, made_at=0.0)


def kept_of(made: Acceptance, rows: list[dict[str, float]], same: list[bool]) -> list[bool]:
    """Of the calls that pass, whether their answers stayed the same."""
    sure = made.model.confidences([guard.features(row) for row in rows])
    return [kept for chance, kept in zip(sure, same, strict=True) if chance >= made.threshold]


def test_coverage_counts_the_questions_words() -> None:
    """What the context has of the question, and what of that was kept; 0 where nothing is in common."""
    kept = coverage(TEXT, "Which Glenbywater runs where?", "The Glenbywater runs through Glenby.")
    assert kept["coverage"] == 1.0
    assert 0 < kept["found"] <= 1
    assert coverage(TEXT, "mayor of Arden", "Fish is sold on 12 May.")["coverage"] == 0.0
    assert coverage(TEXT, "河流", "") == {"found": 0.0, "coverage": 0.0}
    assert coverage("", "", "") == {"found": 0.0, "coverage": 0.0}


def test_names_and_numbers_that_the_context_lacks_show() -> None:
    """Notes that make up a number are not grounded; notes without any are."""
    assert grounded(TEXT, "Fish is sold on 12 May in Glenby.") == 1.0
    assert grounded(TEXT, "Sold on 13 May.") < 1.0
    assert grounded(TEXT, "nothing") == 1.0


def test_a_guard_without_audits_asks_for_the_least_coverage() -> None:
    """Facts that a compressor does not tell stop nothing."""
    assert Guard(0.5).allows({"coverage": 0.5})
    assert not Guard(0.5).allows({"coverage": 0.49})
    assert Guard(0.5).allows({})


def test_a_certified_guard_lets_through_what_keeps_its_answer() -> None:
    """Among further calls that pass it, the answer changes in no more than alpha, and it passes a good share."""
    acceptance = certify(400, 0.01)
    passed = kept_of(acceptance, *calls(500, 0.01, seed=9))
    assert len(passed) > 100
    assert sum(not kept for kept in passed) / len(passed) <= 0.1
    made = Guard(0.0, acceptance)
    assert [made.allows({"coverage": each, "mass": 0.5}) for each in (0.05, 0.95)] == [False, True]


def test_the_promise_is_broken_in_no_more_than_delta_of_draws() -> None:
    """Over 20 draws of audits from calls that hardly ever qualify, certificates above alpha are as rare as promised."""
    broken = 0
    fresh, same = calls(400, 0.09, seed=77)
    for seed in range(20):
        passed = kept_of(certify(120, 0.09, alpha=0.08, seed=seed), fresh, same)
        broken += bool(passed) and sum(not kept for kept in passed) / len(passed) > 0.08 + 0.05
    assert broken <= 7  # P(Binomial(20, 0.1) > 7) < 0.001


def test_a_guard_that_cannot_be_certified_sends_everything_in_full() -> None:
    """Answers that change half of the time give a refusal with its reason, and nothing is shortened."""
    rows, _ = calls(100, 0.5)
    chance = Random(5)
    made = fit(rows, [chance.random() < 0.5 for _ in rows], task="t", stage="s", alpha=0.05, delta=0.1, made_at=0.0)
    assert isinstance(made.outcome, Refusal)
    assert not Guard(0.0, made).allows({"coverage": 1.0, "mass": 1.0})
    assert "Nothing is shortened" in guard.promised(made)


def test_a_guard_is_kept_in_a_file(tmp_path: Path) -> None:
    """It comes back deciding the same; a missing file, another kind of file and a damaged one are named."""
    made, path = certify(300, 0.01), tmp_path / "guard.json"
    path.write_text(json.dumps(made.to_json()))
    row = {"coverage": 0.9, "mass": 0.5}
    assert guard.load(path, 0.1).confidence(row) == Guard(0.1, made).confidence(row)
    path.write_text("[]")
    with pytest.raises(CalibrationError, match="not an object"):
        guard.load(path, 0.1)
    path.write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        guard.load(path, 0.1)
    with pytest.raises(ConfigError, match=r"There is no file '.*none\.json'"):
        guard.load(tmp_path / "none.json", 0.1)


def record(n: int, *, same: bool, row: dict[str, float], compressed: float = 1.0) -> Record:
    """A call answered from the full text, with the compressor's answer in shadow."""
    message = {"role": "user", "content": f"Question {n}?"}
    request = Request("chat", {"model": "auto", "messages": [message]}, "auto", (message,), origin=Origin(task="qa"))
    full = Completion((Choice(f"Answer {n}"),), Usage(100, 5), "big")
    short = Completion((Choice(f"answer {n}" if same else "Something else"),), Usage(20, 5), "big")
    features = {"compressed": compressed, **guard.features(row)}
    attempts = (
        Attempt("large", "large", "big", "generate", "accept", "observe", full, cost_usd=0.01),
        Attempt(
            *("short", "short", "big", "generate", "shadow", "observe", short),
            small=True,
            features=features,
            cost_usd=0.002,
        ),
    )
    when = time.time() - 1000 + n
    return Record(f"r-{n:05d}", when, request, "qa", "observe", attempts, 0, "escalate", "observe", 200, 0.1, "c")


async def fill(url: str, n: int) -> None:
    rows, same = calls(n, 0.01)
    store = await open_store(url)
    for i, (row, kept) in enumerate(zip(rows, same, strict=True)):
        await store.append(record(i, same=kept, row=row), capture=True)
    await store.append(record(n, same=False, row=rows[0], compressed=0.0), capture=True)
    await store.close()


async def test_audited_calls_come_from_the_records(tmp_path: Path) -> None:
    """Answers that are equal up to case are the same, others changed; calls that were not shortened say nothing."""
    url = f"sqlite:///{tmp_path}/calls.db"
    await fill(url, 30)
    rows, same = calls(30, 0.01)
    store = await open_store(url)
    found = await audited(store, "qa", "short")
    await store.close()
    assert [call.same for call in reversed(found)] == same
    assert dict(found[-1].facts) == pytest.approx(rows[0])
    assert (found[0].short_usd, found[0].full_usd) == (0.002, 0.01)


async def test_the_command_writes_a_guard(tmp_path: Path) -> None:
    """From records to a file that a compressor can be configured with; too few calls are refused by name."""
    url = f"sqlite:///{tmp_path}/calls.db"
    await fill(url, 300)
    path = tmp_path / "guard.json"
    words = ["guard", "qa", "--stage", "short", "--out", str(path), "--alpha", "0.1", "--store", url, "--json"]
    result = await asyncio.to_thread(CLI.invoke, app, words)
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    kept = guard.load(path, 0.0).acceptance
    assert kept is not None
    assert (said["calls"], isinstance(kept.outcome, Certificate)) == (300, True)
    none = await asyncio.to_thread(CLI.invoke, app, [*words[:3], "other", *words[4:]])
    assert isinstance(none.exception, CalibrationError)
