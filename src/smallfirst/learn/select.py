"""Stage: which small model could answer a task as it is, untrained, or that none can.

Each candidate is asked the newest calls of the calibration split twice over, zero-shot and with the nearest training
calls as examples, through the cascade that the gateway runs. The cheapest one is chosen that is shown not to be worse
than the large model by the margin (`paired.p_noninferior`, all trials together at the level by Holm's method). To stay
with the large model is an answer like any other.

Answers are kept in a journal as they come, so that a selection that was broken off goes on where it was.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from smallfirst import stats
from smallfirst.artifact import write_json
from smallfirst.assemble import Assembly
from smallfirst.errors import DataError, SmallfirstError
from smallfirst.learn.asking import Asked, ask, most_tokens, question, unasked
from smallfirst.learn.candidates import Candidate, Facts, identity, memory_bytes
from smallfirst.learn.card import Folder
from smallfirst.learn.dataset import Row
from smallfirst.learn.examples import Examples
from smallfirst.learn.paired import difference, holm, least_calls, p_noninferior
from smallfirst.learn.past import Past
from smallfirst.router import Candidate as Routed
from smallfirst.router import route
from smallfirst.stats import Figure
from smallfirst.types import Stage

Prompting = Literal["zero-shot", "examples"]
PROMPTINGS: tuple[Prompting, ...] = ("zero-shot", "examples")
Progress = Callable[[str, int, int], None]
JOURNAL = "answers.jsonl"
FILE = "selection.json"
_NONE: Mapping[str, str] = {}
_SILENT = 5  # calls without an answer at the start after which a model is given up


@dataclass(frozen=True, slots=True)
class Settings:
    """How it is selected.

    The newest `limit` calls are asked, at least `least` of each trial; a trial that cannot be shown to be non-inferior
    any more, whatever the rest brings, ends there. `margin` is how much less often than the large model a candidate may
    be right; `level` is the chance that a candidate is chosen which is worse than that. `examples` are shown where
    there are examples.
    """

    limit: int = 100
    least: int = 20
    examples: int = 4
    margin: float = 0.05
    level: float = 0.05


_USUAL = Settings()


@dataclass(frozen=True, slots=True)
class Trial:
    """A candidate, asked in one way. `calls` are those asked, of `planned`.

    `wins` and `losses` count the calls on which only it, or only the large model, was right. `p` is the p-value against
    being worse by the margin; where the trial ended early, the least that it could still have become. `passed`: shown
    to be non-inferior. Costs in USD, `cps` per right answer; `memory` in bytes.
    """

    name: str
    prompting: Prompting
    facts: Facts
    planned: int
    calls: int
    accuracy: Figure
    difference: Figure
    wins: int
    losses: int
    p: float
    passed: bool
    usd: Figure
    cps: Figure
    latency_p50: Figure
    latency_p95: Figure
    memory: int | None
    errors: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Selection:
    """What came out: the trial `chosen`, None to stay with the large model, and `why` in a sentence.

    `accuracy` and `cps` are the large model's on the `calls`. `excluded` are candidates that could not be tried, with
    why. `parent` is the dataset's sha256.
    """

    task: str
    calls: int
    accuracy: Figure
    cps: Figure
    trials: tuple[Trial, ...]
    excluded: Mapping[str, str]
    chosen: Trial | None
    why: str
    settings: Settings
    parent: str
    made_at: float
    seconds: float


async def select(
    data: Folder,
    candidates: Sequence[Candidate],
    past: Mapping[str, Past],
    *,
    settings: Settings = _USUAL,
    excluded: Mapping[str, str] = _NONE,
    folder: Path | None = None,
    progress: Progress = lambda *_: None,
) -> Selection:
    """Try the candidates on the dataset's calibration calls; `past` are the large model's recorded answers by call.

    `excluded` are others that could not be tried, to be told with the result. With a `folder` the answers are kept
    there, and used again by the next selection from the same dataset and models. Raises DataError when the dataset has
    no calibration calls or the folder cannot be written.
    """
    began = time.time()
    calls = _calls(data, past, settings.limit)
    left_out = dict(excluded)
    trials: list[_Trial] = []
    journal, examples = _Journal(folder), Examples(data.splits["train"])
    for place, candidate in enumerate(candidates):
        counted = _Counted(progress, candidate.name, place, len(candidates), len(calls))
        async with AsyncExitStack() as stack:
            try:
                assembly = await stack.enter_async_context(candidate.start())
            except SmallfirstError as error:
                left_out[candidate.name] = error.message
                continue
            trials += await _try(candidate, assembly, data, examples, calls, settings, journal, counted)
    passed = holm([trial.p for trial in trials], settings.level)
    told = tuple(trial.told(ok) for trial, ok in zip(trials, passed, strict=True))
    right = np.array([call.correct for call in calls], dtype=float)
    priced = [(call.usd, call.correct) for call in calls if call.usd is not None]
    cps = stats.ratio([usd for usd, _ in priced], [correct for _, correct in priced])
    chosen = _cheapest(told, cps)
    return Selection(
        task=data.card.task,
        calls=len(calls),
        accuracy=stats.wilson(int(right.sum()), len(calls)),
        cps=cps,
        trials=told,
        excluded=left_out,
        chosen=chosen,
        why=_why(told, chosen, calls, cps, settings),
        settings=settings,
        parent=data.sha256,
        made_at=began,
        seconds=time.time() - began,
    )


def to_json(selection: Selection) -> dict[str, Any]:
    """The selection as one JSON object."""
    return asdict(selection)


def save(selection: Selection, folder: Path) -> Path:
    """Writes `selection.json` into `folder`, whole or not at all. Raises DataError when that cannot be written."""
    return write_json(to_json(selection), folder / FILE)


@dataclass(frozen=True, slots=True)
class _Call:
    """A call to be asked: whether the large model was right on it, by definition or not, and what that cost."""

    row: Row
    correct: bool
    certain: bool
    usd: float | None


def _calls(data: Folder, past: Mapping[str, Past], limit: int) -> list[_Call]:
    """The newest calls of the calibration split on which the large model's answer is known and can be compared."""
    rows = data.splits["calibration"]
    if not rows:
        raise DataError(
            f"The dataset of the task {data.card.task!r} has no calibration calls.",
            hint="Make it again from more calls.",
        )
    found: list[_Call] = []
    for row in rows:
        recorded = past.get(row.id)
        asked = question(data.card.task, row)
        by_definition = asked.answer if row.label == "large" else None
        answer = by_definition if recorded is None else recorded.answer
        correct = None if answer is None else asked.right(answer)
        if correct is not None:
            certain = row.label == "large" if recorded is None else recorded.taken
            found.append(_Call(row, correct, certain, None if recorded is None else recorded.usd))
    return found[-limit:]


