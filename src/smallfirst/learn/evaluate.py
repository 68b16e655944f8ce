"""Stage: what a specialist is worth on calls that it has not seen, through the cascade that the gateway runs.

The calibration split teaches the calibrator and certifies from which confidence answers are accepted (training looked
at its loss, to keep the best of a few adapters); the test split only reports. Each arm (`evaluation.ARMS`) is a route
through the same cascade, with the policy of the task: the same validators, constraint, repairs and evidence. The large
model is a configured one or, without, its own recorded answers at their recorded cost and time.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec
from msgspec.structs import replace

from smallfirst.acceptance import Acceptance
from smallfirst.assemble import Assembly
from smallfirst.budget import Allowance
from smallfirst.cascade import Cascade, Outcome
from smallfirst.confidence import request_features
from smallfirst.config import Policy
from smallfirst.energy import Meter
from smallfirst.errors import ConfigError, DataError, SmallfirstError
from smallfirst.labels import Kind, Label
from smallfirst.learn import calibrate, usable
from smallfirst.learn.asking import Asked, Question, ask, choice, most_tokens, question, unasked
from smallfirst.learn.card import Folder
from smallfirst.learn.dataset import Row
from smallfirst.learn.evaluation import ARMS, Arm, ArmResult, Evaluation, Settings, result_of
from smallfirst.learn.examples import Examples
from smallfirst.learn.past import RECORDED, Clock, Past, PastModel, PastPricing, answers_of
from smallfirst.registry import Version
from smallfirst.router import Candidate, promising, route, without_small
from smallfirst.types import Attempt, Mode, Request, Route, Stage, total_usd

Progress = Callable[[str, int, int], None]
"""Called with what is being asked, calls done and calls in all."""

_KINDS: dict[usable.Kind, Kind] = {"feedback": "feedback", "execution": "execution", "large": "agreement"}
_MODES: dict[Arm, Mode] = {"B0": "observe", "B1": "small_only", "B2": "small_only", "B3": "small_only", "B4": "enforce"}
_COMPARED: tuple[Arm, ...] = ("B0", "B4")
_USUAL = Settings()
_AT_ONCE = 4


async def evaluate(
    assembly: Assembly,
    data: Folder,
    version: Version,
    *,
    large: str | None = None,
    settings: Settings = _USUAL,
    progress: Progress = lambda *_: None,
) -> Evaluation:
    """Evaluate a version of the task's small model on the dataset `data`, in B1 and B2 without its adapter.

    `large` names the assembly's large model; None: what its store holds of the large model's answers to these calls.
    B1 and B2 may write at most as many tokens as the longest right answer of the dataset has bytes. Where no answer of
    a large model is recorded, B0 and B4 are left out; calls that lack one are, if others have one; the notes tell.
    Raises DataError for a dataset without test calls, ConfigError for one of another task or names that do not exist,
    ModelFileError when the version cannot be served.
    """
    began = time.time()
    bench = await _bench(assembly, data, version, large, settings)
    counted = _Counted(progress, len(bench.test) * len(bench.arms) + len(bench.calibration))
    decided: calibrate.Result | None = None
    if bench.calibration:
        sample = await bench.sample(counted.each("calibration", bench.calibration))
        decided = calibrate.result_of(sample, alpha=settings.alpha, delta=settings.delta, now=began)
    acceptance = decided.acceptance if decided else None
    arms, judged = await _arms(bench, acceptance, counted, settings)
    return Evaluation(
        task=data.card.task,
        small=version.id,
        arms=arms,
        acceptance=acceptance,
        refused=decided.refused if decided else "",
        needed=decided.needed if decided else None,
        judged=judged,
        labels=dict(Counter(row.label for row in bench.test)),
        notes=bench.notes,
        settings=settings,
        configuration={"policy": msgspec.to_builtins(bench.policy), "config": assembly.config.hash},
        parents=_parents(data, version),
        made_at=began,
        seconds=time.time() - began,
    )


async def _arms(
    bench: _Bench, acceptance: Acceptance | None, counted: _Counted, settings: Settings
) -> tuple[tuple[ArmResult, ...], tuple[tuple[float, bool], ...]]:
    """The arms' results, B0's first because the others are paired with it, and how the specialist was judged."""
    results, judged = list[ArmResult](), list[tuple[float, bool]]()
    large: dict[str, Asked] = {}
    for arm in bench.arms:
        meter = Meter.start()
        made = [await bench.ask(arm, row, acceptance) for row in counted.each(arm, bench.test)]
        joules, calls = None if arm == "B0" else meter.joules(), [asked for asked, _ in made]
        if arm == "B0":
            large = {call.id: call for call in calls}
        if arm == "B3" and acceptance is not None:
            judged = [pair for each in made if (pair := bench.judged(*each, acceptance)) is not None]
        results.append(result_of(arm, bench.model(arm), calls, large, settings, certain=bench.certain, joules=joules))
    return tuple(results), tuple(judged)


def _parents(data: Folder, version: Version) -> dict[str, str]:
    """sha256 of the dataset's card, the adapter and its base model, as far as there are such."""
    sums = {"dataset": data.sha256, "adapter": version.adapter_sha256, "base": version.base_sha256}
    return {name: found for name, found in sums.items() if found}


