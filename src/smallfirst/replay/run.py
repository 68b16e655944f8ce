"""Fit on some recorded calls, decide the others, and measure what came of it.

Features, repairs and verdicts come from the real cascade run in shadow; a calibrator and its threshold are certified on
the labels of one part; the other part then goes through the real router and cascade, and its labels are read only to
score what was decided.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from smallfirst import quality
from smallfirst.acceptance import Acceptance, Beside, Costs, certify
from smallfirst.budget import Allowance
from smallfirst.cascade import Cascade
from smallfirst.confidence import features, request_features
from smallfirst.config import Policy
from smallfirst.errors import CalibrationError, ConfigError, DataError
from smallfirst.replay.calls import TASK, Call
from smallfirst.replay.models import PerCall, Prices, Recorded
from smallfirst.replay.policies import Facts, Results, baselines
from smallfirst.router import Candidate, promising, route, without_small
from smallfirst.types import Attempt, Completion, Request, Route, Stage, Verdict
from smallfirst.validators import validate

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
LABEL = "recorded 'correct'"
_MEASURED = 500
_POLICY = Policy(stages=("small", "large"), repairs=0, constraint="free")


@dataclass(frozen=True, slots=True)
class Settings:
    """What is replayed. `alpha` None: the threshold is the cheapest, a wrong answer priced as `failure_cost` calls of
    the large model; nothing is promised then, but its exact bound on the labels is told. `horizon`: certify `alpha`
    for the calls of the test part themselves rather than for the rate behind them (`guarantee.learn_then_test`).
    Raises ConfigError when one model is named twice."""

    small: str
    large: str
    second: str | None = None
    alpha: float | None = None
    delta: float = 0.05
    splits: int = 50
    seed: int = 0
    small_cost_ratio: float = 0.05
    failure_cost: float = 10.0
    horizon: bool = False

    def __post_init__(self) -> None:
        if len(set(self.models)) < len(self.models):
            raise ConfigError(
                f"The models are {', '.join(map(repr, self.models))}.",
                hint="Name different ones as small, second and large.",
            )

    @property
    def models(self) -> tuple[str, ...]:
        second = () if self.second is None else (self.second,)
        return (self.small, *second, self.large)


@dataclass(frozen=True, slots=True)
class Split:
    """One fit and test: what was decided on the test calls `index`, and how well confidence told right from wrong.

    Where the labels were too few to calibrate on there is no `acceptance`, and the large model answered everything.
    """

    index: Indices
    ours: Results
    baselines: Mapping[str, Results]
    acceptance: Acceptance | None
    ece: float | None = None
    auroc: float | None = None


@dataclass(frozen=True, slots=True, repr=False)  # asyncio.run makes the repr of what it returns
class Replay:
    """All splits of a replay over `calls`, with their facts. `decision_ms`: see the function of that name."""

    settings: Settings
    calls: Sequence[Call]
    facts: Facts
    splits: tuple[Split, ...]
    prices: Prices
    fitted_on: int
    decision_ms: float


@dataclass(slots=True)
class Bench:
    """Recorded calls, their models as stages, and what the cascade makes of each small answer: `small` are the
    attempts, `beside` the second model's to the same calls, None where it was not asked."""

    calls: Sequence[Call]
    settings: Settings
    prices: Prices = field(init=False)
    cascade: Cascade = field(init=False)
    stages: Mapping[str, Stage] = field(init=False)
    small: list[Attempt] = field(init=False, default_factory=list)
    beside: list[Attempt | None] = field(init=False, default_factory=list)
    facts: Facts = field(init=False)
    _outcomes: dict[tuple[int, str, bool, bool], tuple[float, ...]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        settings, calls = self.settings, self.calls
        self.prices = Prices(calls, settings.models, settings.large, settings.small_cost_ratio)
        self.stages = {model: self._stage(model) for model in settings.models}
        self.cascade = Cascade(partial(_check, settings.large), lambda _: None, PerCall(), time.monotonic)

    async def prepare(self) -> None:
        """Run each small answer, the second model's beside it, through the cascade in shadow; collect the facts."""
        small, others = self.stages[self.settings.small], self._others()
        for call in self.calls:
            made = await self.cascade.shadow(small, call.request, Allowance(0.0), others)
            self.small.append(made[0])
            self.beside.append(made[1] if len(made) > 1 else None)
        self.facts = self._facts()

    def rows(self, index: Indices) -> list[Mapping[str, float]]:
        """The features of those calls."""
        return [self.small[i].features for i in index]

    def others(self, index: Indices) -> list[Beside]:
        """The second model's valid answers to those calls, labelled."""
        made = [
            (n, i, beside) for n, i in enumerate(index) if (beside := self.beside[i]) is not None and beside.features
        ]
        if not made:
            return []
        rows, correct = [beside.features for _, _, beside in made], self.facts.second_right[[i for _, i, _ in made]]
        return [Beside(made[0][2].stage, rows, correct, [n for n, _, _ in made])]

    def offered(self, index: Indices, judge: Acceptance) -> tuple[Floats, NDArray[np.bool_]]:
        """The confidence in the answer that each of those calls would be offered, and whether that is right."""
        own, surer = self._sure(index, judge)
        facts = self.facts.part(index)
        return np.maximum(own, surer), np.where(surer > own, facts.second_right, facts.small_right)

    def _sure(self, index: Indices, judge: Acceptance) -> tuple[Floats, Floats]:
        """The confidences in the small answers, and in the second model's where they are other ones (else 0)."""
        other = np.zeros(len(index))
        beside = {n: made for n, i in enumerate(index) if (made := self.beside[i]) is not None and made.features}
        apart = [n for n, made in beside.items() if made.features.get("agree", 0.0) < 1]
        if apart and (model := judge.others.get(beside[apart[0]].stage)) is not None:
            other[apart] = model.confidences([beside[n].features for n in apart])
        return judge.model.confidences(self.rows(index)), other

    async def decide(self, index: Indices, acceptance: Acceptance | None) -> Results:
        """The real router and cascade over those calls. Without a certified threshold the large model answers.

        Recorded answers do not change between splits, so a call's outcome follows from its route and from whether the
        answer's confidence reaches the threshold: each of these is run once.
        """
        certified = acceptance if acceptance is not None and math.isfinite(acceptance.threshold) else None
        sure = np.zeros((2, len(index))) if certified is None else np.stack(self._sure(index, certified))
        results = [await self._outcome(int(i), certified, *sure[:, n]) for n, i in enumerate(index)]
        return Results(*(np.array(column, dtype=float) for column in zip(*results, strict=True)))

    def plan(self, call: Call, acceptance: Acceptance | None) -> Route:
        """The route of a call, as the gateway plans it for a task with this calibration, but without exploring."""
        candidates = [Candidate(self.stages[model]) for model in (self.settings.small, self.settings.large)]
        plan = route(call.request, TASK, _POLICY, candidates, calibrator=acceptance, others=self._others())
        if acceptance is None or acceptance.expects is None:
            return plan
        expected = acceptance.expected_acceptance(request_features(call.request))
        return plan if promising(acceptance.costs, expected) else without_small(plan)

    async def _outcome(self, i: int, acceptance: Acceptance | None, own: float, surer: float) -> tuple[float, ...]:
        plan = self.plan(self.calls[i], acceptance)
        key = (i, plan.reason, surer > own, acceptance is not None and max(own, surer) >= acceptance.threshold)
        if key not in self._outcomes:
            self._outcomes[key] = await self._run(i, plan)
        return self._outcomes[key]

    async def _run(self, i: int, plan: Route) -> tuple[float, ...]:
        """What came of a call, in the order of `Results`."""
        outcome = await self.cascade.run(plan, self.calls[i].request, Allowance(0.0))
        served = None if outcome.served is None else outcome.attempts[outcome.served]
        accepted = outcome.decision == "accept"
        right = served is not None and self._right_of(served.stage)[i]
        escalated = any(not a.small for a in outcome.attempts)
        cost = sum(a.cost_usd or 0.0 for a in outcome.attempts)
        return float(right), cost, float(escalated), float(accepted), float(accepted and not right)

    def _right_of(self, model: str) -> NDArray[np.bool_]:
        facts, settings = self.facts, self.settings
        return {settings.small: facts.small_right, settings.large: facts.large_right}.get(model, facts.second_right)

    def _others(self) -> tuple[Stage, ...]:
        return () if self.settings.second is None else (self.stages[self.settings.second],)

    def _stage(self, model: str) -> Stage:
        answers = {call.id: call.answers[model] for call in self.calls}
        backend = Recorded(model, answers, self.prices.usages(model, self.calls))
        return Stage(model, backend, model, small=model != self.settings.large)

    def _facts(self) -> Facts:
        settings, ids = self.settings, [call.id for call in self.calls]

        def cost(model: str | None) -> Floats:
            return np.zeros(len(ids)) if model is None else np.array([self.prices.usd[model][i] for i in ids])

        pairs = zip(self.calls, self.small, strict=True)
        return Facts(
            small_right=np.array([_right(call, settings.small, attempt) for call, attempt in pairs]),
            small_valid=np.array([a.completion is not None and a.verdict.ok for a in self.small]),
            second_right=np.array(
                [a is not None and _right(c, a.stage, a) for c, a in zip(self.calls, self.beside, strict=True)]
            ),
            large_right=np.array([call.answers[settings.large].correct for call in self.calls]),
            agrees=np.array([a.features.get("agree", 0.0) == 1.0 for a in self.small]),
            small_cost=cost(settings.small),
            second_cost=cost(settings.second),
            large_cost=cost(settings.large),
        )


def run(
    calls: Sequence[Call],
    settings: Settings,
    fit_on: Sequence[Call] | None = None,
    progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> Replay:
    """Replay `calls`: fitted on the calls `fit_on`, or on random halves, `settings.splits` times.

    A split with too few labels to calibrate on accepts nothing. Raises CalibrationError where all splits have too few,
    DataError where the small model's labels are all of one kind.
    """
    return asyncio.run(_run(calls, settings, fit_on, progress))


async def _run(
    calls: Sequence[Call],
    settings: Settings,
    fit_on: Sequence[Call] | None,
    progress: Callable[[int, int], None],
) -> Replay:
    every = [*(fit_on or ()), *calls]
    bench = Bench(every, settings)
    await bench.prepare()
    parts = list(halves(len(every), settings) if fit_on is None else [_given(len(fit_on), len(every))])
    _check_labels(bench.facts.small_right[: len(fit_on or every)], settings.small)
    splits, refusals = [], list[CalibrationError]()
    for done, (fit_index, test_index) in enumerate(parts):
        progress(done, len(parts))
        try:
            acceptance: Acceptance | None = certified(bench, fit_index, len(test_index))
        except CalibrationError as error:
            acceptance = None
            refusals.append(error)
        splits.append(await _split(bench, test_index, acceptance))
    progress(len(parts), len(parts))
    used = next((split.acceptance for split in splits if split.acceptance is not None), None)
    if used is None:
        raise refusals[0]
    spent = decision_ms(bench, used)
    return Replay(settings, every, bench.facts, tuple(splits), bench.prices, len(parts[0][0]), spent)


async def _split(bench: Bench, index: Indices, acceptance: Acceptance | None) -> Split:
    ours, facts = await bench.decide(index, acceptance), bench.facts.part(index)
    simple = baselines(facts, ours, with_second=bench.settings.second is not None)
    if acceptance is None:
        return Split(index, ours, simple, None)
    confidence, right = bench.offered(index, acceptance)
    ece = quality.expected_calibration_error(confidence, right)
    return Split(index, ours, simple, acceptance, ece, quality.auroc(confidence, right))


def decision_ms(bench: Bench, acceptance: Acceptance) -> float:
    """CPU milliseconds a call that deciding takes, as the cascade decides: its route, the features of the small
    answers, the confidence in each that says something of its own, and the comparison with the threshold. Asking the
    models, validating and mending are not in it."""
    some = range(min(len(bench.calls), _MEASURED))
    started = time.process_time()
    for i in some:
        call, small, second = bench.calls[i], bench.small[i], bench.beside[i]
        bench.plan(call, acceptance)
        if small.completion is None:
            continue
        answers = [] if second is None or second.completion is None else [second.completion]
        sure = [acceptance.confidence(features(call.request, small.completion, small.verdict, others=answers))]
        if second is not None and second.completion is not None:
            found = features(call.request, second.completion, second.verdict, others=[small.completion])
            if found.get("agree", 0.0) < 1:
                sure.append(acceptance.beside(second.stage, found) or 0.0)
        _ = max(sure) >= acceptance.threshold
    return 1e3 * (time.process_time() - started) / len(some)


def _costs(known: Facts, failure_cost: float) -> Costs:
    """What a call costs on average, the second model asked beside valid small answers."""
    small = known.small_cost + known.second_cost * known.small_valid
    large = float(known.large_cost.mean())
    return Costs(small_usd=float(small.mean()), large_usd=large, failure_usd=failure_cost * large)


def certified(bench: Bench, index: Indices, tested: int) -> Acceptance:
    """What is learned from the labels of the calls `index`, to decide `tested` others.

    Raises CalibrationError where the labels are too few.
    """
    settings, known = bench.settings, bench.facts.part(index)
    return certify(
        bench.rows(index),
        known.small_right,
        groups=[bench.calls[i].id for i in index],
        others=bench.others(index),
        valid=known.small_valid,
        large_wrong=~known.large_right,
        task=TASK,
        stage=settings.small,
        label=LABEL,
        alpha=settings.alpha,
        delta=settings.delta,
        horizon=tested if settings.horizon else None,
        costs=_costs(known, settings.failure_cost),
        seed=settings.seed,
        made_at=time.time(),
    )


def halves(n: int, settings: Settings) -> Iterator[tuple[Indices, Indices]]:
    """Random halves of n calls, to fit on and to test on."""
    rng = np.random.default_rng(settings.seed)
    for _ in range(settings.splits):
        order = rng.permutation(n)
        yield np.sort(order[: n // 2]), np.sort(order[n // 2 :])


def _given(fitted: int, n: int) -> tuple[Indices, Indices]:
    return np.arange(fitted), np.arange(fitted, n)


def _check_labels(right: NDArray[np.bool_], model: str) -> None:
    if right.all() or not right.any():
        kind = "right" if right.all() else "wrong"
        raise DataError(
            f"answers.{model}.correct: all {len(right)} labels to fit on are {kind}.",
            hint="A calibrator needs answers of both kinds; give other calls, or another small model.",
        )


def _right(call: Call, model: str, attempt: Attempt) -> bool:
    if attempt.completion is None or not attempt.completion.choices:
        return False
    return call.right(model, attempt.completion.choices[0])


def _check(large: str, request: Request, completion: Completion) -> Verdict:
    """A small model's answer is validated; the large one's is taken as given, as it would be without smallfirst."""
    return Verdict() if completion.model == large else validate(completion, request)
