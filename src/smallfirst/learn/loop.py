"""The loop: from recorded calls to specialists in service, and again as calls, failures and drift come in.

A pass looks at the records. If there is anything new they are scrubbed once and the tasks found in them; each task that
is worth it (`watch`) goes through a round of stages (`rounds`). Where a task stands is kept after every stage, so a
pass that was killed is gone on with by the next, and a task is one process's at a time (`jobs`). A stage that fails
marks its task and leaves the others alone; later passes try it again, three times in all.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from smallfirst.errors import DataError, SmallfirstError, StoreError
from smallfirst.learn import calibrate, tasks
from smallfirst.learn.jobs import Jobs, Owned, TakenOver
from smallfirst.learn.release import release as put
from smallfirst.learn.scrubbed import Lines, scrubber_of, write
from smallfirst.learn.tasks import Figures, Found
from smallfirst.learn.watch import Due, Seen, Triggers, Watched, due, of_task, watch
from smallfirst.learn.workshop import STAGES, Round, Stage, Tell, Workshop
from smallfirst.monitor import Monitor
from smallfirst.registry import Release
from smallfirst.registry import watched as watched_as
from smallfirst.rollout import Evidence
from smallfirst.store import RecordFilter, Store

TRIES = 3
ALPHA = DELTA = 0.05
_LOOKING = ""
"""The job of looking at all records; no task has this name."""
CALLS = "calls.jsonl"
"""The file of all scrubbed records, in the folder of the artifacts."""
_MORE_LABELS = 50
Outcome = Literal["released", "declined", "failed", "busy", "waiting", "calibrated", "settled"]
Rounds = Callable[[Sequence[str]], Awaitable[Sequence["TaskReport"]]]
"""Goes on with the rounds of these tasks, somewhere (`scale`)."""
Show = Callable[[str, str], AbstractContextManager[Tell]]
"""Given a task's name ("" for all records) and a stage, shows how that goes while the context lasts."""


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """Where the work on a task stands. `stage` is the next to do, "" when no round is under way.

    `why`, `folder` and `seen` are the round's; `found` holds what its stages found, by stage. `error` is that of the
    last try of the stage, `tries` counts them. `ended` is how the last round ended. `labels` is how many labels there
    were when the task was last calibrated.
    """

    name: str = ""
    stage: Stage | Literal[""] = ""
    why: str = ""
    folder: str = ""
    seen: Seen | None = None
    found: Mapping[str, Any] = {}
    error: str = ""
    tries: int = 0
    ended: str = ""
    labels: int = 0


class _Looked(msgspec.Struct, frozen=True):
    """What there was when the records were last looked at, and whether something due was left undone."""

    mark: tuple[int, int]
    left: bool


@dataclass(frozen=True, slots=True)
class TaskReport:
    """What a pass did with a task, and why; `found` as in `Job`."""

    task: str
    name: str
    outcome: Outcome
    why: str
    found: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Pass:
    """What a pass came to, by task in the order in which they were looked at."""

    tasks: tuple[TaskReport, ...]

    @property
    def worked(self) -> bool:
        """Whether there was anything to do."""
        return any(each.outcome not in ("waiting", "busy") for each in self.tasks)

    @property
    def failed(self) -> bool:
        return any(each.outcome == "failed" for each in self.tasks)


_USUAL = Triggers()


@dataclass(frozen=True, slots=True)
class Settings:
    """`folder` is where the artifacts are kept. `only` are ids or names of tasks, all without any; at most `most` tasks
    begin a round in one pass, the dearest first. Records from `since` on are looked at (seconds since the epoch)."""

    folder: Path = Path("loop")
    triggers: Triggers = _USUAL
    only: tuple[str, ...] = ()
    most: int | None = None
    since: float | None = None


_ALL = Settings()


@contextmanager
def _silent(_task: str, _stage: str) -> Iterator[Tell]:
    yield lambda _done, _note: None


