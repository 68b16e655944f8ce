"""How a specialist is asked and what it is to answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from smallfirst.agreement import canonical_call
from smallfirst.backends.specialist import Manifest, PromptTemplate, answer_text, read_manifest
from smallfirst.backends.toolprompt import AnswerParser, constraint_schema, grammar
from smallfirst.errors import ModelFileError
from smallfirst.types import Constraint, Request, ResponseFormat, Tool, ToolCall, ToolChoice

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "seats": {"type": "integer", "default": 2},
        "when": {"type": "string", "default": "today"},
        "place": {"type": "string"},
        "wishes": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["place"],
}
BOOK = Tool("book", "Books a table", SCHEMA)


def ask(*messages: dict[str, Any], **fields: Any) -> Request:
    return Request(wire="chat", body={}, model="m", messages=messages, tools=(BOOK,), **fields)


def said(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


TALK = ask(
    said("system", "You book tables."), said("user", "A table."), said("assistant", "Where?"), said("user", "Rome")
)


def test_a_pruned_prompt_holds_the_last_turns_only() -> None:
    """Tools, schemas and the system prompt are left out, and of the conversation what the template does not keep."""
    assert PromptTemplate("pruned").pruned(TALK) == "user: A table.\nassistant: Where?\nuser: Rome\n"
    assert PromptTemplate("pruned", turns=2).pruned(TALK) == "assistant: Where?\nuser: Rome\n"
    assert PromptTemplate("pruned", turns=1, system=True).pruned(TALK) == "system: You book tables.\nuser: Rome\n"


def test_a_full_prompt_is_the_chat_templates() -> None:
    """An adapter that is asked like any model leaves the prompt to the model's own template."""
    assert PromptTemplate().pruned(TALK) is None


def test_calls_and_results_before_are_part_of_the_conversation() -> None:
    """Earlier calls and what came of them vary from call to call, so they are kept."""
    call = {"id": "1", "type": "function", "function": {"name": "book", "arguments": '{"place": "Rome"}'}}
    request = ask({"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "1", "content": "full"})
    made = PromptTemplate("pruned").pruned(request)
    assert made == 'assistant: {"name": "book", "arguments": {"place": "Rome"}}\nuser: Result of book: full\n'


def test_required_members_come_first_and_none_is_lost() -> None:
    """Members stand in the order that the constraint asks for, defaults included; an answer in words stays as it is."""
    call = ToolCall("1", "book", '{"when": "today", "seats": 4, "place": "Rome"}')
    assert answer_text(TALK, [call]) == '{"name": "book", "arguments": {"place": "Rome", "seats": 4, "when": "today"}}'
    assert answer_text(TALK, [], "Where?") == "Where?"


def test_an_answer_in_json_is_written_as_the_constraint_writes_it() -> None:
    """JSON that a response format asks for has the constraint's order and spaces, however it was given."""
    form = ResponseFormat("json_schema", SCHEMA)
    request = Request(wire="chat", body={}, model="m", messages=(said("user", "Rome"),), response_format=form)
    assert answer_text(request, [], '{\n "seats":4,\n "place":"Zürich"}') == '{"place": "Zürich", "seats": 4}'
    with pytest.raises(ValueError, match="Expecting value"):
        answer_text(request, [], "Where?")


ARGUMENTS = st.fixed_dictionaries(
    {"place": st.text(max_size=6)},
    optional={
        "seats": st.integers(1, 9) | st.booleans(),
        "when": st.sampled_from(["today", "tomorrow"]),
        "wishes": st.lists(st.text(max_size=4), max_size=2),
    },
)


@given(st.lists(ARGUMENTS, min_size=1, max_size=3))
def test_an_answer_is_read_back_as_the_same_calls(made: list[dict[str, Any]]) -> None:
    """The backend's parser finds in the text the calls that it was made from, equal in meaning."""
    calls = [ToolCall(str(i), "book", json.dumps(arguments)) for i, arguments in enumerate(made)]
    parser = AnswerParser(TALK)
    assert parser.feed(answer_text(TALK, calls)) == ""
    found = [canonical_call(call.name, call.arguments, SCHEMA) for call in parser.finish().calls]
    assert found == [canonical_call(call.name, call.arguments, SCHEMA) for call in calls]


def test_the_constraint_allows_the_answer() -> None:
    """What a specialist is trained to say can be generated under the grammar of its request, token by token."""
    import llguidance

    request = replace(TALK, tool_choice=ToolChoice("required"))
    schema = constraint_schema(request)
    assert schema is not None
    made = grammar(replace(request, constraint=Constraint(schema)))
    assert made is not None
    tokenizer = llguidance.LLTokenizer("byte")
    matcher = llguidance.LLMatcher(tokenizer, made.removeprefix("%llguidance {}\n"))
    text = answer_text(TALK, [ToolCall("1", "book", '{"wishes": ["quiet"], "seats": 3, "place": "Rome"}')])
    assert matcher.consume_tokens(tokenizer.tokenize_str(text))
    assert matcher.is_accepting()


def test_a_manifest_is_read_from_beside_the_adapter(tmp_path: Path) -> None:
    """It comes back as written, None stands for none, and a broken one is an error that names the file."""
    adapter = tmp_path / "booking.gguf"
    assert read_manifest(adapter) is None
    manifest = Manifest(sha256="a", base_sha256="b", prompt=PromptTemplate("pruned", turns=8))
    (tmp_path / "booking.json").write_bytes(msgspec.json.encode(manifest))
    assert read_manifest(adapter) == manifest
    (tmp_path / "booking.json").write_text("{")
    with pytest.raises(ModelFileError, match=r"booking\.json"):
        read_manifest(adapter)
