"""How good confidences are, by the labels of the calls that they were given to. numpy only; pure."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike


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
