"""Compressors beside each other: points, front, fits, recommendation, pictures."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallfirst.backends.fake import FakeBackend
from smallfirst.compress.base import Identity
from smallfirst.compress.cases import Case
from smallfirst.compress.distortion import Trial, compare, curve, fit, right, scaling, spearman
from smallfirst.compress.estimate import Estimate
from smallfirst.compress.information import Cost, Report, summarise
from smallfirst.compress.pictures import draw
from smallfirst.compress.predict import trial
from smallfirst.errors import DataError
from smallfirst.stats import Figure

ONE = Figure(1.0, 0.9, 1.1, 40, "bootstrap")


def made(name: str, bits: float, tokens: int, accuracy: float, usd: float = 1.0, cases: int = 40) -> Trial:
    """A trial whose every case has `bits`, and the first share `accuracy` of them right."""
    length = Figure(float(tokens), tokens, tokens, cases, "bca")
    information = Figure(bits, bits, bits, cases, "bootstrap")
    per_token = (
        Figure(bits / tokens, 0, 1, cases, "bootstrap") if tokens else Figure(None, None, None, cases, "bootstrap")
    )
    told = Estimate(information, information, None, 1.0, bits, np.full(cases, bits), 9.0)
    cost = Cost(0, 0, 0, 0.0)
    report = Report(
        name, "s", tokens, cases, 1, told, length, per_token, None, None, ONE, ONE, ONE, None, None, cost, ()
    )
    hits = tuple(n < accuracy * cases for n in range(cases))
    return Trial(report, hits, (tokens,) * cases, (usd,) * cases, (usd / 2,) * cases)


def test_the_curve_is_found_again() -> None:
    """Points on C exp(-b x) + D0 give C, b and D0 back; constant ones give no decay."""
    xs = np.linspace(0, 6, 12)
    (scale, decay, floor), r2 = curve(xs, 0.7 * np.exp(-0.8 * xs) + 0.1)
    assert (scale, decay, floor) == pytest.approx((0.7, 0.8, 0.1), rel=0.1)
    assert r2 > 0.999
    (scale, _, floor), _ = curve(xs, np.full(12, 0.4))
    assert (scale, floor) == pytest.approx((0, 0.4))


@given(st.lists(st.floats(0, 1), min_size=4, max_size=12))
def test_a_fit_is_never_negative(wrong: list[float]) -> None:
    """Whatever the points, C and D0 are not below 0 and the fit is no worse than their mean."""
    (scale, _, floor), r2 = curve(np.arange(len(wrong), dtype=float), np.array(wrong))
    assert scale >= 0
    assert floor >= 0
    assert r2 > -1e-6


def test_comparison() -> None:
    """Dominated points leave the front; recommended is the cheapest right answer among those near the best."""
    trials = [
        made("full", 5.0, 1000, 0.9, usd=10.0),
        made("extract", 4.5, 100, 0.9, usd=1.0),
        made("random", 2.0, 110, 0.3, usd=1.1),
        made("tiny", 1.0, 10, 0.25, usd=0.01),
        made("empty", 0.0, 0, 0.1, usd=0.001),
    ]
    found = compare(trials)
    assert found.recommended == "extract 100"
    assert [p.name for p in found.points if p.front] == ["extract 100", "tiny 10", "empty"]
    assert found.spearman.value == pytest.approx(0.975, abs=0.01)
    assert [f.x for f in found.fits] == ["information", "rate"]
    assert found.points[0].by_length is None
    assert found.points[1].by_length == pytest.approx(math.log(10) / math.log(9))
    assert found.points[1].cps.value == pytest.approx(1 / 0.9)
    assert found.points[1].cps_local_free.value == pytest.approx(0.5 / 0.9)
    assert fit(trials[:3], "information") is None


def test_trials_must_match() -> None:
    """Other numbers of cases, the same compressor twice and no trial at all are errors."""
    one = made("a", 1.0, 10, 0.5)
    for trials in ([one, made("b", 1.0, 10, 0.5, cases=7)], [one, one], []):
        with pytest.raises(DataError):
            compare(trials)


def test_spearman_handles_ties() -> None:
    """Equal orders give 1, opposite ones -1, a constant 0; ties share their rank."""
    xs = np.array([1.0, 2.0, 2.0, 9.0])
    assert spearman(xs, xs**3) == pytest.approx(1)
    assert spearman(xs, -xs) == pytest.approx(-1)
    assert spearman(xs, np.ones(4)) == 0


def test_scaling_is_the_slope_of_logs() -> None:
    """FLOPs that grow as the square root of the size have exponent one half."""
    sizes = [100, 400, 1600]
    flops = np.sqrt(np.array(sizes, dtype=float))[:, None] * np.array([[1.0, 2.0, 3.0]])
    found = scaling(sizes, flops)
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))
    with pytest.raises(DataError, match="two sizes"):
        scaling([5, 5], flops[:2])


@pytest.mark.parametrize(
    ("said", "answers", "expected"),
    [
        ("It was Ann Smith.", ["ann smith"], True),
        ("Annabel", ["Ann"], False),
        ("No, it was not; yes", ["yes"], False),
        ("Yes.", ["yes"], True),
        ("答案是东京。", ["东京"], True),
        ("", ["x"], False),
    ],
)
def test_right_answers(said: str, answers: list[str], expected: bool) -> None:
    """An answer is right when it holds a gold one by words; a yes must come first."""
    assert right(said, answers) is expected


def test_pictures_are_written(tmp_path: Path) -> None:
    """A comparison becomes an SVG and a PNG."""
    pytest.importorskip("vl_convert")
    trials = [made(f"c{n}", n / 2, 10 * (n + 1), n / 10) for n in range(6)]
    svg, png = draw(compare(trials), tmp_path, "a task")
    assert svg.read_text().startswith("<svg")
    assert png.read_bytes().startswith(b"\x89PNG")


async def test_a_trial_asks_the_predictor_and_prices_both() -> None:
    """The predictor's tokens and the compressor's seconds are priced; cases without answers are refused."""
    cases = [Case("Ann is 12.", "How old is Ann?", ("12",)), Case("Bob is 13.", "How old is Bob?", ("13",))]
    summaries = await summarise(Identity(), cases, 0)
    report = made("identity", 1.0, 4, 1.0, cases=2).report
    predictor = FakeBackend("f")
    await predictor.start()

    async def asked(of: list[Case]) -> Trial:
        return await trial(of, summaries, report, predictor, "m", pricing=lambda _: (1.0, 0.5), usd_per_second=0.0)

    told = await asked(cases)
    assert told.usd == (1.0, 1.0)
    assert told.usd_local_free == (0.5, 0.5)
    assert all(count > 0 for count in told.tokens)
    with pytest.raises(DataError, match="no answers"):
        await asked([Case("x"), Case("y")])
    await predictor.close()
