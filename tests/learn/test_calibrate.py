"""Calibration from records: which labels count, what is refused, and the command."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable
from pathlib import Path
from random import Random

import pytest
from msgspec.structs import replace
from typer.testing import CliRunner

from smallfirst.acceptance import Acceptance
from smallfirst.cli import app
from smallfirst.guarantee import Certificate
from smallfirst.labels import Label
from smallfirst.learn.calibrate import Row, representative, run
from smallfirst.store import Store, open_store
from smallfirst.types import (
    Attempt,
    Choice,
    Completion,
    Feedback,
    Origin,
    Record,
    Request,
    Tool,
    ToolCall,
    Usage,
)

CLI = CliRunner()
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": PARAMETERS}}


def completion(city: str) -> Completion:
    call = ToolCall("c1", "get_weather", json.dumps({"city": city}))
    return Completion((Choice(tool_calls=(call,), finish_reason="tool_calls"),), Usage(10, 5), "m")


def record(n: int, *, task: str = "weather", right: bool, sure: float, model: str = "tiny", at: float = 0.0) -> Record:
    """A call that the large model answered, with a small model's shadow: the answer, and how sure it looked."""
    said = {"role": "user", "content": f"Weather {n}?"}
    body = {"model": "auto", "messages": [said], "tools": [TOOL]}
    tools = (Tool("get_weather", parameters=PARAMETERS),)
    request = Request("chat", body, "auto", (said,), tools, origin=Origin(task=task))
    large = Attempt("large", "large", "big", "generate", "accept", "observe", completion("Oslo"), cost_usd=0.02)
    shadow = Attempt(
        *("small", "small", model, "generate", "shadow", "observe", completion("Oslo" if right else "Rome")),
        small=True,
        features={"margin_mean": sure, "no_call": 0.0, "tools": 1.0, "prompt_chars": 10.0 + n % 7},
        cost_usd=0.001,
    )
    name = f"{task}-{n:05d}-{model}"
    attempts = (large, shadow)
    when = at or time.time() - 1000 + n
    return Record(name, when, request, task, "observe", attempts, 0, "escalate", "observe", 200, 0.1, "c")


def records(n: int, *, task: str = "weather", wrong: float = 0.3, seed: int = 0, **more: object) -> Iterable[Record]:
    """Calls of which a share is wrong and looks it."""
    random = Random(seed)
    for k in range(n):
        right = random.random() >= wrong
        sure = random.gauss(0.9 if right else 0.2, 0.05)
        yield record(k, task=task, right=right, sure=sure, **more)  # type: ignore[arg-type]


def write(path: Path, made: Iterable[Record]) -> str:
    async def work() -> None:
        store = await open_store(f"sqlite:///{path}/calls.db")
        for each in made:
            await store.append(each)
        await store.close()

    asyncio.run(work())
    return f"{path}/calls.db"


async def filled(path: Path, made: Iterable[Record]) -> Store:
    store = await open_store(f"sqlite:///{path}/calls.db")
    for each in made:
        await store.append(each)
    return store


async def test_a_separable_task_is_certified(tmp_path: Path) -> None:
    """Where wrong answers look it, nearly all right ones are accepted; costs come from the records."""
    store = await filled(tmp_path, records(200))
    [result] = await run(store, task="weather", alpha=0.05, delta=0.05, now=1.0)
    assert result.certificate is not None
    assert result.certificate.coverage == pytest.approx(0.7, abs=0.08)
    assert result.acceptance is not None
    assert result.acceptance.costs is not None
    assert result.acceptance.costs.small_usd == pytest.approx(0.001)
    assert result.acceptance.costs.large_usd == pytest.approx(0.02)
    assert result.acceptance.label == "200 by agreement"
    [kept] = await store.calibrations()
    assert Acceptance.from_json(json.loads(kept.payload)).threshold == result.certificate.threshold
    await store.close()


async def test_a_second_models_answers_are_certified_beside(tmp_path: Path) -> None:
    """Where a second model answered beside the small one and its answers are the right ones, they may be served."""
    made = []
    for each in records(240, wrong=0.5):
        *before, shadow = each.attempts
        right = shadow.features["margin_mean"] < 0.5  # what the small model does not know the second does
        second = replace(
            shadow,
            stage="second",
            model="other",
            decision="evidence",
            reason="small",
            completion=completion("Oslo" if right else "Rome"),
            features={**shadow.features, "margin_mean": 0.9 if right else 0.2, "agree": 0.0},
        )
        own = replace(shadow, features={**shadow.features, "agree": 0.0})
        made.append(replace(each, attempts=(*before, own, second)))
    store = await filled(tmp_path, made)
    [result] = await run(store, task="weather", alpha=0.05, delta=0.05, now=1.0)
    assert result.acceptance is not None
    assert list(result.acceptance.others) == ["second"]
    assert result.certificate is not None
    assert result.certificate.coverage > 0.9
    await store.close()


async def test_a_dry_run_keeps_nothing(tmp_path: Path) -> None:
    """What would be certified is told and not put in force."""
    store = await filled(tmp_path, records(120))
    await run(store, task="weather", alpha=0.05, delta=0.05, now=1.0, save=False)
    assert await store.calibrations() == []
    await store.close()


