"""Compressors beside each other on a task: what they keep, how often the predictor is wrong after them, what it costs.

Distortion D is the share of wrong answers. D(x) = C exp(-b x) + D0 is fitted for x the bits kept, and for x the rate in
bits per token (arXiv 2512.21720); D0 is what no compressor can remove. Rate alone is mostly the shortness of summaries,
so for each compressor it is said how much of its advantage in rate over the first one is length alone. Pure numpy.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from smallfirst import stats
from smallfirst.compress.estimate import Floats
from smallfirst.compress.information import Report
from smallfirst.errors import DataError
from smallfirst.stats import Figure

_DECAYS = np.geomspace(0.02, 50, 120)  # b times the range of x
_LEAST_POINTS = 4
_RESAMPLES = 500
X = Literal["information", "rate"]


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of one compressor at one budget: its report, and by case whether the predictor was right, what it read
    in tokens, and what the call cost in USD with the compressor's machine time priced and free."""

    report: Report
    right: tuple[bool, ...]
    tokens: tuple[int, ...]
    usd: tuple[float, ...]
    usd_local_free: tuple[float, ...]

    @property
    def name(self) -> str:
        return f"{self.report.compressor} {self.report.budget}" if self.report.budget else self.report.compressor


@dataclass(frozen=True, slots=True)
class Point:
    """A trial in figures; `budget` is 0 where there is none. `cps` is USD for a right answer, compressor priced;
    `front`: no other has both fewer tokens and more right answers. `by_length` is the part of its rate's advantage over
    the first trial that is length alone (1: all of it), None for the first and without an advantage either way."""

    name: str
    compressor: str
    budget: int
    information: Figure
    length: Figure
    rate: Figure
    accuracy: Figure
    tokens: Figure
    cps: Figure
    cps_local_free: Figure
    front: bool
    by_length: float | None


@dataclass(frozen=True, slots=True)
class Fit:
    """D = C exp(-b x) + D0 over the trials' `x`, with percentile intervals over cases; `r2` of the fit."""

    x: X
    scale: Figure
    decay: Figure
    floor: Figure
    r2: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """All points in their order, the fits that the trials allow, the rank correlation of information and accuracy, and
    the name of the point to take: the least CPS among those whose accuracy is within `margin` of the best."""

    points: tuple[Point, ...]
    fits: tuple[Fit, ...]
    spearman: Figure
    recommended: str
    margin: float


def compare(trials: Sequence[Trial], *, margin: float = 0.02, level: float = 0.95, seed: int = 0) -> Comparison:
    """Raises DataError unless there are trials, all on the same number of cases."""
    counts = {len(trial.right) for trial in trials}
    if len(counts) != 1:
        raise DataError(f"Trials have {sorted(counts)} cases.", hint="Compare compressors on the same cases.")
    names = [trial.name for trial in trials]
    if len(set(names)) < len(names):
        raise DataError(f"A compressor at a budget is there twice: {sorted(names)}.")
    points = tuple(_point(trial, trials, level) for trial in trials)
    fits = [fit(trials, x, level=level, seed=seed) for x in ("information", "rate")]
    best = max(point.accuracy.value or 0.0 for point in points)
    able = [p for p in points if (p.accuracy.value or 0.0) >= best - margin]
    chosen = min(able, key=lambda p: math.inf if p.cps.value is None else p.cps.value)
    return Comparison(
        points, tuple(f for f in fits if f), _correlation(trials, level, seed), chosen.name, margin=margin
    )


def fit(trials: Sequence[Trial], x: X, *, level: float = 0.95, seed: int = 0) -> Fit | None:
    """The least-squares fit of D = C exp(-b x) + D0 with C, D0 >= 0; None for fewer than four different x.

    For a b, C and D0 are linear, so b is searched on a grid and the others are exact. In a resample the cases are drawn
    again, the same for every trial.
    """
    bits = np.array([trial.report.estimate.bits for trial in trials])
    wrong = 1.0 - np.array([trial.right for trial in trials], dtype=np.float64)
    lengths = np.array([trial.report.length.value or 0.0 for trial in trials])
    usable = lengths > 0 if x == "rate" else np.ones(len(trials), dtype=np.bool_)
    per_token = np.where(lengths > 0, lengths, 1.0) if x == "rate" else np.ones(len(trials))

    def at(weights: Floats) -> tuple[Floats, Floats]:
        total = weights.sum()
        return (np.maximum(bits @ weights / total, 0.0) / per_token)[usable], (wrong @ weights / total)[usable]

    count = bits.shape[1]
    xs, distortions = at(np.ones(count))
    if len(np.unique(xs.round(9))) < _LEAST_POINTS:
        return None
    found, r2 = curve(xs, distortions)
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=_RESAMPLES)
    replicates = np.array([curve(*at(draw.astype(np.float64)))[0] for draw in draws])
    low, high = np.quantile(replicates, [(1 - level) / 2, (1 + level) / 2], axis=0)
    scale, decay, floor = (Figure(float(found[i]), float(low[i]), float(high[i]), count, "bootstrap") for i in range(3))
    return Fit(x, scale, decay, floor, r2)


