"""Doubly robust estimates of what is observed of some calls only, each with a known probability or none.

Of n calls an outcome y is wanted; it was observed of some: by a draw whose probability was recorded, or without one
(an answer that had to be asked for anyway, a user's feedback). A model m of the outcome, cross-fitted on the observed
calls, gives every call a value, and the observed calls' errors, weighted by 1 / probability, correct it (Dudik,
Langford and Li 2011, arXiv 1103.4601, eq. 2): the mean is right when either the model or the probabilities are.

Weights are normalised within strata of calls that were treated alike, so what was observed without a recorded
probability counts as seen at random within its stratum. Pure, numpy only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

MIN_SEEN = 5
"""Observed calls that a stratum needs, unless all of its calls are observed."""

_FOLDS = 5
_RIDGE = 1.0


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of n calls before their outcome: all arrays have shape (n,), `design` (n, k).

    Calls of the same `stratum` were treated alike; of the same `group` they share a model on the columns of `design`.
    `base` says for how many calls each stands (0: for none, and its outcome is not looked at).
    """

    stratum: Ints
    group: Ints
    base: Floats
    design: Floats


@dataclass(frozen=True, slots=True)
class Scores:
    """Per call, shape (n,): `value` has the estimate as its `base`-weighted mean, and its spread is the estimate's.

    `weight` is how much of the estimate the call's own outcome carries (0: not observed). `blind` are the calls of
    strata that hold too few observations; their values are the model's, and [`least`, `most`] is the range of what was
    observed anywhere.
    """

    value: Floats
    weight: Floats
    blind: Bools
    least: float
    most: float


def scores(outcome: Floats, probability: Floats, known: Known, *, seed: int = 0) -> Scores:
    """Doubly robust scores of `outcome` (n,), NaN where it was not observed.

    `probability` (n,) is that of the draw by which it was observed, 1 without one. Correction terms are centred within
    strata (the linearised Hajek estimator; Saerndal, Swensson and Wretman 1992, section 5.7), so that the mean's
    variance is the scores' variance / n.
    """
    seen = ~np.isnan(outcome) & (known.base > 0)
    weight, blind = balance(seen, probability, known.stratum, known.base)
    model = _crossfit(outcome, seen, known, seed)
    error = np.where(seen, outcome - model, 0.0)
    carried = known.base * weight
    sums = np.bincount(known.stratum, carried * error)
    totals = np.bincount(known.stratum, carried)
    centre = np.divide(sums, totals, out=np.zeros_like(sums), where=totals > 0)[known.stratum]
    value = model + centre + weight * (error - centre)
    least, most = (float(f(outcome[seen])) if seen.any() else 0.0 for f in (np.min, np.max))
    return Scores(value, weight, blind, least, most)


def balance(seen: Bools, probability: Floats, stratum: Ints, base: Floats) -> tuple[Floats, Bools]:
    """Weights (n,) by which the seen calls of each stratum stand for all of it: base-weighted, they sum to its base.

    Seen by a draw, a call weighs 1 / probability; the others that are seen weigh the same each. Where a stratum has
    both, each kind stands for the whole stratum in proportion to its effective number (Hartley 1962). The second array
    tells the calls of strata with fewer than MIN_SEEN seen calls that are not all of it: their weights are 0.
    """
    count = int(stratum.max(initial=-1)) + 1
    concerned = base > 0
    number = np.bincount(stratum[concerned], minlength=count)
    looked = np.bincount(stratum[seen], minlength=count)
    blind = (looked < MIN_SEEN) & (looked < number)
    total = np.bincount(stratum, base, minlength=count)
    weight = np.zeros(len(seen))
    kinds = [(seen & (probability >= 1), np.ones(len(seen))), (seen & (probability < 1), 1 / probability)]
    effective = [_effective(stratum[kind], (base * raw)[kind], count) for kind, raw in kinds]
    for (kind, raw), size in zip(kinds, effective, strict=True):
        mass = np.bincount(stratum[kind], (base * raw)[kind], minlength=count)
        share = np.divide(size, effective[0] + effective[1], out=np.zeros(count), where=size > 0)
        scale = np.divide(share * total, mass, out=np.zeros(count), where=(mass > 0) & ~blind)
        weight += np.where(kind, raw * scale[stratum], 0.0)
    return weight, blind[stratum] & concerned


def effective_number(weights: Floats) -> float:
    """How many equally weighted observations tell as much: (sum w)^2 / sum w^2 (Kish 1965); 0 for none."""
    squares = float(np.sum(weights**2))
    return float(np.sum(weights)) ** 2 / squares if squares > 0 else 0.0


def _effective(stratum: Ints, weights: Floats, count: int) -> Floats:
    """`effective_number` of each stratum, shape (count,)."""
    sums = np.bincount(stratum, weights, minlength=count)
    squares = np.bincount(stratum, weights**2, minlength=count)
    found: Floats = np.divide(sums**2, squares, out=np.zeros(count), where=squares > 0)
    return found


def _crossfit(outcome: Floats, seen: Bools, known: Known, seed: int) -> Floats:
    """The model's prediction for every call (n,), by ridge regression on the seen calls of other folds of its group.

    A group without any seen call gets the mean of all seen calls.
    """
    fold = np.random.default_rng(seed).permutation(len(outcome)) % _FOLDS
    found = np.full(len(outcome), outcome[seen].mean() if seen.any() else 0.0)
    order = np.argsort(known.group, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(known.group[order])) + 1):
        with_outcome = members[seen[members]]
        if not len(with_outcome):
            continue
        for number in range(_FOLDS):
            others = with_outcome[fold[with_outcome] != number]
            here = members[fold[members] == number]
            train = others if len(others) else with_outcome
            found[here] = _ridge(known.design[train], outcome[train], known.design[here])
    return found


def _ridge(design: Floats, outcome: Floats, wanted: Floats) -> Floats:
    """Predictions for `wanted` of a linear model with intercept; columns are standardised, the intercept is free."""
    centre, scale = design.mean(axis=0), design.std(axis=0)
    scale = np.where(scale > 1e-9, scale, np.inf)
    columns = (design - centre) / scale
    penalty = _RIDGE * np.eye(columns.shape[1])
    slopes = np.linalg.solve(columns.T @ columns + penalty, columns.T @ (outcome - outcome.mean()))
    found: Floats = outcome.mean() + (wanted - centre) / scale @ slopes
    low, high = outcome.min(), outcome.max()
    return np.clip(found, low, high)
