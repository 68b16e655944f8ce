"""guarantee: exact small cases, and the promises checked by seeded simulation."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from smallfirst.guarantee import (
    AdaptiveThreshold,
    Certificate,
    ConfidenceSequence,
    Refusal,
    conformal_risk,
    learn_then_test,
)

ALPHA = DELTA = 0.05
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
labels = st.lists(
    st.tuples(st.integers(0, 8).map(lambda eighths: eighths / 8), st.booleans()), min_size=1, max_size=200
)


def binormal(rng: np.random.Generator, n: int, error: float, shift: float) -> tuple[Floats, Bools]:
    """Calls with calibrated confidence: a score is N(0, 1) for wrong answers and N(shift, 1) for right ones."""
    wrong = rng.random(n) < error
    score = rng.normal(size=n) + np.where(wrong, 0, shift)
    odds = (1 - error) / error * np.exp(shift * score - shift**2 / 2)
    return odds / (1 + odds), wrong


def rate_above(threshold: float, confidence: Floats, wrong: Bools) -> float:
    accepted = confidence >= threshold
    return float(wrong[accepted].mean()) if accepted.any() else 0.0


def certified(confidence: Floats, wrong: Bools, alpha: float = ALPHA, horizon: int | None = None) -> Certificate | None:
    result = learn_then_test(confidence, wrong, alpha=alpha, delta=DELTA, horizon=horizon)
    return result if isinstance(result, Certificate) else None


def level(n: int, failures: int) -> tuple[Floats, Bools]:
    """n calls of one confidence, of which the first `failures` are wrong."""
    return np.full(n, 0.9), np.arange(n) < failures


@pytest.mark.parametrize(("n", "failures"), [(59, 0), (93, 1), (124, 2), (153, 3), (181, 4)])
def test_counts_that_just_pass(n: int, failures: int) -> None:
    """At alpha = delta = 0.05 the least counts that pass with 0 to 4 failures are those of acceptance sampling."""
    passed = learn_then_test(*level(n, failures), alpha=ALPHA, delta=DELTA)
    assert isinstance(passed, Certificate)
    assert (passed.threshold, passed.accepted, passed.failures, passed.coverage) == (0.9, n, failures, 1.0)
    assert passed.bound <= ALPHA
    assert isinstance(learn_then_test(*level(n - 1, failures), alpha=ALPHA, delta=DELTA), Refusal)


def test_too_few_labels_say_how_many_are_missing() -> None:
    """Below the 59 labels that could pass without failure, the refusal names the missing ones."""
    refusal = learn_then_test(*level(40, 0), alpha=ALPHA, delta=DELTA)
    assert isinstance(refusal, Refusal)
    assert refusal.needed == 19
    assert "40 labelled calls" in refusal.reason
    assert "59 could pass" in refusal.reason


def test_the_labels_named_as_missing_suffice_at_the_same_rate() -> None:
    """With `needed` more labels at the observed rate the test passes, and with four fifths of them it does not."""
    refusal = learn_then_test(*level(200, 8), alpha=ALPHA, delta=DELTA)
    assert isinstance(refusal, Refusal)
    assert refusal.needed is not None
    enough, short = 200 + refusal.needed, 200 + refusal.needed * 4 // 5
    assert certified(*level(enough, math.floor(enough * 0.04))) is not None
    assert certified(*level(short, math.ceil(short * 0.04))) is None


@pytest.mark.parametrize("horizon", [None, 200])
def test_a_rate_above_alpha_needs_no_number_of_labels(horizon: int | None) -> None:
    """Where the rate is above alpha at every usable threshold, `needed` is None."""
    refusal = learn_then_test(*level(200, 30), alpha=ALPHA, delta=DELTA, horizon=horizon)
    assert isinstance(refusal, Refusal)
    assert refusal.needed is None
    assert "15.0%" in refusal.reason


def test_equal_confidences_are_accepted_together() -> None:
    """A threshold accepts every call of its confidence: failures at the same value cannot be left out."""
    confidence = np.repeat([0.99, 0.9], [100, 100])
    wrong = np.zeros(200, dtype=bool)
    wrong[100:130] = True
    result = certified(confidence, wrong)
    assert result is not None
    assert (result.threshold, result.accepted, result.failures) == (0.99, 100, 0)


def test_the_cheapest_passing_threshold_is_taken() -> None:
    """With a cost, the cheapest certified threshold is taken; without, that of the largest coverage."""
    confidence, wrong = np.linspace(1, 0.9, 600), np.zeros(600, dtype=bool)
    loosest = certified(confidence, wrong)
    chosen = learn_then_test(confidence, wrong, alpha=ALPHA, delta=DELTA, cost=lambda threshold: abs(threshold - 0.95))
    flat = learn_then_test(confidence, wrong, alpha=ALPHA, delta=DELTA, cost=lambda _: 1.0)
    assert loosest is not None
    assert loosest.coverage == 1
    assert isinstance(chosen, Certificate)
    assert chosen.threshold == pytest.approx(0.95, abs=0.01)
    assert flat == loosest


@given(labels, st.sampled_from([0.05, 0.2, 0.5]), st.sampled_from([None, 50]))
def test_what_is_certified_is_what_the_labels_show(
    calls: list[tuple[float, bool]], alpha: float, horizon: int | None
) -> None:
    """Counts match the threshold, the bound is at most alpha, and a refusal carries a reason."""
    confidence, wrong = np.array([c for c, _ in calls]), np.array([w for _, w in calls])
    result = learn_then_test(confidence, wrong, alpha=alpha, delta=0.1, horizon=horizon)
    if isinstance(result, Refusal):
        assert result.reason
        assert result.needed is None or result.needed > 0
    else:
        accepted = confidence >= result.threshold
        assert (result.accepted, result.failures) == (accepted.sum(), wrong[accepted].sum())
        assert result.coverage == result.accepted / result.n
        assert result.bound <= alpha + 1e-12
        assert result.threshold > 0


def test_a_confidence_of_zero_is_never_accepted() -> None:
    """Calls that must not be accepted have confidence 0, and no threshold is so loose, however few of them fail."""
    confidence, wrong = np.repeat([0.0, 0.9], 100), np.zeros(200, dtype=bool)
    result = learn_then_test(confidence, wrong, alpha=0.5, delta=DELTA)
    assert isinstance(result, Certificate)
    assert (result.threshold, result.accepted, result.n) == (0.9, 100, 200)
    nothing = learn_then_test(np.zeros(100), wrong[:100], alpha=0.5, delta=DELTA)
    assert isinstance(nothing, Refusal)
    assert nothing.needed is None


def test_bad_labels_are_refused() -> None:
    """Unequal shapes, no labels, labels that are not bool, confidences and levels out of range raise an error."""
    good, wrong = np.array([0.5, 0.6]), np.array([True, False])
    for confidence, bad in ((good, wrong[:1]), (good[:0], wrong[:0]), (good + 0.5, wrong), (good, np.array([1, 0]))):
        with pytest.raises(ValueError, match="allowed"):
            learn_then_test(confidence, bad, alpha=ALPHA, delta=DELTA)
    for settings in ({"alpha": 0.0, "delta": 0.1}, {"alpha": 0.1, "delta": 1.0}):
        with pytest.raises(ValueError, match="allowed"):
            learn_then_test(good, wrong, **settings)
    with pytest.raises(ValueError, match="horizon 0"):
        learn_then_test(good, wrong, alpha=ALPHA, delta=DELTA, horizon=0)


@pytest.mark.parametrize("steps", [None, 5])
def test_the_risk_exceeds_alpha_in_at_most_delta_of_draws(steps: int | None) -> None:
    """On continuous scores and on scores of few values, a threshold whose true risk is above alpha is rare."""
    rng = np.random.default_rng(1)

    def draw(n: int) -> tuple[Floats, Bools]:
        confidence, wrong = binormal(rng, n, 0.15, 1.4)
        return (confidence if steps is None else np.floor(confidence * steps) / steps), wrong

    population = draw(200_000)
    results = [certified(*draw(320)) for _ in range(150)]
    exceeded = [r is not None and rate_above(r.threshold, *population) > ALPHA for r in results]
    assert np.mean(exceeded) <= DELTA


@pytest.mark.parametrize("n", [59, 181, 320])
def test_the_level_is_used_and_kept_at_the_boundary(n: int) -> None:
    """If every call fails at a rate of alpha, a certificate has a probability of at most delta, and over half of it."""
    passing = [k for k in range(20) if certified(*level(n, k)) is not None]
    chance = sum(math.comb(n, k) * ALPHA**k * (1 - ALPHA) ** (n - k) for k in passing)
    assert DELTA / 2 < chance <= DELTA


def test_a_calibrator_that_is_too_sure_costs_no_validity() -> None:
    """Confidences that claim far too much change where the sequence starts, not how often it errs."""
    rng = np.random.default_rng(3)
    population = binormal(rng, 200_000, 0.2, 1.0)
    exceeded = []
    for _ in range(100):
        confidence, wrong = binormal(rng, 320, 0.2, 1.0)
        result = certified(confidence**0.2, wrong)
        exceeded.append(
            result is not None and rate_above(result.threshold, population[0] ** 0.2, population[1]) > ALPHA
        )
    assert np.mean(exceeded) <= DELTA


def test_coverage_is_near_the_best_that_is_known_to_be_there() -> None:
    """With good scores and 320 labels, coverage is over 60 % of that of a threshold chosen with the truth."""
    rng = np.random.default_rng(4)
    confidence, wrong = binormal(rng, 200_000, 0.1, 1.81)
    ranked = np.argsort(-confidence)
    rates = np.cumsum(wrong[ranked]) / np.arange(1, len(ranked) + 1)
    oracle = (np.flatnonzero(rates <= ALPHA)[-1] + 1) / len(ranked)
    results = [certified(*binormal(rng, 320, 0.1, 1.81)) for _ in range(60)]
    reached = np.mean([0.0 if r is None else np.mean(confidence >= r.threshold) for r in results])
    assert reached >= 0.6 * oracle


def test_more_risk_or_less_certainty_gives_more_coverage() -> None:
    """Over draws, coverage grows with alpha and with delta."""
    rng = np.random.default_rng(5)
    draws = [binormal(rng, 320, 0.15, 1.8) for _ in range(24)]

    def coverage(alpha: float, delta: float) -> float:
        results = [learn_then_test(*draw, alpha=alpha, delta=delta) for draw in draws]
        return float(np.mean([r.coverage if isinstance(r, Certificate) else 0.0 for r in results]))

    assert coverage(0.03, 0.05) < coverage(0.05, 0.05) < coverage(0.1, 0.05)
    assert coverage(0.05, 0.02) < coverage(0.05, 0.05) < coverage(0.05, 0.2)


def test_a_horizon_keeps_the_observed_rate_of_the_other_half() -> None:
    """Over random halves of finite sets, the held-out accepted rate exceeds alpha in at most delta of splits."""
    rng = np.random.default_rng(6)
    exceeded, coverage = [], []
    for _ in range(8):
        confidence, wrong = binormal(rng, 641, 0.12, 1.81)
        for _ in range(25):
            order = rng.permutation(641)
            fit, held = order[:320], order[320:]
            result = certified(confidence[fit], wrong[fit], horizon=321)
            coverage.append(0.0 if result is None else result.coverage)
            exceeded.append(result is not None and rate_above(result.threshold, confidence[held], wrong[held]) > ALPHA)
    assert np.mean(exceeded) <= DELTA
    assert np.mean(coverage) > 0.3


@given(labels, st.floats(0.01, 0.5), st.floats(0.01, 0.5))
def test_conformal_risk_follows_its_formula(calls: list[tuple[float, bool]], alpha: float, other: float) -> None:
    """The threshold is the loosest value with n/(n+1) R + 1/(n+1) <= alpha, and only loosens as alpha grows."""
    confidence, wrong = np.array([c for c, _ in calls]), np.array([w for _, w in calls])
    n = len(calls)

    def passes(threshold: float) -> bool:
        return bool((wrong[confidence >= threshold].sum() + 1) / (n + 1) <= alpha)

    threshold = conformal_risk(confidence, wrong, alpha=alpha)
    assert threshold == min((c for c in confidence if c > 0 and passes(c)), default=None)
    loose = conformal_risk(confidence, wrong, alpha=max(alpha, other))
    assert threshold is None or (loose is not None and loose <= threshold)


def test_conformal_risk_holds_on_average() -> None:
    """Over draws, the mean share of calls that are accepted and wrong is at most alpha."""
    rng = np.random.default_rng(7)
    confidence, wrong = binormal(rng, 50_000, 0.2, 1.5)
    shares = []
    for _ in range(300):
        threshold = conformal_risk(*binormal(rng, 60, 0.2, 1.5), alpha=0.1)
        shares.append(0.0 if threshold is None else np.mean(wrong & (confidence >= threshold)))
    assert 0.07 < np.mean(shares) <= 0.1


def audits(rng: np.random.Generator, calls: int, rate: float) -> Iterator[tuple[bool, float]]:
    """Audits of calls whose failures, as their audits, fall mostly on a doubtful fifth; the mean failure is `rate`."""
    doubtful = rng.random(calls) < 0.2
    probability = np.where(doubtful, 0.8, 0.2)
    wrong = rng.random(calls) < np.where(doubtful, 3 * rate, rate / 2)
    for i in np.flatnonzero(rng.random(calls) < probability):
        yield bool(wrong[i]), float(probability[i])


@pytest.mark.parametrize("rate", [0.02, 0.1])
def test_the_sequence_covers_at_all_times(rate: float) -> None:
    """Read after every audit, each bound is ever on the wrong side of the rate in at most delta of streams."""
    rng = np.random.default_rng(8)
    above = below = 0
    for _ in range(40):
        sequence = ConfidenceSequence(delta=0.1, least=0.2)
        for wrong, probability in audits(rng, 800, rate):
            sequence.update(wrong, probability)
        above += sequence.lower > rate
        below += sequence.upper < rate
    assert above <= 4
    assert below <= 4


def test_the_sequence_finds_the_rate() -> None:
    """After some thousand audits drawn with unequal odds the bounds enclose the rate of all calls closely."""
    sequence = ConfidenceSequence(delta=0.01, least=0.2)
    for wrong, probability in audits(np.random.default_rng(14), 12_000, 0.1):
        sequence.update(wrong, probability)
    assert 0.08 < sequence.lower <= 0.1 <= sequence.upper < 0.12


def test_a_violation_is_noticed_soon() -> None:
    """A rate of 15 % instead of 5 % is proven by 150 full audits in most streams; 4 % is not called a violation."""
    rng = np.random.default_rng(10)

    def lower(rate: float) -> float:
        sequence = ConfidenceSequence(delta=0.05, least=1.0)
        for wrong in rng.random(150) < rate:
            sequence.update(bool(wrong), 1.0)
        return sequence.lower

    assert np.mean([lower(0.15) > 0.05 for _ in range(40)]) > 0.6
    assert np.mean([lower(0.04) > 0.05 for _ in range(40)]) <= 0.05


def test_bounds_only_tighten_and_begin_with_nothing() -> None:
    """Before any audit the bounds are 0 and 1; no audit loosens them."""
    sequence = ConfidenceSequence(delta=0.05, least=0.2)
    assert (sequence.lower, sequence.upper, sequence.n) == (0, 1, 0)
    for n, (wrong, probability) in enumerate(audits(np.random.default_rng(11), 500, 0.1), start=1):
        lower, upper = sequence.lower, sequence.upper
        sequence.update(wrong, probability)
        assert lower <= sequence.lower <= sequence.upper <= upper
        assert sequence.n == n


def test_a_sequence_survives_a_restart() -> None:
    """Written and read between audits, a sequence gives the same bounds; its state does not grow."""
    rng = np.random.default_rng(12)
    kept, restarted = (ConfidenceSequence(delta=0.05, least=0.2) for _ in range(2))
    sizes = []
    for wrong, probability in audits(rng, 1000, 0.1):
        kept.update(wrong, probability)
        restarted.update(wrong, probability)
        text = restarted.to_json()
        sizes.append(len(text))
        restarted = ConfidenceSequence.from_json(text)
    assert restarted.n == kept.n
    assert (restarted.lower, restarted.upper) == pytest.approx((kept.lower, kept.upper), rel=0.05)
    assert max(sizes) < 30_000


def test_a_long_stream_neither_overflows_nor_forgets() -> None:
    """Five thousand audits of one outcome leave finite state and a bound at the end of the grid."""
    sequence = ConfidenceSequence(delta=0.05, least=1.0)
    for _ in range(5_000):
        sequence.update(False, 1.0)
    assert sequence.upper <= 0.002
    assert ConfidenceSequence.from_json(sequence.to_json()).upper == sequence.upper


def drifting(threshold: AdaptiveThreshold, calls: int, slope: float, rng: np.random.Generator) -> list[bool]:
    """Outcomes of accepted calls whose confidence is uniform and whose failure rate is slope x (1 - confidence)."""
    outcomes = []
    for confidence in rng.random(calls):
        if confidence >= threshold.threshold:
            wrong = bool(rng.random() < slope * (1 - confidence))
            outcomes.append(wrong)
            threshold.update(wrong, 1.0)
    return outcomes


def test_drift_is_followed_and_forgotten() -> None:
    """When calls fail five times as often, the accepted rate returns to alpha; after it, so does the coverage."""
    rng = np.random.default_rng(13)
    threshold = AdaptiveThreshold(certified=0.5, alpha=0.05, least=1.0)
    calm = drifting(threshold, 3000, 0.2, rng)
    assert np.mean(calm) <= 0.06
    assert threshold.threshold < 0.65
    drift = drifting(threshold, 20_000, 1.0, rng)
    assert np.mean(drift) <= ALPHA + 0.5 / (threshold.step * len(drift)) + 1e-9
    assert 0.8 < threshold.threshold < 1
    drifting(threshold, 20_000, 0.2, rng)
    assert threshold.threshold < 0.65


@given(st.floats(0, 1), st.lists(st.tuples(st.booleans(), st.floats(0.1, 1)), max_size=200))
def test_the_adaptive_threshold_is_never_looser_than_certified(
    certified: float, stream: list[tuple[bool, float]]
) -> None:
    """Whatever comes, the threshold lies between the certified one and 1, and reads back as written."""
    threshold = AdaptiveThreshold(certified=certified, alpha=0.05, least=0.1, step=0.2)
    for wrong, probability in stream:
        threshold.update(wrong, probability)
        assert certified <= threshold.threshold <= 1
    assert vars(AdaptiveThreshold.from_json(threshold.to_json())) == vars(threshold)


def test_audit_settings_are_checked() -> None:
    """Probabilities under the least one, levels out of range and foreign states raise an error."""
    sequence = ConfidenceSequence(delta=0.05, least=0.2)
    adaptive = AdaptiveThreshold(certified=0.9, alpha=0.05, least=0.2)
    for probability in (0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="probability"):
            sequence.update(True, probability)
        with pytest.raises(ValueError, match="probability"):
            adaptive.update(True, probability)
    with pytest.raises(ValueError, match="least 0"):
        ConfidenceSequence(delta=0.05, least=0.0)
    with pytest.raises(ValueError, match="certified"):
        AdaptiveThreshold(certified=1.5, alpha=0.05, least=0.2)
    with pytest.raises(ValueError, match="step"):
        AdaptiveThreshold(certified=0.9, alpha=0.05, least=0.2, step=0.0)
    with pytest.raises(ValueError, match="allowed"):
        ConfidenceSequence.from_json('{"n": 1}')
    with pytest.raises(ValueError, match="allowed"):
        AdaptiveThreshold.from_json("[]")
    other = json.loads(sequence.to_json()) | {"above": [[0]]}
    with pytest.raises(ValueError, match="shape"):
        ConfidenceSequence.from_json(json.dumps(other))
