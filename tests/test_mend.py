"""Calls are put right only where no model is needed to see what was meant."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallfirst.mend import mend
from smallfirst.types import Choice, Completion, Native, Request, Tool, ToolCall
from smallfirst.validators import validate

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "limit": {"type": "number"},
        "fast": {"type": "boolean"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "near": {"type": "object"},
        "any": True,
    },
    "required": ["city", "days"],
}
NAMES = [*SCHEMA["properties"], "0", "1", "2", "arg0", "arg1", "param1", "_2", "params", "other"]


def request(schema: dict[str, Any] = SCHEMA) -> Request:
    return Request("chat", {}, "m", ({"role": "user", "content": "hi"},), tools=(Tool("f", parameters=schema),))


def answer(arguments: Any, name: str = "f") -> Completion:
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    call = ToolCall("c", name, text)
    return Completion((Choice(tool_calls=(call,), finish_reason="tool_calls"),), native=Native("chat", {}))


def mended(arguments: Any, schema: dict[str, Any] = SCHEMA) -> Any:
    """The arguments that come of a mend, None without one."""
    made = mend(request(schema), answer(arguments))
    return None if made is None else json.loads(made.choices[0].tool_calls[0].arguments)


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        ({"0": "Oslo", "1": 3}, {"city": "Oslo", "days": 3}),
        ({"arg1": "Oslo", "arg2": 3}, {"city": "Oslo", "days": 3}),
        ({"1": 3, "0": "Oslo"}, {"city": "Oslo", "days": 3}),
        ({"city": "Oslo", "_0": 3}, {"city": "Oslo", "days": 3}),
        ({"0": {"city": "Oslo", "days": 3}}, {"city": "Oslo", "days": 3}),
        ({"params": {"city": "Oslo", "days": 3}}, {"city": "Oslo", "days": 3}),
        ({"params": {"city": "Oslo", "days": "3"}}, {"city": "Oslo", "days": 3}),
        ({"city": "Oslo", "days": "3", "limit": "-1.5e2"}, {"city": "Oslo", "days": 3, "limit": -150.0}),
        ({"city": 5, "days": 3, "fast": " True"}, {"city": "5", "days": 3, "fast": True}),
        (
            {"city": "Oslo", "days": "3", "tags": '["a"]', "near": "{}"},
            {"city": "Oslo", "days": 3, "tags": ["a"], "near": {}},
        ),
    ],
)
def test_what_was_meant_is_seen(arguments: Any, meant: Any) -> None:
    """Positions get names, wrappers go, text becomes the type that the schema wants."""
    assert mended(arguments) == meant


@pytest.mark.parametrize(
    "arguments",
    [
        {"city": "Oslo", "days": 3},
        {"city": "Oslo"},
        {"city": "Oslo", "days": "three"},
        {"city": "Oslo", "days": "3.5"},
        {"city": "Oslo", "days": "03"},
        {"city": "Oslo", "days": "9" * 5000},
        {"city": "Oslo", "days": 3, "limit": "1e999"},
        {"city": "Oslo", "days": 3, "limit": "NaN"},
        {"city": None, "days": 3},
        {"city": True, "days": 3},
        {"0": "Oslo", "2": 3},
        {"arg0": "Oslo", "param0": "Rome", "1": 3},
        {"0": "Oslo", "9" * 5000: 3},
        {"params": {"city": "Oslo", "days": 3}, "other": 1},
        {"params": ["Oslo", 3]},
        ["Oslo", 3],
        "{city: Oslo}",
        "",
        "null",
    ],
)
def test_what_is_right_or_unclear_stays(arguments: Any) -> None:
    """No mend where the schema is satisfied, something is missing, or more than form would change."""
    assert mended(arguments) is None


def test_large_whole_numbers_keep_every_digit() -> None:
    """A number in a text is not rounded on its way."""
    assert mended({"city": "Oslo", "days": 3, "limit": "12345678901234567890"})["limit"] == 12345678901234567890


def test_open_schemas_take_any_argument() -> None:
    """Where the schema allows other members nothing is out of place."""
    for word, more in (("additionalProperties", {}), ("additionalProperties", True), ("patternProperties", {"^p": {}})):
        assert mended({"params": {"city": "Oslo"}}, {"properties": {"city": {"type": "string"}}, word: more}) is None


def test_only_tools_that_may_be_called_are_looked_at() -> None:
    """A call of an unknown tool stays; beside it another call is mended, and the upstream's own answer is dropped."""
    call = answer({"0": "Oslo", "1": 3}).choices[0].tool_calls[0]
    other = answer({"0": 1}, "unknown").choices[0].tool_calls[0]
    assert mend(request(), answer({"0": 1}, "unknown")) is None
    made = mend(request(), Completion((Choice(tool_calls=(other, call)),), native=Native("chat", {})))
    assert made is not None
    assert made.native is None
    assert made.choices[0].tool_calls[0] == other
    assert json.loads(made.choices[0].tool_calls[1].arguments) == {"city": "Oslo", "days": 3}


def leaves(value: Any) -> list[str]:
    """What an answer says, whatever its form: its scalars and empty containers as text, in no order."""
    if isinstance(value, str):
        try:
            read = json.loads(value)
        except ValueError:
            read = value
        if isinstance(read, dict | list):
            return leaves(read)
        return [value.strip().lower() if value.strip().lower() in {"true", "false"} else str(read)]
    if isinstance(value, dict | list) and value:
        inner = value.values() if isinstance(value, dict) else value
        return sorted(leaf for each in inner for leaf in leaves(each))
    return [str(value).lower() if isinstance(value, bool) else str(value)]


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=4)
    | st.sampled_from(["3", "-1.5", "True", "[]", '{"city": "x", "days": 1}', "1e999", "007", "٣", " 4"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=5))
def test_a_mend_is_valid_says_the_same_and_is_final(arguments: dict[str, Any]) -> None:
    """Whatever was called: what a mend makes passes the request's checks, holds the same values, and is not mended."""
    made = mend(request(), answer(arguments))
    if made is None:
        return
    assert validate(made, request()).ok
    assert mend(request(), made) is None
    assert sorted(leaves(json.loads(made.choices[0].tool_calls[0].arguments))) == sorted(leaves(arguments))
