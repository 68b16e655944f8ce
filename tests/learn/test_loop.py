"""The loop: what is due, rounds that survive being killed, one owner for each task, failures that stay with it."""

from __future__ import annotations

import asyncio
import errno
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import helpdesk
import msgspec
import pytest
from typer.testing import CliRunner

from smallfirst import models
from smallfirst.cli import app
from smallfirst.cli import loop as cli_loop
from smallfirst.errors import ConfigError, DataError, TrainError
from smallfirst.guarantee import Certificate
from smallfirst.learn import jobs, loop
from smallfirst.learn.loop import TRIES, Job, Loop, Pass, Settings, TaskReport
from smallfirst.learn.tasks import Figures
from smallfirst.learn.watch import Seen, Triggers, due, watch
from smallfirst.learn.workshop import STAGES, Done, Round, Tell
from smallfirst.monitor import Monitor
from smallfirst.registry import Release
from smallfirst.rollout import Rollout
from smallfirst.store import Store, open_store
from smallfirst.types import Feedback

TRIGGERS = Triggers(least_calls=20, least_usd_month=0.0, more_calls=0.5, failures=3)
CERTIFICATE = Certificate(0.05, 0.05, 0.5, 90, 1, 0.04, 100, 0.9)


class Shop:
    """A workshop that notes what it is asked, and fails, declines or waits as told."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.fails: dict[tuple[str, str], Exception] = {}
        self.declines = ""
        self.hold = asyncio.Event()
        self.hold.set()
        self.there = asyncio.Event()

    async def _do(self, stage: str, work: Round) -> Done:
        self.asked.append((work.task, stage))
        self.there.set()
        await self.hold.wait()
        if error := self.fails.get((work.task, stage)):
            raise error
        (work.folder / stage).touch()
        return Done({"version": f"{work.task}@1", "step": "shadow"}, self.declines if stage == "evaluate" else "")

    async def dataset(self, work: Round, tell: Tell) -> Done:
        return await self._do("dataset", work)

    async def train(self, work: Round, tell: Tell) -> Done:
        return await self._do("train", work)

    async def evaluate(self, work: Round, tell: Tell) -> Done:
        return await self._do("evaluate", work)

    async def release(self, work: Round, tell: Tell) -> Done:
        return await self._do("release", work)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    opened = await open_store(f"sqlite:///{tmp_path / 'calls.db'}")
    yield opened
    await opened.close()


async def add(store: Store, *tasks: str, count: int = 24, seed: int = 0) -> None:
    """Calls of the tasks, named by their callers."""
    for task in tasks:
        for record in helpdesk.records(count, seed):
            await store.append(msgspec.structs.replace(record, id=f"{task}{seed}{record.id}", task=task))


def settings(folder: Path, **more: Any) -> Settings:
    return Settings(folder=folder / "loop", triggers=TRIGGERS, **more)


async def job(store: Store, task: str) -> Job:
    return loop._job((await store.jobs())[task])


async def test_an_empty_store_has_nothing_to_do(store: Store, tmp_path: Path) -> None:
    """Without records nothing is scrubbed, found or begun."""
    done = await Loop(store, Shop(), settings(tmp_path)).once()
    assert (done.tasks, done.worked, done.failed) == ((), False, False)
    assert not (tmp_path / "loop").exists()


async def test_a_task_goes_through_all_stages_once(store: Store, tmp_path: Path) -> None:
    """Calls are scrubbed, tasks found, and each stage done in order; a second pass finds nothing new and does nothing,
    one after more calls does another round."""
    await add(store, "desk")
    shop = Shop()
    passes = Loop(store, shop, settings(tmp_path))
    done = await passes.once()
    assert shop.asked == [("desk", stage) for stage in STAGES]
    assert [(task.task, task.outcome) for task in done.tasks] == [("desk", "released")]
    assert set(done.tasks[0].found) == set(STAGES)
    assert [row.id for row in await store.tasks()] == ["desk"]
    again = await passes.once()
    assert not again.worked
    assert len(shop.asked) == len(STAGES)
    await add(store, "desk", seed=1)
    more = await passes.once()
    assert [task.outcome for task in more.tasks] == ["released"]
    assert (await job(store, "desk")).why == "24 more calls"
    assert len({path.name for path in (tmp_path / "loop/desk").iterdir()}) in (1, 2)  # a folder a second


async def test_only_the_wanted_and_the_dearest_are_begun(store: Store, tmp_path: Path) -> None:
    """`only` names tasks, `most` bounds a pass; what it leaves is done by the next, though nothing is new."""
    await add(store, "a", "b", "c")
    shop = Shop()
    done = await Loop(store, shop, settings(tmp_path, most=1, only=("a", "b"))).once()
    assert Counter(task.outcome for task in done.tasks) == {"released": 1, "waiting": 1}
    first = shop.asked[0][0]
    await Loop(store, shop, settings(tmp_path, most=1, only=("a", "b"))).once()
    assert {task for task, _ in shop.asked} == {"a", "b"}
    assert shop.asked[len(STAGES)][0] != first


async def test_a_declined_task_stays_with_the_large_model(store: Store, tmp_path: Path) -> None:
    """An evaluation that promises nothing ends the round before the release, and says why."""
    await add(store, "desk")
    shop = Shop()
    shop.declines = "its answers fail too often"
    done = await Loop(store, shop, settings(tmp_path)).once()
    assert [stage for _, stage in shop.asked] == ["dataset", "train", "evaluate"]
    assert (done.tasks[0].outcome, done.failed) == ("declined", False)
    assert "stays with the large model: its answers fail too often" in done.tasks[0].why


@pytest.mark.parametrize(
    "error",
    [TrainError("The loss is nan."), OSError(errno.ENOSPC, "No space left on device"), RuntimeError("out of memory")],
    ids=["error", "disk full", "torch"],
)
async def test_a_failing_stage_marks_its_task_and_the_others_go_on(
    store: Store, tmp_path: Path, error: Exception
) -> None:
    """The error is kept with the task; the other task is released; later passes try that stage again, then give up."""
    await add(store, "a", "b")
    shop = Shop()
    shop.fails["a", "train"] = error
    done = await Loop(store, shop, settings(tmp_path)).once()
    assert {task.task: task.outcome for task in done.tasks} == {"a": "failed", "b": "released"}
    assert done.failed
    assert str(error) in (await job(store, "a")).error
    shop.asked.clear()
    await Loop(store, shop, settings(tmp_path)).once()
    assert shop.asked == [("a", "train")]
    del shop.fails["a", "train"]
    [healed] = (await Loop(store, shop, settings(tmp_path)).once()).tasks
    assert healed.outcome == "released"


async def test_a_stage_that_never_works_is_given_up(store: Store, tmp_path: Path) -> None:
    """After three tries the round ends, until more calls begin another."""
    await add(store, "a")
    shop = Shop()
    shop.fails["a", "train"] = TrainError("No.")
    outcomes = [(await Loop(store, shop, settings(tmp_path)).once()).tasks for _ in range(TRIES + 1)]
    assert [[task.outcome for task in tasks] for tasks in outcomes] == [["failed"]] * TRIES + [[]]
    assert (await job(store, "a")).ended == "given up: train: No."
    await add(store, "a", seed=1)
    shop.fails.clear()
    [report] = (await Loop(store, shop, settings(tmp_path)).once()).tasks
    assert report.outcome == "released"


async def test_a_folder_that_cannot_be_written_is_told(store: Store, tmp_path: Path) -> None:
    """Where no artifact can be kept the pass ends with one clear error; a loop that goes on for ever goes on."""
    await add(store, "desk", count=3)
    (tmp_path / "loop").write_text("a file")
    passes, told = Loop(store, Shop(), settings(tmp_path)), asyncio.Event()
    with pytest.raises(DataError, match="cannot be written to"):
        await passes.once()
    forever = asyncio.create_task(passes.every(60, lambda _: None, lambda _: told.set()))
    await told.wait()
    assert not forever.done()
    forever.cancel()


CHILD = """
import asyncio, sys
from pathlib import Path
from smallfirst.learn.loop import Loop, Settings
from smallfirst.store import open_store