def curve(xs: Floats, distortions: Floats) -> tuple[Floats, float]:
    """(C, b, D0) of the best fit, and its R squared; both arrays have shape (n,). C = b = 0: D does not fall with x."""
    spread = float(np.ptp(xs)) or 1.0
    bases = np.exp(-np.outer(_DECAYS / spread, xs - xs.min()))
    centred = bases - bases.mean(axis=1, keepdims=True)
    power = (centred**2).sum(axis=1)
    slopes = centred @ (distortions - distortions.mean()) / np.where(power > 0, power, 1.0)
    scales = np.maximum(slopes, 0.0)
    floors = distortions.mean() - scales * bases.mean(axis=1)
    through_zero = (bases @ distortions) / (bases**2).sum(axis=1)
    scales = np.where(floors < 0, np.maximum(through_zero, 0.0), scales)
    floors = np.maximum(floors, 0.0)
    errors = ((scales[:, None] * bases + floors[:, None] - distortions) ** 2).sum(axis=1)
    best = int(np.argmin(errors))
    decay = float(_DECAYS[best] / spread) if scales[best] > 0 else 0.0
    total = float(((distortions - distortions.mean()) ** 2).sum())
    r2 = 1 - float(errors[best]) / total if total > 0 else 1.0
    return np.array([scales[best] * math.exp(decay * float(xs.min())), decay, floors[best]]), r2


def spearman(one: Floats, other: Floats) -> float:
    """The rank correlation of two arrays of shape (n,), ties at their mean rank; 0 where one is constant."""
    first, second = _ranks(one), _ranks(other)
    first, second = first - first.mean(), second - second.mean()
    norm = math.sqrt(float(first @ first) * float(second @ second))
    return float(first @ second) / norm if norm > 0 else 0.0


def scaling(parameters: Sequence[int], flops: Floats, *, level: float = 0.95, seed: int = 0) -> Figure:
    """The exponent e of FLOPs ~ parameters^e over models, from `flops` of shape (models, cases): the slope of the logs
    of means, with the percentile interval over cases. Below 1, larger models cost less than their size says.

    Raises DataError for fewer than two sizes or operations that are not above 0.
    """
    sizes = np.log(np.array(parameters, dtype=np.float64))
    if len(np.unique(sizes)) < 2 or not (flops.mean(axis=1) > 0).all():
        raise DataError("Scaling needs models of two sizes, and operations above 0.")
    centred = sizes - sizes.mean()

    def slope(means: Floats) -> Floats:
        found: Floats = centred @ np.log(means) / float(centred @ centred)
        return found

    count = flops.shape[1]
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=1000)
    low, high = np.quantile(slope(flops @ draws.T / count), [(1 - level) / 2, (1 + level) / 2])
    return Figure(float(slope(flops.mean(axis=1))), float(low), float(high), count, "bootstrap")


def right(said: str, answers: Sequence[str]) -> bool:
    """Whether `said` holds one of the answers, by words, or by characters where it has no spaces; a yes or no must come
    first."""
    words = _plain(said)
    for answer in map(_plain, answers):
        if answer in ("yes", "no"):
            if words.split(" ")[0] == answer:
                return True
        elif answer and (f" {answer} " in f" {words} " or (not answer.isascii() and answer in words)):
            return True
    return False


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def _ranks(values: Floats) -> Floats:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks: Floats = (ends - (counts - 1) / 2)[place]
    return ranks


def _correlation(trials: Sequence[Trial], level: float, seed: int) -> Figure:
    """Spearman's correlation of information and accuracy over trials; its interval is over cases."""
    bits = np.array([trial.report.estimate.bits for trial in trials])
    hits = np.array([trial.right for trial in trials], dtype=np.float64)
    count = bits.shape[1]
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=_RESAMPLES)
    replicates = [spearman(bits @ draw, hits @ draw) for draw in draws]
    low, high = np.quantile(replicates, [(1 - level) / 2, (1 + level) / 2])
    value = spearman(bits.mean(axis=1), hits.mean(axis=1))
    return Figure(value, float(low), float(high), len(trials), "bootstrap over cases")


def _point(trial: Trial, trials: Sequence[Trial], level: float) -> Point:
    report = trial.report
    accuracy = stats.wilson(sum(trial.right), len(trial.right), level)
    hits = [float(r) for r in trial.right]
    mine = (sum(trial.tokens), -sum(trial.right))
    others = [(sum(t.tokens), -sum(t.right)) for t in trials]
    return Point(
        name=trial.name,
        compressor=report.compressor,
        budget=report.budget,
        information=report.estimate.information,
        length=report.length,
        rate=report.rate,
        accuracy=accuracy,
        tokens=stats.mean(trial.tokens, level=level),
        cps=stats.ratio(trial.usd, hits, level=level),
        cps_local_free=stats.ratio(trial.usd_local_free, hits, level=level),
        front=not any(o[0] <= mine[0] and o[1] <= mine[1] and o != mine for o in others),
        by_length=_by_length(report, trials[0].report),
    )


def _by_length(report: Report, first: Report) -> float | None:
    rates = report.rate.value, first.rate.value
    lengths = report.length.value, first.length.value
    if report is first or not all(rates) or not all(lengths):
        return None
    gain = math.log((rates[0] or 1.0) / (rates[1] or 1.0))
    return math.log((lengths[1] or 1.0) / (lengths[0] or 1.0)) / gain if abs(gain) > 1e-9 else None
