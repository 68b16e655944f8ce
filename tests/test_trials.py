"""trials: what a recorded call says of a rollout's two sides."""

from __future__ import annotations

import json
from typing import Any

import pytest

from smallfirst.rollout import Answer, Outcome, Rollout, Rules
from smallfirst.store import StoredRecord
from smallfirst.trials import judged, outcome_of
from smallfirst.types import Attempt, Choice, Completion, Feedback, ToolCall, Trial, Verdict, Violation

WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": WEATHER}}
NEW, OLD = "t@0123456789ab", "t@ba9876543210"
ROLLOUT = Rollout("r1", "t", NEW, OLD, "salt", 0.0, "canary", 0.1, Rules(labelled_incumbent=0.2))
BROKEN = Verdict((Violation("arguments", "no"),))


def attempt(stage: str, city: str = "Oslo", **more: Any) -> Attempt:
    choice = Choice(tool_calls=(ToolCall("c1", "get_weather", json.dumps({"city": city})),))
    fields: dict[str, Any] = {"kind": "generate", "decision": "accept", "reason": "", "small": stage != "large"}
    fields |= {"completion": Completion((choice,)), "seconds": 1.0, "cost_usd": 0.001}
    return Attempt(stage, stage, stage, **(fields | more))


def record(*attempts: Attempt, trial: Trial | None, served: int | None = 0, **more: Any) -> StoredRecord:
    asked = {"role": "user", "content": "Weather?"}
    fields: dict[str, Any] = {"id": "a", "created_at": 1.0, "task": "t", "mode": "enforce", "decision": "accept"}
    fields |= {"reason": "calibrated", "status": 200, "seconds": 9.0, "config_hash": "c", "wire": "chat"}
    fields |= {"model": "auto", "key": "local", "user": None, "episode": "e1", "captured": True}
    fields |= {"body": {"model": "auto", "messages": [asked], "tools": [TOOL]}, "messages": (asked,)}
    return StoredRecord(**fields | {"attempts": attempts, "trial": trial, "served": served} | more)


CANARY, INCUMBENT, SHADOW = (Trial("r1", arm, 0.1) for arm in ("canary", "incumbent", "shadow"))
LARGE = attempt("large", decision="escalate")


def audit(probability: float, city: str = "Oslo") -> Attempt:
    return attempt("large", city, decision="audit", reason="same", probability=probability)


def test_an_escalated_answer_is_judged_by_the_large_one() -> None:
    """Its label is certain, its time and cost are its own, and the episode binds its calls."""
    right = record(attempt(NEW, decision="escalate"), LARGE, trial=CANARY, served=1)
    assert outcome_of(right, ROLLOUT) == Outcome("e1", Answer(True, True, 1.0, 0.001), None, 0.1, 1.0)
    wrong = record(attempt(NEW, "Rome", decision="escalate"), LARGE, trial=CANARY, served=1)
    assert outcome_of(wrong, ROLLOUT) == Outcome("e1", Answer(False, True, 1.0, 0.001), None, 0.1, 1.0)


def test_an_accepted_answer_is_known_with_the_chance_of_its_audit() -> None:
    """Without an audit nothing is known of its success; with one, how likely that was."""
    told = outcome_of(record(attempt(OLD), audit(0.25), trial=INCUMBENT), ROLLOUT)
    assert told == Outcome("e1", None, Answer(True, True, 1.0, 0.001), 0.1, 0.25)
    untold = outcome_of(record(attempt(OLD), trial=INCUMBENT), ROLLOUT)
    assert untold == Outcome("e1", None, Answer(None, True, 1.0, 0.001), 0.1, 1.0)


def test_a_label_less_likely_than_agreed_does_not_count() -> None:
    """Bets are sized for the least chance that the rules name."""
    found = outcome_of(record(attempt(OLD), audit(0.1), trial=INCUMBENT), ROLLOUT)
    assert found == Outcome("e1", None, Answer(None, True, 1.0, 0.001), 0.1, 1.0)


def test_feedback_tells_of_what_was_served() -> None:
    """A user's word counts before agreement, and is certain."""
    said = (Feedback("f", "a", 2.0, "correct", False, "user"),)
    found = outcome_of(record(attempt(NEW), audit(1.0), trial=CANARY, feedback=said), ROLLOUT)
    assert found == Outcome("e1", Answer(False, True, 1.0, 0.001), None, 0.1, 1.0)


