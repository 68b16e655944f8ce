"""Figures with intervals: rates, means, ratios of sums and quantiles of independent calls.

Every function returns a `Figure`, whose interval is at the `level` asked for. What the data cannot tell is None: the
value of an empty sample, say, or an upper bound beyond every observation. Pure, numpy only; seeded, so the same data
give the same figure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

_NORMAL = NormalDist()
_BLOCKS = 10_000
_CHUNK = 1_000_000


@dataclass(frozen=True, slots=True)
class Figure:
    """An estimate from `n` observations with its interval [low, high], and the method that made the interval.

    `value` is None when the data do not define it; `low` or `high` is None when the data do not bound it on that side.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    method: str


def wilson(successes: int, n: int, level: float = 0.95) -> Figure:
    """A rate with its score interval (Wilson 1927; Brown, Cai and DasGupta 2001, eq. 4).

    Raises ValueError unless 0 <= successes <= n and 0 < level < 1.
    """
    _check_level(level)
    if not 0 <= successes <= n:
        raise ValueError(f"successes {successes!r} of n {n!r}: allowed are 0 <= successes <= n")
    if n == 0:
        return Figure(None, None, None, 0, "wilson")
    rate = successes / n
    low, high = score_interval(rate, n, level)
    return Figure(rate, low, high, n, "wilson")


