"""stats: figures against known truths, and coverage of their intervals in seeded simulations."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallfirst.stats import Figure, mean, quantile, ratio, ratio_of_ratios, score_interval, wilson

counts = st.integers(0, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
samples = st.lists(st.floats(0, 1e6), min_size=1, max_size=60)


def covers(figure: Figure, truth: float) -> bool:
    low = -math.inf if figure.low is None else figure.low
    high = math.inf if figure.high is None else figure.high
    return low <= truth <= high


def test_wilson_matches_published_values() -> None:
    """81 of 263 gives the interval of Newcombe (1998), table I, method 3: 0.2553 to 0.3662."""
    figure = wilson(81, 263)
    assert (figure.low, figure.high) == (pytest.approx(0.2553, abs=5e-5), pytest.approx(0.3662, abs=5e-5))


@pytest.mark.parametrize(("successes", "n"), [(0, 9), (4, 9), (9, 9)])
def test_score_interval_is_wilsons_for_whole_numbers(successes: int, n: int) -> None:
    """An effective sample of a whole number has Wilson's interval, a fractional one lies between its neighbours."""
    figure = wilson(successes, n)
    assert score_interval(successes / n, n) == (figure.low, figure.high)
    wider, narrower = score_interval(successes / n, n), score_interval(successes / n, n + 1)
    low, high = score_interval(successes / n, n + 0.5)
    assert wider[0] <= low <= narrower[0]
    assert narrower[1] <= high <= wider[1]


@pytest.mark.parametrize(("rate", "n"), [(-0.1, 9), (1.1, 9), (0.5, 0)])
def test_score_interval_refuses_impossible_samples(rate: float, n: float) -> None:
    """A rate outside [0, 1] or an empty sample is an error."""
    with pytest.raises(ValueError, match="allowed are"):
        score_interval(rate, n)


@given(counts)
def test_wilson_is_ordered_within_0_and_1(case: tuple[int, int]) -> None:
    """The interval lies in [0, 1] and around the rate, for any counts but an empty sample."""
    successes, n = case
    figure = wilson(successes, n)
    if n == 0:
        assert (figure.value, figure.low, figure.high) == (None, None, None)
        return
    assert figure.low is not None
    assert figure.value is not None
    assert figure.high is not None
    assert 0 <= figure.low <= figure.value + 1e-12
    assert figure.value - 1e-12 <= figure.high <= 1


@given(counts)
def test_wilson_is_symmetric(case: tuple[int, int]) -> None:
    """The interval of the failures mirrors the interval of the successes."""
    successes, n = case
    figure, mirror = wilson(successes, n), wilson(n - successes, n)
    if n:
        assert figure.low == pytest.approx(1 - (mirror.high or 0), abs=1e-9)


@pytest.mark.parametrize(("successes", "n", "level"), [(-1, 5, 0.95), (6, 5, 0.95), (1, 5, 0.0), (1, 5, 1.0)])
def test_wilson_refuses_impossible_counts(successes: int, n: int, level: float) -> None:
    """Counts or levels that cannot be are an error that shows them."""
    with pytest.raises(ValueError, match="allowed"):
        wilson(successes, n, level)


def test_ratio_is_the_ratio_of_the_sums() -> None:
    """Failed calls cost too: three calls at 1, 2 and 3 dollars with two successes cost 3 dollars a success."""
    assert ratio([1, 2, 3], [1, 0, 1]).value == 3.0


def test_ratio_without_success_is_undefined() -> None:
    """Cost per success of calls that all failed is None, not infinity or 0."""
    assert ratio([1.0, 2.0], [0, 0]) == Figure(None, None, None, 2, "bca")


def test_ratio_of_one_success_has_no_upper_bound() -> None:
    """Where a resample may well hold no success, the upper bound is None."""
    figure = ratio([1.0] * 20, [1.0] + [0.0] * 19)
    assert figure.value == 20.0
    assert figure.high is None
    assert figure.low is not None


def test_ratio_of_free_calls_is_zero() -> None:
    """Calls that cost nothing cost nothing per success, with certainty."""
    figure = ratio([0.0] * 30, [1.0, 0.0] * 15)
    assert (figure.value, figure.low, figure.high) == (0.0, 0.0, 0.0)


def test_ratio_is_reproducible() -> None:
    """The same data and seed give the same figure; another seed gives nearly the same interval."""
    rng = np.random.default_rng(3)
    cost, success = rng.lognormal(size=400), rng.random(400) < 0.6
    figure, other = ratio(cost, success), ratio(cost, success, seed=9)
    assert figure == ratio(cost, success)
    assert figure.low == pytest.approx(other.low, rel=0.03)
    assert figure.high == pytest.approx(other.high, rel=0.03)


@pytest.mark.parametrize("columns", [([1.0], [1.0, 2.0]), ([math.nan], [1.0]), ([math.inf], [1.0]), ([[1.0]], [[1.0]])])
def test_ratio_refuses_columns_that_do_not_pair(columns: tuple[list[float], list[float]]) -> None:
    """Unequal shapes and numbers that are not finite are errors."""
    with pytest.raises(ValueError, match=r"allowed|finite"):
        ratio(*columns)