class Loop:
    """Passes over one store. Rounds are done here, one after the other, or by `elsewhere`."""

    def __init__(
        self,
        store: Store,
        workshop: Workshop,
        settings: Settings = _ALL,
        show: Show = _silent,
        elsewhere: Rounds | None = None,
    ) -> None:
        self._store, self._workshop, self._settings, self._show = store, workshop, settings, show
        self._rounds = elsewhere or self._here
        self._jobs = Jobs(store)

    async def every(
        self, seconds: float, done: Callable[[Pass], None], failed: Callable[[SmallfirstError], None]
    ) -> None:
        """Passes for ever, `seconds` from the end of one to the next; `done` is told each, `failed` what ended one."""
        while True:
            try:
                done(await self.once())
            except SmallfirstError as error:
                failed(error)
            await asyncio.sleep(seconds)

    async def once(self) -> Pass:
        """One pass. Raises StoreError when the store cannot be read or written, DataError when scrubbing leaves
        identifiers or the folder cannot be written, and ConfigError without the libraries."""
        jobs = await self._known()
        left = [task for task, job in jobs.items() if job.stage and self._wanted(task, job.name)]
        reports = await self._rounds(left)
        async with self._jobs.own(_LOOKING) as looking:
            if looking is None:
                return Pass((*reports, _busy("", "")))
            watched = await watch(self._store, self._settings.since)
            if not watched.calls or _nothing_new(looking.state, watched):
                return Pass(tuple(reports))
            found = await looking.during(self.survey())
        begun, others, undone = await self._begin(found, watched, {report.task for report in reports})
        made = await self._rounds(begun)
        async with self._jobs.own(_LOOKING) as looking:
            if looking is not None:
                await looking.keep(_text(_Looked(watched.mark, undone)))
        return Pass((*reports, *made, *others))

    async def go_on(self, task: str) -> TaskReport:
        """The round of a task, from where it stands to its end."""
        async with self._jobs.own(task) as owned:
            if owned is None:
                return _busy(task, "")
            job = _job(owned.state)
            return await self._stages(owned, job) if job.stage else _report(owned, job, "waiting", job.ended)

    async def _here(self, begun: Sequence[str]) -> Sequence[TaskReport]:
        return [await self.go_on(task) for task in begun]

    async def survey(self) -> Found:
        """Scrub the records, find the tasks in them, and keep these. Raises as `once` does."""
        try:
            calls = await self._scrubbed()
        except OSError as error:
            where = self._settings.folder
            raise DataError(f"The calls cannot be written to {where}: {error.strerror or error}.") from error
        with self._show("", "tasks") as tell:
            rows = await self._store.tasks()
            known = [tasks.task_of_row(row) for row in rows]
            found = await asyncio.to_thread(tasks.find, calls, known)
            tell(1.0, f"{len(found.tasks)} tasks")
        before = {row.id: tasks.figures_of_row(row) for row in rows}
        kept = [tasks.row_of(task, found.of(task.id) or before.get(task.id)) for task in found.tasks]
        await self._store.replace_tasks(kept)
        return found

    async def _scrubbed(self) -> Lines:
        """The records, scrubbed anew."""
        folder, wanted = self._settings.folder, RecordFilter(since=self._settings.since)
        folder.mkdir(parents=True, exist_ok=True)
        draft = folder / f"{CALLS}.{os.getpid()}"
        total = max(await self._store.count(wanted), 1)
        with self._show("", "scrub") as tell, draft.open("wb") as file:
            scrubber = await scrubber_of(self._store, lambda n: tell(0.0, f"values shared by {n} records"))
            result = await write(
                self._store, file, scrubber, wanted, progress=lambda n: tell(n / total, f"{n} records")
            )
        if result.leaked:
            draft.unlink()
        result.check()
        draft.replace(folder / CALLS)
        return Lines(folder / CALLS)

    async def _begin(
        self, found: Found, watched: Watched, worked: set[str]
    ) -> tuple[list[str], list[TaskReport], bool]:
        """Begin rounds where they are due, the dearest task first: the tasks, what became of the others, and whether
        any was left for another pass."""
        jobs, monitors = await self._known(), await self._store.monitors()
        begun, others, left = list[str](), list[TaskReport](), False
        for figures in found.figures:
            task = figures.task
            if task is None or task in worked or not self._wanted(task, figures.name):
                continue
            job, release = jobs.get(task, Job()), await self._store.release(task)
            failures, labels = of_task(watched.failures, figures), of_task(watched.labels, figures)
            monitor = Monitor.from_json(monitors.get(watched_as(task, release.live), ""))
            verdict = due(figures, failures, job.seen, release, monitor, self._settings.triggers)
            if not verdict.now:
                kept = await self._settled(figures, release) or await self._calibrated(figures, release, labels)
                others.append(kept or _waiting(figures, verdict.why))
            elif len(begun) == self._settings.most:
                left = True
                others.append(_waiting(figures, f"{verdict.why}; left for the next pass"))
            elif await self._open(figures, verdict, Seen(figures.calls, failures, time.time()), labels):
                begun.append(task)
            else:
                others.append(_busy(task, figures.name))
        return begun, others, left

    async def _open(self, figures: Figures, verdict: Due, seen: Seen, labels: int) -> bool:
        """Make it durable that a round begins; False when another process works on the task."""
        task = str(figures.task)
        async with self._jobs.own(task) as owned:
            if owned is None or _job(owned.state).stage:
                return False
            stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(seen.at))
            folder = self._settings.folder / task.translate(str.maketrans("/\\:", "---")) / stamp
            job = Job(name=figures.name, stage=STAGES[0], why=verdict.why, folder=str(folder), seen=seen, labels=labels)
            await owned.keep(_text(job))
            return True

    async def _stages(self, owned: Owned, job: Job) -> TaskReport:
        """The stages that are left, the job kept after each."""
        try:
            while job.stage:
                job = await self._stage(owned, job, job.stage)
                await owned.keep(_text(job))
                if job.error:
                    return _report(owned, job, "failed", job.error)
        except TakenOver as error:
            return _report(owned, job, "busy", str(error))
        return _report(owned, job, "released" if job.ended.startswith("released") else "declined", job.ended)

    async def _stage(self, owned: Owned, job: Job, stage: Stage) -> Job:
        """The job after a stage."""
        work = Round(owned.task, Path(job.folder), self._settings.folder / CALLS)
        try:
            work.folder.mkdir(parents=True, exist_ok=True)
            with self._show(job.name or owned.task, stage) as tell:
                done = await owned.during(getattr(self._workshop, stage)(work, tell))
        except (StoreError, TakenOver):
            raise
        except (SmallfirstError, OSError, RuntimeError, MemoryError) as error:  # torch runs out of memory as the latter
            said = f"{stage}: {error}"
            if job.tries + 1 < TRIES:
                return msgspec.structs.replace(job, error=said, tries=job.tries + 1)
            return msgspec.structs.replace(job, error=said, tries=0, stage="", ended=f"given up: {said}")
        following = STAGES[STAGES.index(stage) + 1 :]
        found = {**job.found, stage: dict(done.facts)}
        ended = f"stays with the large model: {done.declined}" if done.declined else ""
        if not ended and not following:
            ended = f"released {done.facts.get('version', '')} to {done.facts.get('step', '')}"
        following = () if done.declined else following
        return msgspec.structs.replace(
            job, stage=following[0] if following else "", found=found, error="", tries=0, ended=ended
        )

    async def _settled(self, figures: Figures, release: Release) -> TaskReport | None:
        """The comparison with what the live version replaced, ended where it has shown nothing for long enough."""
        trial = release.trial
        if trial is None or trial.step != "live":
            return None
        calls = Evidence.from_json(trial, release.evidence).calls
        if calls < self._settings.triggers.settled:
            return None
        [version] = await self._store.versions(ids=[trial.candidate])
        await put(self._store, version, to="live", share=1.0, by="loop")
        return TaskReport(release.task, figures.name, "settled", f"{version.id} after {calls} calls", {})

    async def _calibrated(self, figures: Figures, release: Release, labels: int) -> TaskReport | None:
        """The live version calibrated anew, with its prediction of what it will be accepted on, where enough labels
        came since; None where that brings nothing."""
        task = str(figures.task)
        async with self._jobs.own(task) as owned:
            job = Job() if owned is None else _job(owned.state)
            if owned is None or not release.live or labels - job.labels < _MORE_LABELS:
                return None
            results = await owned.during(
                calibrate.run(self._store, task=task, alpha=ALPHA, delta=DELTA, now=time.time(), save=False)
            )
            await owned.keep(_text(msgspec.structs.replace(job, labels=labels)))
            made = [r for r in results if r.sample.stage == release.live and r.certificate is not None]
            for result in made:
                assert result.acceptance is not None
                await self._store.save_calibration(task, release.live, json.dumps(result.acceptance.to_json()))
            more = f"{labels - job.labels} more labels"
            return TaskReport(task, figures.name, "calibrated", more, {}) if made else None

    async def _known(self) -> dict[str, Job]:
        return {task: _job(state) for task, state in (await self._jobs.states()).items() if task != _LOOKING}

    def _wanted(self, task: str, name: str) -> bool:
        return not self._settings.only or not {task, name}.isdisjoint(self._settings.only)


def _nothing_new(state: str, watched: Watched) -> bool:
    looked = msgspec.json.decode(state, type=_Looked) if state else None
    return looked is not None and looked.mark == watched.mark and not looked.left


def _job(state: str) -> Job:
    return msgspec.json.decode(state, type=Job) if state else Job()


def _text(state: msgspec.Struct) -> str:
    return msgspec.json.encode(state).decode()


def _report(owned: Owned, job: Job, outcome: Outcome, why: str) -> TaskReport:
    return TaskReport(owned.task, job.name, outcome, why, job.found)


def _waiting(figures: Figures, why: str) -> TaskReport:
    return TaskReport(str(figures.task), figures.name, "waiting", why, {})


def _busy(task: str, name: str) -> TaskReport:
    return TaskReport(task, name, "busy", "another process works on it", {})
