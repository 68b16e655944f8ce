"""What decides whether a task's small answers may be used: a calibrator with a certified threshold, in one artifact.

`learn` makes an `Acceptance` from labelled calls; the gateway and `smallfirst replay` use the same one. It holds
numbers only, and says from how many labels of which kind it was made and what was promised.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from smallfirst import calibration, guarantee, quality
from smallfirst.calibration import Fit, Labelled, Model
from smallfirst.confidence import REQUEST_FEATURES
from smallfirst.errors import CalibrationError
from smallfirst.exact import upper_bound
from smallfirst.guarantee import Certificate, Refusal

Bools = NDArray[np.bool_]
_BLOCKS = 20

VERSION = 2
KEPT = 0.75
"""The share of delta that thresholds are tested with. The rest pays for the sequence's start and the curve of
confidence having seen the labels: in simulations a nominal 5 % came to 6.5 % (docs/guarantee.md)."""


@dataclass(frozen=True, slots=True)
class Costs:
    """A task's mean costs in USD: `small_usd` of all that is asked before a small answer is judged (repairs and other
    models' evidence too), `large_usd` of the large model's answer, `failure_usd` of giving a wrong answer."""

    small_usd: float
    large_usd: float
    failure_usd: float = 0.0

    def small_first(self, accepted: float) -> float:
        """What a call costs if the small model is asked first and accepted with that chance."""
        return self.small_usd + (1 - accepted) * self.large_usd


@dataclass(frozen=True, slots=True)
class Beside:
    """Valid answers that the stage of that name gave beside the judged one, labelled: `rows` of features, `correct` of
    shape (m,), and `of`, which call each belongs to. One of which nothing is known counts as wrong."""

    stage: str
    rows: Sequence[Mapping[str, float]]
    correct: ArrayLike
    of: Sequence[int]


@dataclass(frozen=True, slots=True)
class Acceptance:
    """The `Calibrator` of a task. `label` names what "right" means in its labels, `stage` whose answers it judges.

    `outcome` is what was certified, or why nothing was: then `threshold` is infinite and nothing is accepted. `others`
    judge, by stage, answers that were given beside the stage's own: the surest answer is what is accepted.
    `expects` predicts from the request's features alone whether the answer will be accepted; None where that cannot be
    told from the labels (all or hardly any were accepted). `costs` are None where a price is unknown. `made_at` in
    seconds since the epoch. `curve` has the labels that the promise was made from, the most confident first, in blocks
    of like confidence: the least and the mean confidence, how many, and how many of those wrong.
    """

    task: str
    stage: str
    label: str
    model: Model
    outcome: Certificate | Refusal
    expects: Model | None
    quality: Mapping[str, float | None]
    made_at: float
    costs: Costs | None = None
    others: Mapping[str, Model] = field(default_factory=dict)
    curve: tuple[tuple[float, float, int, int], ...] = ()

    @property
    def threshold(self) -> float:
        return self.outcome.threshold if isinstance(self.outcome, Certificate) else math.inf

    def confidence(self, features: Mapping[str, float]) -> float:
        return self.model.confidence(features)

    def beside(self, stage: str, features: Mapping[str, float]) -> float | None:
        model = self.others.get(stage)
        return None if model is None else model.confidence(features)

    def expected_acceptance(self, request_features: Mapping[str, float]) -> float | None:
        """P(the small answer is accepted), before it is asked for; None where unknown."""
        return None if self.expects is None else self.expects.confidence(request_features)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; `from_json` reads it."""
        kind = "certificate" if isinstance(self.outcome, Certificate) else "refusal"
        return {
            "version": VERSION,
            "task": self.task,
            "stage": self.stage,
            "label": self.label,
            kind: asdict(self.outcome),
            "quality": dict(self.quality),
            "made_at": self.made_at,
            "costs": None if self.costs is None else asdict(self.costs),
            "model": self.model.to_json(),
            "expects": None if self.expects is None else self.expects.to_json(),
            "others": {stage: model.to_json() for stage, model in self.others.items()},
            "curve": self.curve,
        }

    @classmethod
    def from_json(cls, kept: Mapping[str, Any]) -> Acceptance:
        """Raises CalibrationError for another version, unknown features or damaged parts."""
        try:
            if kept.get("version") != VERSION:
                raise CalibrationError(
                    f"The calibration has version {kept.get('version')!r}; this smallfirst reads version {VERSION}.",
                    hint="Run `smallfirst calibrate` again.",
                )
            certificate = kept.get("certificate")
            made = cls(
                task=kept["task"],
                stage=kept["stage"],
                label=kept["label"],
                model=Model.from_json(kept["model"]),
                outcome=Certificate(**certificate) if certificate else Refusal(**kept["refusal"]),
                expects=Model.from_json(kept["expects"]) if kept["expects"] else None,
                quality=kept["quality"],
                made_at=kept["made_at"],
                costs=Costs(**kept["costs"]) if kept["costs"] else None,
                others={stage: Model.from_json(model) for stage, model in kept["others"].items()},
                curve=tuple((least, mean, n, wrong) for least, mean, n, wrong in kept.get("curve", ())),
            )
            if not made.threshold > 0:
                raise ValueError(f"threshold {made.threshold!r}: allowed is a number above 0")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            said = f"The calibration is damaged: {type(error).__name__}: {error}."
            raise CalibrationError(said, hint="Run `smallfirst calibrate` again.") from None
        return made


