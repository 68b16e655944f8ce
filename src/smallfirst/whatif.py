"""What another policy would have come to on the recorded calls: doubly robust estimates, and what records cannot tell.

Each call is walked as the target policy would have walked it (`traces`). Where its answer, cost or label was observed,
by the call itself or by a shadow, an audit or an exploration with its recorded probability, that is used; where it was
not, a model fitted on other calls stands in and the observed ones correct it (`doubly`). Calls that nothing observed
stands for are counted, bounded by the least and the most that was observed anywhere, and beyond a share of
`MOST_UNSUPPORTED` there is no figure, but what to record. Pure.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from smallfirst import calibration, guarantee, stats
from smallfirst.doubly import Bools, Floats, Ints, Known, Scores, balance, effective_number, scores
from smallfirst.errors import CalibrationError
from smallfirst.guarantee import Refusal
from smallfirst.stats import Figure
from smallfirst.targets import AS_RECORDED, Targets
from smallfirst.traces import Play, Step, Trace, lacking, mode_of, play

MOST_UNSUPPORTED = 0.2
"""The share of calls without support beyond which a figure is not given."""
MIN_EFFECTIVE = 30
"""Effective observations below which costs and times are not given; rates say themselves how little they rest on."""
_MOST_FITTED = 5000
_METHOD = "doubly robust"


@dataclass(frozen=True, slots=True)
class FigureSpec:
    """A figure as a ratio of sums over calls (over the number of calls, where `below` is "")."""

    key: str
    name: str
    unit: Literal["rate", "usd", "seconds"]
    above: str
    below: str
    meaning: str


FIGURES = (
    FigureSpec("cps", "CPS", "usd", "usd", "success", "USD per 1,000 right answers"),
    FigureSpec("failure", "failure", "rate", "failure", "", "a wrong answer or none"),
    FigureSpec(
        "accepted_failure", "accepted failure", "rate", "accepted_wrong", "accepted", "wrong, of small accepted"
    ),
    FigureSpec("escalation", "escalation", "rate", "escalated", "", "the large model is asked"),
    FigureSpec("cost", "cost", "usd", "usd", "", "USD per 1,000 calls"),
    FigureSpec("latency", "latency", "seconds", "seconds", "", "mean time of a call's attempts"),
)


@dataclass(frozen=True, slots=True)
class Comparison:
    """A figure as recorded, under the target policy, and the difference, paired by call.

    `unsupported` is the share of calls that nothing observed stands for, of the two policies the larger; `effective`
    how many equally weighted observations the target's figure rests on.
    """

    recorded: Figure
    target: Figure
    difference: Figure
    unsupported: float
    effective: float


@dataclass(frozen=True, slots=True)
class Gap:
    """What the records do not tell of a `share` of calls, and what to do about it."""

    share: float
    what: str
    advice: str


@dataclass(frozen=True, slots=True)
class Judgement:
    """The figures of one task, or of all calls when `task` is None, by the keys of `FIGURES`.

    `threshold` is what the target accepts at in this task, infinite when no threshold can be certified for its alpha,
    None as recorded.
    """

    task: str | None
    calls: int
    figures: Mapping[str, Comparison]
    gaps: tuple[Gap, ...]
    threshold: float | None = None


@dataclass(frozen=True, slots=True)
class Whatif:
    """All calls together and by task (most calls first), with intervals at `level`; `notes` are for the reader."""

    level: float
    overall: Judgement
    tasks: tuple[Judgement, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Column:
    """Scores of one outcome, shape (n,): as estimated, and with the calls without support at their least and most."""

    value: Floats
    low: Floats
    high: Floats
    weight: Floats
    blind: Floats


_Columns = Mapping[str, _Column]


@dataclass(frozen=True, slots=True)
class _Scale:
    """How intervals are made: their level, and the resamples of those that are bootstrapped."""

    level: float
    resamples: int


def judge(calls: Sequence[Trace], targets: Targets, *, level: float = 0.95, resamples: int = 2000) -> Whatif:
    """Judge `targets` from recorded `calls`.

    Intervals: of rates Wilson's on the effective number of observations, the smaller of what the scores' variance and
    what the weights allow (Korn and Graubard 1998); of the others BCa over the scores. Raises ValueError without calls.
    """
    if not calls:
        raise ValueError("no calls: allowed is at least one")
    calls, notes = _with_confidence(calls, targets)
    thresholds, refusals = _thresholds(calls, targets)
    small = frozenset(step.stage for call in calls for step in call.steps if step.small)
    recorded = [play(call, AS_RECORDED, None, small) for call in calls]
    played = [play(call, targets.of(call.task), thresholds.get(call.task), small) for call in calls]
    arms = _columns(calls, recorded), _columns(calls, played)
    names, of_task = np.unique([call.task for call in calls], return_inverse=True)
    scale = _Scale(level, resamples)
    plays = recorded, played
    tasks = [_judgement(str(name), of_task == n, arms, plays, scale, thresholds) for n, name in enumerate(names)]
    tasks.sort(key=lambda one: -one.calls)
    if len(tasks) == 1:
        overall = replace(tasks[0], task=None)
    else:
        overall = _judgement(None, np.ones(len(calls), dtype=bool), arms, plays, scale, thresholds)
    return Whatif(level, overall, tuple(tasks), (*notes, *refusals, *_idle(calls, targets, thresholds)))


def _idle(calls: Sequence[Trace], targets: Targets, thresholds: Mapping[str, float]) -> list[str]:
    """Notes on calls for which the target names a threshold that their recorded mode does not use."""
    modes = Counter(
        mode_of(call, thresholds[call.task])
        for call in calls
        if call.task in thresholds and targets.of(call.task).mode is None
    )
    return [
        f'{modes[mode]:,} calls were recorded in mode "{mode}", where no threshold is used: add mode = "enforce".'
        for mode in ("observe", "small_only")
        if modes[mode]
    ]


def _with_confidence(calls: Sequence[Trace], targets: Targets) -> tuple[Sequence[Trace], list[str]]:
    """The calls with a confidence for small answers that were recorded without one, where the target asks for it.

    Fitted for each task and stage on the labelled ones; each of those by a model that did not see it.
    """
    lacking: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
    for n, call in enumerate(calls):
        target = targets.of(call.task)
        if target.threshold is not None or target.alpha is not None:
            for k, step in enumerate(call.steps):
                if step.features:
                    lacking[call.task, step.stage].append((n, k))
    found: dict[tuple[int, int], float] = {}
    notes = []
    for (task, stage), places in lacking.items():
        try:
            found |= _fitted(calls, places)
        except CalibrationError as error:
            notes.append(f"{task}: {stage} answered without a confidence, and none can be fitted: {error.message}")
    changed = list(calls)
    for (n, k), confidence in found.items():
        steps = list(changed[n].steps)
        steps[k] = replace(steps[k], confidence=confidence)
        changed[n] = replace(changed[n], steps=tuple(steps))
    return changed, notes


def _fitted(calls: Sequence[Trace], places: Sequence[tuple[int, int]]) -> dict[tuple[int, int], float]:
    steps = [calls[n].steps[k] for n, k in places]
    labelled = [place for place, step in zip(places, steps, strict=True) if step.right is not None][:_MOST_FITTED]
    used = [calls[n].steps[k] for n, k in labelled]
    fit = calibration.fit([s.features for s in used], [bool(s.right) for s in used])
    known = dict(zip(labelled, map(float, fit.crossfitted), strict=True))
    others = [place for place in places if place not in known]
    judged = fit.model.confidences([calls[n].steps[k].features for n, k in others]) if others else ()
    return known | dict(zip(others, map(float, judged), strict=True))


def _thresholds(calls: Sequence[Trace], targets: Targets) -> tuple[dict[str, float], list[str]]:
    """By task, the threshold that the target accepts at, where it says so; and why there is none for an alpha."""
    thresholds: dict[str, float] = {}
    refusals = []
    labelled: dict[str, list[Step]] = defaultdict(list)
    for call in calls:
        target = targets.of(call.task)
        if target.threshold is not None:
            thresholds[call.task] = target.threshold
        elif target.alpha is not None:
            labelled[call.task].extend(s for s in call.steps if s.small and s.ok and s.confidence is not None)
    for task, steps in labelled.items():
        target = targets.of(task)
        used = _evenly([s for s in steps if s.right is not None])
        if not used:
            thresholds[task] = math.inf
            refusals.append(f"{task}: alpha = {target.alpha:g} accepts nothing: no small answer has a label.")
            continue
        confidence, wrong = [s.confidence or 0.0 for s in used], [not s.right for s in used]
        outcome = guarantee.learn_then_test(confidence, wrong, alpha=target.alpha or 0.0, delta=target.delta)
        thresholds[task] = math.inf if isinstance(outcome, Refusal) else outcome.threshold
        if isinstance(outcome, Refusal):
            refusals.append(f"{task}: alpha = {target.alpha:g} accepts nothing: {outcome.reason}")
    return thresholds, refusals


def _evenly(labelled: Sequence[Step]) -> list[Step]:
    """Of labels that came by draws, as many as are left when each is kept so that all had the same chance."""
    chance = np.array([s.label_probability * s.probability for s in labelled])
    kept = np.random.default_rng(0).random(len(labelled)) < chance.min(initial=1.0) / chance
    return [step for step, keep in zip(labelled, kept, strict=True) if keep]


def _columns(calls: Sequence[Trace], played: Sequence[Play]) -> _Columns:
    """The scores of every outcome under one policy.

    In two steps: the calls of which the small model's part was seen stand for all that were treated alike; of those,
    the ones whose served answer (and its label) was seen for all that are served alike.
    """
    told = np.array([p.action is not None for p in played])
    treated = _numbered([(c.task, c.treated) for c in calls])
    drawn = np.array([p.drawn for p in played])
    base, blind = balance(told, drawn, treated, np.ones(len(calls)))
    alike = _numbered([(c.task, c.treated, p.action) for c, p in zip(calls, played, strict=True)])
    group = _numbered([(c.task, p.action) for c, p in zip(calls, played, strict=True)])
    known = Known(alike, group, base, _design(calls, played))
    later = np.array([p.later for p in played])
    judged = np.minimum(later, [p.judged for p in played])
    success = np.array([p.success for p in played])
    accepted = np.array([float(p.action == "accept") for p in played])
    outcomes = {
        "usd": (np.array([p.usd for p in played]), later),
        "seconds": (np.array([p.seconds for p in played]), later),
        "success": (success, judged),
        "failure": (1 - success, judged),
        "escalated": (np.array([float(p.escalated) for p in played]), np.ones(len(played))),
        "accepted": (accepted, np.ones(len(played))),
        "accepted_wrong": (np.where(accepted > 0, 1 - success, 0.0), np.where(accepted > 0, judged, 1.0)),
    }
    return {name: _spread(scores(y, p, known), known.base, treated, blind) for name, (y, p) in outcomes.items()}


def _design(calls: Sequence[Trace], played: Sequence[Play]) -> Floats:
    """What the model knows of a call: the small answer's confidence (the mean where there is none) and the size."""
    confidence = np.array([math.nan if p.confidence is None else p.confidence for p in played])
    mean = float(np.nanmean(confidence)) if not np.isnan(confidence).all() else 0.0
    return np.column_stack([np.nan_to_num(confidence, nan=mean), [c.size for c in calls]])


