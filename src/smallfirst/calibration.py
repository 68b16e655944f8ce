"""From features of an answer to P(correct): kernel logistic regression, then isotonic regression, cross-fitted.

The score is logistic regression on a Gaussian kernel over standardised features (Zhu and Hastie 2005), on at most
`LANDMARKS` of the labelled calls (Nystroem; Williams and Seeger 2001): with a few hundred labels it ranks better than
logistic regression on the features or boosted trees do (`docs/log.md`), and one artifact of numbers is all that the
gateway loads. Probabilities come from centred isotonic regression (Oron and Flournoy 2017) of the labels on the
*cross-fitted* scores: each call's by a model that did not see it. numpy only; pure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from smallfirst.confidence import FEATURES
from smallfirst.errors import CalibrationError

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

VERSION = 1
MIN_LABELS = 40
MIN_EACH = 5
MIN_CLASS = 10
LANDMARKS = 200
FOLDS = 10

_WIDTH = 0.7
_PENALTY = 1.0
_CLIP = 4.0
_STEPS = 30
_COUNTS = frozenset(name for name, kind in FEATURES.items() if kind == "count")


@dataclass(frozen=True, slots=True)
class Model:
    """A fitted calibrator; `to_json` and `from_json` keep it. Its figures are those of the cross-fitted labels.

    `names` are the features it uses; `always` are those that no labelled call lacked. Columns of the design are the
    features (counts as log(1 + x), standardised, absent ones at the mean), then one column for each feature that some
    labelled calls lacked, which tells that it is absent. `landmarks` (m, columns), `weights` (m,), `knots` and `values`
    (k,) of the isotonic step. `classes` are the values of no_call with enough labels to be judged.
    """

    names: tuple[str, ...]
    always: frozenset[str]
    classes: frozenset[float]
    centre: Floats
    scale: Floats
    landmarks: Floats
    weights: Floats
    bias: float
    knots: Floats
    values: Floats
    labels: int

    def confidence(self, features: Mapping[str, float]) -> float:
        """P(correct) in [0, 1]; 0 for an answer unlike those that labels were given for (see `unlike`)."""
        return 0.0 if self.unlike(features) else float(self.confidences([features])[0])

    def confidences(self, rows: Sequence[Mapping[str, float]]) -> Floats:
        """`confidence` of many, shape (n,)."""
        found = np.interp(self._scores(rows), self.knots, self.values)
        found[[bool(self.unlike(row)) for row in rows]] = 0.0
        return found

    def unlike(self, features: Mapping[str, float]) -> tuple[str, ...]:
        """Why nothing can be said of an answer: features it lacks that every labelled call had, or its class."""
        lacking = tuple(sorted(self.always - features.keys()))
        return lacking if features.get("no_call", -1.0) in self.classes else (*lacking, "no_call")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, arrays as lists rounded to 7 significant digits."""
        return {
            "version": VERSION,
            "names": list(self.names),
            "always": sorted(self.always),
            "classes": sorted(self.classes),
            "labels": self.labels,
            "bias": self.bias,
            **{name: _rounded(getattr(self, name)) for name in _ARRAYS},
        }

    @classmethod
    def from_json(cls, kept: Mapping[str, Any]) -> Model:
        """Raises CalibrationError for another version, features that this code does not know, or damaged arrays."""
        if kept.get("version") != VERSION:
            raise CalibrationError(
                f"The calibrator has version {kept.get('version')!r}; this smallfirst reads version {VERSION}.",
                hint="Run `smallfirst calibrate` again.",
            )
        if unknown := sorted(set(kept["names"]) - FEATURES.keys()):
            raise CalibrationError(
                f"The calibrator uses features that this smallfirst does not compute: {', '.join(unknown)}.",
                hint="Run `smallfirst calibrate` again, or use the smallfirst that made it.",
            )
        try:
            arrays = {name: np.asarray(kept[name], dtype=np.float64) for name in _ARRAYS}
            model = cls(
                names=tuple(kept["names"]),
                always=frozenset(kept["always"]),
                classes=frozenset(kept["classes"]),
                bias=float(kept["bias"]),
                labels=int(kept["labels"]),
                **arrays,
            )
            model.confidences([dict.fromkeys(model.names, 0.0)])
        except (KeyError, TypeError, ValueError) as error:
            raise CalibrationError(
                f"The calibrator is damaged: {error}.", hint="Run `smallfirst calibrate` again."
            ) from None
        return model

    def _scores(self, rows: Sequence[Mapping[str, float]]) -> Floats:
        design = _standardised(_design(rows, self.names, self.always), self.centre, self.scale)
        scores: Floats = _kernel(design, self.landmarks) @ self.weights + self.bias
        return scores


_ARRAYS = ("centre", "scale", "landmarks", "weights", "knots", "values")


@dataclass(frozen=True, slots=True)
class Fit:
    """A model fitted on all labels, and for each labelled call the confidence by models that did not see it, (n,)."""

    model: Model
    crossfitted: Floats


