"""The cascade fitted on some questions and deciding others, and what each of its parts is good for."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from live.asking import TASK, Bench, right
from live.recorded import Taken
from live.tables import PER, Row, labelled, others, usd, valid
from smallfirst.acceptance import Acceptance, Beside, Costs, certify
from smallfirst.bfcl import Question
from smallfirst.budget import Allowance
from smallfirst.calibration import Labelled
from smallfirst.confidence import request_features
from smallfirst.config import Policy
from smallfirst.errors import CalibrationError
from smallfirst.guarantee import Certificate
from smallfirst.router import Candidate, promising, route, without_small
from smallfirst.stats import Figure, mean, quantile, ratio, ratio_of_ratios, wilson
from smallfirst.types import Attempt, Route, Stage

Floats = NDArray[np.float64]
FIELDS = ("valid_first", "executable", "success", "harm", "escalated", "accepted", "cost", "seconds", "joules")
LABEL = "bfcl gold"


@dataclass(frozen=True, slots=True)
class Plan:
    """How the cascade is fitted. `alpha` None: the threshold of least cost, a wrong answer at `failure_cost` large
    calls; what it promises is the exact bound that it reaches on the labels. It is fitted on `fit_share` of
    the questions."""

    alpha: float | None
    delta: float
    splits: int
    fit_share: float
    seed: int
    failure_cost: float

    @property
    def name(self) -> str:
        return "cheapest" if self.alpha is None else f"alpha {self.alpha:g}"


@dataclass(frozen=True, slots=True)
class Arm:
    """A way to answer: the questions, and by name of `FIELDS` what came of each of them, arrays of shape (n,).

    success and harm: a right, a wrong answer was given. accepted: a small model's was. joules: NaN if not measured.
    """

    ids: tuple[str, ...]
    columns: Mapping[str, Floats]

    @classmethod
    def of(cls, rows: Mapping[str, Sequence[Row]]) -> Arm:
        """By question, the mean of what came of it each time."""
        columns = {name: np.array([fmean(row[name] for row in each) for each in rows.values()]) for name in FIELDS}
        return cls(tuple(rows), columns)

    def on(self, ids: Sequence[str]) -> Arm:
        """The same for these questions."""
        index = [self.ids.index(question) for question in ids]
        return Arm(tuple(ids), {name: column[index] for name, column in self.columns.items()})


@dataclass(frozen=True, slots=True)
class Fitted:
    """What random splits came to: the cascade; the same with no answer in place of the large model's; what was
    certified; the labels missing and the reasons where nothing was; and how many test parts broke their promise."""

    cascade: Arm
    calibrated: Arm
    certificates: tuple[Certificate, ...]
    missing: tuple[int, ...]
    refusals: tuple[str, ...]
    broken: int


async def fitted(bench: Bench, small: str, evidence: str, large: Stage, plan: Plan) -> Fitted:
    """Fit on some of the questions that all models have answered, drawn at random, decide the others; several times."""
    run = await _Run.of(bench, small, evidence, large)
    cascade: dict[str, list[Row]] = {}
    calibrated: dict[str, list[Row]] = {}
    certificates: list[Certificate] = []
    missing: list[int] = []
    refusals: list[str] = []
    broken = 0
    for fit_on, test_on in _splits(len(run.questions), plan):
        acceptance = None
        try:
            found = run.fit(fit_on, plan)
            if isinstance(found.outcome, Certificate):
                acceptance = found
                certificates.append(found.outcome)
            else:
                refusals.append(found.outcome.reason)
                missing += [] if found.outcome.needed is None else [found.outcome.needed]
        except CalibrationError as error:
            refusals.append(error.message)
        decided = [(run.questions[n].id, *await run.decide(run.questions[n], acceptance)) for n in test_on]
        for question, whole, without_large in decided:
            cascade.setdefault(question, []).append(whole)
            calibrated.setdefault(question, []).append(without_large)
        accepted = sum(without_large["accepted"] for _, _, without_large in decided)
        failed = sum(without_large["harm"] for _, _, without_large in decided)
        broken += acceptance is not None and failed > acceptance.outcome.alpha * accepted
    return Fitted(Arm.of(cascade), Arm.of(calibrated), (*certificates,), (*missing,), (*refusals,), broken)


async def large_alone(bench: Bench, large: Stage) -> Arm:
    """The large model's answers as they are."""
    return await _single(bench, large, withheld=False)