def _spread(found: Scores, base: Floats, treated: Ints, blind: Bools) -> _Column:
    """The scores of the calls that were seen, stretched over those that were not."""

    def over_all(value: Floats, at_blind: float) -> Floats:
        total = np.bincount(treated, base)
        sums = np.bincount(treated, base * value)
        mean = np.divide(sums, total, out=np.full_like(sums, at_blind), where=total > 0)[treated]
        return np.where(blind, at_blind, mean + base * (value - mean))

    somewhere = float(np.average(found.value, weights=base)) if base.any() else 0.0
    return _Column(
        value=over_all(found.value, somewhere),
        low=over_all(np.where(found.blind, found.least, found.value), found.least),
        high=over_all(np.where(found.blind, found.most, found.value), found.most),
        weight=base * found.weight,
        blind=np.where(blind, 1.0, base * found.blind),
    )


def _judgement(
    task: str | None,
    chosen: Bools,
    arms: tuple[_Columns, _Columns],
    plays: tuple[Sequence[Play], Sequence[Play]],
    scale: _Scale,
    thresholds: Mapping[str, float],
) -> Judgement:
    figures = {spec.key: _comparison(spec, chosen, arms, scale) for spec in FIGURES}
    gaps = _gaps(chosen, arms, plays)
    return Judgement(task, int(chosen.sum()), figures, gaps, thresholds.get(task) if task else None)