def fit(
    rows: Sequence[Mapping[str, float]],
    correct: ArrayLike,
    *,
    groups: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    seed: int = 0,
) -> Fit:
    """Fit P(correct | features) on labelled calls: `rows` of features and `correct` of shape (n,).

    `groups` (episodes) are kept together in cross-fitting; `names` restricts the features, by default all that occur.
    Raises CalibrationError for fewer than MIN_LABELS labels or MIN_EACH of either kind: nothing is guessed then.
    """
    right = np.asarray(correct, dtype=bool)
    _check_labels(len(rows), right)
    present = {name for row in rows for name in row} & set(FEATURES if names is None else names)
    used = tuple(name for name in FEATURES if name in present)
    always = frozenset(name for name in used if all(name in row for row in rows))
    design = _design(rows, used, always)
    score = np.empty(len(rows))
    for fold in _folds(groups or [str(n) for n in range(len(rows))], seed):
        score[fold] = _Machine.fit(design[~fold], right[~fold], seed).scores(design[fold])
    machine = _Machine.fit(design, right, seed)
    knots, values = isotonic(score, right)
    model = Model(
        names=used,
        always=always,
        classes=_classes(rows),
        centre=machine.centre,
        scale=machine.scale,
        landmarks=machine.landmarks,
        weights=machine.weights,
        bias=machine.bias,
        knots=knots,
        values=values,
        labels=len(rows),
    )
    crossfitted = np.interp(score, knots, values)
    crossfitted[[bool(model.unlike(row)) for row in rows]] = 0.0
    return Fit(model, crossfitted)


