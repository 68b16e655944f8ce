"""How much of contexts survives in their summaries, in bits, from log-probabilities alone. Pure numpy, seeded.

N contexts x_i have M summaries z_ij each, and `logprobs[i, j, l]` is log p(z_ij | x_l, q_i), in nats, under a scorer.
Then (arXiv 2512.21720)

    I = 1/(N M) sum_ij [ log p(z_ij | x_i, q_i) - log( 1/N sum_l p(z_ij | x_l, q_i) ) ]

is the log-probability, above that of a guess, which the scorer gives by Bayes' rule to the context that a summary came
from: p(x_l | z) = p(z | x_l) / sum. By Barber and Agakov (2003) such a posterior bounds from below the mutual
information of summary and context, the context drawn from these N, whatever the scorer; so scores from a proxy, from
chunks or divided by a temperature are still lower bounds. The bound is at most log2 N. With the mean over the other
contexts alone (leave one out) it is an upper bound on the mutual information of the population, in expectation, if
the scorer is the true channel (Poole et al. 2019, section 2.3); under any other scorer it is a figure to look at.

Hard negatives raise the bound: a context and its C copies with other entities are a family, any member of which could
have been the document, and p(z | x_i) in the mean over contexts is the mean over the family of i. Of other families
only the document itself is scored, which stands for its family. Then I is at most log2 N(1 + C).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from smallfirst.stats import Figure

Floats = NDArray[np.float64]

SATURATED = 0.9
"""From this share of its bound on, an estimate says that there are too few contexts rather than how much is kept."""
_LN2 = math.log(2)
_SHARPNESS = np.geomspace(1 / 256, 4, 41)  # reciprocal temperatures that are tried
_LEAST_TO_TUNE = 4


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bits that summaries tell of their contexts.

    `information` is the formula above, clipped at 0 after averaging (`unclipped` is not); `leave_one_out` the form that
    leaves the own context out of the mean; `tuned` the formula with log-probabilities divided by the temperature that
    makes it largest on the other half of the contexts, None for fewer than four. `temperature` is the best on all.
    Intervals are percentiles of the bootstrap over contexts. `bits` has shape (N,): each context's part, unclipped.
    `bound` is log2 N, with hard negatives log2 N(1 + C).
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
    logprobs: Floats, copies: Floats | None = None, *, level: float = 0.95, resamples: int = 1000, seed: int = 0
) -> Estimate:
    """The mutual information of summaries and contexts from `logprobs`, shape (N, M, N), in nats.

    `copies[i, j, c]` is the same under hard negative c of context i, shape (N, M, C); NaN where there are fewer than C.
    In a resample, every other context counts as often as it is drawn, and the own context once, so that a context drawn
    twice is not taken for one that summaries cannot tell from another. Raises ValueError for other shapes, values that
    are not finite, and fewer than two contexts, copies among them.
    """
    scores = _checked(logprobs, copies)
    count = len(logprobs)
    draws = _draws(count, resamples, seed)
    rows = _rows(scores, np.ones(count))
    replicates = np.array([_weighted(_rows(scores, draw), draw) for draw in draws]).reshape(-1, 2).T
    values = rows.mean(axis=1)
    sharpness = _tuned_sharpness(scores, seed)
    return Estimate(
        information=_figure(values[0], replicates[0], count, level),
        leave_one_out=_figure(values[1], replicates[1], count, level),
        tuned=None if sharpness is None else _tuned(scores * sharpness[:, None, None], draws, level),
        temperature=float(1 / _sharpest(scores)),
        unclipped=float(values[0]),
        bits=rows[0],
        bound=float(np.log2(count * (1.0 + _copies(scores))).mean()),
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
    return _figure(float(bits.sum() / lengths.sum()), replicates, len(bits), level)


def pointwise_bits(own: float, others: Floats) -> float:
    """Bits by which one summary tells its context from others: log2 of its probability under the own context, given
    with the `others` in nats, over the mean of them all. At most log2(1 + len(others)); negative when it tells wrong.
    """
    everything = np.append(np.asarray(others, dtype=np.float64), own)
    return float((own - np.logaddexp.reduce(everything) + math.log(len(everything))) / _LN2)


def _checked(logprobs: Floats, copies: Floats | None) -> Floats:
    """Both side by side, shape (N, M, N + C), copies that there are not at minus infinity."""
    scores = np.asarray(logprobs, dtype=np.float64)
    if scores.ndim != 3 or scores.shape[0] != scores.shape[2] or 0 in scores.shape:
        raise ValueError(f"logprobs has shape {scores.shape}: allowed is (N, M, N)")
    if copies is None:
        copies = np.empty((*scores.shape[:2], 0))
    if copies.ndim != 3 or copies.shape[:2] != scores.shape[:2]:
        raise ValueError(f"copies has shape {copies.shape}: allowed is {scores.shape[:2]} and a third axis")
    both = np.concatenate([scores, np.where(np.isnan(copies), -np.inf, copies)], axis=2)
    if not np.isfinite(scores).all() or np.isinf(copies).any():
        raise ValueError("log-probabilities must be finite: a scorer gives no text probability 0")
    if len(scores) == 1 and not _copies(both).all():
        raise ValueError("one context without copies: there is nothing to tell it from")
    return both


def _copies(scores: Floats) -> Floats:
    """How many hard negatives each context has, shape (N,)."""
    there: Floats = np.isfinite(scores[:, 0, len(scores) :]).sum(axis=1).astype(np.float64)
    return there


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


def _rows(scores: Floats, times: Floats) -> Floats:
    """Each context's bits under both forms, shape (2, N), where the others count as many `times` as given.

    For context i the others' weights are scaled to N - 1 in all; its family weighs 1, or without itself 1 where it has
    copies, else 0.
    """
    count, _, columns = scores.shape
    mine, own_copies = np.arange(count), _copies(scores)
    weights = np.zeros((count, columns))
    scale = (times.sum() - times) / max(count - 1, 1)
    weights[:, :count] = times / np.where(scale > 0, scale, 1.0)[:, None]
    weights[:, count:] = (1 / (1 + own_copies))[:, None]
    weights[mine, mine] = 1 / (1 + own_copies)
    own = scores[mine, :, mine]
    lower = own - _log_sum(scores, weights) + math.log(count)
    weights[mine, mine] = 0.0
    weights[:, count:] = (1 / np.maximum(own_copies, 1))[:, None]
    upper = own - _log_sum(scores, weights) + np.log(count - (own_copies == 0))[:, None]
    both: Floats = np.stack([lower.mean(axis=1), upper.mean(axis=1)]) / _LN2
    return both


def _log_sum(logs: Floats, weights: Floats) -> Floats:
    """log sum of weights times exp(logs) over the last axis; `weights` lacks the middle axis."""
    weighted = np.where(weights[:, None, :] > 0, logs, -np.inf)
    top = weighted.max(axis=-1, keepdims=True)
    total: Floats = np.log((weights[:, None, :] * np.exp(weighted - top)).sum(axis=-1)) + top[..., 0]
    return total


def _weighted(rows: Floats, times: Floats) -> Floats:
    """The mean over the contexts drawn."""
    drawn = times > 0
    total: Floats = rows[:, drawn] @ times[drawn] / times.sum()
    return total


def _figure(value: float, replicates: Floats, count: int, level: float) -> Figure:
    """Clipped at 0, as information is."""
    if len(replicates) == 0:
        return Figure(max(float(value), 0.0), None, None, count, "bootstrap")
    low, high = np.quantile(replicates, [(1 - level) / 2, (1 + level) / 2])
    return Figure(max(float(value), 0.0), max(float(low), 0.0), max(float(high), 0.0), count, "bootstrap")


def _tuned(scaled: Floats, draws: Floats, level: float) -> Figure:
    value = _rows(scaled, np.ones(len(scaled)))[0].mean()
    replicates = np.array([_weighted(_rows(scaled, draw)[:1], draw)[0] for draw in draws])
    return _figure(float(value), replicates, len(scaled), level)


def _tuned_sharpness(scores: Floats, seed: int) -> Floats | None:
    """For each context the reciprocal temperature that is best on the half that it is not in, shape (N,).

    A half is judged by its own contexts' columns alone, so nothing of the other half bears on its choice.
    """
    count = len(scores)
    if count < _LEAST_TO_TUNE:
        return None
    order = np.random.default_rng(seed).permutation(count)
    chosen = np.empty(count)
    for half, other in ((order[::2], order[1::2]), (order[1::2], order[::2])):
        columns = np.concatenate([half, np.arange(count, scores.shape[2])])
        chosen[other] = _sharpest(scores[half][:, :, columns])
    return chosen


def _sharpest(scores: Floats) -> float:
    """The reciprocal temperature under which the contexts are told apart best, of several the one nearest to 1."""
    times = np.ones(len(scores))
    bits = np.array([_rows(scores * sharpness, times)[0].mean() for sharpness in _SHARPNESS])
    best = _SHARPNESS[bits >= bits.max() - 1e-9]
    return float(best[np.argmin(np.abs(np.log(best)))])