def _comparison(spec: FigureSpec, chosen: Bools, arms: tuple[_Columns, _Columns], scale: _Scale) -> Comparison:
    recorded, target = (_Ratio.of(spec, columns, chosen) for columns in arms)
    unsupported = max(recorded.unsupported, target.unsupported)
    return Comparison(
        recorded=recorded.figure(scale),
        target=target.figure(scale),
        difference=_difference(recorded, target, scale),
        unsupported=unsupported,
        effective=target.effective,
    )


@dataclass(frozen=True, slots=True)
class _Ratio:
    """A figure's sums over n calls: `above` and `below` each as (estimate, least, most), shape (n,)."""

    rate: bool
    above: tuple[Floats, Floats, Floats]
    below: tuple[Floats, Floats, Floats]
    effective: float
    unsupported: float

    @classmethod
    def of(cls, spec: FigureSpec, columns: _Columns, chosen: Bools) -> _Ratio:
        def three(name: str) -> tuple[Floats, Floats, Floats]:
            if not name:
                return (np.ones(int(chosen.sum())),) * 3
            column = columns[name]
            return column.value[chosen], column.low[chosen], column.high[chosen]

        used = [columns[name] for name in (spec.above, spec.below) if name]
        within = chosen & (columns["accepted"].value > 0.5) if spec.below == "accepted" else chosen
        return cls(
            rate=spec.unit == "rate",
            above=three(spec.above),
            below=three(spec.below),
            effective=min(effective_number(column.weight[within]) for column in used),
            unsupported=max(float(column.blind[chosen].mean()) for column in used),
        )

    @property
    def n(self) -> int:
        return len(self.above[0])

    @property
    def told(self) -> bool:
        """Whether the records tell enough for a figure."""
        enough = self.effective > 0 if self.rate else self.effective >= min(MIN_EFFECTIVE, self.n)
        return self.unsupported <= MOST_UNSUPPORTED and enough and self.below[0].sum() > 0

    @property
    def value(self) -> float:
        return float(self.above[0].sum() / self.below[0].sum())

    @property
    def influence(self) -> Floats:
        """What each call moves the ratio by, times n; its mean is 0 (the delta method)."""
        found: Floats = (self.above[0] - self.value * self.below[0]) / self.below[0].mean()
        return found

    def figure(self, scale: _Scale) -> Figure:
        if not self.told:
            return Figure(None, None, None, self.n, _METHOD)
        return self._rate(scale.level) if self.rate else self._amount(scale)

    def _amount(self, scale: _Scale) -> Figure:
        def ends(above: int, below: int) -> Figure:
            return stats.ratio(self.above[above], self.below[below], level=scale.level, resamples=scale.resamples)

        low, high = (ends(1, 2), ends(2, 1)) if self.unsupported else (ends(0, 0),) * 2
        return Figure(self.value, low.low, high.high, self.n, f"{_METHOD}, bca")

    def _rate(self, level: float) -> Figure:
        value = min(max(self.value, 0.0), 1.0)
        variance = float(np.mean(self.influence**2)) / self.n
        by_variance = value * (1 - value) / variance if variance > 0 else math.inf
        size = max(min(self.effective, by_variance), 1e-9)
        ends = [min(max(self.above[k].sum() / self.below[0].sum(), 0.0), 1.0) for k in (1, 2)]
        low, high = (
            stats.score_interval(float(ends[0]), size, level)[0],
            stats.score_interval(float(ends[1]), size, level)[1],
        )
        return Figure(value, low, high, self.n, f"{_METHOD}, wilson")