async def ablation(bench: Bench, small: str, alone: Arm, fits: Mapping[str, Fitted]) -> list[Row]:
    """A row for each arm, from the large model alone to the cascades `fits`."""
    free, held = bench.stage(small, "free"), bench.stage(small, bench.settings.mode)
    first, first_held = replace(free, repairs=0), replace(held, repairs=0)
    arms = {
        "large only": alone,
        "small": await _single(bench, first, withheld=False),
        "small + schema, validated": await _single(bench, first, withheld=True),
        f"small + schema, {held.constraint}": await _single(bench, first_held, withheld=True),
        "small + schema + repair": await _single(bench, held, withheld=True),
    }
    for name, found in fits.items():
        arms |= {f"small + schema + calibrated, {name}": found.calibrated, f"cascade, {name}": found.cascade}
    return [{"small": small, "arm": name, **_arm_row(arm, alone)} for name, arm in arms.items() if arm.ids]


def cascade_row(found: Fitted, alone: Arm, plan: Plan) -> Row:
    """The figures of a cascade against the large model alone."""
    arm, base = found.cascade.columns, alone.on(found.cascade.ids).columns
    accepted = found.calibrated.columns["accepted"]
    bounds = [certificate.alpha for certificate in found.certificates]
    return {
        "accuracy": _rate(arm["success"]),
        "large alone": _rate(base["success"]),
        "escalation": _rate(arm["escalated"]),
        "accepted": _rate(accepted),
        "accepted and wrong": ratio(found.calibrated.columns["harm"], accepted),
        "bound": fmean(bounds) if bounds else None,
        "broken": wilson(found.broken, plan.splits),
        "CPS / large": _against(arm, base),
        "certified": wilson(len(found.certificates), plan.splits),
        "labels missing": median(found.missing) if found.missing else None,
        "why not": found.refusals[0] if found.refusals else "",
    }


@dataclass(frozen=True, slots=True)
class _Run:
    """A cascade's parts and the labelled answers of its small model, in the order of `questions`; `beside` are the
    second model's valid answers."""

    bench: Bench
    small: Stage
    large: Stage
    others: tuple[Stage, ...]
    questions: Sequence[Question]
    labels: Labelled
    beside: Sequence[Attempt | None]
    usable: NDArray[np.bool_]
    small_usd: Floats
    large_usd: Floats
    large_right: NDArray[np.bool_]

    @classmethod
    async def of(cls, bench: Bench, small: str, evidence: str, large: Stage) -> _Run:
        stage, beside = bench.stage(small, bench.settings.mode), others(bench, small, evidence)
        ours, theirs = await bench.known(stage, beside), await bench.known(large)
        labels = await labelled(bench, small, evidence)
        both = [q for q in bench.questions if q.id in labels.groups and q.id in theirs]
        ends = [theirs[question.id].first for question in both]
        return cls(
            bench=bench,
            small=stage,
            large=large,
            others=beside,
            questions=both,
            labels=_part(labels, {question.id for question in both}),
            beside=[_beside(ours[question.id].attempts) if evidence == "second" else None for question in both],
            usable=np.array([valid(ours[question.id].last) for question in both]),
            small_usd=np.array([sum(usd(bench, a) for a in ours[question.id].attempts) for question in both]),
            large_usd=np.array([usd(bench, attempt) for attempt in ends]),
            large_right=np.array([right(q, attempt) for q, attempt in zip(both, ends, strict=True)]),
        )

    def fit(self, index: NDArray[np.int64], plan: Plan) -> Acceptance:
        """Raises CalibrationError for too few labels."""
        if not len(index):
            raise CalibrationError("Too few questions are answered by all models to fit on any.")
        ids = {self.questions[n].id for n in index}
        labels = _part(self.labels, ids)
        large_usd = float(self.large_usd[index].mean())
        return certify(
            labels.rows,
            labels.correct,
            groups=labels.groups,
            others=self._others(index),
            valid=self.usable[index],
            large_wrong=~self.large_right[index],
            task=TASK,
            stage=self.small.name,
            label=LABEL,
            alpha=plan.alpha,
            delta=plan.delta,
            costs=Costs(float(self.small_usd[index].mean()), large_usd, plan.failure_cost * large_usd),
            seed=plan.seed,
            made_at=time.time(),
        )

    def _others(self, index: NDArray[np.int64]) -> list[Beside]:
        """The second model's answers to those questions, labelled."""
        made = [(at, n, attempt) for at, n in enumerate(index) if (attempt := self.beside[n]) is not None]
        if not made:
            return []
        correct = [right(self.questions[n], attempt) for _, n, attempt in made]
        return [Beside(made[0][2].stage, [a.features for *_, a in made], correct, [at for at, *_ in made])]

    async def decide(self, question: Question, acceptance: Acceptance | None) -> tuple[Row, Row]:
        """What the cascade makes of a question, and what it is without the large model.

        Routed as the gateway does: without a certificate the large model answers, and a small attempt that does not
        look promising before it is made is left out.
        """
        bench, request = self.bench, self.bench.requests[question.id]
        policy = Policy(constraint=bench.settings.mode, repairs=bench.settings.repairs)
        candidates = [Candidate(self.small), Candidate(self.large)]
        plan = route(request, TASK, policy, candidates, calibrator=acceptance, others=self.others)
        if acceptance is not None and not _promising(acceptance, plan, request_features(request)):
            plan = without_small(plan)
        start = len(bench.meter.log)
        outcome = await bench.cascade.run(plan, request, Allowance(bench.meter()))
        taken = bench.meter.log[start:]
        served = None if outcome.served is None else outcome.attempts[outcome.served]
        small = [attempt for attempt in outcome.attempts if attempt.small]
        accepted = served if outcome.decision == "accept" else None
        without_large = [each for each in taken if each.stage != self.large.name]
        return (
            _row(bench, question, outcome.attempts, served, taken),
            _row(bench, question, small, accepted, without_large),
        )


