"""One model against another on the same calls: how much they differ, and whether one is shown not to be worse.

Only the calls on which exactly one of them is right tell them apart: `wins` of the first, `losses` to the second, of
`n` calls. Pure, numpy only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from smallfirst.exact import binomial_tail
from smallfirst.stats import Figure

Floats = NDArray[np.float64]

EXACT = 500
"""Calls up to which the test sums over all outcomes."""

_NORMAL = NormalDist()
_NUISANCE = 201  # values tried for the rate at which the first model loses
_STEPS = 60
_log_gamma = np.vectorize(math.lgamma, otypes=[np.float64])


@lru_cache(maxsize=1024)
def p_noninferior(wins: int, losses: int, n: int, margin: float, *, never_wins: bool = False) -> float:
    """P-value against "the first model is right less often than the second, by `margin` or more" (one-sided).

    The exact unconditional test: among the outcomes that the score statistic (Tango 1998) ranks at least as high as the
    one seen, the largest probability that any rate of losses gives them at the margin (Sidik 2003; tried at 201 rates).
    Above 500 calls, the statistic's normal limit. `never_wins`: the second model is right by definition, so every call
    is a draw or a loss, and the test is the exact binomial one of losses. 1.0 without calls.
    Raises ValueError unless wins + losses <= n and 0 < margin < 1.
    """
    _check(wins, losses, n)
    if not 0 < margin < 1:
        raise ValueError(f"margin {margin!r}: allowed is 0 < margin < 1")
    if n == 0:
        return 1.0
    if never_wins:
        return float(binomial_tail(np.array([float(losses)]), np.array([float(n)]), np.array([margin]))[0])
    seen = float(_score(np.array(wins), np.array(losses), n, margin))
    if n > EXACT:
        return 1 - _NORMAL.cdf(seen)
    won, lost = (each.astype(np.float64) for each in np.nonzero(np.add.outer(range(n + 1), range(n + 1)) <= n))
    extreme = _score(won, lost, n, margin) >= seen - 1e-9
    won, lost = won[extreme], lost[extreme]
    ways = math.lgamma(n + 1) - _log_gamma(won + 1) - _log_gamma(lost + 1) - _log_gamma(n - won - lost + 1)
    rates = np.linspace(margin, (1 + margin) / 2, _NUISANCE)
    return min(1.0, max(float(_chance(ways, won, lost, n, rate, rate - margin)) for rate in rates))


def difference(wins: int, losses: int, n: int, level: float = 0.95) -> Figure:
    """The first model's rate of right answers minus the second's, with the score interval (Tango 1998).

    Raises ValueError unless wins + losses <= n and 0 < level < 1.
    """
    _check(wins, losses, n)
    if n == 0:
        return Figure(None, None, None, 0, "score, paired")
    z = _NORMAL.inv_cdf((1 + level) / 2)
    b, c = np.array(wins), np.array(losses)
    least = _first(lambda worse: float(_score(b, c, n, worse)) >= -z)
    most = _first(lambda worse: float(_score(b, c, n, worse)) > z)
    return Figure((wins - losses) / n, -most, -least, n, "score, paired")


def least_calls(margin: float, level: float) -> int:
    """The fewest calls by which non-inferiority to a model that is always right can be shown: without a loss."""
    return math.ceil(math.log(level) / math.log1p(-margin))


def holm(p_values: Sequence[float], level: float) -> list[bool]:
    """Which hypotheses are rejected so that P(any of them is rejected wrongly) <= level (Holm 1979)."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    rejected = [False] * len(p_values)
    for place, i in enumerate(order):
        if p_values[i] > level / (len(p_values) - place):
            break
        rejected[i] = True
    return rejected


def _score(won: Floats | NDArray[np.int64], lost: Floats | NDArray[np.int64], n: int, worse: float) -> Floats:
    """Tango's statistic of the hypothesis that losses exceed wins by the rate `worse`; it falls with losses."""
    b, c = np.asarray(won, dtype=np.float64), np.asarray(lost, dtype=np.float64)
    half = (b + c + (2 * n - b + c) * worse) / (4 * n)
    losing = half + np.sqrt(np.maximum(half**2 - c * worse * (1 + worse) / (2 * n), 0.0))
    variance = np.maximum(2 * losing - worse * (1 + worse), 1e-12)
    score: Floats = (b - c + n * worse) / np.sqrt(n * variance)
    return score


def _chance(ways: Floats, won: Floats, lost: Floats, n: int, losing: float, winning: float) -> float:
    """The probability of the outcomes, each of exp(ways) orders of calls."""
    drawing, even = 1 - losing - winning, n - won - lost
    logs = ways
    for count, rate in ((won, winning), (lost, losing), (even, drawing)):
        logs = logs + (count * math.log(rate) if rate > 1e-12 else np.where(count > 0, -np.inf, 0.0))
    return float(np.exp(logs).sum())


def _first(holds: Callable[[float], bool]) -> float:
    """The least value in (-1, 1) where `holds`, which stays true from there on."""
    low, high = -1.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _check(wins: int, losses: int, n: int) -> None:
    if not (wins >= 0 and losses >= 0 and wins + losses <= n):
        raise ValueError(f"wins {wins!r} and losses {losses!r} of n {n!r}: allowed are counts whose sum is n at most")