def certify(
    rows: Sequence[Mapping[str, float]],
    correct: ArrayLike,
    *,
    task: str,
    stage: str,
    label: str,
    alpha: float | None,
    delta: float,
    made_at: float,
    groups: Sequence[str] | None = None,
    valid: ArrayLike | None = None,
    representative: ArrayLike | None = None,
    large_wrong: ArrayLike | None = None,
    horizon: int | None = None,
    costs: Costs | None = None,
    others: Sequence[Beside] = (),
    prior: Model | None = None,
    seed: int = 0,
) -> Acceptance:
    """Fit a calibrator on labelled calls and certify a threshold on its cross-fitted confidences.

    `rows` of features, `correct`, `groups` (episodes), `valid` and `representative` have one entry for each call, shape
    (n,). Calls whose answer is not `valid` escalate whatever their confidence is; they teach the calibrator, and count
    as not accepted. The promise is made from the `representative` calls, whose labels were come by without regard to
    the answer; the others only teach the calibrator. With `costs` the threshold of least expected cost per success is
    used among those that pass.

    `others` are answers of other stages to the same calls. They teach too, and where they have labels enough for a
    calibrator of their own and differ from the stage's answer, the surest answer of a call is the one that is promised.

    Without an `alpha` nothing is promised beforehand: the threshold is the one of least expected cost, failures priced
    at `costs.failure_usd` (those of the large model where `large_wrong` says so), and the certificate's alpha is the
    exact bound that this threshold reaches: chosen with sight of the labels, it is told but not promised.

    `alpha`, `delta` and `horizon` as in `guarantee.learn_then_test`, tested at `KEPT` of delta; `prior` as in
    `calibration.fit`. Raises CalibrationError for too few labels.
    """
    right = np.asarray(correct, dtype=bool)
    usable = np.ones(len(rows), dtype=bool) if valid is None else np.asarray(valid, dtype=bool)
    counted = np.ones(len(rows), dtype=bool) if representative is None else np.asarray(representative, dtype=bool)
    together = list(groups or map(str, range(len(rows))))
    more = _labelled([(other.rows, other.correct, [together[n] for n in other.of]) for other in others])
    fitted = calibration.fit(rows, right, groups=together, more=more, prior=prior, seed=seed)
    judged = _others(others, (rows, right, together), seed)
    surest, right = _surest(np.where(usable, fitted.crossfitted, 0.0), right, others, judged)
    confidence, wrong = surest[counted], ~right[counted]
    if not len(wrong):
        raise CalibrationError(
            f"None of the {len(rows)} labels is of a call drawn without regard to its answer.",
            hint="Observe the task, or audit its accepted answers (audit = 0.02).",
        )
    if alpha is None:
        fails = np.zeros(len(rows)) if large_wrong is None else np.asarray(large_wrong, dtype=float)
        outcome: Certificate | Refusal = _cheapest(costs or Costs(0.0, 1.0), confidence, wrong, fails[counted], delta)
    else:
        cost = None if costs is None else _cost_per_success(costs, confidence, wrong)
        strict = guarantee.learn_then_test(
            confidence, wrong, alpha=alpha, delta=KEPT * delta, horizon=horizon, cost=cost
        )
        outcome = replace(strict, delta=delta)
    accepted = confidence >= (outcome.threshold if isinstance(outcome, Certificate) else math.inf)
    some = np.flatnonzero(counted).tolist()
    return Acceptance(
        task=task,
        stage=stage,
        label=label,
        model=fitted.model,
        outcome=outcome,
        expects=_expectation([rows[n] for n in some], accepted, [together[n] for n in some], seed),
        quality=_quality(surest[usable], right[usable]) | {"risk_threshold": _risk(confidence, wrong, alpha)},
        made_at=made_at,
        costs=costs,
        others={stage: each.model for stage, each in judged.items()},
        curve=_curve(confidence, wrong),
    )


def _curve(confidence: NDArray[np.float64], wrong: Bools) -> tuple[tuple[float, float, int, int], ...]:
    """See `Acceptance`. Equal confidences stay together; answers that are never accepted are one block."""
    order = np.argsort(-confidence, kind="stable")
    ordered, failed = confidence[order], wrong[order]
    ends = np.flatnonzero(np.diff(ordered, append=-1.0) < 0) + 1
    wanted = np.linspace(0, len(ordered), _BLOCKS + 1)[1:]
    chosen = np.unique(ends[np.searchsorted(ends, wanted)]).tolist()
    return tuple(
        (float(ordered[end - 1]), float(ordered[start:end].mean()), end - start, int(failed[start:end].sum()))
        for start, end in zip([0, *chosen[:-1]], chosen, strict=True)
    )


