"""Tightened schemas: narrower, never wider, and never empty where the schema was not."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from smallfirst.backends.tightening import tightened
from smallfirst.schemas import compiled

NAMES = ["a", "b"]
SCHEMAS = st.recursive(
    st.sampled_from([{}, {"type": "null"}, {"const": 1}, {"$ref": "#/$defs/d"}, {"required": ["a"]}]),
    lambda inner: st.one_of(
        st.fixed_dictionaries(
            {"anyOf": st.lists(inner, min_size=1, max_size=2)}, optional={"required": st.just(["b"])}
        ),
        st.fixed_dictionaries({"allOf": st.lists(inner, min_size=1, max_size=2)}),
        st.fixed_dictionaries({"not": inner}),
        st.fixed_dictionaries({"if": inner, "then": inner}),
        st.fixed_dictionaries({"items": inner}),
        st.fixed_dictionaries(
            {"properties": st.dictionaries(st.sampled_from(NAMES), inner)},
            optional={
                "required": st.lists(st.sampled_from(NAMES), unique=True),
                "patternProperties": st.fixed_dictionaries({"^a": inner}),
                "additionalProperties": inner,
                "allOf": st.lists(inner, min_size=1, max_size=1),
                "minProperties": st.integers(0, 2),
            },
        ),
    ),
    max_leaves=6,
)
VALUES = st.recursive(
    st.sampled_from([None, 1, []]), lambda inner: st.dictionaries(st.sampled_from([*NAMES, "c"]), inner), max_leaves=5
)


@given(SCHEMAS, SCHEMAS, VALUES)
def test_what_satisfies_the_tightened_schema_satisfies_the_schema(
    schema: dict[str, Any], definition: dict[str, Any], value: Any
) -> None:
    """Closing only takes values away, and leaves the schema that it was given as it was."""
    schema = {**schema, "$defs": {"d": {"type": "object", "properties": {"a": definition}}}}
    before = repr(schema)
    if compiled(tightened(schema)).is_valid(value):
        assert compiled(schema).is_valid(value)
    assert repr(schema) == before


@given(
    st.lists(st.dictionaries(st.sampled_from(NAMES), st.just({"type": "null"})), min_size=1, max_size=3),
    st.sampled_from(["allOf", "anyOf"]),
    st.lists(st.sampled_from(NAMES), unique=True),
)
def test_branches_that_describe_one_object_keep_its_values(
    branches: list[dict[str, Any]], keyword: str, required: list[str]
) -> None:
    """An object of every listed property is valid before and after, whichever branch lists which."""
    schema = {keyword: [{"properties": properties} for properties in branches], "required": required}
    value = {name: None for properties in branches for name in properties} | dict.fromkeys(required)
    assert compiled(schema).is_valid(value)
    assert compiled(tightened(schema)).is_valid(value)
