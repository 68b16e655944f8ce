"""Parts that recur."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallfirst import recurring
from smallfirst.recurring import decode, derived

LEAVES = st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)
BODIES = st.dictionaries(st.sampled_from(["model", "messages", "tools", "input", "system", "n"]), VALUES)


@given(BODIES)
def test_a_body_is_what_plain_json_says(body: dict[str, Any]) -> None:
    """Whatever stands under the names of recurring parts, the body is what a plain decoder reads, again and again."""
    raw = msgspec.json.encode(body)
    assert decode(raw) == decode(raw) == msgspec.json.decode(raw)


def test_parts_that_recur_are_the_same_objects() -> None:
    """Tools, and messages one by one, are the very same objects in a later body with the same texts."""
    first = decode(b'{"tools": [{"a": 1}], "messages": [{"role": "user"}, {"n": 1}]}')
    later = decode(b'{"n": 2, "tools": [{"a": 1}], "messages": [{"role": "user"}, {"n": 2}]}')
    assert later["tools"] is first["tools"]
    assert later["messages"][0] is first["messages"][0]
    assert later["messages"][1] is not first["messages"][1]


def test_what_is_derived_of_a_kept_part_is_computed_once() -> None:
    """What is derived of a kept part, and of a tuple derived of that, is computed once; of anything else each time."""
    calls: list[object] = []

    def names(tools: list[dict[str, str]]) -> tuple[str, ...]:
        calls.append(names)
        return tuple(tool["name"] for tool in tools)

    def size(names: tuple[str, ...]) -> int:
        calls.append(size)
        return len(names)

    for _ in range(3):
        body = decode(b'{"tools": [{"name": "once"}]}')
        assert derived(derived(body["tools"], names), size) == 1
    assert calls == [names, size]
    for _ in range(3):
        derived([{"name": "again"}], names)
    assert calls == [names, size, names, names, names]


def test_what_cannot_be_derived_is_tried_again() -> None:
    """An error of the computation is raised each time."""
    body = decode(b'{"tools": [{"wrong": 1}]}')
    for _ in range(2):
        with pytest.raises(KeyError):
            derived(body["tools"], lambda tools: tools[0]["name"])


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the limit the oldest part is forgotten, with all that was derived of it."""
    monkeypatch.setattr(recurring, "MAX_BYTES", 20_000)
    parts = recurring.Parts()
    first = parts.decode(b'{"n": 0}')
    inner = parts.derived(first, lambda _: (1, 2))
    calls: list[object] = []
    parts.derived(inner, calls.append)
    for n in range(1, 100):
        parts.decode(b'{"n": %d}' % n)
    parts.derived(inner, calls.append)
    assert len(calls) == 2
    assert parts.decode(b'{"n": 0}') is not first
    assert len(parts) < 20


def test_a_part_that_is_too_large_is_not_kept() -> None:
    """A part over the size of a part is decoded each time."""
    raw = b'{"tools": ["%s"]}' % (b"x" * recurring.MAX_PART_BYTES)
    assert decode(raw)["tools"] is not decode(raw)["tools"]