async def test_labels_of_a_former_model_do_not_count(tmp_path: Path) -> None:
    """When another model stands behind the stage, only its own answers say how good it is."""
    old = records(100, model="former", at=1000.0)
    store = await filled(tmp_path, [*old, *records(60)])
    [result] = await run(store, task="weather", alpha=0.1, delta=0.1, now=1.0)
    assert (result.sample.model, len(result.sample.rows)) == ("tiny", 60)
    await store.close()


async def test_calls_before_an_alarm_do_not_count(tmp_path: Path) -> None:
    """After drift only what came since the alarm is learned from."""
    from smallfirst.monitor import Monitor

    store = await filled(tmp_path, [*records(100, at=1000.0), *records(60, seed=1, task="other")])
    monitor = Monitor.of("x", Certificate(0.05, 0.05, 0.9, 9, 0, 0.1, 10, 0.9), 0.02, since=2000.0).to_json()
    await store.change_monitor("weather", lambda _: monitor)
    results = await run(store, task=None, alpha=0.1, delta=0.1, now=1.0)
    assert [result.sample.task for result in results] == ["other"]
    await store.close()


async def test_a_task_with_few_labels_starts_from_the_others(tmp_path: Path) -> None:
    """It may be certified on fewer labels than a calibrator of its own needs, and says what is missing if not."""
    store = await filled(tmp_path, [*records(300, task="known"), *records(30, seed=1)])
    [result] = await run(store, task="weather", alpha=0.2, delta=0.1, now=1.0)
    assert result.acceptance is not None
    assert result.acceptance.model.prior is not None
    assert result.certificate is not None
    [strict] = await run(store, task="weather", alpha=0.02, delta=0.05, now=1.0)
    assert strict.certificate is None
    assert strict.needed
    await store.close()


async def test_feedback_is_the_better_label(tmp_path: Path) -> None:
    """Feedback on the large model's answer is shared by shadows that agree with it, and named."""
    made = list(records(60))
    store = await filled(tmp_path, made)
    for n, each in enumerate(made[:10]):
        await store.add_feedback(Feedback(f"f{n}", each.id, 1.0, "correct", True, "user"))
    [result] = await run(store, task="weather", alpha=0.1, delta=0.1, now=1.0)
    assert set(result.sample.kinds) == {"feedback", "agreement"}
    await store.close()


def row(n: int, decided: str, chance: float | None) -> Row:
    return Row(f"r{n}", {}, Label(True, "agreement"), True, f"r{n}", decided, chance, 0.0, 0.0)  # type: ignore[arg-type]


def test_escalated_and_audited_calls_count_in_even_shares() -> None:
    """Of calls that a calibration decided on, escalated ones are kept as seldom as accepted ones were audited; those
    observed all count; what is known by accident never does."""
    served = [row(n, "escalate", 1.0) for n in range(2000)] + [row(n, "accept", 0.1) for n in range(2000, 2200)]
    near = [row(n, "accept", 0.5) for n in range(3000, 4000)]
    watched, told = [row(n, "shadow", 1.0) for n in range(5000, 5050)], [row(6000, "accept", None)]
    kept = representative([*served, *near, *watched, *told])
    assert sum(kept[:2000]) == pytest.approx(200, abs=50)
    assert all(kept[2000:2200])
    assert sum(kept[2200:3200]) == pytest.approx(200, abs=50)
    assert all(kept[3200:3250])
    assert not kept[-1]


def test_without_audits_only_observed_calls_count() -> None:
    """Escalated calls alone would say nothing of accepted ones; where no large model ever answered all labels count."""
    assert representative([row(1, "escalate", 1.0), row(2, "shadow", 1.0), row(3, "accept", None)]) == [
        False,
        True,
        False,
    ]
    assert representative([row(1, "accept", None)]) == [True]


def test_the_command(tmp_path: Path) -> None:
    """It prints what is promised, writes the artifact, and its exit code says whether a task was refused."""
    path = write(tmp_path, [*records(120), *records(20, task="rare")])
    output = tmp_path / "made.json"
    done = CLI.invoke(app, ["calibrate", "weather", "--store", path, "--output", str(output), "--json"])
    assert done.exit_code == 0, done.output
    [row] = json.loads(done.stdout)
    assert row["certificate"]["alpha"] == 0.05
    assert (row["labels"], row["refused"]) == ({"agreement": 120}, "")
    assert Acceptance.from_json(json.loads(output.read_text())[0]).stage == "small"
    refused = CLI.invoke(app, ["calibrate", "rare", "--store", path, "--alpha", "0.001"])
    assert refused.exit_code == 1
    assert "refused" in refused.output
    every = CLI.invoke(app, ["calibrate", "--all", "--store", path])
    assert every.exit_code == 0
    assert "weather" in every.output
    both = CLI.invoke(app, ["report", "--store", path, "--json"])
    rows = {row["task"]: row for row in json.loads(both.stdout)}
    assert rows["weather"]["calibrations"][0]["certificate"]["alpha"] == 0.05
    assert rows["weather"]["alarm"] is False
    assert "Calibrations in force" in CLI.invoke(app, ["report", "--store", path]).output


@pytest.mark.parametrize(
    "arguments", [[], ["weather", "--all"], ["weather", "--alpha", "2"], ["--all", "--delta", "0"]]
)
def test_the_command_s_arguments(tmp_path: Path, arguments: list[str]) -> None:
    """Neither or both of TASK and --all, and rates that are none, are refused."""
    path = write(tmp_path, [])
    assert CLI.invoke(app, ["calibrate", *arguments, "--store", path]).exception is not None