def _labelled(parts: Sequence[tuple[Sequence[Mapping[str, float]], ArrayLike, Sequence[str]]]) -> Labelled | None:
    """All of the parts' rows, labels and groups; None without any."""
    rows = [row for part in parts for row in part[0]]
    correct = [np.asarray(part[1], dtype=bool) for part in parts]
    return Labelled(rows, np.concatenate(correct), [group for part in parts for group in part[2]]) if rows else None


def _others(
    others: Sequence[Beside], own: tuple[Sequence[Mapping[str, float]], Bools, Sequence[str]], seed: int
) -> dict[str, Fit]:
    """By stage the calibrators of the others that have labels enough, each taught by all the other answers too."""
    groups = own[2]
    parts = {other.stage: (other.rows, other.correct, [groups[n] for n in other.of]) for other in others}
    found = {}
    for stage, (rows, correct, together) in parts.items():
        more = _labelled([own, *(part for name, part in parts.items() if name != stage)])
        try:
            found[stage] = calibration.fit(rows, correct, groups=together, more=more, seed=seed)
        except CalibrationError:  # too few labels: this stage's answers stay evidence
            continue
    return found


def _surest(
    confidence: NDArray[np.float64], right: Bools, others: Sequence[Beside], judged: Mapping[str, Fit]
) -> tuple[NDArray[np.float64], Bools]:
    """By call the confidence in the answer that would be offered, and whether that is right (see `types.offered`)."""
    confidence, right = confidence.copy(), right.copy()
    for other in others:
        if other.stage not in judged:
            continue
        correct = np.asarray(other.correct, dtype=bool)
        for row, own, sure, good in zip(other.rows, other.of, judged[other.stage].crossfitted, correct, strict=True):
            if row.get("agree", 0.0) < 1 and sure > confidence[own]:
                confidence[own], right[own] = sure, good
    return confidence, right


def _cost_per_success(costs: Costs, confidence: NDArray[np.float64], wrong: Bools) -> Callable[[float], float]:
    """Threshold -> USD per right answer, the large model's taken as right."""

    def cost(threshold: float) -> float:
        accepted = confidence >= threshold
        return costs.small_first(float(accepted.mean())) / max(1 - float((accepted & wrong).mean()), 1e-9)

    return cost


def _cheapest(
    costs: Costs, confidence: NDArray[np.float64], wrong: Bools, large_wrong: NDArray[np.float64], delta: float
) -> Certificate | Refusal:
    """The threshold of least expected cost, failures included.

    Expected failures are those that confidence predicts, and for the large model a curve of its labels over the same
    confidence: counting the labels themselves would follow their noise.
    """
    n = len(confidence)
    order = np.argsort(-confidence, kind="stable")
    ordered = confidence[order]
    ends = np.flatnonzero((np.diff(ordered, append=-1.0) < 0) & (ordered > 0)) + 1  # equal confidences go together
    counts = np.concatenate(([0], ends))
    large_right = np.interp(ordered, *calibration.curve(confidence, 1 - large_wrong)) if large_wrong.any() else 1.0
    gain = costs.large_usd - costs.failure_usd * (large_right - ordered)
    saved = np.concatenate(([0.0], np.cumsum(gain)))[counts]
    accepted = int(counts[np.flatnonzero(saved == saved.max())[-1]])
    if accepted == 0:
        return Refusal(1.0, delta, n, None, "Accepting any small answers costs more than asking the large model.")
    failures = int(wrong[order][:accepted].sum())
    bound = float(upper_bound(failures, accepted, delta))
    return Certificate(bound, delta, float(ordered[accepted - 1]), accepted, failures, bound, n, accepted / n)


def _expectation(
    rows: Sequence[Mapping[str, float]], accepted: Bools, groups: Sequence[str], seed: int
) -> Model | None:
    """A model of acceptance on what is known before the small model is asked, where there is something to learn."""
    if len(rows) < calibration.MIN_LABELS or min(accepted.sum(), (~accepted).sum()) < calibration.MIN_CLASS:
        return None
    before = [{name: value for name, value in row.items() if name in REQUEST_FEATURES} for row in rows]
    return calibration.fit(before, accepted, groups=groups, names=tuple(REQUEST_FEATURES), seed=seed).model


def _risk(confidence: NDArray[np.float64], wrong: Bools, alpha: float | None) -> float | None:
    """The threshold of conformal risk control, told beside the certified one; None where none passes."""
    return None if alpha is None else guarantee.conformal_risk(confidence, wrong, alpha=alpha)


def _quality(confidence: NDArray[np.float64], right: Bools) -> dict[str, float | None]:
    """Calibration error, Brier score and AUROC of the cross-fitted confidences; None without any."""
    if not len(right):
        return dict.fromkeys(("ece", "brier", "auroc"))
    return {
        "ece": quality.expected_calibration_error(confidence, right),
        "brier": quality.brier(confidence, right),
        "auroc": quality.auroc(confidence, right),
    }
