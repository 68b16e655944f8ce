"""Confidence is P(correct): calibrated, monotone, not taught by a call's own label, refused rather than guessed."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smallfirst.calibration import (
    LANDMARKS,
    MIN_CORRECTED,
    MIN_LABELS,
    Fit,
    Labelled,
    Model,
    curve,
    fit,
    isotonic,
)
from smallfirst.confidence import FEATURES
from smallfirst.errors import CalibrationError
from smallfirst.quality import auroc, brier, expected_calibration_error

Rows = list[dict[str, float]]


def calls(n: int, seed: int = 0, shift: float = 0.0) -> tuple[Rows, Any, Any]:
    """Features, labels and the true P(correct) of n simulated calls; `shift` moves the log-odds of a kind of task."""
    rng = np.random.default_rng(seed)
    agree, grounded, tools = rng.random(n) < 0.6, rng.random(n), rng.integers(1, 9, n)
    chance = 1 / (1 + np.exp(-(2.5 * agree + 3 * grounded - 1.5 - 0.1 * tools + shift * (2 * grounded - 1))))
    rows: Rows = [
        {"agree": float(a), "grounded_min": float(g), "tools": float(t), "no_call": 0.0}
        for a, g, t in zip(agree, grounded, tools, strict=True)
    ]
    return rows, rng.random(n) < chance, chance


SCORED = st.lists(st.tuples(st.floats(-50, 50), st.booleans()), min_size=1, max_size=60)


@given(SCORED)
def test_isotonic_is_monotone_and_near_the_labels(scored: Any) -> None:
    """Values rise with scores within (0, 1), and their mean at the scores is close to the share of right answers."""
    score, right = (np.array(each) for each in zip(*scored, strict=True))
    knots, values = isotonic(score, right)
    assert (np.diff(knots) >= 0).all()
    assert (np.diff(values) >= 0).all()
    assert 0 <= values[0] <= values[-1] <= 1
    assert knots[0] < score.min()
    assert score.max() < knots[-1]


@given(st.integers(0, 1000))
@settings(max_examples=20)
def test_isotonic_is_calibrated(seed: int) -> None:
    """On many labels the regression comes near the rate that made them, everywhere but at the ends."""
    rng = np.random.default_rng(seed)
    score = rng.random(4000)
    knots, values = isotonic(score, rng.random(4000) < score)
    at = np.linspace(0.05, 0.95, 19)
    assert np.abs(np.interp(at, knots, values) - at).max() < 0.13
    assert np.abs(np.interp(at, knots, values) - at).mean() < 0.04


def test_isotonic_by_hand() -> None:
    """Pooled neighbours stand at their mean score; separable labels stay off 0 and 1 by one observation."""
    knots, values = isotonic([1, 2, 3, 4], [False, True, False, True])
    assert knots[1:-1].tolist() == [1, 2.5, 4]
    assert values[1:-1].tolist() == pytest.approx([1 / 6, 0.5, 5 / 6])
    with pytest.raises(ValueError, match="equal shapes"):
        isotonic([], [])


@given(SCORED)
def test_the_curve_is_monotone(scored: Any) -> None:
    """However the labels lie, even against the scores, more score never means less confidence."""
    score, right = (np.array(each) for each in zip(*scored, strict=True))
    knots, values = curve(score, right)
    assert (np.diff(knots) > 0).all()
    assert (np.diff(values) >= 0).all()
    assert 0 <= values[0] <= values[-1] <= 1


def test_ece_by_hand() -> None:
    """Two bins: |0.25 - 0.5| and |0.75 - 1| weighted by size; equal confidences are not divided between bins."""
    assert expected_calibration_error([0.25, 0.25, 0.75, 0.75], [0, 1, 1, 1], bins=2) == pytest.approx(0.25)
    assert expected_calibration_error([0.5] * 4, [0, 0, 1, 1], bins=2) == 0
    assert expected_calibration_error([0.3], [1]) == pytest.approx(0.7)
    with pytest.raises(ValueError, match="equal shapes"):
        expected_calibration_error([], [])


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=12))
def test_ece_of_perfect_confidence_is_0(kinds: Any) -> None:
    """Where each confidence is the share of its calls that is correct, every bin is exact."""
    totals: dict[float, list[int]] = {}
    for right, wrong in kinds:
        if right + wrong:
            totals.setdefault(right / (right + wrong), []).extend([1] * right + [0] * wrong)
    p = [share for share, labels in totals.items() for _ in labels]
    y = [label for labels in totals.values() for label in labels]
    if p:
        assert expected_calibration_error(p, y) == pytest.approx(0, abs=1e-12)


@given(st.lists(st.tuples(st.sampled_from([0.1, 0.2, 0.5, 0.9]), st.booleans()), max_size=25))
def test_auroc_against_every_pair(scored: Any) -> None:
    """The share of pairs of a right and a wrong call in which the right one has more confidence, ties half."""
    p, y = [each[0] for each in scored], [each[1] for each in scored]
    pairs = [(a > b) + (a == b) / 2 for a, is_a in scored if is_a for b, is_b in scored if not is_b]
    found = auroc(p, y)
    assert found is None if not pairs else found == pytest.approx(sum(pairs) / len(pairs))


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=20))
def test_brier_is_the_mean_squared_difference(scored: Any) -> None:
    """It lies in [0, 1] and is 0 for certainty that is right."""
    p, y = zip(*scored, strict=True)
    assert brier(p, y) == pytest.approx(sum((a - b) ** 2 for a, b in scored) / len(scored))
    assert brier([float(label) for label in y], y) == 0


def test_confidence_is_calibrated_and_ranks_on_other_calls() -> None:
    """On calls that were not labelled, confidence is near the true chance and ranks nearly as well as it does."""
    rows, right, _ = calls(600)
    others, truth, chance = calls(4000, seed=1)
    found = fit(rows, right).model.confidences(others)
    assert expected_calibration_error(found, truth) < 0.04
    assert auroc(found, truth) > auroc(chance, truth) - 0.03
    assert brier(found, truth) < brier(np.full(4000, truth.mean()), truth)


def memorable(n: int, seed: int) -> tuple[Rows, Any]:
    """Features by which every call can be told from every other, and labels that have nothing to do with them."""
    rng = np.random.default_rng(seed)
    names = [name for name, kind in FEATURES.items() if kind == "value" and name != "no_call"]
    return [
        {**dict(zip(names, rng.normal(size=len(names)), strict=True)), "no_call": 0.0} for _ in range(n)
    ], rng.random(n) < 0.5


def ranked(fitted: Fit, right: Any) -> float:
    found = auroc(fitted.crossfitted, right)
    assert found is not None
    return found


def test_no_label_of_a_group_teaches_its_own_score() -> None:
    """Calls of an episode that are all alike predict each other, unless the episode is kept together."""
    kinds, labels = memorable(60, 3)
    rows, right = [row for row in kinds for _ in range(4)], np.repeat(labels, 4)
    groups = [str(k) for k in range(60) for _ in range(4)]
    assert ranked(fit(rows, right, groups=groups), right) < 0.65
    assert ranked(fit(rows, right), right) > 0.9


def test_other_models_answers_are_kept_out_of_their_own_request_s_score() -> None:
    """Labels of a second model on the same requests, which say it all, do not leak into the cross-fitted scores."""
    rows, right = memorable(120, 4)
    groups = [str(k) for k in range(120)]
    same = fit(rows, right, groups=groups, more=Labelled(rows, right, groups))
    foreign = fit(rows, right, groups=groups, more=Labelled(rows, right, [f"other {k}" for k in range(120)]))
    assert ranked(same, right) < 0.65
    assert ranked(foreign, right) > 0.9
    with pytest.raises(ValueError, match="groups"):
        fit(rows, right, more=Labelled(rows, right, groups))
    with pytest.raises(ValueError, match="allowed is one each a row"):
        fit(rows, right, groups=groups, more=Labelled(rows, right[:3], groups))


def test_other_models_labels_help() -> None:
    """With few labels of its own, a model is ranked better when another's labels teach too."""
    fresh, truth, _ = calls(3000, seed=99)
    gains = []
    for seed in range(4):
        rows, right, _ = calls(60, seed=seed + 10)
        more, labels, _ = calls(400, seed=seed + 50, shift=0.3)
        own = fit(rows, right, groups=[str(n) for n in range(60)])
        helped = fit(rows, right, groups=[str(n) for n in range(60)], more=Labelled(more, labels, ["x"] * 400))
        gains.append(brier(own.model.confidences(fresh), truth) - brier(helped.model.confidences(fresh), truth))
    assert np.mean(gains) > 0


