"""The incremental validator's promise, against brute force: a prefix is accepted exactly when it can become valid.

The schemas are small enough to write down every text of a value that could satisfy them. Only keywords that
`keywords.late` does not name occur in them.
"""

from __future__ import annotations

import json
from itertools import permutations, product
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from smallfirst.incremental import JsonPrefix
from smallfirst.keywords import late
from smallfirst.schemas import compiled

SCALARS: list[Any] = [None, True, False, "", "a", "ab", "b"]
KEYS = ["a", "ab"]


def _containers_of(inner: list[Any]) -> list[Any]:
    """Arrays of at most two of `inner`, and objects of KEYS in any order."""
    arrays = [list(items) for n in range(3) for items in product(inner, repeat=n)]
    keys = [keys for n in range(3) for keys in permutations(KEYS, n)]
    return arrays + [
        dict(zip(names, items, strict=True)) for names in keys for items in product(inner, repeat=len(names))
    ]


UNIVERSE = [*SCALARS, *_containers_of([*SCALARS, []])]
TEXTS = [json.dumps(value, separators=(",", ":")) for value in UNIVERSE]

COUNTS = st.integers(0, 2)
LEAVES = st.one_of(
    st.sampled_from(
        [False, {"type": "null"}, {"type": ["boolean", "null"]}, {"type": ["null", "array"], "maxItems": 0}]
    ),
    st.fixed_dictionaries(
        {"enum": st.lists(st.sampled_from(SCALARS), min_size=1, max_size=3)},
        optional={
            "maxLength": st.integers(0, 1),
            "minLength": st.integers(0, 2),
            "type": st.sampled_from(["string", "null", "boolean"]),
        },
    ),
    st.fixed_dictionaries({"const": st.sampled_from(SCALARS)}),
    st.builds(lambda least, most: {"type": "string", "minLength": least, "maxLength": most}, COUNTS, st.integers(0, 1)),
)


def _combined(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries({"anyOf": st.lists(inner, min_size=1, max_size=3)}) | st.fixed_dictionaries(
        {"allOf": st.lists(inner, min_size=1, max_size=2)}
    )


def _containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    objects = st.fixed_dictionaries(
        {
            "type": st.just("object"),
            "properties": st.dictionaries(st.sampled_from(KEYS), inner, max_size=2),
            "additionalProperties": st.just(False),
        },
        optional={
            "required": st.lists(st.sampled_from(KEYS), unique=True),
            "minProperties": COUNTS,
            "maxProperties": COUNTS,
        },
    )
    arrays = st.fixed_dictionaries(
        {"type": st.just("array"), "maxItems": COUNTS, "items": inner},
        optional={"minItems": COUNTS, "prefixItems": st.lists(inner, min_size=1, max_size=2)},
    )
    return objects | arrays


VALUES = LEAVES | _combined(LEAVES)
CONTAINERS = _containers(VALUES) | LEAVES
SCHEMAS = (
    CONTAINERS
    | _combined(CONTAINERS)
    | st.fixed_dictionaries(
        {"$ref": st.just("#/$defs/a"), "$defs": st.fixed_dictionaries({"a": _combined(CONTAINERS)})}
    )
)


def accepted(schema: Any, text: str) -> int:
    """How many characters of `text` are accepted."""
    reader = JsonPrefix(schema)
    return len(text) if reader.feed(text) is None else reader.position


UNSATISFIABLE_MEMBER = {
    "type": "object",
    "properties": {"a": {"type": "boolean", "enum": [None]}},
    "additionalProperties": False,
    "minProperties": 1,
}


@settings(max_examples=100, deadline=None)
@example(UNSATISFIABLE_MEMBER)
@given(SCHEMAS.filter(lambda schema: isinstance(schema, dict)))
def test_a_prefix_is_accepted_exactly_when_a_valid_text_begins_with_it(schema: dict[str, Any]) -> None:
    """Of every text in the universe exactly the longest part is accepted with which some valid text begins."""
    assert late(schema) == ()
    valid = compiled(schema)
    possible = {
        text[:n]
        for text, value in zip(TEXTS, UNIVERSE, strict=True)
        if valid.is_valid(value)
        for n in range(len(text) + 1)
    }
    for text in TEXTS:
        longest = next((n for n in range(len(text), 0, -1) if text[:n] in possible), 0)
        assert accepted(schema, text) == longest, text