def test_ratio_interval_covers_the_truth() -> None:
    """Over 300 samples of 60 calls whose failures cost double, the 95 % interval mostly holds the true ratio."""
    rng = np.random.default_rng(11)
    truth = math.exp(0.5**2 / 2) * (0.4 + 0.6 * 2) / 0.4
    hits = 0
    for _ in range(300):
        success = rng.random(60) < 0.4
        cost = rng.lognormal(sigma=0.5, size=60) * (2 - success)
        hits += covers(ratio(cost, success, resamples=400), truth)
    assert 0.91 <= hits / 300 <= 0.99


def test_large_samples_are_resampled_in_groups_with_the_same_interval() -> None:
    """For 100,000 calls the interval's width is that of the delta method, though groups of calls are resampled."""
    rng = np.random.default_rng(5)
    cost, success = rng.lognormal(size=100_000), (rng.random(100_000) < 0.3).astype(float)
    figure = ratio(cost, success)
    assert figure.value is not None
    assert figure.low is not None
    assert figure.high is not None
    deviation = float(np.std(cost - figure.value * success)) / math.sqrt(100_000) / success.mean()
    assert figure.high - figure.low == pytest.approx(2 * 1.96 * deviation, rel=0.08)


def test_ratio_of_ratios_pairs_the_calls() -> None:
    """An arm that costs exactly half on every call is at 0.5 without doubt, however much the calls vary."""
    rng = np.random.default_rng(2)
    cost, success = rng.lognormal(size=80), rng.random(80) < 0.5
    figure = ratio_of_ratios((cost / 2, cost), (success, success))
    assert (figure.value, figure.low, figure.high) == (pytest.approx(0.5),) * 3


def test_ratio_of_ratios_interval_covers_the_truth() -> None:
    """Over 200 samples of 80 paired calls the interval holds the true ratio of two costs per success."""
    rng = np.random.default_rng(7)
    hits = 0
    for _ in range(200):
        size = rng.lognormal(sigma=0.5, size=80)
        hard = rng.random(80)
        hits += covers(ratio_of_ratios((size, 10 * size), (hard < 0.5, hard < 0.8), resamples=400), 0.1 * 0.8 / 0.5)
    assert 0.9 <= hits / 200 <= 0.99


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_ratio_of_ratios_is_undefined_without_successes_or_base_cost(missing: int) -> None:
    """Without successes in either arm, or with a base that costs nothing, there is no ratio."""
    some, none = [1.0, 1.0], [0.0, 0.0]
    numerators = (some, none if missing == 0 else some)
    denominators = (none if missing == 1 else some, none if missing == 2 else some)
    assert ratio_of_ratios(numerators, denominators).value is None


def test_mean_covers_the_truth() -> None:
    """Over 200 samples of 50 skewed values the interval holds the true mean about 95 times in 100."""
    rng = np.random.default_rng(13)
    hits = sum(covers(mean(rng.exponential(size=50), resamples=400), 1.0) for _ in range(200))
    assert 0.88 <= hits / 200 <= 0.99


def test_one_observation_bounds_nothing() -> None:
    """From a single call there is a value but no interval."""
    assert mean([3.0]) == Figure(3.0, None, None, 1, "bca")
    assert ratio_of_ratios(([2.0], [4.0]), ([1.0], [1.0])) == Figure(0.5, None, None, 1, "bca")


def test_mean_of_nothing_is_undefined() -> None:
    """An empty sample has no mean."""
    assert mean([]).value is None


@given(samples, st.floats(0.01, 0.99))
def test_quantile_is_an_observation_within_its_interval(values: list[float], q: float) -> None:
    """The value and the bounds are observed values in order."""
    figure = quantile(values, q)
    assert figure.value in values
    for low, high in pairwise([v for v in (figure.low, figure.value, figure.high) if v is not None]):
        assert low <= high


def test_quantile_interval_has_the_exact_ranks() -> None:
    """For the median of 10 values the 95 % interval runs from the second to the ninth (coverage 0.979)."""
    figure = quantile(range(1, 11), 0.5)
    assert (figure.low, figure.high) == (2.0, 9.0)


def test_quantile_has_no_bound_that_the_sample_cannot_give() -> None:
    """The 95th percentile of 60 values has no upper bound at the 95 % level: 0.95 ** 60 > 0.025."""
    assert quantile(range(60), 0.95).high is None
    assert quantile(range(100), 0.95).high is not None


def test_quantile_interval_covers_at_least_the_level() -> None:
    """Over 500 samples of 80 exponential values, the p90's 95 % interval holds the truth at least 93 times in 100."""
    rng = np.random.default_rng(17)
    hits = sum(covers(quantile(rng.exponential(size=80), 0.9), math.log(10)) for _ in range(500))
    assert hits / 500 >= 0.93


def test_quantile_of_nothing_is_undefined() -> None:
    """An empty sample has no quantile; an impossible q is an error."""
    assert quantile([], 0.5).value is None
    with pytest.raises(ValueError, match="q"):
        quantile([1.0], 1.0)
