"""From features of an answer to P(correct): kernel logistic regression, then a monotone curve, cross-fitted.

The score is logistic regression on a Gaussian kernel over standardised features (Zhu and Hastie 2005), on at most
`LANDMARKS` of the labelled calls and their `RANK` leading components (Nystroem; Williams and Seeger 2001): with a few
hundred labels it ranks better than logistic regression on the features or boosted trees do (`docs/log.md`), and one
artifact of numbers is all that the gateway loads. Probabilities come from a `curve` of the labels on the *cross-fitted*
scores: each call's by a model that its label did not teach. A task with few labels corrects the score of a `prior`, a
model of other tasks. numpy only; pure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from smallfirst.agreement import FEATURES as AGREEMENT
from smallfirst.confidence import FEATURES
from smallfirst.errors import CalibrationError

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

VERSION = 2
MIN_LABELS = 40
MIN_RIGHT = 5
MIN_CLASS = 10
MIN_CORRECTED = 15
LANDMARKS = 320
RANK = 120
FOLDS = 10

_WIDTH = 1.4
_PENALTY = 0.4
_CORRECTION = 2.0
_APART = 1.5
_AGREEING = 4.0  # agreement says more than any other feature, and is few among many
_CLIP = 4.0
_DIGITS = 5
_LARGEST = 1e9
_STEPS = 30
_COUNTS = frozenset(name for name, kind in FEATURES.items() if kind == "count")


@dataclass(frozen=True, slots=True)
class Model:
    """A fitted calibrator; `to_json` and `from_json` keep it.

    `names` are the features it uses; `always` are those that no labelled call lacked. Columns of the design are the
    features (counts as log(1 + x), standardised, absent ones at the mean), for each of `gaps` whether that feature is
    absent, and whether the answer is another model's. `landmarks` (m, columns), `weights` (m,), `knots` and `values`
    (k,) of the curve. `classes` are the values of no_call with enough labels to be judged. With a `prior` the
    score is the prior's, corrected by this model's own. `labels` is how many calls taught it, the prior's apart.
    """

    names: tuple[str, ...]
    always: frozenset[str]
    gaps: tuple[str, ...]
    classes: frozenset[float]
    centre: Floats
    scale: Floats
    landmarks: Floats
    weights: Floats
    bias: float
    knots: Floats
    values: Floats
    labels: int
    prior: Model | None = None
    norms: Floats = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "norms", _norms(self.landmarks))

    def confidence(self, features: Mapping[str, float]) -> float:
        """P(correct) in [0, 1]; 0 for an answer unlike those that labels were given for (see `unlike`)."""
        return float(self.confidences([features])[0])

    def confidences(self, rows: Sequence[Mapping[str, float]]) -> Floats:
        """`confidence` of many, shape (n,)."""
        found: Floats = np.interp(self.scores(rows), self.knots, self.values)
        found[[bool(self.unlike(row)) for row in rows]] = 0.0
        return found

    def unlike(self, features: Mapping[str, float]) -> tuple[str, ...]:
        """Why nothing can be said of an answer: features it lacks that every labelled call had, or its class.

        A feature that is not a finite number counts as lacking.
        """
        lacking = tuple(sorted(name for name in self.always if not math.isfinite(features.get(name, math.nan))))
        return lacking if features.get("no_call", -1.0) in self.classes else (*lacking, "no_call")

    def scores(self, rows: Sequence[Mapping[str, float]]) -> Floats:
        """Log-odds that the answers are correct before the curve, shape (n,)."""
        points = _standardised(_design(rows, self.names, self.gaps), self.centre, self.scale)
        own: Floats = _kernel(points, self.landmarks, self.norms) @ self.weights + self.bias
        return own if self.prior is None else own + self.prior.scores(rows)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, arrays as lists; the same model, to the last bit, comes of it."""
        return {
            "version": VERSION,
            "names": list(self.names),
            "always": sorted(self.always),
            "gaps": list(self.gaps),
            "classes": sorted(self.classes),
            "labels": self.labels,
            "bias": self.bias,
            "prior": None if self.prior is None else self.prior.to_json(),
            **{name: getattr(self, name).tolist() for name in _ARRAYS},
        }

    @classmethod
    def from_json(cls, kept: Mapping[str, Any]) -> Model:
        """Raises CalibrationError for another version, features that this code does not know, or damaged parts."""
        if kept.get("version") != VERSION:
            raise CalibrationError(
                f"The calibrator has version {kept.get('version')!r}; this smallfirst reads version {VERSION}.",
                hint="Run `smallfirst calibrate` again.",
            )
        try:
            if unknown := sorted({*kept["names"], *kept["gaps"], *kept["always"]} - FEATURES.keys()):
                raise CalibrationError(
                    f"The calibrator uses features that this smallfirst does not compute: {', '.join(unknown)}.",
                    hint="Run `smallfirst calibrate` again, or use the smallfirst that made it.",
                )
            model = cls(
                names=tuple(kept["names"]),
                always=frozenset(kept["always"]),
                gaps=tuple(kept["gaps"]),
                classes=frozenset(kept["classes"]),
                bias=float(kept["bias"]),
                labels=int(kept["labels"]),
                prior=None if kept["prior"] is None else cls.from_json(kept["prior"]),
                **{name: np.asarray(kept[name], dtype=np.float64) for name in _ARRAYS},
            )
            model._check()
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CalibrationError(
                f"The calibrator is damaged: {type(error).__name__}: {error}.", hint="Run `smallfirst calibrate` again."
            ) from None
        return model

    def _check(self) -> None:
        columns, known = len(self.names) + len(self.gaps), len(self.weights)
        shapes = {"centre": (columns,), "scale": (columns,), "landmarks": (known, columns + 1), "weights": (known,)}
        shapes |= {"knots": self.values.shape, "values": (self.values.size,)}
        for name, shape in shapes.items():
            array = getattr(self, name)
            if array.shape != shape or not np.isfinite(array).all():
                raise ValueError(f"{name} has shape {array.shape!r}: allowed are finite numbers of shape {shape!r}")
        rising = self.values.size and (np.diff(self.knots) >= 0).all() and (np.diff(self.values) >= 0).all()
        if not (rising and self.values[0] >= 0 and self.values[-1] <= 1 and (self.scale > 0).all()):
            raise ValueError("knots and values must rise, values stay in [0, 1] and scale above 0")
        if not math.isfinite(self.bias):
            raise ValueError(f"bias {self.bias!r}: allowed is a finite number")


