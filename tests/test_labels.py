"""labels: episodes written by hand, on OpenAI's and on Anthropic's wire."""

from __future__ import annotations

import json
from typing import Any

import pytest

from smallfirst.labels import Label, Outcomes, agrees, label_of, referred, reports_error, request_of
from smallfirst.store import StoredRecord
from smallfirst.types import Attempt, Choice, Completion, Feedback, ToolCall, Verdict, Violation

WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": WEATHER}}
ASKED = {"role": "user", "content": "Weather in Oslo?"}


def call(city: str = "Oslo", made_id: str = "c1") -> Choice:
    return Choice(tool_calls=(ToolCall(made_id, "get_weather", json.dumps({"city": city})),))


def attempt(choice: Choice, *, small: bool = True, decision: Any = "accept", **more: Any) -> Attempt:
    name = "small" if small else "large"
    return Attempt(name, name, name, "generate", decision, "", Completion((choice,)), small=small, **more)


def record(
    *attempts: Attempt,
    served: int | None = 0,
    messages: tuple[Any, ...] = (ASKED,),
    feedback: tuple[tuple[str, Any], ...] = (),
    **more: Any,
) -> StoredRecord:
    body = {"model": "auto", "messages": list(messages), "tools": [TOOL]}
    said = tuple(
        Feedback(f"f{n}", "r", float(n), kind, value, "user")  # type: ignore[arg-type]
        for n, (kind, value) in enumerate(feedback)
    )
    fields: dict[str, Any] = {
        "id": "r",
        "created_at": 1.0,
        "task": "t",
        "mode": "enforce",
        "decision": "accept",
        "reason": "",
        "status": 200,
        "seconds": 0.1,
        "config_hash": "c",
        "served": served,
        "wire": "chat",
        "model": "auto",
        "key": "local",
        "user": None,
        "episode": "e1",
        "captured": True,
        "body": body,
        "messages": messages,
        "attempts": attempts,
        "feedback": said,
    }
    return StoredRecord(**{**fields, **more})


def label(found: StoredRecord, *later: StoredRecord, n: int = 0) -> Label | None:
    """The label of an attempt after the episode's later records, newest first."""
    outcomes = Outcomes()
    for each in later:
        outcomes.learn(each)
    return label_of(found, request_of(found), n, outcomes)


def result(content: Any, made_id: str = "c1", city: str = "Oslo", **more: Any) -> StoredRecord:
    """The next call of the episode, with what the tool said."""
    made = {"id": made_id, "type": "function", "function": {"name": "get_weather", "arguments": f'{{"city":"{city}"}}'}}
    said = {"role": "assistant", "content": None, "tool_calls": [made]}
    answer = {"role": "tool", "tool_call_id": made_id, "content": content}
    return record(attempt(Choice("fine")), messages=(ASKED, said, answer), **more)


def test_feedback_on_the_served_answer_is_the_best_label() -> None:
    """The latest word counts, before a tool's error and before the large model's answer."""
    large = attempt(call("Bergen"), small=False, decision="audit")
    found = record(attempt(call()), large, feedback=(("correct", False), ("correct", True)))
    assert label(found, result("Error: no such city")) == Label(True, "feedback")


def test_feedback_on_a_large_answer_says_what_agrees_with_it_is_worth() -> None:
    """A small answer that is the large one's shares its label; another is wrong only where that was right."""
    shadow, other = attempt(call(), decision="shadow"), attempt(call("Rome"), decision="shadow")
    large = attempt(call(), small=False)
    for said in (True, False):
        found = record(large, shadow, other, feedback=(("correct", said),))
        assert label(found, n=1) == Label(said, "feedback")
    assert label(found, n=2) is None
    assert label(record(large, shadow, other, feedback=(("correct", True),)), n=2) == Label(False, "agreement")


@pytest.mark.parametrize(
    "answer",
    [
        {"name": "get_weather", "arguments": {"city": "Oslo"}},
        [{"name": "get_weather", "arguments": '{"city": "Oslo"}'}],
        {"tool_calls": [{"id": "x", "type": "function", "function": {"name": "get_weather", "arguments": WEATHER}}]},
    ],
)
def test_the_right_answer_labels_any_attempt(answer: Any) -> None:
    """Feedback of kind "answer", as a call, a list of calls or a message, is compared with each attempt."""
    found = record(attempt(call()), attempt(call("Rome"), decision="shadow"), feedback=(("answer", answer),))
    right = "tool_calls" not in answer
    assert label(found, n=0) == Label(right, "feedback")
    assert label(found, n=1) == Label(False, "feedback")