def test_an_invalid_or_failed_answer_has_no_success() -> None:
    """No label is needed; repairs count with what they took, and what stood beside as evidence with its cost."""
    first = attempt(NEW, verdict=BROKEN, decision="escalate")
    again = attempt(NEW, verdict=BROKEN, decision="escalate", kind="repair", seconds=2.0)
    beside = attempt("other", decision="evidence", reason=NEW, cost_usd=0.01)
    found = outcome_of(record(first, again, beside, LARGE, trial=CANARY, served=3, episode=None), ROLLOUT)
    assert found is not None
    assert found.candidate == Answer(False, False, 3.0, pytest.approx(0.012))
    assert found.episode == ""
    dead = attempt(NEW, completion=None, decision="escalate", reason="error:timeout", cost_usd=None)
    found = outcome_of(record(dead, LARGE, trial=CANARY, served=1), ROLLOUT)
    assert found is not None
    assert found.candidate == Answer(False, False, 1.0, None)


def test_in_the_shadow_both_sides_are_compared() -> None:
    """What one answered after the call stands beside what the other served; one audit labels both."""
    both = record(attempt(OLD), attempt(NEW, "Rome", decision="shadow"), audit(0.5), trial=SHADOW)
    found = outcome_of(both, ROLLOUT)
    assert found is not None
    assert (found.incumbent, found.candidate) == (Answer(True, True, 1.0, 0.001), Answer(False, True, 1.0, 0.001))
    assert found.observed == 0.5


FIRST = Rollout("r1", "t", NEW, "", "salt", 0.0, "canary", 0.1)
THE_LARGE_ONES = Answer(True, True, 1.0, 0.001)


def sides(record: StoredRecord) -> tuple[Answer | None, Answer | None]:
    """Candidate and incumbent of a first rollout."""
    found = outcome_of(record, FIRST)
    assert found is not None
    return found.candidate, found.incumbent


def test_what_is_served_without_it_is_the_incumbent_of_a_first_version() -> None:
    """The large model's answer, which is right unless somebody said that it is not, or an accepted small one."""
    observed = record(attempt("small", "Rome", decision="shadow"), LARGE, trial=INCUMBENT, served=1)
    assert sides(observed) == (None, THE_LARGE_ONES)
    wrong = (Feedback("f", "a", 2.0, "correct", False, "user"),)
    assert sides(record(LARGE, trial=INCUMBENT, reason="no_small_model", feedback=wrong)) == (
        None,
        Answer(False, True, 1.0, 0.001),
    )
    accepted = record(attempt("small", "Rome"), audit(1.0), trial=INCUMBENT)
    assert sides(accepted) == (None, Answer(False, True, 1.0, 0.001))
    assert outcome_of(record(LARGE, trial=INCUMBENT, reason="small_incapable"), FIRST) is None


def test_a_first_version_is_compared_by_what_is_served_with_it() -> None:
    """What is not accepted, in the canary or by its confidence in the shadow, counts as the large model's answer."""
    both = Answer(True, True, 2.0, 0.002)
    unsure = record(attempt(NEW, "Rome", decision="escalate", reason="low_confidence"), LARGE, trial=CANARY, served=1)
    assert sides(unsure) == (both, None)
    broken = attempt(NEW, verdict=BROKEN, decision="escalate", reason="invalid:arguments")
    assert sides(record(broken, LARGE, trial=CANARY, served=1)) == (both, None)
    sure = record(attempt(NEW, "Rome"), audit(1.0), trial=CANARY)
    assert sides(sure) == (Answer(False, True, 1.0, 0.001), None)
    shadowed = attempt(NEW, "Rome", decision="shadow", reason="low_confidence")
    assert sides(record(LARGE, shadowed, trial=SHADOW)) == (both, THE_LARGE_ONES)
    certain = attempt(NEW, "Rome", decision="shadow")
    assert sides(record(LARGE, certain, trial=SHADOW)) == (Answer(False, True, 1.0, 0.001), THE_LARGE_ONES)


def test_a_call_that_no_side_answered_tells_nothing() -> None:
    """Nor does one of another rollout, of none, from the cache, or that was not begun or broken off."""
    assert outcome_of(record(attempt(NEW), trial=None), ROLLOUT) is None
    assert outcome_of(record(attempt(NEW), trial=Trial("r2", "canary", 0.1)), ROLLOUT) is None
    assert outcome_of(record(attempt(NEW, kind="cache"), trial=CANARY), ROLLOUT) is None
    for reason in ("budget", "cancelled"):
        skipped = attempt(NEW, completion=None, reason=reason)
        assert outcome_of(record(skipped, trial=CANARY, served=None), ROLLOUT) is None


def test_an_own_answer_goes_before_a_shadow() -> None:
    """Where a stage answered the call itself, that is its answer."""
    found = judged(record(attempt(NEW), attempt(NEW, "Rome", decision="shadow"), audit(1.0), trial=CANARY), NEW)
    assert found is not None
    assert found.answer.success is True