def _beside(attempts: Sequence[Attempt]) -> Attempt | None:
    """The last valid answer of another stage beside those of the small one."""
    return next((a for a in reversed(attempts) if a.decision == "evidence" and a.features), None)


def _promising(acceptance: Acceptance, plan: Route, request: Mapping[str, float]) -> bool:
    return plan.calibrator is None or promising(acceptance.costs, acceptance.expected_acceptance(request))


async def _single(bench: Bench, stage: Stage, *, withheld: bool) -> Arm:
    """A stage alone on the questions that it has answered, invalid answers `withheld` or given all the same."""
    known = await bench.known(stage)
    rows: dict[str, list[Row]] = {}
    for question in bench.questions:
        if (answer := known.get(question.id)) is not None:
            given = answer.last if valid(answer.last) or not withheld else None
            rows[question.id] = [_row(bench, question, answer.attempts, given, answer.taken)]
    return Arm.of(rows)


def _row(
    bench: Bench, question: Question, attempts: Sequence[Attempt], given: Attempt | None, taken: Sequence[Taken]
) -> Row:
    """What came of a question: `attempts` were made, the answer of one of them was given or none."""
    given = None if given is None or given.completion is None else given
    success = given is not None and right(question, given)
    return {
        "valid_first": float(bool(attempts) and valid(attempts[0])),
        "executable": float(given is not None and valid(given)),
        "success": float(success),
        "harm": float(given is not None and not success),
        "escalated": float(any(not attempt.small for attempt in attempts)),
        "accepted": float(given is not None and given.small),
        "cost": sum(usd(bench, attempt) for attempt in attempts),
        "seconds": sum(each.seconds for each in taken),
        "joules": sum(math.nan if each.joules is None else each.joules for each in taken),
    }


def _arm_row(arm: Arm, alone: Arm) -> Row:
    mine, common = arm.columns, [question for question in arm.ids if question in alone.ids]
    measured = bool(np.isfinite(mine["joules"]).all())
    return {
        "valid@1": _rate(mine["valid_first"]),
        "ExecRate": _rate(mine["executable"]),
        "accuracy": _rate(mine["success"]),
        "wrong given": _rate(mine["harm"]),
        "p95 s": quantile(mine["seconds"], 0.95),
        "CPS": ratio(PER * mine["cost"], mine["success"]),
        "CPS / large": _against(arm.on(common).columns, alone.on(common).columns),
        "joules": mean(mine["joules"]) if measured else "not measured",
    }


def _against(mine: Mapping[str, Floats], base: Mapping[str, Floats]) -> Figure:
    """The cost per success as a ratio to the large model's, paired by question."""
    return ratio_of_ratios((mine["cost"], base["cost"]), (mine["success"], base["success"]))


def _rate(column: Floats) -> Figure:
    """A share; of questions that were decided several times, the mean."""
    whole = np.isin(column, (0.0, 1.0)).all()
    return wilson(int(column.sum()), len(column)) if whole else mean(column)


def _part(labels: Labelled, ids: set[str]) -> Labelled:
    chosen = [n for n, group in enumerate(labels.groups) if group in ids]
    correct = np.asarray(labels.correct, dtype=bool)[chosen]
    return Labelled([labels.rows[n] for n in chosen], correct, [labels.groups[n] for n in chosen])


def _splits(n: int, plan: Plan) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    rng = np.random.default_rng(plan.seed)
    for _ in range(plan.splits):
        order = rng.permutation(n)
        cut = round(plan.fit_share * n)
        yield np.sort(order[:cut]), np.sort(order[cut:])
