"""The questions as requests, the models as stages of the real cascade, and the asking: one engine at a time."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec

from live.recorded import Meter, Recorder, Taken, Unasked
from smallfirst import bfcl
from smallfirst.assemble import StagePricing
from smallfirst.backends.fake import FakeBackend
from smallfirst.backends.toolprompt import constraint_schema
from smallfirst.bfcl import Question
from smallfirst.budget import Allowance
from smallfirst.cascade import Cascade
from smallfirst.config import Config, ModelConfig
from smallfirst.types import Attempt, Backend, Completion, ConstraintMode, Origin, Request, Route, Stage, Verdict
from smallfirst.validators import validate
from smallfirst.wire import WIRES

TASK = "bfcl"
MODES: tuple[ConstraintMode, ...] = get_args(ConstraintMode)
STRATA = (
    *bfcl.STRATA,
    ("simple_python",),
    ("multiple",),
    ("parallel", "parallel_multiple"),
    ("irrelevance",),
)
"""Live and non-live questions of the same four kinds."""
ToolChoice = Literal["auto", "required"]
MAX_TOKENS = 256
TIMEOUT_S = 300.0
CHUNK = 8
"""Questions that a model answers in a row before the next one is loaded: a run cut off has some of all models."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What is asked of whom. `smalls` and `large` are names of `backends`; the first `compared` questions are asked in
    every mode, the others in `mode` only, where small models give `samples` more answers too."""

    smalls: tuple[str, ...]
    large: str
    work: Path
    tool_choice: ToolChoice = "auto"
    mode: ConstraintMode = "constrained"
    compared: int = 0
    samples: int = 2
    temperature: float = 0.7
    repairs: int = 1
    usd_per_hour: float = 0.10

    @property
    def models(self) -> tuple[str, ...]:
        return (*self.smalls, self.large)

    def second(self, small: str) -> str | None:
        """The other small model, whose agreement is looked at."""
        return next((name for name in self.smalls if name != small), None)


def draw(wheel: Path, n: int, seed: int, longest: int, tool_choice: ToolChoice) -> tuple[Question, ...]:
    """`n` questions in equal numbers of each of `STRATA`, none with more than `longest` characters of functions, and
    where calls are required none that wants no call. The first of them are the same for every n."""
    strata = [each for each in STRATA if tool_choice == "auto" or not any("irrelevance" in name for name in each)]
    questions = bfcl.load(wheel, [category for stratum in strata for category in stratum])
    short = [q for q in questions if len(msgspec.json.encode(q.functions)) <= longest]
    return bfcl.sample(short, n, seed, strata)


def to_request(question: Question, tool_choice: ToolChoice) -> Request:
    """The question as a client's call."""
    body = {
        "model": "auto",
        "messages": question.messages,
        "tools": bfcl.tools(question.functions),
        "tool_choice": tool_choice,
        "temperature": 0,
        "max_tokens": MAX_TOKENS,
    }
    return WIRES["chat"].parse(msgspec.json.encode(body), Origin(task=TASK, episode=question.id))


def right(question: Question, attempt: Attempt) -> bool:
    """BFCL's verdict on an attempt's answer, valid or not; none is wrong."""
    if attempt.completion is None:
        return False
    calls = attempt.completion.choices[0].tool_calls
    return bfcl.score(calls, question.gold, question.functions, question.category).correct


@dataclass(frozen=True, slots=True)
class Answer:
    """A stage's attempts at a question, with other stages' evidence, and what each answer took."""

    attempts: tuple[Attempt, ...]
    taken: tuple[Taken, ...]

    @property
    def first(self) -> Attempt:
        return self.attempts[0]

    @property
    def last(self) -> Attempt:
        """The attempt that the stage ends with, repairs included."""
        return [attempt for attempt in self.attempts if attempt.decision != "evidence"][-1]


