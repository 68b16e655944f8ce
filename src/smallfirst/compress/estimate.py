"""How much of contexts survives in their summaries, in bits, from log-probabilities alone. Pure numpy, seeded.

N contexts x_i have M summaries z_ij each, and `logprobs[i, j, k]` is log p(z_ij | x_k, q_i), in nats, under a scorer.
Then (arXiv 2512.21720)

    I = 1/(N M) sum_ij [ log p(z_ij | x_i, q_i) - log( 1/K sum_k p(z_ij | x_k, q_i) ) ]

is the log-probability, above that of a guess, which the scorer gives by Bayes' rule to the context that a summary came
from: p(x_k | z) = p(z | x_k) / sum. By Barber and Agakov (2003) such a posterior bounds from below the mutual
information of summary and context, the context drawn from these K, whatever the scorer; so scores from a proxy, from
chunks or divided by a temperature are still lower bounds. The bound is at most log2 K. With the mean over the other
contexts alone (leave one out) it is an upper bound on the mutual information of the population, in expectation, if
the scorer is the true channel (Poole et al. 2019, section 2.3); under any other scorer it is a figure to look at.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from smallfirst.stats import Figure

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SATURATED = 0.9
"""From this share of log2 K on, an estimate says that K is too small rather than how much there is."""
_LN2 = math.log(2)
_SHARPNESS = np.geomspace(1 / 256, 4, 81)  # reciprocal temperatures that are tried
_LEAST_TO_TUNE = 4


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bits that summaries tell of their contexts.

    `information` is the formula above, clipped at 0 after averaging (`unclipped` is not); `leave_one_out` the form that
    leaves the own context out of the mean; `tuned` the formula with log-probabilities divided by the temperature that
    makes it largest on the other half of the contexts, None for fewer than four. `temperature` is the best on all.
    Intervals are percentiles of the bootstrap over contexts. `bits` has shape (N,): each context's part, unclipped.
    `bound` is log2 K.
    """

    information: Figure
    leave_one_out: Figure
    tuned: Figure | None
    temperature: float
    unclipped: float
    bits: Floats
    bound: float

    @property
    def saturated(self) -> bool:
        """Whether the estimate is so near its bound that more contexts, or harder ones, would raise it."""
        return (self.information.value or 0.0) >= SATURATED * self.bound


def estimate(
    logprobs: Floats, owners: Ints | None = None, *, level: float = 0.95, resamples: int = 1000, seed: int = 0
) -> Estimate:
    """The mutual information of summaries and contexts from `logprobs`, shape (N, M, K), in nats.

    `owners`, shape (K,), says whose each column is: column i < N is context i itself, further ones are copies of the
    context `owners[k]` with its entities swapped. Without it K is N. In a resample, every other context counts as often
    as it is drawn, its copies with it, and the own context once, so that a context drawn twice is not taken for one
    that summaries cannot tell from another. Raises ValueError for other shapes, NaN, infinities, and K < 2.
    """
    scores, owners = _checked(logprobs, owners)
    draws = _draws(len(scores), resamples, seed)
    rows = _rows(scores, owners, np.ones(len(scores)))
    replicates = np.array([_weighted(_rows(scores, owners, draw), draw) for draw in draws]).reshape(-1, 2).T
    values = rows.mean(axis=1)
    sharpness = _tuned_sharpness(scores, owners, seed)
    return Estimate(
        information=_figure(values[0], replicates[0], len(scores), level, floor=0.0),
        leave_one_out=_figure(values[1], replicates[1], len(scores), level, floor=0.0),
        tuned=None if sharpness is None else _tuned(scores * sharpness[:, None, None], owners, draws, level),
        temperature=float(1 / _sharpest(scores, owners)),
        unclipped=float(values[0]),
        bits=rows[0],
        bound=math.log2(scores.shape[2]),
    )


def rate(bits: Floats, lengths: Floats, *, level: float = 0.95, resamples: int = 1000, seed: int = 0) -> Figure:
    """Bits per token: the contexts' `bits` over their summaries' mean `lengths`, both of shape (N,), clipped at 0.

    None where every summary is empty. The interval is the percentile bootstrap over contexts.
    """
    if not lengths.sum() > 0:
        return Figure(None, None, None, len(bits), "bootstrap")
    draws = _draws(len(bits), resamples, seed)
    below = draws @ lengths
    replicates = (draws @ bits)[below > 0] / below[below > 0]
    return _figure(float(bits.sum() / lengths.sum()), replicates, len(bits), level, floor=0.0)


def pointwise_bits(own: float, others: Floats) -> float:
    """Bits by which one summary tells its context from others: log2 of its probability under the own context, given
    with the `others` in nats, over the mean of them all. At most log2(1 + len(others)); negative when it tells wrong.
    """
    everything = np.append(np.asarray(others, dtype=np.float64), own)
    return float((own - _log_sum(everything) + math.log(len(everything))) / _LN2)


