"""What each threshold on a peer's scores would have cost and got right, and the choices that peers make from that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import Floats, Peer
from .views import column

MOST = 1000


@dataclass(frozen=True, slots=True)
class Stakes:
    """What is at stake in each call, shapes (n,): whether (or how likely) the small and the large model's answers are
    right, and the USD that either stage costs. The small stage includes the second model where it is asked."""

    small_right: Floats
    large_right: Floats
    small_cost: Floats
    large_cost: Floats


@dataclass(frozen=True, slots=True)
class Frontier:
    """Accuracy, mean cost (USD) and share of calls kept at each threshold, shapes (k,), strictest first; the first
    threshold is infinite: the large model alone."""

    threshold: Floats
    accuracy: Floats
    cost: Floats
    kept: Floats

    def cheapest(self, accuracy: float) -> int:
        """The place of the least cost at which at least `accuracy` is reached; 0 where none reaches it."""
        cost = np.where(self.accuracy >= accuracy - 1e-12, self.cost, np.inf)
        return int(np.argmin(cost))

    def best(self, cost: float) -> int:
        """The place of the most accuracy at a mean cost of at most `cost`; the cheapest where none is that cheap."""
        affordable = self.cost <= cost
        return int(np.argmax(np.where(affordable, self.accuracy, -1.0)) if affordable.any() else np.argmin(self.cost))


def stakes(
    peer: Peer,
    correct: Sequence[Mapping[str, Any]],
    costs: Sequence[Mapping[str, float]],
    small: str,
    second: str | None,
    large: str,
) -> Stakes:
    """The stakes of labelled calls for a fitted peer, or for one that is being fitted."""
    small_cost = column(costs, small)
    if peer.asks_second and second is not None:
        small_cost = small_cost + column(costs, second)
    return Stakes(column(correct, small), column(correct, large), small_cost, column(costs, large))


def frontier(scores: Floats, at: Stakes, *, pre_generation: bool) -> Frontier:
    """Every threshold that the scores, shape (n,), tell apart: quantiles of them where there are more than `MOST`."""
    finite = np.unique(scores[np.isfinite(scores)])[::-1]
    if len(finite) > MOST:
        finite = np.quantile(finite, np.linspace(1, 0, MOST), method="nearest")
    points = [_point(threshold, scores, at, pre_generation) for threshold in (np.inf, *finite)]
    return Frontier(*np.array(points, dtype=np.float64).T)


def at_threshold(threshold: float, scores: Floats, at: Stakes, *, pre_generation: bool) -> Frontier:
    """One threshold alone, as a frontier of one place; with an infinite one the small model is not asked."""
    return Frontier(*np.array([_point(threshold, scores, at, pre_generation)], dtype=np.float64).T)


def _point(threshold: float, scores: Floats, at: Stakes, pre_generation: bool) -> tuple[float, float, float, float]:
    kept = scores >= threshold
    asked = kept if pre_generation or threshold == np.inf else np.isfinite(scores)
    right = np.where(kept, at.small_right, at.large_right)
    cost = np.where(asked, at.small_cost, 0.0) + np.where(kept, 0.0, at.large_cost)
    return threshold, float(right.mean()), float(cost.mean()), float(kept.mean())