@dataclass(slots=True)
class _Trial:
    """A trial under way or over; `planned` are all its calls, `asked` what came of the first of them."""

    candidate: Candidate
    prompting: Prompting
    planned: Sequence[_Call]
    settings: Settings
    asked: list[Asked] = field(default_factory=list)
    memory: int | None = None

    @property
    def wins(self) -> int:
        return sum(bool(a.correct) and not call.correct for a, call in zip(self.asked, self.planned, strict=False))

    @property
    def losses(self) -> int:
        return sum(call.correct and not a.correct for a, call in zip(self.asked, self.planned, strict=False))

    @property
    def p(self) -> float:
        """The p-value, if the calls that were not asked turned out as well as they could; 1 for a silent model."""
        if self.silent:
            return 1.0
        to_win = sum(not call.correct for call in self.planned[len(self.asked) :])
        certain = all(call.certain for call in self.planned)
        n, margin = len(self.planned), self.settings.margin
        return p_noninferior(self.wins + to_win, self.losses, n, margin, never_wins=certain)

    @property
    def silent(self) -> bool:
        """Whether the model does not answer at all."""
        return len(self.asked) >= _SILENT and all(a.error for a in self.asked)

    @property
    def over(self) -> bool:
        """Whether asking on is of no use: all are asked, the model does not answer, or the test cannot pass."""
        enough = len(self.asked) >= self.settings.least
        return len(self.asked) == len(self.planned) or self.silent or (enough and self.p > self.settings.level)

    def told(self, passed: bool) -> Trial:
        """The trial in figures."""
        n, right = len(self.asked), sum(bool(a.correct) for a in self.asked)
        priced = [(a.cost_usd, bool(a.correct)) for a in self.asked if a.cost_usd is not None]
        usd, successes = [cost for cost, _ in priced], [correct for _, correct in priced]
        seconds = [a.seconds for a in self.asked]
        return Trial(
            name=self.candidate.name,
            prompting=self.prompting,
            facts=self.candidate.facts,
            planned=len(self.planned),
            calls=n,
            accuracy=stats.wilson(right, n),
            difference=difference(self.wins, self.losses, n),
            wins=self.wins,
            losses=self.losses,
            p=self.p,
            passed=passed,
            usd=stats.mean(usd),
            cps=stats.ratio(usd, successes),
            latency_p50=stats.quantile(seconds, 0.5),
            latency_p95=stats.quantile(seconds, 0.95),
            memory=self.memory,
            errors=dict(Counter(a.error for a in self.asked if a.error)),
        )


async def _try(
    candidate: Candidate,
    assembly: Assembly,
    data: Folder,
    examples: Examples,
    calls: Sequence[_Call],
    settings: Settings,
    journal: _Journal,
    counted: _Counted,
) -> list[_Trial]:
    """Both trials of a candidate that runs."""
    stage = assembly.candidates[candidate.name].stage
    longest, trials = most_tokens(data), list[_Trial]()
    for prompting in PROMPTINGS:
        trial = _Trial(candidate, prompting, calls, settings)
        shown = settings.examples if prompting == "examples" else 0
        policy = assembly.config.policy(data.card.task)
        key = _key(data.sha256, identity(candidate.model), msgspec.to_builtins(policy), shown, longest)
        for call in calls:
            if trial.over:
                break
            counted.at(prompting, len(trial.asked))
            made = journal.get(key, call.row.id)
            if made is None:
                made = await _ask(assembly, stage, data.card.task, call.row, examples.nearest(call.row, shown), longest)
                journal.add(key, made)
            trial.asked.append(made)
        trial.memory = memory_bytes(stage)
        trials.append(trial)
    return trials


