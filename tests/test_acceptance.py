"""A task's acceptance: what is certified, what is refused, and what survives being kept."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from smallfirst.acceptance import Acceptance, Beside, Costs, certify
from smallfirst.errors import CalibrationError
from smallfirst.guarantee import Certificate, Refusal


def labelled(n: int, seed: int = 0) -> tuple[list[dict[str, float]], list[bool]]:
    """Calls that are right where they are grounded; long requests are seldom grounded."""
    rng = np.random.default_rng(seed)
    rows, right = [], []
    for _ in range(n):
        long = bool(rng.random() < 0.4)
        grounded = float(rng.random() < (0.05 if long else 0.95))
        rows.append({"no_call": 0.0, "words": 60.0 if long else 10.0, "grounded_min": grounded})
        right.append(bool(rng.random() < (0.98 if grounded else 0.3)))
    return rows, right


def learned(n: int = 400, **changed: Any) -> Acceptance:
    rows, right = labelled(n)
    given: dict[str, Any] = {"alpha": 0.1, "delta": 0.05, "costs": Costs(0.1, 1.0), **changed}
    return certify(rows, right, task="t", stage="small", label="feedback", made_at=7.0, **given)


def test_it_survives_json() -> None:
    """What is read back decides as what was written, on every answer."""
    made = learned()
    kept = Acceptance.from_json(json.loads(json.dumps(made.to_json())))
    assert isinstance(made.outcome, Certificate)
    assert (kept.outcome, kept.costs, kept.quality, kept.label) == (made.outcome, made.costs, made.quality, made.label)
    assert kept.to_json() == made.to_json()
    for row in labelled(50, seed=1)[0]:
        assert kept.confidence(row) == made.confidence(row)
        asked = {"words": row["words"]}
        assert kept.expected_acceptance(asked) == made.expected_acceptance(asked)


def test_a_refusal_accepts_nothing_and_survives_json() -> None:
    """Where nothing passes the threshold is out of reach, and why stays known."""
    made = learned(alpha=0.001)
    kept = Acceptance.from_json(json.loads(json.dumps(made.to_json())))
    assert isinstance(kept.outcome, Refusal)
    assert kept.outcome.reason
    assert kept.threshold == math.inf
    assert kept.expects is None
    assert kept.expected_acceptance({"words": 10.0}) is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda kept: kept.update(version=99), "version 99"),
        (lambda kept: kept.pop("version"), "version None"),
        (lambda kept: kept["model"].update(version=99), "version 99"),
        (lambda kept: kept["model"].update(names=["stardust"]), "does not compute: stardust"),
        (lambda kept: kept["expects"].update(names=["stardust"]), "does not compute: stardust"),
        (lambda kept: kept["model"].update(weights=[1.0]), "damaged"),
        (lambda kept: kept["model"]["values"].reverse(), "damaged"),
        (lambda kept: kept.update(model="x"), "damaged"),
        (lambda kept: kept.pop("model"), "damaged"),
        (lambda kept: kept["certificate"].pop("threshold"), "damaged"),
        (lambda kept: kept["certificate"].update(threshold=math.nan), "damaged"),
        (lambda kept: kept["certificate"].update(threshold=0), "damaged"),
        (lambda kept: kept["certificate"].update(threshold="0.9"), "damaged"),
        (lambda kept: kept["costs"].update(large=1), "damaged"),
    ],
)
def test_what_cannot_be_followed_is_refused(change: Any, said: str) -> None:
    """Another version, unknown features and damage of any kind are errors, not thresholds."""
    kept = json.loads(json.dumps(learned().to_json()))
    change(kept)
    with pytest.raises(CalibrationError, match=said):
        Acceptance.from_json(kept)


def test_what_is_no_object_is_refused() -> None:
    """JSON of another form is damage too."""
    broken: Any = []
    with pytest.raises(CalibrationError, match="damaged"):
        Acceptance.from_json(broken)


def test_acceptance_is_expected_from_the_request_alone() -> None:
    """Long requests, whose answers are seldom grounded, are not expected to be accepted."""
    made = learned()
    short = made.expected_acceptance({"words": 10.0})
    long = made.expected_acceptance({"words": 60.0})
    assert short is not None
    assert long is not None
    assert short > 0.7 > 0.3 > long


def test_answers_that_are_not_valid_never_count_as_accepted() -> None:
    """Neither the certificate's coverage nor its threshold reaches them."""
    rows, right = labelled(400)
    valid = np.arange(400) % 4 > 0
    made = certify(rows, right, task="t", stage="s", label="l", made_at=0.0, alpha=0.5, delta=0.05, valid=valid)
    assert isinstance(made.outcome, Certificate)
    assert made.outcome.threshold > 0
    assert made.outcome.coverage <= 0.75