def test_a_prior_makes_twenty_labels_worth_more() -> None:
    """A task of 20 labels is served better by a corrected prior than by the prior, and without one not at all."""
    rows, right, _ = calls(600, seed=5)
    prior = fit(rows, right).model
    fresh, truth, _ = calls(3000, seed=6, shift=-4.0)
    plain, corrected = brier(prior.confidences(fresh), truth), []
    for seed in range(8):
        few, labels, _ = calls(20, seed=seed + 20, shift=-4.0)
        made = fit(few, labels, prior=prior)
        assert made.used == "corrected"
        assert made.model.labels == 20
        corrected.append(brier(made.model.confidences(fresh), truth))
        with pytest.raises(CalibrationError, match="20 labelled calls"):
            fit(few, labels)
    assert np.mean(corrected) < plain


def test_a_prior_is_hardly_moved_where_it_is_right() -> None:
    """The correction is drawn to 0: labels that the prior predicts well change its confidences little."""
    rows, right, _ = calls(800, seed=7)
    prior = fit(rows, right).model
    fresh, _, _ = calls(500, seed=8)
    few, labels, _ = calls(30, seed=9)
    made = fit(few, labels, prior=prior)
    assert np.abs(made.model.confidences(fresh) - prior.confidences(fresh)).mean() < 0.1


