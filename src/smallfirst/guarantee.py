"""Whether a small model's answers may be used: certified thresholds, and audits that may be read at any time.

A threshold on calibrated confidence is certified from labelled calls (`learn_then_test`), or refused with the number of
labels that are missing. After that, audits of accepted calls feed a `ConfidenceSequence`, which says when the failure
rate has left what was promised, and an `AdaptiveThreshold`, which makes acceptance stricter under drift. Pure, numpy
only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from smallfirst.exact import binomial_tail, hypergeometric_tail, predictive_bound, upper_bound

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_Tail = Callable[[Floats, Floats, ArrayLike], Floats]

_LOOKS = 64
_MOST_TIMES = 1000.0
_TINY = 1e-300


@dataclass(frozen=True, slots=True)
class Certificate:
    """Calls whose confidence is at least `threshold` may be used: they fail at a rate of at most `alpha`.

    The promise holds with probability 1 - `delta` over the draw of the `n` labels, of which `accepted` reach the
    threshold and `failures` of those are wrong; `coverage` is accepted / n. `bound` is the exact upper bound at level
    delta at this threshold alone, so it is at most alpha; what is promised after the choice of a threshold is alpha.
    """

    alpha: float
    delta: float
    threshold: float
    accepted: int
    failures: int
    bound: float
    n: int
    coverage: float


@dataclass(frozen=True, slots=True)
class Refusal:
    """No threshold could be certified from `n` labels; `reason` is a sentence for the reader.

    `needed` is how many labels are missing by estimate, in addition to n. Below the count that could pass without any
    failure it is what is missing to that count, so a lower limit. Otherwise it assumes that every threshold keeps the
    coverage and the failure rate observed here, and that failures come at their expected number: with so many labels
    the test passes about every second time. It is None when no number of labels would help on that assumption,
    because the observed failure rate is not (far enough, where a horizon is set) below alpha at any usable threshold.
    """

    alpha: float
    delta: float
    n: int
    needed: int | None
    reason: str


def learn_then_test(
    confidence: ArrayLike,
    wrong: ArrayLike,
    *,
    alpha: float,
    delta: float,
    horizon: int | None = None,
    cost: Callable[[float], float] | None = None,
) -> Certificate | Refusal:
    """Certify a threshold on confidence below which answers are not used (Angelopoulos et al., arXiv 2110.01052).

    `confidence`, shape (n,), is the calibrated P(correct) of labelled calls, 0 for those that are never accepted
    whatever the threshold (invalid answers); `wrong`, shape (n,), says whether each failed. The calibrator must not
    have seen these labels (cross-fitting). Few distinct confidences leave few thresholds, and coverage between them is
    lost: order the calls within an isotonic step.

    The thresholds form a fixed sequence from strict to loose; each is tested at the full level delta by the exact
    binomial tail, and the first that fails ends the sequence. So an unqualified threshold is certified only if the
    first unqualified one passes its test: at most in delta of draws. What may look at what:

    - The thresholds and the start of the sequence look at confidences only. Thresholds are the counts at which one
      more failure could pass, where a test uses its level best; calls of equal confidence are accepted together. The
      sequence starts where, by the confidences' own prediction of failures, the test is most likely to pass. A
      calibrator that predicts badly costs power, not validity.
    - The labels decide each test and nothing before it.
    - `cost`, threshold -> expected cost (a call's, or per success), chooses among the thresholds that passed, and may
      look at everything; the least cost wins, the larger coverage where equal. Without it the coverage is largest.

    The level is exact given the confidences (a sum of unequal Bernoulli draws has lighter tails than the binomial of
    its mean: Hoeffding 1956, theorem 5), for calls whose confidences are mixed as those labelled.

    `horizon` asks for more: that among the next `horizon` calls like these, the accepted ones' observed failure rate
    is at most alpha, in all but delta of draws of labels and next calls together (`predictive_bound` in place of the
    binomial bound, at the number of acceptances expected from the coverage). Without it
    the rate itself is bounded, and a rate a little below alpha is often observed above it in a sample of few hundred.

    Raises ValueError for unequal or empty shapes, labels that are not bool, confidences outside [0, 1], alpha or delta
    outside (0, 1), a horizon below 1.
    """
    conf, bad = _labelled(confidence, wrong, alpha)
    _check_open("delta", delta)
    if horizon is not None and horizon < 1:
        raise ValueError(f"horizon {horizon!r}: allowed is a count of calls, at least 1")
    n = len(conf)
    tail = _tail(alpha, horizon)
    thresholds, counts, failures, predicted = _blocks(conf, bad)
    if not len(counts):
        return Refusal(alpha, delta, n, None, f"none of the {n} labelled calls has a confidence above 0")
    looks = _looks(tail, counts, n, delta)
    allowed = _most(tail, counts[looks], n, delta)
    looks, allowed = looks[allowed >= 0], allowed[allowed >= 0]
    if not len(looks):
        return _too_few(tail, n, alpha, delta)
    rates = np.clip(predicted[looks] / counts[looks], 1e-9, 1 - 1e-9)
    fails = binomial_tail(counts[looks] - allowed - 1, counts[looks], 1 - rates)
    start = int(np.flatnonzero(fails == fails.min())[-1])
    passed = np.logical_and.accumulate(failures[looks[start:]] <= allowed[start:])
    certified = looks[start:][passed]
    if not len(certified):
        return _refused(tail, counts[looks], failures[looks], n, alpha, delta)
    loosest_first = certified[::-1].tolist()
    chosen = loosest_first[0] if cost is None else min(loosest_first, key=lambda i: cost(float(thresholds[i])))
    accepted, failed = int(counts[chosen]), int(failures[chosen])
    if horizon is None:
        bound = float(upper_bound(failed, accepted, delta))
    else:
        bound = predictive_bound(failed, accepted, int(_coming(accepted, horizon, n)), delta)
    return Certificate(alpha, delta, float(thresholds[chosen]), accepted, failed, bound, n, accepted / n)


def conformal_risk(confidence: ArrayLike, wrong: ArrayLike, *, alpha: float) -> float | None:
    """The loosest threshold with P(accepted and wrong) <= alpha on average over draws of the labels.

    Conformal risk control (Angelopoulos et al., arXiv 2208.02814) of the loss 1[confidence >= threshold and wrong]:
    inf{l : n/(n+1) R_n(l) + 1/(n+1) <= alpha}. The risk counts all calls, not only the accepted ones, and holds on
    average, not with a stated probability: a weaker promise than `learn_then_test`. None when no threshold that
    accepts a call passes. Arguments and errors as there.
    """
    conf, bad = _labelled(confidence, wrong, alpha)
    thresholds, _, failures, _ = _blocks(conf, bad)
    passing = np.flatnonzero((failures + 1) / (len(conf) + 1) <= alpha)
    return float(thresholds[passing[-1]]) if len(passing) else None


class ConfidenceSequence:
    """Bounds on the failure rate of accepted calls that hold at all times at once, from audits drawn with known odds.

    Each accepted call is audited with a probability of at least `least`, which may depend on that call and on all
    before it. P(lower ever exceeds the rate) <= delta, and the same for upper, however often they are read and
    whenever one stops, if the calls fail independently at one rate. Under drift the two may cross, which shows it.
    Evidence of a long calm outweighs a later rise for about as long: to notice drift soon, start afresh every
    few hundred audits, the j-th with delta / (j (j + 1)), which keeps delta in total.

    For each rate m of a grid, bets on (wrong - m) x least / probability are fair if m is the rate, so their capital
    exceeds 1/delta with probability at most delta (Ville; Waudby-Smith and Ramdas, arXiv 2010.09686; importance
    weights: arXiv 2210.10768). The capital is a mixture over six sizes of bet; calls without audit leave it as it is.
    The grid's step at a rate of 0.05 is 0.002; the bounds are rounded outwards to it.
    """

    _RATES: Floats = np.concatenate((np.geomspace(0.001, 0.5, 160), 1 - np.geomspace(0.5, 0.01, 33)[1:]))
    _BETS: Floats = np.geomspace(0.003, 0.7, 6)
    _DIGITS = 1e6

    def __init__(self, *, delta: float, least: float) -> None:
        """`delta` in (0, 1) is the error of each side, `least` in (0, 1] the least audit probability in use."""
        _check_open("delta", delta)
        _check_probability("least", least, 0.0)
        self.delta, self.least = delta, least
        self.n = 0
        self.lower = 0.0
        self.upper = 1.0
        self._above = np.ones((len(self._RATES), len(self._BETS)))
        self._below = np.ones_like(self._above)

    def update(self, wrong: bool, probability: float) -> None:
        """Take in one audited call and the probability with which it was audited, in [least, 1]."""
        _check_probability("probability", probability, self.least)
        self.n += 1
        stakes = self._BETS * (self.least / probability)
        odds = (self._RATES / (1 - self._RATES))[:, None]
        self._above *= 1 + stakes / odds if wrong else 1 - stakes
        self._below *= 1 - stakes if wrong else 1 + stakes * odds
        for capital in (self._above, self._below):
            np.clip(capital, _TINY, 1 / _TINY, out=capital)
        self.lower = max(self.lower, float(np.max(self._RATES[self._excluded(self._above)], initial=0.0)))
        self.upper = min(self.upper, float(np.min(self._RATES[self._excluded(self._below)], initial=1.0)))

    def _excluded(self, capital: Floats) -> NDArray[np.bool_]:
        excluded: NDArray[np.bool_] = capital.mean(axis=1) >= 1 / self.delta
        return excluded

    def to_json(self) -> str:
        """The whole state; logarithms of capital are rounded down to six digits, so a restart keeps the promise."""
        capital = [
            np.floor(np.log(side) * self._DIGITS).astype(np.int64).tolist() for side in (self._above, self._below)
        ]
        state = {"delta": self.delta, "least": self.least, "n": self.n, "lower": self.lower, "upper": self.upper}
        return json.dumps({**state, "above": capital[0], "below": capital[1]}, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> ConfidenceSequence:
        """The sequence that `to_json` wrote. Raises ValueError for anything else."""
        state = _state(text, {"delta", "least", "n", "lower", "upper", "above", "below"})
        sequence = cls(delta=state["delta"], least=state["least"])
        sequence.n, sequence.lower, sequence.upper = state["n"], state["lower"], state["upper"]
        for side, name in ((sequence._above, "above"), (sequence._below, "below")):
            capital = np.asarray(state[name], dtype=np.float64)
            if capital.shape != side.shape:
                raise ValueError(f"{name!r} has shape {capital.shape!r}: allowed is {side.shape!r}")
            side[:] = np.exp(capital / cls._DIGITS)
        return sequence


class AdaptiveThreshold:
    """A threshold that becomes stricter while accepted calls fail more often than `alpha`, and relaxes after.

    Adaptive conformal inference (Gibbs and Candes 2021, arXiv 2106.00170) on the threshold itself: every audited call
    moves it by `step` x (wrong - alpha) x least / probability, within [certified, 1]. Hence, however the calls drift,
    the weighted failure rate of the audited calls exceeds alpha by at most (1 - certified) / (step x sum of weights),
    as long as the threshold stays below 1. It never goes below the certified one: that promise is not its to loosen.
    """

    def __init__(self, *, certified: float, alpha: float, least: float, step: float = 0.01) -> None:
        """`certified` in [0, 1]; `alpha` in (0, 1); `least` in (0, 1], the least audit probability; `step` > 0."""
        _check_open("alpha", alpha)
        _check_probability("least", least, 0.0)
        if not 0 <= certified <= 1:
            raise ValueError(f"certified {certified!r}: allowed is 0 <= certified <= 1")
        if not 0 < step < math.inf:
            raise ValueError(f"step {step!r}: allowed is a finite number above 0")
        self.certified, self.alpha, self.least, self.step = certified, alpha, least, step
        self.threshold = certified

    def update(self, wrong: bool, probability: float) -> None:
        """Take in one audited call that was accepted, and the probability with which it was audited, in [least, 1]."""
        _check_probability("probability", probability, self.least)
        moved = self.threshold + self.step * (wrong - self.alpha) * self.least / probability
        self.threshold = min(max(moved, self.certified), 1.0)

    def to_json(self) -> str:
        """The whole state."""
        names = ("certified", "alpha", "least", "step", "threshold")
        return json.dumps({name: getattr(self, name) for name in names})

    @classmethod
    def from_json(cls, text: str) -> AdaptiveThreshold:
        """The threshold that `to_json` wrote. Raises ValueError for anything else."""
        state = _state(text, {"certified", "alpha", "least", "step", "threshold"})
        threshold = state.pop("threshold")
        adaptive = cls(**state)
        adaptive.threshold = threshold
        return adaptive


def _labelled(confidence: ArrayLike, wrong: ArrayLike, alpha: float) -> tuple[Floats, NDArray[np.bool_]]:
    conf, bad = np.asarray(confidence, dtype=np.float64), np.asarray(wrong)
    if bad.dtype != np.bool_:
        raise ValueError(f"wrong has dtype {bad.dtype!s}: allowed is bool, a label for every call")
    if conf.ndim != 1 or conf.shape != bad.shape or not len(conf):
        raise ValueError(f"shapes {conf.shape!r} and {bad.shape!r}: allowed are equal shapes (n,), n at least 1")
    if not ((conf >= 0) & (conf <= 1)).all():
        raise ValueError("confidence: allowed are numbers from 0 to 1")
    _check_open("alpha", alpha)
    return conf, bad


def _blocks(conf: Floats, bad: NDArray[np.bool_]) -> tuple[Floats, Floats, Floats, Floats]:
    """By distinct confidence above 0, strictest first: it, and the calls accepted, failed and predicted to fail down to
    it."""
    order = np.argsort(-conf, kind="stable")[: np.count_nonzero(conf)]
    ranked = conf[order]
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True)[: len(ranked)])
    failures = np.cumsum(bad[order])[ends]
    return ranked[ends], (ends + 1).astype(np.float64), failures.astype(np.float64), np.cumsum(1 - ranked)[ends]


def _looks(tail: _Tail, counts: Floats, n: int, delta: float) -> Ints:
    """The blocks to test: where one more failure than before could pass (some of them, for large n), and the last."""
    most = _most(tail, np.array([float(n)]), n, delta)[0]
    k: Floats = np.unique(np.round(np.linspace(0, max(most, 0), _LOOKS)))
    least = _first(lambda sizes: tail(np.minimum(k, sizes), sizes, n) <= delta, k, n)
    return np.unique(np.append(np.searchsorted(counts, least[least <= counts[-1]]), len(counts) - 1))


def _first(holds: Callable[[Floats], NDArray[np.bool_]], below: Floats, limit: float) -> Floats:
    """By element, the least whole number in (below, limit + 1] where `holds`, taken as true from there on."""
    low, high = below.copy(), np.full_like(below, limit + 1)
    while (high - low > 1).any():
        middle = np.maximum(np.floor((low + high) / 2), 1)
        good = holds(middle)
        low, high = np.where(good, low, middle), np.where(good, middle, high)
    return high


def _most(tail: _Tail, counts: Floats, n: int, delta: float) -> Floats:
    """By count of accepted calls, the most failures that pass the test; -1 where not even none passes."""
    low, high = np.full_like(counts, -1.0), counts.copy()
    while (high - low > 1).any():
        middle = np.maximum(np.floor((low + high) / 2), 0)
        good = tail(middle, counts, n) <= delta
        low, high = np.where(good, middle, low), np.where(good, high, middle)
    return low


def _too_few(tail: _Tail, n: int, alpha: float, delta: float) -> Refusal:
    limit = n * _MOST_TIMES
    none = np.zeros(1)
    least = _first(lambda labels: tail(none, labels, labels) <= delta, none + n, limit)[0]
    if least > limit:
        return Refusal(
            alpha, delta, n, None, f"the horizon is too short for alpha {alpha!r}: even no failure is no proof"
        )
    reason = f"{n} labelled calls are too few: {least:.0f} could pass at the least, without a failure among them"
    return Refusal(alpha, delta, n, int(least) - n, reason)


def _refused(tail: _Tail, counts: Floats, failures: Floats, n: int, alpha: float, delta: float) -> Refusal:
    def passes(times: Floats) -> NDArray[np.bool_]:
        return tail(np.ceil(failures * times), np.floor(counts * times), n * times) <= delta

    rate = float((failures / counts).min())
    low, high = np.ones_like(counts), np.full_like(counts, _MOST_TIMES)
    helped = passes(high)
    if not helped.any():
        reason = f"the failure rate is {rate:.1%} at the best usable threshold: not low enough for alpha {alpha!r}"
        return Refusal(alpha, delta, n, None, reason)
    while (high / low > 1.001).any():
        middle = np.sqrt(low * high)
        good = passes(middle)
        low, high = np.where(good, low, middle), np.where(good, middle, high)
    needed = max(math.ceil(n * (float(high[helped].min()) - 1)), 1)
    reason = f"the failure rate is {rate:.1%} at the best usable threshold: about {needed} more labels could show it"
    return Refusal(alpha, delta, n, needed, reason)


def _tail(alpha: float, horizon: int | None) -> _Tail:
    """A threshold's p-value: P(no more failures among those accepted of n labels) if the promise were just broken."""

    def rate(failures: Floats, accepted: Floats, _n: ArrayLike) -> Floats:
        return binomial_tail(failures, accepted, np.full_like(accepted, alpha))

    def sample(failures: Floats, accepted: Floats, n: ArrayLike) -> Floats:
        coming = _coming(accepted, horizon or 0, n)
        return hypergeometric_tail(failures, accepted, coming, np.floor(alpha * coming + 1e-9) + 1)

    return rate if horizon is None else sample


def _coming(accepted: ArrayLike, horizon: int, n: ArrayLike) -> Floats:
    """How many of the next `horizon` calls are expected to be accepted, if `accepted` of `n` were; at least 1."""
    coming: Floats = np.maximum(np.round(np.asarray(accepted) * horizon / np.asarray(n)), 1.0)
    return coming


def _check_open(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name} {value!r}: allowed is 0 < {name} < 1")


def _check_probability(name: str, value: float, least: float) -> None:
    if not (0 < value <= 1 and value >= least):
        raise ValueError(f"{name} {value!r}: allowed is a probability above 0, from {least!r} to 1")


def _state(text: str, names: set[str]) -> dict[str, Any]:
    state = json.loads(text)
    if not isinstance(state, dict) or set(state) != names:
        raise ValueError(f"state {text[:80]!r}: allowed is an object with exactly {sorted(names)!r}")
    return dict(state)