def score_interval(rate: float, n: float, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval for a rate seen in `n` observations, which need not be a whole number: an effective sample.

    Raises ValueError unless 0 <= rate <= 1, n > 0 and 0 < level < 1.
    """
    _check_level(level)
    if not (0 <= rate <= 1 and n > 0):
        raise ValueError(f"rate {rate!r} of n {n!r}: allowed are 0 <= rate <= 1 and n > 0")
    z = _NORMAL.inv_cdf((1 + level) / 2)
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return (0.0 if rate == 0 else centre - half), (1.0 if rate == 1 else centre + half)


def ratio(
    numerator: ArrayLike, denominator: ArrayLike, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Figure:
    """sum(numerator) / sum(denominator) over paired calls, such as cost per success; both have shape (n,).

    The interval is the BCa bootstrap over calls (Efron 1987; DiCiccio and Efron 1996, eq. 2.3 and 6.6): in simulations
    of cost per success it misses less on the sparse side than the percentile interval does. Above 10,000 calls, random
    groups of calls are resampled instead of calls, so time and memory stay bounded. Raises ValueError for unequal
    shapes or numbers that are not finite.
    """
    calls = _columns(level, numerator, denominator)
    above, below = calls.sum(axis=1)
    if below == 0:
        return Figure(None, None, None, calls.shape[1], "bca")
    value = above / below
    blocks, sums = _resampled_sums(calls, resamples, seed)
    low, high = _bca(value, _divide(sums[0], sums[1]), blocks[0] - value * blocks[1], level)
    return Figure(float(value), low, high, calls.shape[1], "bca")


def ratio_of_ratios(
    numerators: tuple[ArrayLike, ArrayLike],
    denominators: tuple[ArrayLike, ArrayLike],
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Figure:
    """How the first arm's ratio of sums stands to the second's, over the same calls: all four arrays have shape (n,).

    With costs as numerators and successes as denominators this is the ratio of two costs per success, paired by call.
    Interval and errors as in `ratio`.
    """
    calls = _columns(level, numerators[0], denominators[0], numerators[1], denominators[1])
    above, below, base_above, base_below = calls.sum(axis=1)
    if below == 0 or base_below == 0 or base_above == 0:
        return Figure(None, None, None, calls.shape[1], "bca")
    first, second = above / below, base_above / base_below
    blocks, sums = _resampled_sums(calls, resamples, seed)
    influence = (blocks[0] - first * blocks[1]) / below - first / second * (blocks[2] - second * blocks[3]) / base_below
    replicates = _divide(sums[0] * sums[3], sums[1] * sums[2])
    low, high = _bca(first / second, replicates, influence, level)
    return Figure(float(first / second), low, high, calls.shape[1], "bca")


def mean(values: ArrayLike, *, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> Figure:
    """The mean of `values`, shape (n,), with the interval of `ratio`."""
    column = np.asarray(values, dtype=np.float64)
    return ratio(column, np.ones_like(column), level=level, resamples=resamples, seed=seed)


def quantile(values: ArrayLike, q: float, level: float = 0.95) -> Figure:
    """The q-quantile of `values`, shape (n,), as an observed value, with the exact order-statistic interval.

    The bounds are the order statistics whose ranks cut at most (1 - level) / 2 off either side of Binomial(n, q)
    (David and Nagaraja 2003, section 7.1); a bound that would need a rank outside the sample is None.
    Raises ValueError unless 0 < q < 1 and all values are finite.
    """
    if not 0 < q < 1:
        raise ValueError(f"q {q!r}: allowed is 0 < q < 1")
    ordered = np.sort(_columns(level, values)[0])
    n = len(ordered)
    if n == 0:
        return Figure(None, None, None, 0, "order statistics")
    cumulative = np.cumsum(_binomial_pmf(n, q))
    tail = (1 - level) / 2
    below = int(np.searchsorted(cumulative, tail, side="right"))
    above = int(np.searchsorted(cumulative, 1 - tail, side="left")) + 1
    return Figure(
        value=float(ordered[max(math.ceil(n * q - 1e-9), 1) - 1]),
        low=float(ordered[below - 1]) if below >= 1 else None,
        high=float(ordered[above - 1]) if above <= n else None,
        n=n,
        method="order statistics",
    )


def _columns(level: float, *columns: ArrayLike) -> Floats:
    _check_level(level)
    arrays = [np.asarray(column, dtype=np.float64) for column in columns]
    if any(array.ndim != 1 or array.shape != arrays[0].shape for array in arrays):
        raise ValueError(f"shapes {[array.shape for array in arrays]!r}: allowed are equal shapes (n,)")
    stacked = np.stack(arrays)
    if not np.isfinite(stacked).all():
        raise ValueError("values must be finite numbers: leave out the calls that were not measured")
    return stacked


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level {level!r}: allowed is 0 < level < 1")


def _resampled_sums(calls: Floats, resamples: int, seed: int) -> tuple[Floats, Floats]:
    """What is resampled (columns, blocks), and the columns' sums in each resample (columns, resamples).

    A block is a call, or a random group of calls where there are more than `_BLOCKS`: sums over random groups of
    independent calls are as independent as the calls, and the groups' sizes cancel in a ratio.
    """
    rng = np.random.default_rng(seed)
    n = calls.shape[1]
    if n > _BLOCKS:
        starts = np.linspace(0, n, _BLOCKS, endpoint=False).astype(np.int64)
        calls = np.add.reduceat(calls[:, rng.permutation(n)], starts, axis=1)
        n = _BLOCKS
    sums = np.empty((len(calls), resamples))
    step = max(1, _CHUNK // n)
    for start in range(0, resamples, step):
        drawn = rng.integers(0, n, size=(min(step, resamples - start), n))
        for column, out in zip(calls, sums, strict=True):
            out[start : start + step] = column[drawn].sum(axis=1)
    return calls, sums


def _divide(above: Floats, below: Floats) -> Floats:
    """above / below, infinite where there is nothing to divide by."""
    return np.divide(above, below, out=np.full_like(above, np.inf), where=below != 0)


def _bca(value: float, replicates: Floats, influence: Floats, level: float) -> tuple[float | None, float | None]:
    """The BCa interval from bootstrap replicates; `influence` is the empirical influence function up to a factor.

    One observation says nothing of how much others would differ, so it bounds nothing.
    """
    if len(influence) < 2:
        return None, None
    count = len(replicates)
    smaller = (np.mean(replicates < value) + np.mean(replicates <= value)) / 2
    bias = _NORMAL.inv_cdf(float(np.clip(smaller, 1 / (count + 1), count / (count + 1))))
    scale = float(np.sum(influence**2)) ** 1.5
    acceleration = float(np.sum(influence**3)) / (6 * scale) if scale > 0 else 0.0
    shifted = [bias + _NORMAL.inv_cdf(p) for p in ((1 - level) / 2, (1 + level) / 2)]
    ranks = [_NORMAL.cdf(bias + z / max(1 - acceleration * z, 1e-9)) for z in shifted]
    bounds: Sequence[float] = np.quantile(replicates, ranks, method="inverted_cdf").tolist()
    low, high = (bound if math.isfinite(bound) else None for bound in bounds)
    return low, high


def _binomial_pmf(n: int, q: float) -> Floats:
    """P(k successes of n) for k = 0..n."""
    factorials = np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, n + 1)))))
    k = np.arange(n + 1)
    logs = factorials[n] - factorials - factorials[::-1] + k * math.log(q) + (n - k) * math.log1p(-q)
    pmf: Floats = np.exp(logs)
    return pmf
