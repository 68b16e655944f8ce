"""Exact statements on failure rates from counts: bounds on a rate, bounds on the next calls' rate, and their tails.

Pure, numpy only. Sums of probabilities are taken over the terms that reach double precision, so they stay quick at
any count.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

_TINY = 1e-300
_log_gamma = np.vectorize(math.lgamma, otypes=[np.float64])


def upper_bound(failures: ArrayLike, n: ArrayLike, delta: float) -> Floats:
    """The exact upper bound on a rate: P(rate <= bound) >= 1 - delta (Clopper and Pearson 1934, one-sided).

    `failures` and `n` broadcast; the result has their shape. No failure gives 1 - delta^(1/n), only failures give 1,
    as does n = 0. Raises ValueError unless 0 <= failures <= n and 0 < delta < 1.
    """
    k, size = _counts(failures, n, delta)
    bound = np.ones_like(size)
    within = k < size
    bound[within] = _rate_at(k[within], size[within], delta)
    return bound


def predictive_bound(failures: int, n: int, horizon: int, delta: float) -> float:
    """The failure rate that the next `horizon` calls do not exceed, from `failures` among `n` calls before them.

    With probability 1 - delta over both draws the next calls' own rate, failures / horizon, is at most this. It needs
    only that all n + horizon calls are exchangeable, which the two random parts of a finite set are: given the
    failures of all together, those among the n are hypergeometric (Thatcher 1964, exact frequentist prediction).
    0 for an empty horizon. Raises ValueError as `upper_bound`, or for a negative horizon.
    """
    k, size = _counts(failures, n, delta)
    if horizon < 0:
        raise ValueError(f"horizon {horizon!r}: allowed is a count of calls, 0 or more")
    low, high = -1, horizon
    while high - low > 1:
        middle = (low + high) // 2
        missed = hypergeometric_tail(k[None], size[None], np.array([horizon + 0.0]), np.array([middle + 1.0]))
        low, high = (low, middle) if missed[0] <= delta else (middle, high)
    return high / horizon if horizon else 0.0


def binomial_tail(k: Floats, n: Floats, p: Floats) -> Floats:
    """P(Binomial(n, p) <= k) by element; whole 0 <= k <= n, 0 < p < 1, all of shape (m,)."""
    variance = n * p * (1 - p)
    top = np.minimum(k, _beyond(n * p, variance))
    first = np.exp(_log_choose(n, top) + top * np.log(p) + (n - top) * np.log1p(-p))
    n, odds = n[:, None], ((1 - p) / p)[:, None]
    return _summed_down(first, top, n[:, 0] * p, variance, lambda i: i * odds / (n - i + 1))


def hypergeometric_tail(failures: Floats, n: Floats, coming: Floats, excess: Floats) -> Floats:
    """P(at most `failures` of the `n` calls) if failures + excess of the n + coming calls fail; shapes (m,).

    0 where excess > coming, which cannot be.
    """
    possible = excess <= coming
    total = failures + np.where(possible, excess, 0)
    share = n / (n + coming)
    mean, variance = total * share, total * share * (1 - share)
    top = np.minimum(failures, _beyond(mean, variance))
    log_first = _log_choose(n, top) + _log_choose(coming, total - top) - _log_choose(n + coming, total)
    n, coming, total = n[:, None], coming[:, None], total[:, None]
    tail = _summed_down(
        np.exp(log_first), top, mean, variance, lambda i: i * (coming - total + i) / ((n - i + 1) * (total - i + 1))
    )
    return np.where(possible, tail, 0.0)


def _rate_at(k: Floats, n: Floats, delta: float) -> Floats:
    """The rate with P(Binomial(n, rate) <= k) = delta, k < n, by Newton steps from Wilson's bound.

    The logarithm of the tail is concave in the rate, so from above the steps cannot overshoot, and a first one from
    below is kept below 1. They converge quadratically: after one of 1e-8, the error is that of the tail itself.
    """
    z = NormalDist().inv_cdf(1 - delta)
    failed, size = k + 0.5, n + z * z
    rate = (failed + z * z / 2 + z * np.sqrt(failed * (n - failed) / n + z * z / 4)) / size
    log_slope = np.log(n - k) + _log_choose(n, k)
    step = rate
    while (np.abs(step) > 1e-8 * rate).any():
        tail = np.maximum(binomial_tail(k, n, rate), _TINY)
        slope = np.exp(log_slope + k * np.log(rate) + (n - k - 1) * np.log1p(-rate))
        moved = rate + (np.log(tail) - math.log(delta)) * tail / np.maximum(slope, _TINY)
        moved = np.minimum(moved, (rate + 1) / 2)
        step, rate = moved - rate, moved
    return rate


def _beyond(mean: Floats, variance: Floats) -> Floats:
    """A count that is exceeded with a probability below the precision of a sum near 1."""
    count: Floats = np.ceil(mean + 9 * np.sqrt(variance) + 12)
    return count


def _summed_down(
    first: Floats, top: Floats, mean: Floats, variance: Floats, ratio: Callable[[Floats], Floats]
) -> Floats:
    """Sum of a distribution's terms from `top` down, `first` being the term at top and ratio(i) term i - 1 by term i.

    Terms below the precision of the sum are left out.
    """
    width = int(np.max(np.maximum(top - mean, 0) + 9 * np.sqrt(variance) + 60))
    ratios = ratio(np.maximum(top[:, None] - np.arange(width), 0))
    total: Floats = first * (1 + np.sum(np.cumprod(ratios, axis=1), axis=1))
    return np.minimum(total, 1.0)


def _log_choose(n: Floats, k: Floats) -> Floats:
    result: Floats = _log_gamma(n + 1) - _log_gamma(k + 1) - _log_gamma(n - k + 1)
    return result


def _counts(failures: ArrayLike, n: ArrayLike, delta: float) -> tuple[Floats, Floats]:
    if not 0 < delta < 1:
        raise ValueError(f"delta {delta!r}: allowed is 0 < delta < 1")
    k, size = np.broadcast_arrays(np.asarray(failures, dtype=np.float64), np.asarray(n, dtype=np.float64))
    if not ((k >= 0) & (k <= size)).all():
        raise ValueError(f"failures {failures!r} of n {n!r}: allowed are 0 <= failures <= n")
    return k, size
