"""Fit on some recorded calls, decide the others, and measure what came of it.

Features, repairs and verdicts come from the real cascade run in shadow; a calibrator and its threshold are certified on
the labels of one part; the other part then goes through the real router and cascade, and its labels are read only to
score what was decided.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smallfirst import calibration
from smallfirst.acceptance import Acceptance, Costs, certify
from smallfirst.budget import Allowance
from smallfirst.calibration import Labelled
from smallfirst.cascade import Cascade
from smallfirst.confidence import features
from smallfirst.config import Policy
from smallfirst.errors import DataError
from smallfirst.replay.calls import TASK, Call
from smallfirst.replay.models import PerCall, Prices, Recorded
from smallfirst.replay.policies import Facts, Results, baselines
from smallfirst.router import Candidate, route
from smallfirst.types import Attempt, Calibrator, Completion, Request, Stage, Verdict
from smallfirst.validators import validate

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
LABEL = "recorded 'correct'"
_POLICY = Policy(stages=("small", "large"), repairs=0, constraint="free")


@dataclass(frozen=True, slots=True)
class Settings:
    """What is replayed. `alpha` None: the threshold is the cheapest, a wrong answer priced as `failure_cost` calls of
    the large model, and what it promises is the exact bound that it reaches on the labels. `horizon`: certify `alpha`
    for the calls of the test part themselves rather than for the rate behind them (`guarantee.learn_then_test`)."""

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

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(m for m in (self.small, self.second, self.large) if m is not None))


@dataclass(frozen=True, slots=True)
class Split:
    """One fit and test: what was decided on the test calls `index`, and how well confidence told right from wrong."""

    index: Indices
    ours: Results
    baselines: Mapping[str, Results]
    acceptance: Acceptance
    alpha: float
    ece: float
    auroc: float | None


@dataclass(frozen=True, slots=True)
class Replay:
    """All splits of a replay over `calls`, with their facts."""

    settings: Settings
    calls: Sequence[Call]
    facts: Facts
    splits: tuple[Split, ...]
    prices: Prices
    fitted_on: int
    decision_ms: float


@dataclass(slots=True)
class Bench:
    """Recorded calls, their models as stages, and what the cascade makes of each small answer."""

    calls: Sequence[Call]
    settings: Settings
    prices: Prices = field(init=False)
    cascade: Cascade = field(init=False)
    stages: Mapping[str, Stage] = field(init=False)
    attempts: list[Attempt] = field(init=False)
    seconds: list[Attempt] = field(init=False)
    facts: Facts = field(init=False)

    def __post_init__(self) -> None:
        settings, calls = self.settings, self.calls
        self.prices = Prices(calls, settings.models, settings.large, settings.small_cost_ratio)
        self.stages = {model: self._stage(model) for model in settings.models}
        self.cascade = Cascade(_Checks(settings.large), lambda _: None, PerCall(), time.monotonic, _Features())

    async def prepare(self) -> None:
        """Run every small answer, and the second model's, through the cascade in shadow, and collect the facts."""
        small, others = self.stages[self.settings.small], self._others()
        self.attempts, self.seconds, agrees = [], [], []
        for call in self.calls:
            made = await self.cascade.shadow(small, call.request, Allowance(0.0), others)
            self.attempts.append(made[0])
            agrees.append(made[0].features.get("agree", 0.0) == 1.0)
            for other in others:
                beside = await self.cascade.shadow(other, call.request, Allowance(0.0), (small,))
                self.seconds.append(beside[0])
        self.facts = self._facts(np.array(agrees))

    def rows(self, index: Indices) -> list[Mapping[str, float]]:
        """The features of those calls."""
        return [self.attempts[i].features for i in index]

    def more(self, index: Indices) -> Labelled | None:
        """The second model's answers to those calls, labelled: what makes an answer wrong is much the same for both."""
        second = self.settings.second
        if second is None:
            return None
        made = [(self.calls[i], self.seconds[i]) for i in index]
        correct = [_right(call, second, attempt) for call, attempt in made]
        return Labelled([attempt.features for _, attempt in made], correct, [call.id for call, _ in made])

    async def decide(self, index: Indices, acceptance: Calibrator) -> Results:
        """The real router and cascade over those calls."""
        small, large = self.stages[self.settings.small], self.stages[self.settings.large]
        results = [
            await self._decided(self.calls[i], i, [Candidate(small), Candidate(large)], acceptance) for i in index
        ]
        return Results(*(np.array(column, dtype=float) for column in zip(*results, strict=True)))

    async def _decided(
        self, call: Call, i: int, candidates: Sequence[Candidate], acceptance: Calibrator
    ) -> tuple[float, ...]:
        others = self._others()
        plan = route(call.request, TASK, _POLICY, candidates, calibrator=acceptance, others=others)
        outcome = await self.cascade.run(plan, call.request, Allowance(0.0))
        accepted = outcome.decision == "accept"
        right = self.facts.small_right[i] if accepted or outcome.served == 0 else self.facts.large_right[i]
        escalated = any(not a.small for a in outcome.attempts)
        cost = sum(a.cost_usd or 0.0 for a in outcome.attempts)
        return right and outcome.served is not None, cost, escalated, accepted, accepted and not right

    def _others(self) -> tuple[Stage, ...]:
        return () if self.settings.second is None else (self.stages[self.settings.second],)

    def _stage(self, model: str) -> Stage:
        answers = {call.id: call.answers[model] for call in self.calls}
        backend = Recorded(model, answers, self.prices.usages(model, self.calls))
        return Stage(model, backend, model, small=model != self.settings.large)

    def _facts(self, agrees: NDArray[np.bool_]) -> Facts:
        settings, ids = self.settings, [call.id for call in self.calls]

        def cost(model: str | None) -> Floats:
            return np.zeros(len(ids)) if model is None else np.array([self.prices.usd[model][i] for i in ids])

        pairs = zip(self.calls, self.attempts, strict=True)
        return Facts(
            small_right=np.array([_right(call, settings.small, attempt) for call, attempt in pairs]),
            small_valid=np.array([a.completion is not None and a.verdict.ok for a in self.attempts]),
            large_right=np.array([call.answers[settings.large].correct for call in self.calls]),
            agrees=agrees,
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

    Raises DataError where the labels of the small model are all of one kind, CalibrationError for too few labels.
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
    splits, seconds = [], 0.0
    for done, (fit_index, test_index) in enumerate(parts):
        progress(done, len(parts))
        split, spent = await _split(bench, fit_index, test_index)
        splits.append(split)
        seconds += spent
    progress(len(parts), len(parts))
    decided = sum(len(split.index) for split in splits)
    return Replay(settings, every, bench.facts, tuple(splits), bench.prices, len(parts[0][0]), 1e3 * seconds / decided)


async def _split(bench: Bench, fit_index: Indices, test_index: Indices) -> tuple[Split, float]:
    settings = bench.settings
    acceptance = certified(bench, fit_index, len(test_index))
    started = time.process_time()
    ours = await bench.decide(test_index, acceptance)
    spent = time.process_time() - started
    facts = bench.facts.part(test_index)
    confidence = acceptance.model.confidences(bench.rows(test_index))
    made = Split(
        index=test_index,
        ours=ours,
        baselines=baselines(facts, ours, with_second=settings.second is not None),
        acceptance=acceptance,
        alpha=acceptance.outcome.alpha,
        ece=calibration.expected_calibration_error(confidence, facts.small_right),
        auroc=calibration.auroc(confidence, facts.small_right),
    )
    return made, spent


def _costs(known: Facts, failure_cost: float) -> Costs:
    """What a call costs on average, the second model asked beside valid small answers."""
    small = known.small_cost + known.second_cost * known.small_valid
    large = float(known.large_cost.mean())
    return Costs(small_usd=float(small.mean()), large_usd=large, failure_usd=failure_cost * large)


def certified(bench: Bench, index: Indices, tested: int) -> Acceptance:
    """What is learned from the labels of the calls `index`, to decide `tested` others.

    Raises DataError where the labels are all of one kind, CalibrationError where they are too few.
    """
    settings, known = bench.settings, bench.facts.part(index)
    _check_labels(known, settings.small)
    return certify(
        bench.rows(index),
        known.small_right,
        groups=[bench.calls[i].id for i in index],
        more=bench.more(index),
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


def _check_labels(known: Facts, model: str) -> None:
    right = int(known.small_right.sum())
    if right in (0, len(known.small_right)):
        kind = "wrong" if right == 0 else "right"
        raise DataError(
            f"answers.{model}.correct: all {len(known.small_right)} labels to fit on are {kind}.",
            hint="A calibrator needs answers of both kinds; give other calls, or another small model.",
        )


def _right(call: Call, model: str, attempt: Attempt) -> bool:
    if attempt.completion is None or not attempt.completion.choices:
        return False
    return call.right(model, attempt.completion.choices[0])


class _Checks:
    """The request's own checks of a small model's answer, made once: recorded answers do not change between splits.

    The large model's answers are taken as they were given, as they would be without smallfirst.
    """

    def __init__(self, large: str) -> None:
        self._large, self._known = large, dict[tuple[Any, str], Verdict]()

    def __call__(self, request: Request, completion: Completion) -> Verdict:
        if completion.model == self._large:
            return Verdict()
        key = (request.origin.episode, completion.model)
        if key not in self._known:
            self._known[key] = validate(completion, request)
        return self._known[key]


class _Features:
    """`confidence.features`, computed once for each call and model, with and without others beside it."""

    def __init__(self) -> None:
        self._known = dict[tuple[Any, str, int], Mapping[str, float]]()

    def __call__(
        self,
        request: Request,
        completion: Completion,
        verdict: Verdict,
        repairs: int,
        *,
        mended: bool,
        others: Sequence[Completion],
    ) -> Mapping[str, float]:
        key = (request.origin.episode, completion.model, len(others))
        if key not in self._known:
            self._known[key] = features(request, completion, verdict, repairs, mended=mended, others=others)
        return self._known[key]
