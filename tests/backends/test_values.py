"""What a specialist's values are held to."""

from __future__ import annotations

from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from smallfirst.backends.specialist import Manifest, PromptTemplate
from smallfirst.backends.toolprompt import constraint_schema, grammar
from smallfirst.backends.values import MOST_PASSAGES, Passages, Values, capitalised, held
from smallfirst.types import Constraint, Request, ResponseFormat, Tool, ToolChoice

TOOL = Tool(
    "book",
    "Books a table",
    {
        "type": "object",
        "properties": {
            "place": {"type": "string", "description": "Where"},
            "when": {"type": "string", "format": "date"},
            "kind": {"enum": ["bar", "restaurant"]},
            "seats": {"type": "integer"},
        },
        "required": ["place"],
    },
)
TALK = "user: A table at bird dog in Graton, please."


def ask(**fields: Any) -> Request:
    made: Request = Request(wire="chat", body={}, model="m", messages=(), tool_choice=ToolChoice("required"), **fields)
    schema = constraint_schema(made)
    assert schema is not None
    return replace(made, constraint=Constraint(schema))


def allows(request: Request, **arguments: Any) -> bool:
    """Whether a call with those arguments, or an answer of those members, is allowed."""
    assert request.constraint is not None
    answer = {"name": "book", "arguments": arguments} if request.tools else arguments
    return jsonschema_rs.is_valid(dict(request.constraint.schema), answer)


def test_a_value_is_a_known_one_or_stands_in_the_prompt() -> None:
    """Others are not allowed, nor are passages longer than any that was learned; capitals only where they were."""
    request = ask(tools=(TOOL,), parallel_tool_calls=False)
    one = held(request, {"book": {"place": Values(("Rome",), 2)}}, TALK)
    assert grammar(one)
    assert all(allows(one, place=text) for text in ("Rome", "bird dog", "Graton", "Graton,"))
    assert not any(allows(one, place=text) for text in ("Paris", "Bird Dog", "ird dog", "bird dog in", "Grato"))
    capitals = held(request, {"book": {"place": Values(("Rome",), 2, capitals="also")}}, TALK)
    assert allows(capitals, place="Bird Dog")
    always = held(request, {"book": {"place": Values(("Rome",), 2, capitals="always")}}, TALK)
    assert [allows(always, place=text) for text in ("Bird Dog", "bird dog", "Rome")] == [True, False, True]
    closed = held(request, {"book": {"place": Values(("Rome",))}}, TALK)
    assert allows(closed, place="Rome")
    assert not allows(closed, place="Graton")


def test_only_plain_texts_are_held() -> None:
    """A schema that says more of a value says it better; the rest of the tool, and other tools, stay as they are."""
    learned = Values(("x",))
    other = replace(TOOL, name="cancel")
    request = ask(tools=(TOOL, other), parallel_tool_calls=False)
    made = held(request, {"book": dict.fromkeys(("when", "kind", "seats", "gone"), learned), "none": {}}, TALK)
    assert made.constraint == request.constraint
    one = held(request, {"book": {"place": learned}}, TALK)
    assert one.constraint is not None
    both = {"book": ("x",), "cancel": ("x", "anything")}
    for name, texts in both.items():
        for text in ("x", "anything"):
            answer = {"name": name, "arguments": {"place": text}}
            assert jsonschema_rs.is_valid(dict(one.constraint.schema), answer) == (text in texts)


def test_an_answer_that_is_json_is_held_too() -> None:
    """Its members stand under the empty name."""
    form = ResponseFormat("json_schema", {"type": "object", "properties": {"city": {"type": "string"}}}, "form")
    made = held(ask(response_format=form), {"": {"city": Values(("Rome",), 1)}}, TALK)
    assert allows(made, city="Rome")
    assert allows(made, city="Graton")
    assert not allows(made, city="Paris")


def test_what_says_nothing_changes_nothing() -> None:
    """Without a constraint, without values, or with more passages than can be held, the request stays free."""
    request = ask(tools=(TOOL,), parallel_tool_calls=False)
    assert held(request, {}, TALK) is request
    free = replace(request, constraint=None)
    assert held(free, {"book": {"place": Values(("Rome",))}}, TALK) is free
    empty = held(request, {"book": {"place": Values((), 2)}}, "")
    assert allows(empty, place="anything")
    long = held(request, {"book": {"place": Values(("Rome",), 8)}}, "word " * (1 + MOST_PASSAGES // 8))
    assert allows(long, place="anything")


def test_a_manifest_holds_to_what_the_specialist_reads() -> None:
    """Passages are those of the prompt as it is pruned; an adapter that is asked in full is not held."""
    request = replace(
        ask(tools=(TOOL,)), messages=({"role": "user", "content": "Rome"}, {"role": "user", "content": "Oslo"})
    )
    learned = {"book": {"place": Values((), 1)}}
    manifest = Manifest(sha256="", base_sha256="", prompt=PromptTemplate("pruned", turns=1), values=learned)
    assert allows(manifest.held(request), place="Oslo")
    assert not allows(manifest.held(request), place="Rome")
    assert Manifest(sha256="", base_sha256="", values=learned).held(request) is request


@pytest.mark.parametrize(
    ("text", "passages"),
    [
        ("a b-c", {"a", "a b", "b", "b-", "-", "-c", "c"}),
        ("东京 bar", {"东", "东京", "京", "京 bar", "bar"}),
        ("", set()),
    ],
)
def test_passages_begin_and_end_with_words(text: str, passages: set[str]) -> None:
    """A mark is a word, and so is a character of a language that sets none apart."""
    assert set(Passages(text).up_to(2)) == passages


@given(st.text(alphabet="ab .,'京É\n", max_size=40), st.integers(1, 5))
def test_every_passage_is_found_again(text: str, words: int) -> None:
    """It stands in the text, has a length within the limit, and there are no more than counted."""
    passages = Passages(text)
    found = passages.up_to(words)
    assert len(found) == len(set(found)) <= passages.count(words)
    assert all(each in text and 1 <= passages.length(each) <= words for each in found)


@given(st.text(max_size=40))
def test_a_part_of_a_word_is_no_passage(text: str) -> None:
    """Only whole words are quoted."""
    assert Passages(f"x{text}x").length("") == 0
    assert Passages("harbour").length("harbou") == 0


def test_capitals_begin_words_only() -> None:
    """As names are written that were typed in a hurry."""
    assert capitalised("sessions at THE presidio,  mcdonald's") == "Sessions At The Presidio,  Mcdonald's"