def _checked(logprobs: Floats, owners: Ints | None) -> tuple[Floats, Ints]:
    scores = np.asarray(logprobs, dtype=np.float64)
    if scores.ndim != 3 or 0 in scores.shape or scores.shape[2] < max(2, scores.shape[0]):
        raise ValueError(f"logprobs has shape {scores.shape}: allowed is (N, M, K), K >= N and K >= 2")
    if not np.isfinite(scores).all():
        raise ValueError("logprobs must be finite: a scorer gives no text probability 0")
    count = len(scores)
    whose = np.arange(count) if owners is None else np.asarray(owners, dtype=np.int64)
    fits = whose.shape == (scores.shape[2],) and (whose[:count] == np.arange(count)).all()
    if not (fits and whose.max() < count):
        raise ValueError(f"owners is {whose.tolist()}: allowed are 0..N-1 in order, then an owner in 0..N-1 per copy")
    return scores, whose


def _draws(count: int, resamples: int, seed: int) -> Floats:
    """How often each context is drawn in each resample, shape (resamples, N); none for a single context.

    A resample of one context only has no other to tell it from, and is drawn again.
    """
    if count < 2:
        return np.empty((0, count))
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(count, np.full(count, 1 / count), size=resamples)
    while (alone := draws.max(axis=1) == count).any():
        draws[alone] = rng.multinomial(count, np.full(count, 1 / count), size=int(alone.sum()))
    return draws.astype(np.float64)


def _rows(scores: Floats, owners: Ints, times: Floats) -> Floats:
    """Each context's bits under both forms, shape (2, N), where contexts count as many `times`, as others, as given.

    For context i the others' weights are scaled to N - 1 in all; itself and its own copies weigh 1.
    """
    count, _, columns = scores.shape
    mine = np.arange(count)
    others = np.broadcast_to(times[owners], (count, columns)).copy()
    scale = (times.sum() - times) / max(count - 1, 1)
    others /= np.where(scale > 0, scale, 1.0)[:, None]
    others[mine[:, None] == owners[None, :]] = 1.0
    others[mine, mine] = 0.0
    own = scores[mine, :, mine]
    with np.errstate(divide="ignore"):
        logs = np.log(others)[:, None, :]
    rest = _log_sum(scores + logs)
    everything = np.logaddexp(own, rest)
    lower = own - everything + math.log(columns)
    upper = own - rest + math.log(columns - 1)
    both: Floats = np.stack([lower.mean(axis=1), upper.mean(axis=1)]) / _LN2
    return both


def _log_sum(logs: Floats) -> Floats:
    """log sum exp over the last axis."""
    top = logs.max(axis=-1, keepdims=True)
    total: Floats = np.log(np.exp(logs - top).sum(axis=-1)) + top[..., 0]
    return total


def _weighted(rows: Floats, times: Floats) -> Floats:
    """The mean over the contexts drawn."""
    drawn = times > 0
    total: Floats = rows[:, drawn] @ times[drawn] / times.sum()
    return total


def _figure(value: float, replicates: Floats, count: int, level: float, floor: float) -> Figure:
    if len(replicates) == 0:
        return Figure(max(float(value), floor), None, None, count, "bootstrap")
    low, high = np.quantile(replicates, [(1 - level) / 2, (1 + level) / 2])
    return Figure(max(float(value), floor), max(float(low), floor), max(float(high), floor), count, "bootstrap")


def _tuned(scaled: Floats, owners: Ints, draws: Floats, level: float) -> Figure:
    value = _rows(scaled, owners, np.ones(len(scaled)))[0].mean()
    replicates = np.array([_weighted(_rows(scaled, owners, draw)[:1], draw)[0] for draw in draws])
    return _figure(float(value), replicates, len(scaled), level, floor=0.0)


def _tuned_sharpness(scores: Floats, owners: Ints, seed: int) -> Floats | None:
    """For each context the reciprocal temperature that is best on the half that it is not in, shape (N,).

    A half is judged by its own contexts' columns alone, so nothing of the other half bears on its choice.
    """
    count = len(scores)
    if count < _LEAST_TO_TUNE:
        return None
    order = np.random.default_rng(seed).permutation(count)
    chosen = np.empty(count)
    for half, other in ((order[::2], order[1::2]), (order[1::2], order[::2])):
        half = np.sort(half)
        columns = np.isin(owners, half)
        chosen[other] = _sharpest(scores[half][:, :, columns], np.searchsorted(half, owners[columns]))
    return chosen


def _sharpest(scores: Floats, owners: Ints) -> float:
    """The reciprocal temperature under which the contexts are told apart best, of several the one nearest to 1."""
    times = np.ones(len(scores))
    bits = np.array([_rows(scores * sharpness, owners, times)[0].mean() for sharpness in _SHARPNESS])
    best = _SHARPNESS[bits >= bits.max() - 1e-9]
    return float(best[np.argmin(np.abs(np.log(best)))])
