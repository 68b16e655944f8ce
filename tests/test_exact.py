"""exact: closed forms, sums over small distributions, and the coverage that the bounds promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallfirst.exact import binomial_tail, hypergeometric_tail, predictive_bound, upper_bound

counts = st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
levels = st.floats(1e-6, 0.5)


def binomial(n: int, p: float) -> list[float]:
    return [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]


@given(st.integers(1, 100_000), levels)
def test_no_failure_has_a_closed_form(n: int, delta: float) -> None:
    """Without failures the bound is 1 - delta^(1/n)."""
    assert float(upper_bound(0, n, delta)) == pytest.approx(-math.expm1(math.log(delta) / n), rel=1e-8)


def test_bounds_match_published_values() -> None:
    """10 of 20 at 2.5 % is 0.7280 (Clopper and Pearson's interval, standard tables)."""
    assert float(upper_bound(10, 20, 0.025)) == pytest.approx(0.7280, abs=5e-5)


def test_without_calls_nothing_is_bounded() -> None:
    """No call gives the bound 1, and so do only failures."""
    assert float(upper_bound(0, 0, 0.05)) == 1
    assert float(upper_bound(7, 7, 0.05)) == 1


@given(counts, levels)
def test_upper_bound_is_where_the_tail_is_delta(count: tuple[int, int], delta: float) -> None:
    """At the bound, so few failures or fewer have probability delta; it lies above the rate and orders as it should."""
    k, n = count
    bound = upper_bound([k, min(k + 1, n)], n, delta)
    if k < n:
        tail = binomial_tail(np.array([float(k)]), np.array([float(n)]), bound[:1])
        assert tail[0] == pytest.approx(delta, rel=1e-7)
    assert k / n < bound[0] or k == n
    assert bound[0] <= bound[1]
    assert bound[0] <= float(upper_bound(k, n, delta / 2))


@given(st.integers(1, 60), st.floats(1e-6, 1 - 1e-6))
def test_binomial_tail_is_the_sum(n: int, p: float) -> None:
    """The tail agrees with the plain sum for every count of failures."""
    tails = binomial_tail(np.arange(n + 1.0), np.full(n + 1, float(n)), np.full(n + 1, p))
    assert tails == pytest.approx(np.cumsum(binomial(n, p)), rel=1e-9, abs=1e-300)


@given(st.integers(1, 40), st.integers(1, 40), st.data())
def test_hypergeometric_tail_is_the_sum(n: int, coming: int, data: st.DataObject) -> None:
    """The tail agrees with the plain sum of counted draws."""
    k = data.draw(st.integers(0, n))
    excess = data.draw(st.integers(0, coming))
    total = k + excess
    ways = sum(math.comb(n, i) * math.comb(coming, total - i) for i in range(k + 1))
    tail = hypergeometric_tail(*(np.array([float(x)]) for x in (k, n, coming, excess)))
    assert tail[0] == pytest.approx(ways / math.comb(n + coming, total), rel=1e-9)


def test_large_counts_stay_exact() -> None:
    """At a hundred thousand calls the bound is within a thousandth of its normal approximation's width."""
    k, n = 5000, 100_000
    sigma = math.sqrt(k * (n - k) / n) / n
    assert float(upper_bound(k, n, 0.05)) == pytest.approx(k / n + 1.645 * sigma, abs=0.03 * sigma)


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.3, 0.9])
@pytest.mark.parametrize("n", [5, 60, 400])
def test_bounds_cover(rate: float, n: int) -> None:
    """The bound misses the true rate with probability at most delta, summed exactly over all outcomes."""
    terms = np.array([math.exp(math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)) for k in range(n + 1)])
    terms = terms * rate ** np.arange(n + 1) * (1 - rate) ** np.arange(n, -1, -1)
    assert terms[upper_bound(np.arange(n + 1), n, 0.05) < rate].sum() <= 0.05


@pytest.mark.parametrize("failures", [3, 10, 25, 60])
def test_predictive_bound_holds_for_halves_of_a_finite_set(failures: int) -> None:
    """Of all random halves of a set, at most delta have more failures in the second than the first foretold."""
    n = 150
    missed = 0.0
    for k in range(failures + 1):
        share = math.comb(n, k) * math.comb(n, failures - k) / math.comb(2 * n, failures)
        missed += share * (predictive_bound(k, n, n, 0.05) < (failures - k) / n)
    assert missed <= 0.05


def test_predictive_bound_approaches_the_bound_on_the_rate() -> None:
    """For a long horizon the bound on the next calls' rate is that on the rate; for an empty one there is none."""
    assert predictive_bound(4, 200, 1_000_000, 0.05) == pytest.approx(float(upper_bound(4, 200, 0.05)), rel=1e-2)
    assert predictive_bound(4, 200, 0, 0.05) == 0


@pytest.mark.parametrize(("k", "n", "delta"), [(3, 2, 0.05), (-1, 2, 0.05), (1, 2, 0.0), (1, 2, 1.0)])
def test_impossible_counts_are_refused(k: int, n: int, delta: float) -> None:
    """Counts outside 0..n and levels outside (0, 1) raise an error that says what is allowed."""
    with pytest.raises(ValueError, match="allowed"):
        upper_bound(k, n, delta)


def test_a_negative_horizon_is_refused() -> None:
    """A horizon below 0 raises an error."""
    with pytest.raises(ValueError, match="horizon -1"):
        predictive_bound(1, 10, -1, 0.05)
