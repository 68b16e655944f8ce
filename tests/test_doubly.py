"""Doubly robust scores: covered truths, and bias near 0 when either the model or the probabilities are right."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallfirst.doubly import Floats, Known, balance, effective_number, scores


def known(x: Floats, **changes: object) -> Known:
    """Calls of one stratum and group, with x as the model's column."""
    zeros = np.zeros(len(x), dtype=np.int64)
    fields = {"stratum": zeros, "group": zeros, "base": np.ones(len(x)), "design": x[:, None]}
    return Known(**{**fields, **changes})  # type: ignore[arg-type]


def simulated(seed: int, *, linear: bool, recorded: bool, n: int = 800) -> tuple[float, float]:
    """The estimate less the truth, and its standard error, of an outcome that is seen more often where x is large.

    `linear`: the model can be right; `recorded`: the probabilities are the true ones.
    """
    rng = np.random.default_rng(seed)
    x = rng.random(n)
    chance = 0.05 + 0.6 * x**2
    mean = 1 + x if linear else np.sin(7 * x)
    outcome = np.where(rng.random(n) < chance, mean + rng.normal(0, 0.5, n), np.nan)
    column = x if linear else np.zeros(n)
    found = scores(outcome, chance if recorded else np.full(n, 0.3), known(column)).value
    truth = 1.5 if linear else (1 - np.cos(7)) / 7
    return float(found.mean() - truth), float(found.std() / np.sqrt(n))


@pytest.mark.parametrize("linear", [True, False], ids=["model right", "model useless"])
def test_intervals_cover_the_truth(linear: bool) -> None:
    """With recorded probabilities the 95 % interval covers the true mean in 91 to 98.5 % of 300 logs."""
    runs = [simulated(seed, linear=linear, recorded=True) for seed in range(300)]
    covered = np.mean([abs(error) <= 1.96 * spread for error, spread in runs])
    assert 0.91 <= covered <= 0.985


@pytest.mark.parametrize(("linear", "recorded"), [(True, False), (False, True)], ids=["model", "probabilities"])
def test_either_being_right_is_enough(linear: bool, recorded: bool) -> None:
    """The mean error over 300 logs is within four of its standard errors when only one of the two is right."""
    errors = np.array([simulated(seed, linear=linear, recorded=recorded)[0] for seed in range(300)])
    assert abs(errors.mean()) < 4 * errors.std() / np.sqrt(len(errors))


def test_both_being_wrong_is_biased() -> None:
    """With neither right the same outcomes are estimated wrong, so the test above can fail."""
    errors = np.array([simulated(seed, linear=False, recorded=False)[0] for seed in range(100)])
    assert abs(errors.mean()) > 10 * errors.std() / np.sqrt(len(errors))


def test_everything_seen_is_the_plain_mean() -> None:
    """Where every outcome is observed, the scores are the outcomes."""
    outcome = np.random.default_rng(0).random(50)
    assert scores(outcome, np.ones(50), known(np.arange(50.0))).value == pytest.approx(outcome)


def test_few_observations_speak_for_nobody() -> None:
    """A stratum with fewer than five observed calls is blind unless all its calls are observed."""
    stratum = np.array([0] * 20 + [1] * 3)
    outcome = np.array([1.0] * 4 + [np.nan] * 16 + [2.0] * 3)
    found = scores(outcome, np.ones(23), known(np.zeros(23), stratum=stratum))
    assert found.blind.tolist() == [True] * 20 + [False] * 3
    assert (found.least, found.most) == (1.0, 2.0)


@given(st.integers(0, 2**32 - 1), st.floats(0.05, 1.0))
def test_weights_stand_for_their_stratum(seed: int, chance: float) -> None:
    """In every stratum that is not blind the base-weighted weights of the seen calls sum to the stratum's base."""
    rng = np.random.default_rng(seed)
    n = 60
    stratum, base = rng.integers(0, 3, n), rng.random(n)
    seen = rng.random(n) < 0.5
    probability = np.where(rng.random(n) < 0.5, 1.0, chance)
    weight, blind = balance(seen, probability, stratum, base)
    assert (weight[~seen] == 0).all()
    for number in range(3):
        here = (stratum == number) & ~blind
        assert np.sum((weight * base)[here]) == pytest.approx(np.sum(base[here]))


def test_effective_number_of_unequal_weights() -> None:
    """Equal weights count in full, one heavy weight counts as one, none as none."""
    assert effective_number(np.full(7, 3.0)) == pytest.approx(7)
    assert effective_number(np.array([1e9, 1.0, 1.0])) == pytest.approx(1)
    assert effective_number(np.zeros(3)) == 0
