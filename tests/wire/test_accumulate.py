"""Deltas to a Completion, and back."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import CALLS, LOGPROBS, USAGE

from smallfirst.errors import BackendGarbage
from smallfirst.types import Choice, Completion, Delta, Native, ToolCallDelta, Usage
from smallfirst.wire.accumulate import Accumulator, split


def total(*deltas: Delta) -> Completion:
    accumulator = Accumulator()
    for delta in deltas:
        accumulator.feed(delta)
    return accumulator.completion()


@settings(deadline=None)
@given(texts=st.lists(st.text(min_size=1), min_size=1, max_size=4), native=st.booleans())
def test_split_and_accumulate_are_inverse(texts: list[str], native: bool) -> None:
    """A whole answer, taken apart and added up, is itself."""
    choices = (*(Choice(text, logprobs=LOGPROBS, reasoning="r", refusal="f") for text in texts), *CALLS.choices)
    completion = Completion(choices, USAGE, "m", Native("chat", {}) if native else None)
    assert total(*split(completion)) == completion


def test_pieces_are_joined_by_choice_and_call() -> None:
    """Pieces may come mixed; the last usage counts."""
    completion = total(
        Delta(choice=1, text="b"),
        Delta(text="a", usage=Usage(1)),
        Delta(tool_calls=(ToolCallDelta(1, "y", "g", "{"), ToolCallDelta(0, "x", "f"))),
        Delta(tool_calls=(ToolCallDelta(0, arguments="{}"), ToolCallDelta(1, arguments="}"))),
        Delta(text="A", finish_reason="tool_calls", usage=Usage(1, 2), model="m"),
    )
    first, second = completion.choices
    assert (first.text, second.text, completion.usage, completion.model) == ("aA", "b", Usage(1, 2), "m")
    assert [(call.id, call.name, call.arguments) for call in first.tool_calls] == [("x", "f", "{}"), ("y", "g", "{}")]


def test_only_one_whole_native_answer_is_kept() -> None:
    """Stream events are no answer; two answers are not one."""
    whole, event = Native("chat", {"a": 1}), Native("chat", {"b": 1}, "")
    assert total(Delta(text="x", native=whole)).native is whole
    assert total(Delta(text="x", native=event)).native is None
    assert total(Delta(text="x", native=whole), Delta(native=whole)).native is None


def test_an_answer_without_a_choice_is_garbage() -> None:
    """A stream that said nothing is no empty answer."""
    with pytest.raises(BackendGarbage, match="without a choice"):
        total(Delta(usage=USAGE))