def _difference(recorded: _Ratio, target: _Ratio, scale: _Scale) -> Figure:
    """Target less recorded, paired by call: of rates by the two intervals and their correlation (Newcombe 1998, method
    10; Zou 2007, eq. 5), which holds for few failures too; of amounts BCa over the difference of the influences."""
    if not (recorded.told and target.told):
        return Figure(None, None, None, target.n, _METHOD)
    value = target.value - recorded.value
    if np.array_equal(target.influence, recorded.influence):
        return Figure(value, value, value, target.n, _METHOD)
    before, after = recorded.figure(scale), target.figure(scale)
    unsupported = target.unsupported > 0 or recorded.unsupported > 0
    if target.rate or unsupported:
        together = 0.0 if unsupported else _correlation(recorded.influence, target.influence)
        low = _apart(after.value, after.low, before.value, before.high, together)
        high = _apart(after.value, after.high, before.value, before.low, together)
        ends = (None if low is None else value - low, None if high is None else value + high)
        return Figure(value, *ends, target.n, f"{_METHOD}, newcombe")
    moved = target.influence - recorded.influence + value
    paired = stats.mean(moved, level=scale.level, resamples=scale.resamples)
    return Figure(value, paired.low, paired.high, target.n, f"{_METHOD}, bca")


def _apart(
    first: float | None, end: float | None, second: float | None, other: float | None, together: float
) -> float | None:
    """How far a difference's bound is from it, by the bounds of its parts that `together` tells the correlation of."""
    if first is None or end is None or second is None or other is None:
        return None
    one, two = abs(first - end), abs(second - other)
    return math.sqrt(max(one**2 + two**2 - 2 * together * one * two, 0.0))


def _correlation(one: Floats, other: Floats) -> float:
    """0 where either does not vary."""
    spread = float(np.sqrt(np.sum(one**2) * np.sum(other**2)))
    return float(np.sum(one * other)) / spread if spread > 0 else 0.0


def _gaps(
    chosen: Bools, arms: tuple[_Columns, _Columns], plays: tuple[Sequence[Play], Sequence[Play]]
) -> tuple[Gap, ...]:
    """What is missing under either policy where calls are without support, the largest share first."""
    found: dict[str, float] = {}
    for columns, played in zip(arms, plays, strict=True):
        blind = np.max([column.blind for column in columns.values()], axis=0)
        here: dict[str, float] = defaultdict(float)
        for n in np.flatnonzero(chosen & (blind > 0)).tolist():
            if played[n].missing:
                here[played[n].missing] += float(blind[n]) / int(chosen.sum())
        found |= {missing: max(share, found.get(missing, 0.0)) for missing, share in here.items()}
    return tuple(
        Gap(min(share, 1.0), *lacking(missing)) for missing, share in sorted(found.items(), key=lambda item: -item[1])
    )


def _numbered(keys: Sequence[Any]) -> Ints:
    """Equal keys get equal numbers, from 0 on."""
    numbers: dict[Any, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)