class Shop:
    async def _do(self, work, tell):
        print("there", flush=True)
        await asyncio.sleep(60)
    dataset = train = evaluate = release = _do

async def main():
    store = await open_store(sys.argv[1])
    await Loop(store, Shop(), Settings(folder=Path(sys.argv[2]))).once()

asyncio.run(main())
"""


@pytest.mark.parametrize("stage", STAGES)
async def test_a_killed_loop_is_gone_on_with(store: Store, tmp_path: Path, stage: Any) -> None:
    """Killed in any stage, the next loop goes on with that stage at once, and does none before it again."""
    folder = tmp_path / "loop"
    begun = Job(name="desk", stage=stage, folder=str(folder / "desk/1"), seen=Seen(1, 0, 1.0))
    await store.claim_job("desk", "nobody:1:x", lambda _: False)
    await store.beat_job("desk", "nobody:1:x", loop._text(begun))
    await store.leave_job("desk", "nobody:1:x")
    url = f"sqlite:///{tmp_path / 'calls.db'}"
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", CHILD, url, str(folder)), stdout=asyncio.subprocess.PIPE
    )
    assert child.stdout is not None
    assert await child.stdout.readline() == b"there\n"
    shop = Shop()
    [busy] = (await Loop(store, shop, settings(tmp_path)).once()).tasks
    assert (busy.outcome, shop.asked) == ("busy", [])
    child.kill()
    await child.wait()
    [report] = (await Loop(store, shop, settings(tmp_path)).once()).tasks
    assert report.outcome == "released"
    assert [asked for _, asked in shop.asked] == list(STAGES[STAGES.index(stage) :])


async def test_two_loops_never_work_on_one_task(store: Store, tmp_path: Path) -> None:
    """While one loop is in a stage, another is told that the task is busy; together they do each stage once."""
    await add(store, "desk")
    shop = Shop()
    shop.hold.clear()
    first = asyncio.create_task(Loop(store, shop, settings(tmp_path)).once())
    await shop.there.wait()
    second = await Loop(store, shop, settings(tmp_path)).once()
    assert [task.outcome for task in second.tasks] == ["busy"]
    assert not second.worked
    shop.hold.set()
    assert [task.outcome for task in (await first).tasks] == ["released"]
    assert shop.asked == [("desk", stage) for stage in STAGES]


async def test_a_loop_that_showed_no_life_stops(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who lost a job to another process ends its stage and leaves the job alone."""
    await add(store, "desk")
    monkeypatch.setattr(jobs, "_BEAT_S", 0.01)
    shop = Shop()
    shop.hold.clear()
    first = asyncio.create_task(Loop(store, shop, settings(tmp_path)).once())
    await shop.there.wait()
    assert await store.claim_job("desk", "other:1:x", lambda _: True)
    [report] = (await first).tasks
    assert report.outcome == "busy"
    assert "Another process works on 'desk'" in report.why