@pytest.mark.parametrize("labels", [[True] * 30, [False, True] * ((MIN_CORRECTED - 1) // 2)])
def test_too_few_labels_leave_the_prior_as_it_is(labels: list[bool]) -> None:
    """Labels of one kind, or fewer than a correction needs: the prior, and the fit says so."""
    rows, right, _ = calls(200)
    prior = fit(rows, right).model
    few = calls(len(labels), seed=2)[0]
    made = fit(few, labels, prior=prior)
    assert (made.used, made.model) == ("prior", prior)
    assert made.crossfitted.tolist() == prior.confidences(few).tolist()


def test_too_few_labels_are_refused() -> None:
    """Without a prior nothing is guessed: the error says how many there are and how many are needed."""
    rows, right, _ = calls(MIN_LABELS - 1)
    with pytest.raises(CalibrationError, match=f"at least {MIN_LABELS}"):
        fit(rows, right)
    with pytest.raises(CalibrationError, match="2 right, 98 wrong"):
        fit(calls(100)[0], [True] * 2 + [False] * 98)
    with pytest.raises(ValueError, match="one label a row"):
        fit(calls(100)[0], [True] * 99)


@pytest.mark.parametrize("wrong", [0, 1, 3])
def test_a_model_that_is_hardly_ever_wrong_is_calibrated(wrong: int) -> None:
    """Few wrong answers, or none, are no hindrance: the confidence is high, and close to the rate of right answers."""
    made = fit(calls(100)[0], [False] * wrong + [True] * (100 - wrong))
    assert abs(float(made.crossfitted.mean()) - (100 - wrong) / 100) < 0.05


def test_absent_features() -> None:
    """One that no label has is not used; one that every label had must be there, else nothing can be said."""
    rows, right, _ = calls(200)
    some = [row if n % 2 else {k: v for k, v in row.items() if k != "tools"} for n, row in enumerate(rows)]
    model = fit(some, right).model
    assert "margin_min" not in model.names
    assert model.always == {"agree", "grounded_min", "no_call"}
    assert model.confidence(rows[0]) > 0
    assert model.confidence({k: v for k, v in rows[0].items() if k != "tools"}) > 0
    lacking = {k: v for k, v in rows[0].items() if k != "agree"}
    assert (model.unlike(lacking), model.confidence(lacking)) == (("agree",), 0)
    assert model.confidence({**rows[0], "margin_min": 0.3}) == model.confidence(rows[0])


def test_a_class_without_labels_is_never_trusted() -> None:
    """No answer that calls nothing was labelled: such an answer has confidence 0, cross-fitted ones too."""
    rows, right, _ = calls(200)
    model = fit(rows, right).model
    silent = {**rows[0], "no_call": 1.0}
    assert (model.unlike(silent), model.confidence(silent)) == (("no_call",), 0)
    made = fit([silent, *rows[1:]], right)
    assert made.crossfitted[0] == 0 < made.crossfitted[1]


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_counts_as_absent(odd: float) -> None:
    """In labels and at serving; confidences stay numbers."""
    rows, right, _ = calls(200)
    model = fit([{**row, "logprob_sum": odd if n % 3 else -1.0} for n, row in enumerate(rows)], right).model
    assert "logprob_sum" not in model.always
    assert 0 < model.confidence({**rows[0], "logprob_sum": odd}) < 1
    assert model.unlike({**rows[0], "agree": odd}) == ("agree",)


def test_constant_and_repeated_rows() -> None:
    """With nothing to tell calls apart the confidence is about the share of right answers."""
    rows: Rows = [{"agree": 1.0, "no_call": 0.0}] * 200
    right = np.arange(200) % 4 > 0
    made = fit(rows, right)
    assert made.model.confidence(rows[0]) == pytest.approx(0.75, abs=0.05)
    assert np.isfinite(made.crossfitted).all()


@pytest.mark.parametrize("n", [MIN_LABELS, 20_000])
def test_few_and_many_labels(n: int) -> None:
    """From 40 to 20,000 labels the artifact is bounded and the confidences are probabilities that rank."""
    rows, right, _ = calls(n, seed=11)
    made = fit(rows, right)
    assert len(made.model.landmarks) <= LANDMARKS
    assert ((made.crossfitted >= 0) & (made.crossfitted <= 1)).all()
    fresh, truth, _ = calls(2000, seed=12)
    assert (auroc(made.model.confidences(fresh), truth) or 0) > 0.7


@given(
    st.lists(st.dictionaries(st.sampled_from(["agree", "tools", "grounded_min", "no_call"]), st.floats()), max_size=5)
)
@settings(max_examples=30)
def test_an_artifact_gives_equal_confidences(rows: Any) -> None:
    """Through JSON text nothing is lost, a prior inside it included."""
    for model in (OWN, CORRECTED):
        again = Model.from_json(json.loads(json.dumps(model.to_json())))
        assert again.confidences([*rows, *FRESH]).tolist() == model.confidences([*rows, *FRESH]).tolist()
        assert again.to_json() == model.to_json()


OWN = fit(*calls(150)[:2]).model
CORRECTED = fit(*calls(60, seed=1)[:2], prior=OWN).model
FRESH = calls(10, seed=2)[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 1}, "version 1"),
        ({"names": ["agree", "astrology"]}, "astrology"),
        ({"gaps": ["tarot"]}, "tarot"),
        ({"names": ["agree"]}, "damaged"),
        ({"names": 5}, "damaged"),
        ({"weights": [1.0]}, "damaged"),
        ({"weights": "x"}, "damaged"),
        ({"knots": []}, "damaged"),
        ({"bias": math.nan}, "damaged"),
        ({"scale": [0.0] * len(OWN.scale)}, "damaged"),
        ({"values": OWN.values[::-1].tolist()}, "damaged"),
        ({"landmarks": [[math.inf] * OWN.landmarks.shape[1]] * len(OWN.landmarks)}, "damaged"),
        ({"prior": {"version": 1}}, "version 1"),
        ({"prior": "x"}, "damaged"),
    ],
)
def test_foreign_and_damaged_artifacts_are_refused(change: dict[str, Any], said: str) -> None:
    """The error names what is wrong and what to run."""
    with pytest.raises(CalibrationError, match=said) as caught:
        Model.from_json({**OWN.to_json(), **change})
    assert "smallfirst calibrate" in str(caught.value.hint)


def test_missing_parts_are_refused() -> None:
    """An artifact without one of its parts is damaged, whichever part it is."""
    for name in OWN.to_json():
        kept = {key: value for key, value in OWN.to_json().items() if key != name}
        with pytest.raises(CalibrationError):
            Model.from_json(kept)


def test_the_same_labels_give_the_same_model() -> None:
    """Nothing depends on a clock or a global seed."""
    assert fit(*calls(150)[:2]).model.to_json() == OWN.to_json()


def test_labels_without_any_feature_give_their_rate() -> None:
    """Answers of which nothing is known have one confidence, and the artifact is sound."""
    model = fit([{} for _ in range(100)], np.arange(100) % 4 > 0).model
    assert Model.from_json(model.to_json()).confidence({}) == pytest.approx(0.75, abs=0.05)