def isotonic(score: ArrayLike, correct: ArrayLike) -> tuple[Floats, Floats]:
    """Centred isotonic regression of labels on scores: knots and values to interpolate between, both increasing.

    Pool-adjacent-violators blocks are represented at their mean score (Oron and Flournoy 2017), so that the curve has
    no steps but rises strictly and keeps the order of scores. Ends rise by a thousandth to the extreme scores; values
    stay off 0 and 1 by one observation. Raises ValueError for empty or unequal input.
    """
    x, y = np.asarray(score, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1 or not len(x):
        raise ValueError(f"shapes {x.shape!r} and {y.shape!r}: allowed are equal shapes (n,), n >= 1")
    order = np.argsort(x, kind="stable")
    blocks: list[tuple[float, float, float]] = []  # labels' sum, scores' sum, weight
    for at, label in zip(x[order], y[order], strict=True):
        block = (label, at, 1.0)
        while blocks and blocks[-1][0] * block[2] >= block[0] * blocks[-1][2]:
            last = blocks.pop()
            block = (last[0] + block[0], last[1] + block[1], last[2] + block[2])
        blocks.append(block)
    rate = np.array([labels / weight for labels, _, weight in blocks])
    centre = np.array([scores / weight for _, scores, weight in blocks])
    edge = 1 / (len(x) + 2)
    rate = np.clip(rate, edge, 1 - edge)
    knots = np.concatenate(([x.min() - 1.0], centre, [x.max() + 1.0]))
    values = np.concatenate(([max(rate[0] - 1e-3, 0.0)], rate, [min(rate[-1] + 1e-3, 1.0)]))
    return knots, np.maximum.accumulate(values)


def expected_calibration_error(confidence: ArrayLike, correct: ArrayLike, bins: int | None = None) -> float:
    """ECE with equal-mass bins: the mean over bins of |mean confidence - share correct|, weighted by size.

    Equal confidences stay in one bin. `bins` defaults to one for every 50 calls, from 5 to 15: with fewer calls in a
    bin its share correct is mostly noise. Both of shape (n,); raises ValueError for n = 0.
    """
    p, y = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    if not len(p) or p.shape != y.shape:
        raise ValueError(f"shapes {p.shape!r} and {y.shape!r}: allowed are equal shapes (n,), n >= 1")
    wanted = min(max(len(p) // 50, 5), 15) if bins is None else bins
    order = np.argsort(p, kind="stable")
    p, y = p[order], y[order]
    cuts = {round(len(p) * k / wanted) for k in range(1, wanted)}
    edges = sorted({0, len(p), *(int(np.searchsorted(p, p[cut], side="left")) for cut in cuts if cut < len(p))})
    gaps = [abs(float(np.sum(p[a:b] - y[a:b]))) for a, b in pairwise(edges)]
    return sum(gaps) / len(p)


def brier(confidence: ArrayLike, correct: ArrayLike) -> float:
    """The mean squared difference between confidence and label (Brier 1950)."""
    p, y = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    return float(np.mean((p - y) ** 2))


def auroc(confidence: ArrayLike, correct: ArrayLike) -> float | None:
    """P(a right answer has more confidence than a wrong one), ties counted half; None with labels of one kind only."""
    p, y = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=bool)
    right, wrong = p[y], np.sort(p[~y])
    if not len(right) or not len(wrong):
        return None
    below = np.searchsorted(wrong, right, side="left") + np.searchsorted(wrong, right, side="right")
    return float(below.mean() / 2 / len(wrong))


@dataclass(frozen=True, slots=True)
class _Machine:
    """Kernel logistic regression on a design (n, columns)."""

    centre: Floats
    scale: Floats
    landmarks: Floats
    weights: Floats
    bias: float

    @classmethod
    def fit(cls, design: Floats, right: Bools, seed: int) -> _Machine:
        """Minimise the logistic loss plus half the squared norm by Newton's method."""
        with np.errstate(invalid="ignore"):
            centre = np.nan_to_num(np.nanmean(np.where(np.isnan(design).all(axis=0), 0.0, design), axis=0))
            scale = np.nan_to_num(np.nanstd(np.where(np.isnan(design).all(axis=0), 0.0, design), axis=0))
        scale[scale < 1e-9] = 1.0
        points = _standardised(design, centre, scale)
        some = np.random.default_rng(seed).permutation(len(points))[:LANDMARKS]
        landmarks = points[np.sort(some)]
        gram = _kernel(landmarks, landmarks)
        gram[np.diag_indices_from(gram)] += 1e-6
        root = np.linalg.cholesky(gram)
        basis = np.linalg.solve(root, _kernel(points, landmarks).T).T
        basis = np.hstack([basis, np.ones((len(basis), 1))])
        inner = _newton(basis, right.astype(np.float64))
        weights = np.linalg.solve(root.T, inner[:-1])
        return cls(centre, scale, landmarks, weights, float(inner[-1]))

    def scores(self, design: Floats) -> Floats:
        points = _standardised(design, self.centre, self.scale)
        found: Floats = _kernel(points, self.landmarks) @ self.weights + self.bias
        return found


def _newton(basis: Floats, right: Floats) -> Floats:
    """Ridge logistic regression on `basis` (n, k); its last column is the intercept, which is not penalised."""
    penalty = np.full(basis.shape[1], _PENALTY)
    penalty[-1] = 1e-6
    inner = np.zeros(basis.shape[1])
    share = (right.sum() + 1) / (len(right) + 2)
    inner[-1] = math.log(share / (1 - share))
    for _ in range(_STEPS):
        chance = 1 / (1 + np.exp(-np.clip(basis @ inner, -30, 30)))
        slope = basis.T @ (right - chance) - penalty * inner
        curve = (basis * (chance * (1 - chance))[:, None]).T @ basis
        curve[np.diag_indices_from(curve)] += penalty
        step = np.linalg.solve(curve, slope)
        inner = inner + step
        if np.abs(step).max() < 1e-4:
            break
    return inner


def _kernel(points: Floats, landmarks: Floats) -> Floats:
    """exp(-width |x - z|^2 / columns), shape (n, m)."""
    apart = (points**2).sum(axis=1)[:, None] + (landmarks**2).sum(axis=1)[None] - 2 * points @ landmarks.T
    found: Floats = np.exp(-_WIDTH / points.shape[1] * np.maximum(apart, 0.0))
    return found


def _design(rows: Sequence[Mapping[str, float]], names: Sequence[str], always: frozenset[str]) -> Floats:
    """(n, columns): features, NaN where absent, then for each that may be absent whether it is."""
    table = np.array([[row.get(name, math.nan) for name in names] for row in rows], dtype=np.float64)
    table = table.reshape(len(rows), len(names))
    for column, name in enumerate(names):
        if name in _COUNTS:
            table[:, column] = np.log1p(np.maximum(table[:, column], 0.0))
    may_lack = [column for column, name in enumerate(names) if name not in always]
    return np.hstack([table, np.isnan(table[:, may_lack]).astype(np.float64)])


def _standardised(design: Floats, centre: Floats, scale: Floats) -> Floats:
    return np.nan_to_num(np.clip((design - centre) / scale, -_CLIP, _CLIP), nan=0.0)


def _folds(groups: Sequence[str], seed: int) -> list[Bools]:
    """Which calls belong to each fold; a group is never divided."""
    kinds, index = np.unique(np.asarray(groups), return_inverse=True)
    fold = np.random.default_rng(seed).permutation(len(kinds)) % FOLDS
    members = [fold[index] == k for k in range(FOLDS)]
    return [each for each in members if each.any()]


def _classes(rows: Sequence[Mapping[str, float]]) -> frozenset[float]:
    kinds = [row.get("no_call", -1.0) for row in rows]
    return frozenset(kind for kind in set(kinds) if kinds.count(kind) >= MIN_CLASS)


def _check_labels(n: int, right: Bools) -> None:
    if right.shape != (n,):
        raise ValueError(f"{n} rows of features and labels of shape {right.shape!r}: allowed is one label a row")
    wrong = int(n - right.sum())
    if n < MIN_LABELS or min(wrong, n - wrong) < MIN_EACH:
        raise CalibrationError(
            f"{n} labelled calls ({n - wrong} right, {wrong} wrong) are too few to calibrate on; "
            f"at least {MIN_LABELS} with {MIN_EACH} of either kind are needed.",
            hint="Give feedback on more calls, or let more of them run in shadow beside the large model.",
        )


def _rounded(array: Floats) -> Any:
    return np.vectorize(lambda x: float(f"{x:.7g}"))(array).tolist() if array.size else array.tolist()