_ARRAYS = ("centre", "scale", "landmarks", "weights", "knots", "values")


@dataclass(frozen=True, slots=True)
class Labelled:
    """Labelled answers: features, whether each is correct, and the group (episode or request) that each belongs to."""

    rows: Sequence[Mapping[str, float]]
    correct: ArrayLike
    groups: Sequence[str]


@dataclass(frozen=True, slots=True)
class Fit:
    """A model, and for each labelled call the confidence by models that its group did not teach, (n,).

    `used` says what the model is: the labels' "own", a prior "corrected" by them, or the "prior" as it is.
    """

    model: Model
    crossfitted: Floats
    used: Literal["own", "corrected", "prior"]


def fit(
    rows: Sequence[Mapping[str, float]],
    correct: ArrayLike,
    *,
    groups: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    more: Labelled | None = None,
    prior: Model | None = None,
    seed: int = 0,
) -> Fit:
    """Fit P(correct | features) on labelled calls: `rows` of features and `correct` of shape (n,).

    `groups` (episodes) are kept together in cross-fitting; `names` restricts the features, by default all that occur.
    Standardisation and landmarks look at all features, labels teach only other groups' scores.

    `more` are labelled answers of other models, such as the second small model's to the same requests: what makes an
    answer wrong is much the same for all of them. They teach the score, with a column that tells them apart; the
    curve and the cross-fitted confidences are of `rows` alone. A group in both is kept out of its own score.

    `prior`, a model that these labels did not teach, is what the score starts from: the labels learn a correction that
    a penalty draws to 0. Its curve stays until there are labels for another. With fewer than MIN_CORRECTED
    labels, or of one kind only, the prior is returned as it is.

    Raises CalibrationError without a prior for fewer than MIN_LABELS labels or MIN_RIGHT right ones, ValueError for
    unequal lengths, or for `more` without `groups`. Wrong ones may be few: a model that is hardly ever wrong is learned
    to be so, and what is promised of it is tested on its labels all the same.
    """
    right = np.asarray(correct, dtype=bool)
    if right.shape != (len(rows),):
        raise ValueError(
            f"{len(rows)} rows of features and labels of shape {right.shape!r}: allowed is one label a row"
        )
    few = min(right.sum(), (~right).sum())
    if prior is not None and (len(rows) < MIN_CORRECTED or not few):
        return Fit(prior, prior.confidences(rows), "prior")
    enough = len(rows) >= MIN_LABELS and right.sum() >= MIN_RIGHT
    if prior is None and not enough:
        raise _too_few(right)
    task = _Task.of(rows, right, groups, more, set(FEATURES if names is None else names), prior)
    machine = _Machine.of(task, seed)
    score = machine.crossfitted(task, seed)
    knots, values = curve(score, right) if enough or prior is None else (prior.knots, prior.values)
    model = Model(
        names=task.names,
        always=frozenset(name for name in task.names if all(math.isfinite(row.get(name, math.nan)) for row in rows)),
        gaps=task.gaps,
        classes=_classes(rows) | (prior.classes if prior else frozenset()),
        centre=machine.centre,
        scale=machine.scale,
        landmarks=machine.landmarks,
        weights=machine.to_weights @ machine.inner[:-1],
        bias=float(machine.inner[-1]),
        knots=knots,
        values=values,
        labels=len(rows),
        prior=prior,
    )
    crossfitted: Floats = np.interp(score, knots, values)
    crossfitted[[bool(model.unlike(row)) for row in rows]] = 0.0
    return Fit(model, crossfitted, "own" if prior is None else "corrected")


