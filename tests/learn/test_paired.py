"""Two models on the same calls: the exact test keeps its level, the interval its coverage, and both move as they
must."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smallfirst.learn.paired import EXACT, difference, holm, least_calls, p_noninferior

margins = st.sampled_from([0.02, 0.05, 0.1, 0.3])
counts = st.integers(1, 30).flatmap(
    lambda n: st.integers(0, n).flatmap(lambda w: st.tuples(st.just(w), st.integers(0, n - w), st.just(n)))
)


def outcomes(n: int) -> list[tuple[int, int]]:
    """All (wins, losses) of n calls."""
    return [(wins, losses) for wins in range(n + 1) for losses in range(n + 1 - wins)]


def likelihood(wins: int, losses: int, n: int, winning: float, losing: float) -> float:
    """The probability of an outcome where each call is won and lost at these rates."""
    even = n - wins - losses
    ways = math.comb(n, wins) * math.comb(n - wins, losses)
    return ways * winning**wins * losing**losses * (1 - winning - losing) ** even


@settings(max_examples=40, deadline=None)
@given(counts, margins)
def test_wins_speak_for_it_and_losses_against(count: tuple[int, int, int], margin: float) -> None:
    """A p-value is a probability; one more loss never lowers it, one more win never raises it."""
    wins, losses, n = count
    p = p_noninferior(wins, losses, n, margin)
    assert 0 <= p <= 1
    if wins + losses < n:
        assert p_noninferior(wins, losses + 1, n, margin) >= p - 1e-9
        assert p_noninferior(wins + 1, losses, n, margin) <= p + 1e-9


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 100), margins)
def test_against_one_who_is_always_right_only_losses_count(n: int, margin: float) -> None:
    """Without a loss the p-value is (1 - margin)^n, the chance of that at the margin; the general test asks more."""
    p = p_noninferior(0, 0, n, margin, never_wins=True)
    assert p == pytest.approx((1 - margin) ** n)
    assert (n >= least_calls(margin, 0.05)) == (p <= 0.05)
    assert p >= p_noninferior(0, 0, n, margin + 0.1, never_wins=True)
    assert p_noninferior(0, 0, n, margin) >= p - 1e-9


@pytest.mark.parametrize("n", [12, 24])
def test_the_level_is_kept(n: int) -> None:
    """Whatever the rates, if losses exceed wins by the margin or more, no more than 5 % of outcomes are called
    non-inferior: summed over all outcomes, not simulated."""
    passing = [(wins, losses) for wins, losses in outcomes(n) if p_noninferior(wins, losses, n, 0.1) <= 0.05]
    assert passing
    for winning, losing in ((0.0, 0.1), (0.05, 0.15), (0.2, 0.3), (0.4, 0.5), (0.02, 0.3)):
        assert sum(likelihood(wins, losses, n, winning, losing) for wins, losses in passing) <= 0.05


def test_the_exact_test_meets_its_limit() -> None:
    """Around the count above which the normal limit is taken, both give nearly the same p-value."""
    exact, limit = p_noninferior(10, 20, EXACT, 0.05), p_noninferior(10, 20, EXACT + 1, 0.05)
    assert exact == pytest.approx(limit, abs=0.01)


@pytest.mark.parametrize(("winning", "losing"), [(0.05, 0.15), (0.2, 0.3), (0.1, 0.1)])
def test_the_interval_covers(winning: float, losing: float) -> None:
    """A 95 % interval holds the true difference with a probability near that, summed over all outcomes."""
    held, n = 0.0, 25
    for wins, losses in outcomes(n):
        found = difference(wins, losses, n)
        assert found.low is not None
        assert found.high is not None
        assert found.low <= (found.value or 0.0) <= found.high
        if found.low <= winning - losing <= found.high:
            held += likelihood(wins, losses, n, winning, losing)
    assert 0.93 <= held <= 0.99


def test_without_calls_nothing_is_said() -> None:
    """No call gives no difference and no evidence; impossible counts and margins are refused."""
    assert difference(0, 0, 0).value is None
    assert p_noninferior(0, 0, 0, 0.05) == 1
    for wrong in ((3, 3, 5, 0.05), (-1, 0, 5, 0.05), (0, 0, 5, 0.0)):
        with pytest.raises(ValueError, match="allowed"):
            p_noninferior(*wrong)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_is_between_bonferroni_and_nothing(ps: list[float]) -> None:
    """What Bonferroni rejects is rejected, nothing above the level is, and smaller p-values go first."""
    rejected = holm(ps, 0.05)
    for p, gone in zip(ps, rejected, strict=True):
        assert gone or p > 0.05 / len(ps)
        assert not gone or p <= 0.05
    assert max((p for p, gone in zip(ps, rejected, strict=True) if gone), default=0) <= min(
        (p for p, gone in zip(ps, rejected, strict=True) if not gone), default=1
    )