def test_a_tool_s_error_makes_the_call_wrong() -> None:
    """It is found in a later record of the episode, by the call's id, name and arguments."""
    found = record(attempt(call()))
    assert label(found, result("Error: no such city")) == Label(False, "execution")
    assert label(found, result("12 degrees")) == Label(True, "execution")
    assert label(found) is None
    for other in (result("Error: x", made_id="c2"), result("Error: x", city="Rome"), result("Error: x", episode="e2")):
        assert label(found, other) is None


def test_a_tool_s_success_is_weaker_than_the_large_model_s_answer() -> None:
    """That a call ran does not make it right where an audit found another; that it failed makes it wrong anyhow."""
    audited = record(attempt(call()), attempt(call("Rome"), small=False, decision="audit"))
    assert label(audited, result("12 degrees")) == Label(False, "agreement")
    agreed = record(attempt(call()), attempt(call(), small=False, decision="audit"))
    assert label(agreed, result("Error: timeout")) == Label(False, "execution")


def test_without_an_episode_only_long_ids_are_known_again() -> None:
    """ "call_1" may be given twice; an id of 24 characters is not."""
    long = "call_0123456789abcdefghi"
    for made_id, known in (("call_1", None), (long, Label(False, "execution"))):
        found = record(attempt(call(made_id=made_id)), episode=None)
        assert label(found, result("Error: x", made_id=made_id, episode=None)) == known


def test_anthropic_marks_errors() -> None:
    """A tool_result with is_error makes the call wrong whatever its text says."""
    use = {"type": "tool_use", "id": "c1", "name": "get_weather", "input": {"city": "Oslo"}}
    marked = {"type": "tool_result", "tool_use_id": "c1", "content": "nothing there", "is_error": True}
    native = {"messages": [ASKED, {"role": "assistant", "content": [use]}, {"role": "user", "content": [marked]}]}
    later = result("nothing there")
    flagged = record(*later.attempts, messages=later.messages, wire="messages", body={"model": "auto", **native})
    assert label(record(attempt(call())), flagged) == Label(False, "execution")
    assert label(record(attempt(call())), later) == Label(True, "execution")


def test_agreement_compares_calls_and_never_two_texts() -> None:
    """Calls are equal by value; of two texts nothing is said, even when they are equal, so that labels are not given
    to right answers alone."""
    request = request_of(record())
    assert request is not None
    assert agrees(request, call(), call(made_id="other")) is True
    assert agrees(request, call(), call("Rome")) is False
    assert agrees(request, call(), Choice("Where?")) is False
    assert agrees(request, Choice("Where?"), Choice("Where?")) is None


def test_a_failed_or_invalid_large_answer_is_no_reference() -> None:
    """Neither is one made as evidence, nor one without a completion."""
    broken = Verdict((Violation("arguments", "no"),))
    large = attempt(call("Rome"), small=False, verdict=broken)
    beside = attempt(call("Rome"), small=False, decision="evidence")
    found = record(attempt(call()), beside, large)
    assert referred(found) is None
    assert label(found) is None


def test_what_was_not_captured_has_no_label_but_feedback() -> None:
    """Without payloads only what feedback says of the served answer is known."""
    bare = {"captured": False, "body": {}, "messages": ()}
    assert label(record(attempt(call()), attempt(call(), small=False, decision="audit"), **bare)) is None
    assert label(record(attempt(call()), feedback=(("correct", False),), **bare)) == Label(False, "feedback")


@pytest.mark.parametrize(
    "content",
    [
        "Error: no such city",
        "  ValueError: bad city",
        "requests.exceptions.ConnectionError: refused",
        "Traceback (most recent call last):\n  ...",
        "Error executing tool get_weather: x",
        '{"error": "no such city"}',
        '{"exception": {"type": "X"}}',
        '{"status": 404, "body": ""}',
        '{"statusCode": "500"}',
        [{"type": "text", "text": '{"isError": true}'}],
    ],
)
def test_these_report_an_error(content: Any) -> None:
    """Results that hardly say anything else."""
    assert reports_error(content)


@pytest.mark.parametrize(
    "content",
    [
        "",
        None,
        "The error rate is 3 %",
        "No error: all fine",
        '{"error": null, "status": 200}',
        '{"error": false}',
        '{"status": "failed over"}',
        '{"status": true}',
        '[{"error": "in a list"}]',
        '{"temperature": 404}',
        [{"type": "image"}],
    ],
)
def test_these_report_none(content: Any) -> None:
    """Results that may well be fine are taken as such."""
    assert not reports_error(content)