def curve(score: ArrayLike, correct: ArrayLike) -> tuple[Floats, Floats]:
    """P(correct) by score: knots and values to interpolate between, both increasing.

    The mean of isotonic regression, which follows the labels, and of a logistic curve (Platt 1999), which smooths
    them: with a few hundred labels its calibration error is below that of either. Errors as `isotonic`.
    """
    knots, values = isotonic(score, correct)
    x, y = np.asarray(score, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    target = np.where(y > 0, (y.sum() + 1) / (y.sum() + 2), 1 / (len(y) - y.sum() + 2))
    line = np.stack([x, np.ones_like(x)], axis=1)
    slope, shift = _newton(line, target, np.zeros_like(x), np.array([1e-3, 1e-6]))
    if slope < 0:
        slope, shift = 0.0, math.log(target.mean() / (1 - target.mean()))
    grid = np.unique(np.concatenate((knots, np.quantile(x, np.linspace(0, 1, 33)))))
    smooth = 1 / (1 + np.exp(-np.clip(slope * grid + shift, -30, 30)))
    return grid, (np.interp(grid, knots, values) + smooth) / 2


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


@dataclass(frozen=True, slots=True)
class _Task:
    """What a machine is fitted on: a design (n, columns), the task's own `own` calls first, then other models'."""

    names: tuple[str, ...]
    gaps: tuple[str, ...]
    design: Floats
    right: Floats
    groups: NDArray[np.str_]
    own: int
    offset: Floats
    penalty: Floats

    @classmethod
    def of(
        cls,
        rows: Sequence[Mapping[str, float]],
        right: Bools,
        groups: Sequence[str] | None,
        more: Labelled | None,
        allowed: set[str],
        prior: Model | None,
    ) -> _Task:
        if more is not None and groups is None:
            raise ValueError("more without groups: allowed with the groups of both, so that none teaches its own score")
        everyone = [*rows, *(more.rows if more else ())]
        labels = np.concatenate([right, np.asarray(more.correct if more else (), dtype=bool)])
        kinds = [*(groups or map(str, range(len(rows)))), *(more.groups if more else ())]
        if not len(everyone) == len(labels) == len(kinds):
            raise ValueError(
                f"{len(everyone)} rows, {len(labels)} labels, {len(kinds)} groups: allowed is one each a row"
            )
        present = {name for row in rows for name in row} & allowed
        names = tuple(name for name in FEATURES if name in present)
        gaps = _gaps(everyone, names)
        return cls(
            names=names,
            gaps=gaps,
            design=_design(everyone, names, gaps),
            right=labels.astype(np.float64),
            groups=np.asarray(kinds, dtype=np.str_),
            own=len(rows),
            offset=np.zeros(len(everyone)) if prior is None else prior.scores(everyone),
            penalty=np.array([_PENALTY, 1e-6] if prior is None else [_CORRECTION] * 2),
        )

    def solve(self, basis: Floats, taught: Bools, start: Floats | None = None) -> Floats:
        return _newton(basis[taught], self.right[taught], self.offset[taught], self.penalty, start)


@dataclass(frozen=True, slots=True)
class _Machine:
    """Kernel logistic regression: `inner` are its coefficients on `basis`, the leading components and an intercept."""

    centre: Floats
    scale: Floats
    landmarks: Floats
    to_weights: Floats
    basis: Floats
    inner: Floats

    @classmethod
    def of(cls, task: _Task, seed: int) -> _Machine:
        known = np.where(np.isfinite(task.design), 1.0, 0.0)
        filled = np.where(known > 0, task.design, 0.0)
        count = np.maximum(known.sum(axis=0), 1.0)
        centre = filled.sum(axis=0) / count
        scale = np.sqrt((known * (filled - centre) ** 2).sum(axis=0) / count)
        scale[scale < 1e-9] = 1.0
        scale[[column for column, name in enumerate(task.names) if name in AGREEMENT]] /= _AGREEING
        other = np.where(np.arange(len(filled)) < task.own, 0.0, _APART)
        points = np.hstack([_standardised(task.design, centre, scale), other[:, None]])
        some = np.random.default_rng(seed).permutation(len(points))[:LANDMARKS]
        landmarks = np.round(points[np.sort(some)], _DIGITS)
        norms = _norms(landmarks)
        size, vectors = np.linalg.eigh(_kernel(landmarks, landmarks, norms))
        kept = np.flatnonzero(size > 1e-5 * size[-1])[-RANK:]
        to_weights: Floats = vectors[:, kept] / np.sqrt(size[kept])
        basis = np.hstack([_kernel(points, landmarks, norms) @ to_weights, np.ones((len(points), 1))])
        return cls(centre, scale, landmarks, to_weights, basis, task.solve(basis, np.ones(len(points), dtype=bool)))

    def crossfitted(self, task: _Task, seed: int) -> Floats:
        """Scores of the task's own calls, each by coefficients that no label of its group has taught."""
        score = np.empty(task.own)
        kinds, index = np.unique(task.groups, return_inverse=True)
        fold = (np.random.default_rng(seed).permutation(len(kinds)) % FOLDS)[index]
        for each in np.unique(fold[: task.own]):
            inside = fold == each
            inner = task.solve(self.basis, ~inside, self.inner)
            own = inside[: task.own]
            score[own] = (self.basis @ inner + task.offset)[: task.own][own]
        return score


def _newton(basis: Floats, right: Floats, offset: Floats, penalty: Floats, start: Floats | None = None) -> Floats:
    """Ridge logistic regression on `basis` (n, k) beside `offset` (n,), by Newton's method with halved steps.

    `penalty` is (of the coefficients, of the last one, the intercept). The objective is strictly convex: `start`
    decides only how soon the minimum is found.
    """
    ridge = np.append(np.full(basis.shape[1] - 1, penalty[0]), penalty[1])

    def loss(inner: Floats) -> float:
        margin = basis @ inner + offset
        return float((np.logaddexp(0, margin) - right * margin).sum() + (ridge * inner**2).sum() / 2)

    inner = np.zeros(basis.shape[1]) if start is None else start
    now = loss(inner)
    for _ in range(_STEPS):
        chance = 1 / (1 + np.exp(-np.clip(basis @ inner + offset, -30, 30)))
        slope = basis.T @ (right - chance) - ridge * inner
        curve = (basis * (chance * (1 - chance))[:, None]).T @ basis
        curve[np.diag_indices_from(curve)] += ridge
        step = np.linalg.solve(curve, slope)
        while (then := loss(inner + step)) > now and np.abs(step).max() > 1e-6:
            step = step / 2
        inner, gained, now = inner + step, now - then, then
        if gained < 1e-4:
            break
    return inner


def _norms(points: Floats) -> Floats:
    found: Floats = np.einsum("ij,ij->i", points, points)
    return found


def _kernel(points: Floats, landmarks: Floats, norms: Floats) -> Floats:
    """exp(-width |x - z|^2 / columns), shape (n, m); `norms` are those of the landmarks. Points without the last column
    have 0 there."""
    columns = landmarks.shape[1] - 1
    apart: Floats = points @ landmarks[:, : points.shape[1]].T
    apart *= -2
    apart += norms
    apart += _norms(points)[:, None]
    np.maximum(apart, 0.0, out=apart)
    apart *= -_WIDTH / max(columns, 1)
    return np.exp(apart, out=apart)


def _table(rows: Sequence[Mapping[str, float]], names: Sequence[str]) -> Floats:
    """The features (n, names), at most `_LARGEST` in size, NaN where absent or not finite."""
    table = np.array([[row.get(name, math.nan) for name in names] for row in rows], dtype=np.float64)
    table = table.reshape(len(rows), len(names))
    table[~np.isfinite(table)] = math.nan
    np.maximum(table, -_LARGEST, out=table)
    return np.minimum(table, _LARGEST, out=table)


def _gaps(rows: Sequence[Mapping[str, float]], names: Sequence[str]) -> tuple[str, ...]:
    """The features that some rows lack, one for each set of rows: features that come together are absent together."""
    absent = np.isnan(_table(rows, names))
    found = {absent[:, column].tobytes(): names[column] for column in range(len(names)) if absent[:, column].any()}
    return tuple(found.values())


def _design(rows: Sequence[Mapping[str, float]], names: Sequence[str], gaps: Sequence[str]) -> Floats:
    """(n, columns): features, NaN where absent, then for each gap whether that feature is absent."""
    lacking, counts = _columns(tuple(names), tuple(gaps))
    table = _table(rows, names)
    absent = np.isnan(table[:, lacking])
    np.log1p(np.maximum(table, 0.0), out=table, where=counts)
    return np.concatenate([table, absent], axis=1)


@lru_cache(maxsize=64)
def _columns(names: tuple[str, ...], gaps: tuple[str, ...]) -> tuple[list[int], Bools]:
    """Where the features of `gaps` stand among `names`, and which of these are counts, shape (names,)."""
    return [names.index(name) for name in gaps], np.array([name in _COUNTS for name in names], dtype=bool)


def _standardised(design: Floats, centre: Floats, scale: Floats) -> Floats:
    points: Floats = design - centre
    points /= scale
    np.maximum(points, -_CLIP, out=points)
    np.minimum(points, _CLIP, out=points)
    points[np.isnan(points)] = 0.0
    return points


def _classes(rows: Sequence[Mapping[str, float]]) -> frozenset[float]:
    kinds = [row.get("no_call", -1.0) for row in rows]
    return frozenset(kind for kind in set(kinds) if kinds.count(kind) >= MIN_CLASS)


def _too_few(right: Bools) -> CalibrationError:
    n, wrong = len(right), int((~right).sum())
    return CalibrationError(
        f"{n} labelled calls ({n - wrong} right, {wrong} wrong) are too few to calibrate on; "
        f"at least {MIN_LABELS}, {MIN_RIGHT} of them right, are needed.",
        hint="Give feedback on more calls, or let more of them run in shadow beside the large model.",
    )