@dataclass(slots=True)
class Bench:
    """The questions and the models' stages, each answering from its records, and from its model while that runs.

    `nobody`, a backend that is not started, stands where a larger model would: an answer is then repaired as in a
    cascade, which takes what its last stage was cut off at for an answer.
    """

    settings: Settings
    questions: Sequence[Question]
    backends: Mapping[str, Backend]
    meter: Meter = field(default_factory=Meter)
    requests: Mapping[str, Request] = field(init=False)
    cascade: Cascade = field(init=False)
    nobody: Stage = field(init=False)
    _answers: dict[tuple[Any, ...], dict[str, Answer]] = field(init=False, default_factory=dict)
    _recorders: dict[tuple[str, ConstraintMode, int], Recorder] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.requests = {q.id: to_request(q, self.settings.tool_choice) for q in self.questions}
        stages = {self._label(name, n) for name in self.settings.models for n in range(self.settings.samples + 1)}
        config = Config(
            models={label: ModelConfig(backend="llamacpp", weights=label) for label in stages},
            machine_usd_per_hour=self.settings.usd_per_hour,
        )
        self.cascade = Cascade(_check, constraint_schema, StagePricing(config), self.meter)
        self.nobody = Stage("nobody", FakeBackend("nobody"), "nobody")

    def stage(self, model: str, mode: ConstraintMode, sample: int = 0, *, small: bool = True) -> Stage:
        """A model as a stage, `small` if its answers are to be checked; `sample` n: its n-th further answer."""
        key = (model, mode, sample)
        if key not in self._recorders:
            label = self._label(model, sample)
            path = self.settings.work / f"{label}.{mode}.jsonl"
            self._recorders[key] = Recorder(label, path, self.backends[model].capabilities, self.meter)
        return Stage(
            name=self._label(model, sample),
            backend=self._recorders[key],
            model=model,
            small=small,
            repairs=0 if model == self.settings.large else self.settings.repairs,
            constraint=mode,
            temperature=self.settings.temperature if sample else None,
            timeout_s=TIMEOUT_S,
        )

    def samples(self, model: str) -> tuple[Stage, ...]:
        """The stages of a model's further answers."""
        count = 0 if model == self.settings.large else self.settings.samples
        return tuple(self.stage(model, self.settings.mode, n) for n in range(1, count + 1))

    async def answer(self, stage: Stage, question: Question, others: tuple[Stage, ...] = ()) -> Answer:
        """What the cascade makes of the stage's answer. Raises Unasked for what no record and no running model has."""
        start = len(self.meter.log)
        route = Route(TASK, "enforce", (stage, self.nobody), others=others)
        outcome = await self.cascade.run(route, self.requests[question.id], Allowance(self.meter()))
        made = tuple(attempt for attempt in outcome.attempts if attempt.stage != self.nobody.name)
        return Answer(made, tuple(self.meter.log[start:]))

    async def known(self, stage: Stage, others: tuple[Stage, ...] = ()) -> Mapping[str, Answer]:
        """By question, the answers that are recorded; to be asked for once no model is running."""
        key = (stage.name, stage.constraint, stage.repairs, stage.small, *(other.name for other in others))
        if key not in self._answers:
            found = self._answers[key] = {}
            for question in self.questions:
                with suppress(Unasked):
                    found[question.id] = await self.answer(stage, question, others)
        return self._answers[key]

    async def ask(self, minutes: float, progress: Callable[[int, int, str], None]) -> None:
        """Ask what is not recorded, for so many minutes; `progress` is told how many are done, of all, and of whom."""
        units = self._units()
        total, done = sum(len(questions) for _, _, questions in units), 0
        until = time.monotonic() + 60 * minutes
        for model, mode, questions in units:
            stage, others = self.stage(model, mode), self.samples(model) if mode == self.settings.mode else ()
            missing = [question for question in questions if not await self._has(stage, question, others)]
            done += len(questions) - len(missing)
            progress(done, total, f"{model}, {mode}")
            if not missing or time.monotonic() >= until:
                continue
            async with self._running(model, (stage, *others)):
                for question in missing:
                    if time.monotonic() >= until:
                        break
                    await self.answer(stage, question, others)
                    done += 1
                    progress(done, total, f"{model}, {mode}")

    def _units(self) -> Sequence[tuple[str, ConstraintMode, Sequence[Question]]]:
        """Who is asked what, in which order: by chunk of questions all models, and modes after the main one."""
        units: list[tuple[str, ConstraintMode, Sequence[Question]]] = []
        for start in range(0, len(self.questions), CHUNK):
            for mode in sorted(MODES, key=lambda mode: mode != self.settings.mode):
                last = len(self.questions) if mode == self.settings.mode else self.settings.compared
                chunk = self.questions[start : min(start + CHUNK, last)]
                units += [(model, mode, chunk) for model in self.settings.models if chunk]
        return units

    async def _has(self, stage: Stage, question: Question, others: tuple[Stage, ...]) -> bool:
        try:
            await self.answer(stage, question, others)
        except Unasked:
            return False
        return True

    @asynccontextmanager
    async def _running(self, model: str, stages: Sequence[Stage]) -> AsyncIterator[None]:
        """The model started afresh for these stages: no mode finds the prompts of another in its cache."""
        backend, recorders = self.backends[model], [self._recorder(stage) for stage in stages]
        await backend.start()
        try:
            for recorder in recorders:
                recorder.live = backend
            yield
        finally:
            for recorder in recorders:
                recorder.live = None
            await backend.close()

    @staticmethod
    def _recorder(stage: Stage) -> Recorder:
        assert isinstance(stage.backend, Recorder)
        return stage.backend

    @staticmethod
    def _label(model: str, sample: int) -> str:
        return f"{model}~{sample}" if sample else model


def _check(request: Request, completion: Completion) -> Verdict:
    return validate(completion, request)