async def test_failures_are_counted_by_task(store: Store) -> None:
    """What was said of answers is seen at a glance, so that new labels alone are something new."""
    await add(store, "desk", count=3)
    before = await watch(store)
    assert (before.calls, before.labels["desk"], before.failures["desk"]) == (3, 0, 0)
    await store.add_feedback(Feedback("f", "desk0r00000", 1.0, "correct", False, "test"))
    after = await watch(store)
    assert after.labels["desk"] == 1
    assert after.mark != before.mark


FIGURES = Figures("t", "desk", calls=100, cost_month_usd=5.0, schemas={"": {"type": "object"}})


def verdict(figures: Figures = FIGURES, failures: int = 0, seen: Seen | None = None, **more: Any) -> tuple[bool, str]:
    given = {"release": Release("t"), "monitor": None, "triggers": Triggers(), **more}
    triggers = replace(given["triggers"], least_calls=50)
    found = due(figures, failures, seen, given["release"], given["monitor"], triggers)
    return found.now, found.why


def test_what_is_worth_it_is_due() -> None:
    """Enough calls that cost enough are due the first time; afterwards more calls, more failures or an alarm are."""
    assert verdict()[0]
    assert verdict(replace(FIGURES, cost_month_usd=None))[0]
    seen = Seen(90, 5, 10.0)
    assert verdict(seen=seen, failures=10) == (False, "10 more calls and 5 more failures")
    assert verdict(seen=seen, failures=25) == (True, "20 more failures")
    assert verdict(replace(FIGURES, calls=135), seen=seen, failures=5) == (True, "45 more calls")
    monitor = Monitor.of("c", CERTIFICATE, 0.02, since=20.0)
    assert not verdict(seen=seen, monitor=monitor)[0]
    monitor.alarm = True
    assert verdict(seen=seen, monitor=monitor)[1].startswith("alarm")
    assert not verdict(seen=Seen(90, 5, 30.0), monitor=monitor)[0]