class _Counted:
    """Tells how far the calls are."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._done, self._total = progress, 0, total

    def each(self, what: str, rows: Sequence[Row]) -> Iterator[Row]:
        for row in rows:
            self._progress(what, self._done, self._total)
            yield row
            self._done += 1
        self._progress(what, self._done, self._total)


async def _bench(assembly: Assembly, data: Folder, version: Version, large: str | None, settings: Settings) -> _Bench:
    """The parts, with what can be run of what is wanted."""
    _check(assembly, data, version, large, settings)
    task, notes, arms = data.card.task, list[str](), tuple(arm for arm in ARMS if arm in settings.arms)
    if version.adapter and data.sha256 not in version.parents:
        notes.append("The adapter was trained on another dataset: it may have seen calls of this test split.")
    if "B2" in arms:
        notes.append("B1 and B2 may write as many tokens as the longest right answer has bytes.")
    test, calibration = data.splits["test"][-settings.limit :], data.splits["calibration"][-settings.labels :]
    past = await answers_of(assembly.store, [*test, *calibration])
    compared = [arm for arm in arms if arm in _COMPARED]
    if large is None and compared:
        known = tuple(row for row in test if row.id in past)
        if not known:
            notes.append(f"{' and '.join(compared)} left out: no answer of a large model to these calls is recorded.")
            arms = tuple(arm for arm in arms if arm not in compared)
        elif len(known) < len(test):
            notes.append(f"{len(test) - len(known)} test calls left out: no answer of a large model is recorded.")
        test = known or test
        if known and not any(past[row.id].seconds for row in known):
            notes.append("The records do not tell how long the large model took, so times count none for it.")
    clock = Clock()
    policy, cascade = assembly.config.policy(task), assembly.cascades.get(task, assembly.cascades[""])
    return _Bench(
        task=task,
        arms=arms,
        test=test,
        calibration=calibration if "B4" in arms else (),
        small=(await assembly.versions.load(version)).stage,
        base=version.base,
        large=_past_stage(past, clock) if large is None else _live_stage(assembly, large, data),
        others=tuple(assembly.candidates[name].stage for name in policy.others),
        policy=policy,
        cascade=replace(cascade, pricing=PastPricing(cascade.pricing), clock=clock),
        past=past,
        examples=Examples(data.splits["train"]) if "B2" in arms else None,
        shown=settings.examples,
        most_tokens=most_tokens(data),
        notes=tuple(notes),
    )


def _past_stage(past: Mapping[str, Past], clock: Clock) -> Stage:
    named = Counter(each.model for each in past.values()).most_common(1)
    return Stage(RECORDED, PastModel(past, clock), named[0][0] if named else RECORDED)


def _live_stage(assembly: Assembly, large: str, data: Folder) -> Stage:
    """The large model; one of a server that is asked for whatever clients name is the one that most calls named."""
    stage = assembly.candidates[large].stage
    return stage if stage.model else replace(stage, model=max(data.card.models, key=lambda m: data.card.models[m]))


def _check(assembly: Assembly, data: Folder, version: Version, large: str | None, settings: Settings) -> None:
    task = data.card.task
    if other := {version.task, str(version.recipe.get("task", task))} - {task}:
        raise ConfigError(
            f"{version.id} was made for the task {other.pop()!r}; the dataset is of {task!r}.",
            hint="Name the adapter and the dataset of one task.",
        )
    if not data.splits["test"]:
        raise DataError(f"The dataset of the task {task!r} has no test calls.", hint="Make it again from more calls.")
    asked = [*([] if large is None else [large]), *assembly.config.policy(task).others]
    if missing := [name for name in asked if name not in assembly.candidates]:
        raise ConfigError(f"There is no model {missing[0]!r}.", hint=f"Configured: {', '.join(assembly.candidates)}.")
    if unknown := [arm for arm in settings.arms if arm not in ARMS]:
        raise ConfigError(f"Unknown arms: {', '.join(unknown)}.", hint=f"Allowed: {', '.join(ARMS)}.")


@dataclass(frozen=True, slots=True)
class _Bench:
    """What is asked and what answers. `small` is the version's stage, `base` the name of what its adapter is on; `past`
    are the recorded answers of the large model, `shown` is the number of examples in B2."""

    task: str
    arms: tuple[Arm, ...]
    test: Sequence[Row]
    calibration: Sequence[Row]
    small: Stage
    base: str
    large: Stage
    others: tuple[Stage, ...]
    policy: Policy
    cascade: Cascade
    past: Mapping[str, Past]
    examples: Examples | None
    shown: int
    most_tokens: int
    notes: tuple[str, ...]

    @property
    def certain(self) -> bool:
        """Whether B0 is right by definition: its recorded answers are those that the dataset takes for right."""
        known = [self.past.get(row.id) for row in self.test]
        return self.large.name == RECORDED and all(past is not None and past.taken for past in known)

    def model(self, arm: Arm) -> str:
        """What the arm's answers are by."""
        names = {"B0": self.large.model, "B3": self.small.name, "B4": f"{self.small.name}, {self.large.model}"}
        return names.get(arm, self.base)

    async def ask(self, arm: Arm, row: Row, acceptance: Acceptance | None) -> tuple[Asked, Outcome | None]:
        """The row's call, answered as the arm would."""
        asked = self._question(arm, row)
        try:
            plan = self._plan(arm, asked.request, acceptance)
        except SmallfirstError as error:  # no model of the arm is capable of the call
            return unasked(asked, error.code), None
        return await ask(self.cascade, plan, asked, self.policy)

    async def sample(self, rows: Iterable[Row]) -> calibrate.Sample:
        """The specialist's labelled answers to the calls, as the gateway records them in shadow. Some calls are asked
        at once: nobody looks at how long these take, and an engine reads its weights once for all of them."""
        made: dict[int, calibrate.Row | None] = {}
        left = enumerate(rows)

        async def label() -> None:
            for n, row in left:
                made[n] = await self._labelled(self._question("B4", row))

        labelling = [asyncio.create_task(label()) for _ in range(_AT_ONCE)]
        try:
            await asyncio.gather(*labelling)
        finally:
            for task in labelling:
                task.cancel()
        labelled = [row for _, row in sorted(made.items()) if row is not None]
        return calibrate.Sample(
            self.task, self.small.name, self.small.model, rows=labelled, unlabelled=len(made) - len(labelled)
        )

    def judged(self, asked: Asked, outcome: Outcome | None, acceptance: Acceptance) -> tuple[float, bool] | None:
        """The specialist's answer as (confidence, right); None where nobody can tell, or where confidence needs the
        evidence of other answers, which a specialist alone has not."""
        if outcome is None or asked.correct is None or self.policy.others or self.policy.samples:
            return None
        last = outcome.attempts[-1]
        return acceptance.confidence(last.features) if last.verdict.ok and last.features else 0.0, asked.correct

    def _question(self, arm: Arm, row: Row) -> Question:
        shown = self.examples.nearest(row, self.shown) if arm == "B2" and self.examples else ()
        return question(self.task, row, shown, self.most_tokens if arm in ("B1", "B2") else None)

    def _plan(self, arm: Arm, request: Request, acceptance: Acceptance | None) -> Route:
        """The route of a call, as the gateway plans it, but without exploring."""
        specialist, large = Candidate(self.small), Candidate(self.large)
        bare = Candidate(replace(self.small, adapter=None))
        candidates = {"B0": [large], "B1": [bare], "B2": [bare], "B3": [specialist], "B4": [specialist, large]}[arm]
        accepting = acceptance if acceptance is not None and math.isfinite(acceptance.threshold) else None
        policy = self._policy(_MODES[arm])
        plan = route(request, self.task, policy, candidates, calibrator=accepting, others=self.others)
        if accepting is None or plan.calibrator is None or accepting.expects is None:
            return plan
        expected = accepting.expected_acceptance(request_features(request))
        return plan if promising(accepting.costs, expected) else without_small(plan)

    def _policy(self, mode: Mode, *, shadow: bool = False) -> Policy:
        return replace(self.policy, mode=mode, accept_uncalibrated=False, shadow=shadow)

    async def _labelled(self, asked: Question) -> calibrate.Row | None:
        """The specialist's answer with its label; None without an answer, or where nothing tells if it is right."""
        candidates = [Candidate(self.small), Candidate(self.large)]
        try:
            observing = self._policy("observe", shadow=True)
            plan = route(asked.request, self.task, observing, candidates, others=self.others)
        except SmallfirstError:
            return None
        attempts: list[Attempt] = []
        for stage in plan.shadow:
            allowance = Allowance(self.cascade.clock(), self.policy.max_usd, self.policy.max_seconds)
            attempts += await self.cascade.shadow(stage, asked.request, allowance, plan.others)
        last = next((a for a in reversed(attempts) if a.decision == "shadow" and a.features), None)
        right = None if last is None else asked.right(choice(last))
        if last is None or right is None:
            return None
        past = self.past.get(asked.row.id)
        return calibrate.Row(
            record=asked.row.id,
            features=last.features,
            label=Label(right, _KINDS[asked.row.label]),
            valid=last.verdict.ok,
            episode=asked.row.episode,
            decided="shadow",
            chance=1.0,
            small_usd=total_usd(a.cost_usd for a in attempts),
            large_usd=None if past is None else past.usd,
        )
