"""Equal calls have one canonical form, and answers agree as far as their calls do."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from smallfirst.agreement import agreement, calls_of, canonical_call, same_answer
from smallfirst.types import Choice, Request, ResponseFormat, Tool, ToolCall

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=15,
)
CALL_SCHEMA = {
    "type": "object",
    "properties": {
        "unit": {"enum": ["Celsius", "Fahrenheit"]},
        "days": {"type": "integer", "default": 1},
        "city": {"type": "string"},
        "where": {"$ref": "#/$defs/where"},
        "tags": {"type": "array", "items": {"const": "New York"}},
        "limit": {"anyOf": [{"type": "integer", "default": 10}, {"type": "null"}]},
    },
    "$defs": {"where": {"type": "object", "properties": {"zoom": {"default": 2.0}}}},
}


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ('{"city": "Rome", "days": 2}', '{"days":2,"city":"Rome"}'),
        ('{"days": 2}', '{"days": 2.0}'),
        ('{"city": "a"}', '{"city": "a", "days": 1}'),
        ('{"city": "a"}', '{"city": "a", "days": 1.0, "limit": 10}'),
        ('{"unit": "celsius "}', '{"unit": "Celsius"}'),
        ('{"tags": ["new  york"]}', '{"tags": ["New York"]}'),
        ('{"where": {"zoom": 2}}', '{"where": {}}'),
    ],
)
def test_equal_calls_have_one_form(left: str, right: str) -> None:
    """Key order, 1 and 1.0, stated defaults and the spelling of enum members make no difference."""
    assert canonical_call("f", left, CALL_SCHEMA) == canonical_call("f", right, CALL_SCHEMA)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ('{"city": "Rome"}', '{"city": "rome"}'),
        ('{"city": "Rome"}', '{"city": "Rome "}'),
        ('{"days": 2}', '{"days": "2"}'),
        ('{"days": 1}', '{"days": true}'),
        ('{"unit": "Celsius"}', '{"unit": "Fahrenheit"}'),
        ('{"other": null}', "{}"),
        ('{"tags": ["a", "b"]}', '{"tags": ["b", "a"]}'),
        ("{", "{ "),
        ("{", "{}"),
    ],
)
def test_different_calls_differ(left: str, right: str) -> None:
    """Free strings are exact, types count, order of lists counts, and what is not JSON equals itself only."""
    assert canonical_call("f", left, CALL_SCHEMA) != canonical_call("f", right, CALL_SCHEMA)


@given(JSON)
def test_the_form_of_a_call_ignores_writing(value: Any) -> None:
    """White space and escapes of the JSON text make no difference, whatever the schema; the name does."""
    texts = [json.dumps({"a": value}), json.dumps({"a": value}, indent=1, ensure_ascii=False)]
    first, second = (canonical_call("f", text, CALL_SCHEMA) for text in texts)
    assert first == second != canonical_call("g", texts[0], CALL_SCHEMA)


def test_a_recursive_schema_ends() -> None:
    """References in a circle are followed once per value."""
    schema = {"properties": {"next": {"$ref": "#"}, "n": {"default": 0}}, "allOf": [{"$ref": "#"}]}
    assert canonical_call("f", '{"next": {"next": {"n": 0}}}', schema) == canonical_call(
        "f", '{"next": {"next": {}}}', schema
    )


TRIP = {"type": "object", "properties": {"to": {"type": "string"}, "days": {"type": "integer", "default": 1}}}
TOOLS = (Tool("trip", parameters=TRIP), Tool("weather"))
REQUEST = Request("chat", {}, "m", ({"role": "user", "content": "Rome?"},), tools=TOOLS)
CALLS = st.lists(
    st.tuples(
        st.sampled_from(["trip", "weather", "unknown"]),
        st.sampled_from(['{"to": "Rome"}', '{"to":"Rome","days":1}', '{"to": "Oslo", "days": 2}', "{}", "[1]", "{"]),
    ),
    max_size=3,
)


def answer(calls: Any, text: str = "") -> Choice:
    return Choice(text=text, tool_calls=tuple(ToolCall(str(n), *call) for n, call in enumerate(calls)))


@given(CALLS, CALLS, st.randoms())
def test_agreement_is_symmetric_where_it_should_be(one: Any, other: Any, random: Any) -> None:
    """Both answers agree equally with each other, in whatever order their calls stand; only other_no_call is of one."""
    shuffled = random.sample(other, len(other))
    forth = agreement(REQUEST, answer(one), [answer(other)])
    back = agreement(REQUEST, answer(shuffled), [answer(one)])
    assert (forth.pop("other_no_call"), back.pop("other_no_call")) == (float(not other), float(not one))
    assert forth == back
    assert all(0 <= value <= 1 for value in forth.values())
    assert forth["agree"] == (calls_of(REQUEST, answer(one)) == calls_of(REQUEST, answer(other)))
    assert same_answer(REQUEST, answer(one), answer(other)) == same_answer(REQUEST, answer(other), answer(one))


@given(CALLS)
def test_an_answer_agrees_with_itself(calls: Any) -> None:
    """Every share is 1."""
    found = agreement(REQUEST, answer(calls), [answer(calls)])
    assert {found[name] for name in ("agree", "agree_names", "agree_count", "agree_arguments")} == {1.0}


def test_agreement_by_hand() -> None:
    """One of two values equal, one tool of one: the share is of all that either has, the name included."""
    rome, long = answer([("trip", '{"to": "Rome"}')]), answer([("trip", '{"to": "Rome", "days": 3}')])
    found = agreement(REQUEST, rome, [long])
    assert found == {
        "agree": 0,
        "agree_names": 1,
        "agree_count": 1,
        "agree_arguments": pytest.approx(2 / 3),
        "other_no_call": 0,
    }
    silent = agreement(REQUEST, rome, [answer([])])
    assert silent == {"agree": 0, "agree_names": 0, "agree_count": 0, "agree_arguments": 0, "other_no_call": 1}
    assert agreement(REQUEST, rome, [rome, long])["agree"] == 0.5
    assert agreement(REQUEST, rome, []) == {}


def test_repeated_calls_count_as_often_as_they_are_made() -> None:
    """Two equal calls and one are different answers that share half of what they have."""
    once, twice = answer([("weather", "{}")]), answer([("weather", "{}"), ("weather", "{}")])
    found = agreement(REQUEST, once, [twice])
    assert (found["agree"], found["agree_names"], found["agree_arguments"]) == (0, 0, 0.5)


def test_texts_are_the_same_or_cannot_be_told() -> None:
    """Free texts that differ may say the same; a call and a text differ; JSON under a schema is compared as JSON."""
    assert same_answer(REQUEST, answer([], "No  tool fits."), answer([], "no tool fits.")) is True
    assert same_answer(REQUEST, answer([], "No."), answer([], "Sorry.")) is None
    assert same_answer(REQUEST, answer([], "No."), answer([("weather", "{}")])) is False
    schema = {"properties": {"n": {"default": 1}}}
    form = Request("chat", {}, "m", (), response_format=ResponseFormat("json_schema", schema))
    assert same_answer(form, answer([], '{"n": 1.0}'), answer([], "{}")) is True
    assert same_answer(form, answer([], '{"n": 2}'), answer([], "{}")) is False
    assert agreement(form, answer([], "{}"), [answer([], "{}")]) == {"agree": 1.0}


def test_free_texts_agree_when_they_are_equal_or_call_nothing() -> None:
    """Without tools the words decide; with tools two answers in words both say that none fits."""
    plain = Request("chat", {}, "m", ({"role": "user", "content": "Which mood?"},))
    offered = replace(plain, tools=(Tool("f"),))
    for request, expected in ((plain, 0.0), (offered, 1.0)):
        assert agreement(request, Choice("Glad."), [Choice("Sad.")])["agree"] == expected
        assert agreement(request, Choice("Glad."), [Choice(" glad.")])["agree"] == 1