async def _ask(assembly: Assembly, stage: Stage, task: str, row: Row, shown: Sequence[Row], longest: int) -> Asked:
    asked = question(task, row, shown, longest)
    policy = msgspec.structs.replace(assembly.config.policy(task), mode="small_only")
    try:
        plan = route(asked.request, task, policy, [Routed(stage)])
    except SmallfirstError as error:  # not capable of the call
        return unasked(asked, error.code)
    made, _ = await ask(assembly.cascades.get(task, assembly.cascades[""]), plan, asked, policy)
    return made


def _cheapest(trials: Sequence[Trial], large: Figure) -> Trial | None:
    """The trial of least cost per right answer among those that passed and cost less than the large model does."""
    cheaper = [
        (trial.cps.value, n)
        for n, trial in enumerate(trials)
        if trial.passed and trial.cps.value is not None and (large.value is None or trial.cps.value < large.value)
    ]
    return trials[min(cheaper)[1]] if cheaper else None


def _why(
    trials: Sequence[Trial], chosen: Trial | None, calls: Sequence[_Call], large: Figure, settings: Settings
) -> str:
    n, right = len(calls), sum(call.correct for call in calls)
    points = f"{100 * settings.margin:g} points"
    if chosen is not None:
        cost = (
            ""
            if not large.value or chosen.cps.value is None
            else f", at {chosen.cps.value / large.value:.1%} of its cost"
        )
        return (
            f"{_name(chosen)} is right on {_share(chosen)} calls, the large model on {right} of {n}: worse by less "
            f"than {points} (p = {chosen.p:.2g}){cost}."
        )
    if not calls:
        return "Stay with the large model: its answers are not recorded, or are free texts that cannot be compared."
    if not trials:
        return "Stay with the large model: no candidate could be tried."
    if any(trial.passed for trial in trials):
        return "Stay with the large model: those that are as good cost as much, or their price is unknown."
    best = max(trials, key=lambda trial: (trial.accuracy.value or 0.0, trial.name))
    needed = least_calls(settings.margin, settings.level / len(trials))
    few = f" {n} calls are too few to show it; {needed} could, without a loss among them." if n < needed else ""
    return (
        f"Stay with the large model: none is shown to be worse by less than {points}. {_name(best)} is best, right on "
        f"{_share(best)} calls; the large model is on {right} of {n}.{few}"
    )


def _name(trial: Trial) -> str:
    return f"{trial.name} ({trial.prompting})"


def _share(trial: Trial) -> str:
    return f"{round((trial.accuracy.value or 0.0) * trial.calls)} of {trial.calls}"


def _key(*parts: Any) -> str:
    return hashlib.sha256(msgspec.json.encode(parts, order="deterministic")).hexdigest()[:16]


class _Counted:
    """Tells how far a candidate is, among all of them."""

    def __init__(self, progress: Progress, name: str, place: int, candidates: int, calls: int) -> None:
        self._progress, self._name, self._calls = progress, name, calls
        self._before, self._total = place * len(PROMPTINGS) * calls, candidates * len(PROMPTINGS) * calls

    def at(self, prompting: Prompting, done: int) -> None:
        before = self._before + PROMPTINGS.index(prompting) * self._calls
        self._progress(f"{self._name}, {prompting}", before + done, self._total)


class _Line(msgspec.Struct, frozen=True):
    key: str
    asked: Asked


class _Journal:
    """The answers so far, a line each; one that was cut off by a crash is left out, and the next begins a new line.

    Raises DataError when the file cannot be read or written.
    """

    def __init__(self, folder: Path | None) -> None:
        self._path = None if folder is None else folder / JOURNAL
        self._known: dict[tuple[str, str], Asked] = {}
        if self._path is None or not self._path.exists():
            return
        with self._reachable(self._path):
            for line in self._path.read_bytes().splitlines():
                with suppress(msgspec.DecodeError):
                    made = msgspec.json.decode(line, type=_Line)
                    self._known[made.key, made.asked.id] = made.asked

    def get(self, key: str, call: str) -> Asked | None:
        return self._known.get((key, call))

    def add(self, key: str, asked: Asked) -> None:
        if self._path is None:
            return
        with self._reachable(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab") as file:
                file.write(b"\n" + msgspec.json.encode(_Line(key, asked)))

    @contextmanager
    def _reachable(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DataError(f"The answers cannot be kept in {path}: {error.strerror or error}.") from error
