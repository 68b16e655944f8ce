"""Schemas are refused when unusable, compiled once, and never cause I/O or a hang."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallfirst.errors import RequestError, TooLargeError
from smallfirst.schemas import (
    MAX_DEPTH,
    MAX_SCHEMA_BYTES,
    MAX_SCHEMA_NODES,
    JsonTextError,
    SchemaCache,
    canonical_json,
    check_schema,
    compiled,
    depth,
    elide,
    json_path,
    parse_json,
)

DRAFT_7 = "http://json-schema.org/draft-07/schema#"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "strin"},
        {"pattern": "("},
        {"$ref": "http://127.0.0.1:9/x.json"},
        {"$ref": "file:///etc/hostname"},
        {"$ref": "other.json"},
        {"$ref": "#/$defs/none"},
        {"$schema": "http://example.com/own"},
        [],
        "object",
    ],
)
def test_an_unusable_schema_is_refused_with_its_place(schema: Any) -> None:
    """An invalid schema, or one that refers outside itself, is a RequestError that names the field."""
    with pytest.raises(RequestError) as caught:
        check_schema(schema, param="tools[0].function.parameters")
    assert caught.value.param == "tools[0].function.parameters"
    assert caught.value.status == 400
    assert "$defs" in caught.value.hint


def test_a_recursive_schema_is_fine() -> None:
    """Recursion through a local reference is allowed, and is applied to the value."""
    schema = {"type": "object", "properties": {"next": {"$ref": "#"}}, "additionalProperties": False}
    check_schema(schema, param="x")
    assert compiled(schema).is_valid({"next": {"next": {}}})
    assert not compiled(schema).is_valid({"next": {"next": 1}})


def test_a_schema_that_refers_to_itself_alone_ends() -> None:
    """A reference that goes in a circle neither hangs nor fails."""
    schema = {"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/a"}]}}, "$ref": "#/$defs/a"}
    check_schema(schema, param="x")


def test_absurd_schemas_are_too_large() -> None:
    """Too many bytes or nodes, too deep a nesting, or subschemas that multiply, are a 413."""
    deep: dict[str, Any] = {}
    for _ in range(5000):
        deep = {"not": deep}
    doubling = {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(40)}
    multiplying = {"$defs": {**doubling, "d40": {"minimum": 0}}, "$ref": "#/$defs/d0"}
    for schema in ({"description": "x" * MAX_SCHEMA_BYTES}, {"enum": [0] * MAX_SCHEMA_NODES}, deep, multiplying):
        with pytest.raises(TooLargeError):
            check_schema(schema, param="x")


def test_a_catastrophic_pattern_counts_as_no_match() -> None:
    """A pattern that would backtrack without end gives up and does not match."""
    schema = {"pattern": r"(x+x+)+(?!z)y"}
    check_schema(schema, param="x")
    assert not compiled(schema).is_valid("x" * 5000)


def test_the_draft_is_the_one_that_the_schema_names() -> None:
    """Without `$schema` draft 2020-12 counts, with draft 7 named its keywords count."""
    tuple_items = {"items": [{"type": "integer"}], "additionalItems": False}
    assert compiled({"$schema": DRAFT_7, **tuple_items}).is_valid([1])
    assert not compiled({"$schema": DRAFT_7, **tuple_items}).is_valid([1, 2])
    assert not compiled({"prefixItems": [{"type": "integer"}], "items": False}).is_valid([1, 2])


def test_formats_are_checked() -> None:
    """`format` is an assertion."""
    assert compiled({"format": "date"}).is_valid("2024-02-29")
    assert not compiled({"format": "date"}).is_valid("2024-02-30")


def test_the_cache_builds_once_and_forgets_the_least_recently_used() -> None:
    """Equal schemas share one entry whatever their key order; the oldest unused entry goes first."""
    built: list[Any] = []
    cache = SchemaCache(lambda schema: built.append(schema) or len(built), size=2)  # type: ignore[func-returns-value]
    assert cache({"a": 1, "b": 2}) == cache({"b": 2, "a": 1}) == 1
    assert cache({"c": 1}) == 2
    assert cache({"a": 1, "b": 2}) == 1
    assert cache({"d": 1}) == 3
    assert cache({"a": 1, "b": 2}) == 1
    assert cache({"c": 1}) == 4


def test_true_is_another_schema_than_one() -> None:
    """The cache does not mistake values that Python calls equal."""
    assert compiled({"const": True}).is_valid(True)
    assert not compiled({"const": 1}).is_valid(True)


@given(JSON)
def test_json_is_read_back(value: Any) -> None:
    """Every JSON value, written in any usual way, is parsed to itself."""
    assert parse_json(json.dumps(value)) == value
    assert parse_json(canonical_json(value)) == value
    assert parse_json(f" {json.dumps(value, indent=2, ensure_ascii=False)}\n") == value


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "{",
            "{} {}",
            "NaN",
            "[Infinity]",
            '{"a": 1, "a": 2}',
            r'"\ud800"',
            "'a'",
            "[1,]",
            "1" * 5000,
            "[" * 9999,
        ),
        "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1),
    ],
)
def test_what_is_not_one_json_value_is_refused(text: str) -> None:
    """Anything but one strict JSON value is a JsonTextError with a short reason."""
    with pytest.raises(JsonTextError) as caught:
        parse_json(text)
    assert 0 < len(str(caught.value)) < 200


def test_nesting_up_to_the_limit_is_read() -> None:
    """MAX_DEPTH levels are allowed."""
    text = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert depth(parse_json(text), 1000) == MAX_DEPTH


@given(st.text(), st.integers(10, 80))
def test_elided_values_are_short(text: str, limit: int) -> None:
    """A value in a message never takes more room than it is given."""
    assert len(elide(text, limit)) <= limit


def test_messages_can_be_stored_and_sent_whatever_was_generated() -> None:
    """Half of a surrogate pair, which a model may write as an escape, stands in no message as it is."""
    with pytest.raises(JsonTextError, match="ud800") as caught:
        parse_json('{"\\ud800": 1, "\\ud800": 2}')
    assert str(caught.value).encode()


def test_paths_are_readable() -> None:
    """Names that are identifiers are dotted, others quoted, indices bracketed."""
    assert json_path(["a", 0, "b c"]) == '$.a[0]["b c"]'
    assert json_path([]) == "$"