@pytest.mark.parametrize(
    ("figures", "why"),
    [
        (replace(FIGURES, schemas={}), "free text"),
        (replace(FIGURES, calls=49), "49 calls are fewer than 50"),
        (replace(FIGURES, cost_month_usd=0.5), "0.5 USD a month"),
    ],
)
def test_what_is_not_worth_it_waits(figures: Figures, why: str) -> None:
    """Free text, few calls and little money are no work, and it is said which of them."""
    now, said = verdict(figures)
    assert not now
    assert why in said


def test_a_task_on_trial_waits() -> None:
    """While a version is in shadow or canary no other is made; once it is live or withdrawn, one may be."""
    rollout = Rollout("r", "t", "t@1", "", "s", 0.0, step="canary", share=0.05)
    assert "t@1 is on trial (canary)" in verdict(release=Release("t", candidate="t@1", rollout=rollout))[1]
    gone = replace(rollout, step="rolled_back")
    assert verdict(release=Release("t", rollout=gone))[0]


CLI = CliRunner()


def test_the_command_says_that_there_is_nothing_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without calls `loop --once` succeeds, in words and as JSON; wrong options are refused."""
    monkeypatch.setattr(cli_loop, "need", lambda _: None)
    monkeypatch.setattr(models, "pull", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    Path("smallfirst.toml").write_text('[models.m]\nbackend = "fake"\n[store]\nurl = "sqlite:///calls.db"\n')
    Path("calls.db").touch()
    done = CLI.invoke(app, ["loop", "--once"])
    assert (done.exit_code, "Nothing to do" in done.stdout) == (0, True)
    assert json.loads(CLI.invoke(app, ["loop", "--once", "--json"]).stdout) == {"tasks": []}
    assert isinstance(CLI.invoke(app, ["loop", "--once", "--to", "live"]).exception, ConfigError)
    assert isinstance(CLI.invoke(app, ["loop", "--every", "soon"]).exception, ConfigError)


def test_a_failed_task_is_told_by_the_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass in which a task failed is shown, with why, and exits with 1."""

    async def once(_: Loop) -> Pass:
        return Pass((TaskReport("t-1", "desk", "failed", "train: disk full", {}),))

    monkeypatch.setattr(cli_loop, "need", lambda _: None)
    monkeypatch.setattr(models, "pull", lambda *_: None)
    monkeypatch.setattr(Loop, "once", once)
    monkeypatch.chdir(tmp_path)
    Path("smallfirst.db").touch()
    done = CLI.invoke(app, ["loop", "--once"])
    assert done.exit_code == 1
    assert "train: disk full" in done.stdout