def test_only_representative_labels_certify() -> None:
    """The others teach the calibrator; without any of the first kind there is no certificate."""
    some = np.arange(400) < 150
    made = learned(representative=some)
    assert made.outcome.n == 150
    assert made.model.labels == 400
    with pytest.raises(CalibrationError, match="without regard to its answer"):
        learned(representative=np.zeros(400, dtype=bool))


def test_too_few_labels_are_refused() -> None:
    """A handful of labels, or of right ones, gives no calibrator and no default threshold; only right ones do."""
    with pytest.raises(CalibrationError, match="too few"):
        learned(20)
    rows, _ = labelled(100)
    given: dict[str, Any] = {"task": "t", "stage": "s", "label": "l", "made_at": 0.0, "alpha": 0.1, "delta": 0.05}
    with pytest.raises(CalibrationError, match="too few"):
        certify(rows, [False] * 100, **given)
    assert isinstance(certify(rows, [True] * 100, **given).outcome, Certificate)


def test_without_alpha_failures_are_priced() -> None:
    """The dearer a failure, the less is accepted; the bound told is that of the labels accepted."""
    free, dear = (learned(alpha=None, costs=Costs(0.1, 1.0, usd)).outcome for usd in (0.0, 50.0))
    assert isinstance(free, Certificate)
    assert free.coverage == 1
    assert dear.n == 400
    assert not isinstance(dear, Certificate) or dear.coverage < 0.7


def team(n: int, seed: int = 0) -> tuple[list[dict[str, float]], list[bool], Beside]:
    """Two models that know different things: one the short requests, the other the long ones; they seldom agree."""
    rng = np.random.default_rng(seed)
    rows, right, theirs, known = [], [], [], []
    for _ in range(n):
        long = bool(rng.random() < 0.5)
        row = {"no_call": 0.0, "words": 60.0 if long else 10.0, "agree": 0.0}
        rows.append({**row, "grounded_min": float(not long)})
        theirs.append({**row, "grounded_min": float(long)})
        right.append(bool(rng.random() < (0.1 if long else 0.97)))
        known.append(bool(rng.random() < (0.97 if long else 0.1)))
    return rows, right, Beside("second", theirs, known, range(n))


def test_two_models_that_know_different_things_cover_more_together() -> None:
    """The surer of two differing answers is what is promised; each keeps its own confidence, in JSON too."""
    rows, right, second = team(600)
    given: dict[str, Any] = {"alpha": 0.1, "delta": 0.05, "task": "t", "stage": "small", "label": "x", "made_at": 7.0}
    alone, together = certify(rows, right, **given), certify(rows, right, others=[second], **given)
    assert isinstance(alone.outcome, Certificate)
    assert isinstance(together.outcome, Certificate)
    assert alone.outcome.coverage < 0.6 < 0.9 < together.outcome.coverage
    assert together.outcome.bound <= 0.1
    long = second.rows[int(np.argmax([row["words"] for row in second.rows]))]
    sure = together.beside("second", long)
    assert sure is not None
    assert sure >= together.threshold
    assert together.beside("third", long) is None
    assert Acceptance.from_json(json.loads(json.dumps(together.to_json()))).beside("second", long) == sure


def test_a_second_model_with_few_labels_stays_evidence() -> None:
    """Below what a calibrator needs its answers teach, and are not served."""
    rows, right, second = team(200)
    few = Beside("second", second.rows[:20], list(second.correct)[:20], range(20))  # type: ignore[call-overload]
    made = certify(rows, right, others=[few], alpha=0.1, delta=0.05, task="t", stage="small", label="x", made_at=7.0)
    assert made.others == {}


def test_the_promise_holds_for_the_surest_answer() -> None:
    """Of certificates of two models on fresh calls, few have a failure rate above alpha."""
    broken = 0
    given: dict[str, Any] = {"alpha": 0.1, "delta": 0.1, "task": "t", "stage": "small", "label": "x", "made_at": 7.0}
    for seed in range(30):
        rows, right, second = team(250, seed)
        made = certify(rows, right, others=[second], **given)
        fresh, good, theirs = team(4000, 1000 + seed)
        own = made.model.confidences(fresh)
        other = made.others["second"].confidences(theirs.rows)
        sure, correct = np.maximum(own, other), np.where(other > own, theirs.correct, good)
        accepted = sure >= made.threshold
        broken += bool(accepted.any() and (~correct[accepted].astype(bool)).mean() > 0.1)
    assert broken <= 6  # P(more than 6 of 30 at a rate of 0.1) = 2.6 %
