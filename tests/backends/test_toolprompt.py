"""The tool prompt, the constraint, and what is understood of generated text."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema_rs import validator_for
from llguidance import LLMatcher, LLTokenizer
from msgspec.structs import replace

from smallfirst.backends.toolprompt import AnswerParser, ParsedCall, constraint_schema, conversation, grammar, unheld
from smallfirst.errors import ConstraintUnsupported
from smallfirst.types import Constraint, Json, Request, ResponseFormat, Tool, ToolChoice

WEATHER = Tool(
    "get_weather",
    "The weather now",
    {
        "type": "object",
        "properties": {"unit": {"enum": ["c", "f"]}, "city": {"type": "string", "description": "Name of the city"}},
        "required": ["city"],
    },
)
TREE = Tool(
    "plant",
    "",
    {
        "type": "object",
        "properties": {"root": {"$ref": "#/$defs/node"}},
        "$defs": {
            "node": {"type": "object", "properties": {"kids": {"type": "array", "items": {"$ref": "#/$defs/node"}}}}
        },
        "required": ["root"],
    },
)
PERSON = ResponseFormat(
    "json_schema", {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
)


def ask(*messages: Json, **fields: Any) -> Request:
    return Request(wire="chat", body={}, model="m", messages=messages or ({"role": "user", "content": "?"},), **fields)


def parse(request: Request, text: str) -> tuple[str, str, tuple[ParsedCall, ...]]:
    parser = AnswerParser(request)
    shown = "".join(parser.feed(piece) for piece in text)
    rest = parser.finish()
    return shown + rest.text, rest.reasoning, rest.calls


def valid(request: Request, answer: Any) -> bool:
    schema = constraint_schema(request)
    assert schema is not None
    return validator_for(dict(schema)).is_valid(answer)


def test_the_schema_holds_one_call_or_several() -> None:
    """Calls of offered tools with fitting arguments are answers, alone and in a list; nothing else is."""
    request = ask(tools=(WEATHER, TREE))
    call = {"name": "get_weather", "arguments": {"city": "Oslo"}}
    assert valid(request, call)
    assert valid(request, [call, {"name": "plant", "arguments": {"root": {"kids": [{"kids": []}]}}}])
    assert not valid(request, {"name": "get_weather", "arguments": {"unit": "c"}})
    assert not valid(request, {"name": "plant", "arguments": {"root": {"kids": ["leaf"]}}})
    assert not valid(request, {"name": "other", "arguments": {}})
    assert valid(request, [call] * 8)
    assert not valid(request, [call] * 9)
    assert not valid(replace(request, parallel_tool_calls=False), [call])


def test_tool_choice_narrows_the_schema() -> None:
    """A named choice leaves one tool, "none" leaves none, and the response format then counts."""
    named = ask(tools=(WEATHER, TREE), tool_choice=ToolChoice("required", ("plant",)))
    assert not valid(named, {"name": "get_weather", "arguments": {"city": "Oslo"}})
    none = ask(tools=(WEATHER,), tool_choice=ToolChoice("none"))
    assert constraint_schema(none) is None
    assert valid(replace(none, response_format=PERSON), {"age": 3})
    assert valid(ask(response_format=ResponseFormat("json_object")), {"anything": 1})


def test_under_auto_the_response_format_is_an_answer_beside_the_calls() -> None:
    """With tools and a schema, either a call or a fitting object answers."""
    request = ask(tools=(WEATHER,), response_format=PERSON)
    assert valid(request, {"age": 3})
    assert valid(request, {"name": "get_weather", "arguments": {"city": "Oslo"}})
    assert not valid(request, {"age": "three"})


@pytest.mark.parametrize("mode", ["constrained", "late"])
@pytest.mark.parametrize("choice", ["auto", "required"])
def test_every_combination_makes_a_grammar(mode: Any, choice: Any) -> None:
    """Tools with and without references compile to a grammar in both modes and under every choice."""
    request = ask(tools=(WEATHER, TREE), tool_choice=ToolChoice(choice))
    schema = constraint_schema(request)
    assert schema is not None
    made = grammar(replace(request, constraint=Constraint(schema, mode)))
    assert made is not None
    assert ("| text" in made) == (choice == "auto")


def test_the_grammar_puts_required_arguments_first_and_closes_objects() -> None:
    """Once the required arguments are written the object may end, and no argument can be invented."""
    request = ask(tools=(WEATHER,), parallel_tool_calls=False, tool_choice=ToolChoice("required"))
    schema = constraint_schema(request)
    assert schema is not None
    made = grammar(replace(request, constraint=Constraint(schema)))
    assert made is not None
    arguments = json.loads(made.partition("%json ")[2])["properties"]["arguments"]
    assert list(arguments["properties"]) == ["city", "unit"]
    assert arguments["additionalProperties"] is False


def test_a_schema_that_no_grammar_holds_is_a_clear_error() -> None:
    """The compiler's reason and a way out are in the error; the engine never sees the schema."""
    request = ask(constraint=Constraint({"type": "string", "pattern": "^(?=a)b$"}))
    with pytest.raises(ConstraintUnsupported, match=r"look-around.*free"):
        grammar(request)


def held(schema: Json, *, as_tool: bool) -> Request:
    """A request whose answer is held to `schema`: as the arguments of its only tool, or as its format."""
    if as_tool:
        tool, must = Tool("f", parameters=schema), ToolChoice("required")
        bare = ask(tools=(tool,), tool_choice=must, parallel_tool_calls=False)
    else:
        bare = ask(response_format=ResponseFormat("json_schema", schema))
    wanted = constraint_schema(bare)
    assert wanted is not None
    return replace(bare, constraint=Constraint(wanted))


def accepts(request: Request, value: Any) -> bool:
    """Whether the grammar of `request` accepts `value`, written as the grammar writes it."""
    made = grammar(request)
    assert made is not None
    matcher = LLMatcher(LLTokenizer("byte"), made)
    text = json.dumps({"name": "f", "arguments": value} if request.tools else value)
    return matcher.consume_tokens(list(text.encode())) and matcher.is_accepting()


OPEN = [
    ({"properties": {"a": {"type": "null"}}, "required": ["b"]}, {"b": [1]}),
    ({"properties": {"a": {}}, "minProperties": 2, "required": ["a"]}, {"a": 1, "b": 2}),
    (
        {
            "$defs": {
                "x": {"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"]},
                "y": {"type": "object", "properties": {"b": {"type": "null"}}, "required": ["b"]},
            },
            "properties": {"v": {"allOf": [{"$ref": "#/$defs/x"}, {"$ref": "#/$defs/y"}]}},
        },
        {"v": {"a": None, "b": None}},
    ),
    (
        {
            "properties": {"shape": {"type": "string"}, "side": {"type": "integer"}},
            "required": ["shape"],
            "anyOf": [{"properties": {"shape": {"const": "square"}}, "required": ["side"]}],
        },
        {"shape": "square", "side": 2},
    ),
    (
        {
            "properties": {"a": {"properties": {"x": {"type": "integer"}}}},
            "allOf": [{"properties": {"a": {"properties": {"y": {"type": "integer"}}}}}],
        },
        {"a": {"x": 1, "y": 2}},
    ),
    ({"patternProperties": {"^a": {"properties": {"x": {}}}}, "properties": {"b": {}}}, {"b": 1, "ab": {"y": 1}}),
    (
        {
            "$id": "https://x.test/root.json",
            "$ref": "item.json",
            "$defs": {"i": {"$id": "item.json", "type": "object"}},
        },
        {},
    ),
    (
        {
            "$schema": "http://json-schema.org/draft-04/schema#",
            "definitions": {"n": {"id": "#n", "type": "null"}},
            "properties": {"a": {"$ref": "#n"}},
        },
        {"a": None},
    ),
]


@pytest.mark.parametrize("as_tool", [True, False])
@pytest.mark.parametrize(("schema", "value"), OPEN, ids=range(len(OPEN)))
def test_closing_objects_leaves_what_several_subschemas_describe(schema: Json, value: Any, as_tool: bool) -> None:
    """Required but unlisted properties, joined branches and references of every draft keep their valid values."""
    assert validator_for(dict(schema)).is_valid(value)
    assert accepts(held(schema, as_tool=as_tool), value)


def test_only_what_one_subschema_describes_alone_is_closed() -> None:
    """Invented properties are refused in plain objects, in alternatives and behind references."""
    plain = {"type": "object", "properties": {"a": {"type": "null"}}}
    schema = {"$defs": {"p": plain}, "properties": {"x": plain, "y": {"anyOf": [{"$ref": "#/$defs/p"}, {"const": 1}]}}}
    for as_tool in (True, False):
        request = held(schema, as_tool=as_tool)
        assert accepts(request, {"x": {"a": None}, "y": {"a": None}})
        for wrong in ({"z": 1}, {"x": {"b": 1}}, {"y": {"b": 1}}):
            assert not accepts(request, wrong)


def test_a_property_may_be_called_as_a_keyword_is() -> None:
    """A property named "properties" or "required" is one like any other."""
    schema = {"properties": {"properties": {"type": "null"}, "required": {"type": "null"}}, "required": ["required"]}
    assert accepts(held(schema, as_tool=False), {"required": None, "properties": None})


def test_what_a_grammar_does_not_hold_is_named() -> None:
    """Keywords and formats that are left to the validators are listed, each once."""
    schema = {
        "properties": {
            "a": {"not": {"const": 1}},
            "b": {"not": {"const": 1}, "format": "url"},
            "c": {"oneOf": [{"minimum": 1}, {"maximum": 3}]},
        }
    }
    assert unheld(held(schema, as_tool=True)) == ("format: url", "not", "oneOf")
    assert unheld(held(WEATHER.parameters, as_tool=True)) == unheld(ask()) == ()


def test_the_order_of_properties_counts_though_schemas_are_equal() -> None:
    """Two schemas that differ in the order of their properties have grammars of their own."""
    one = {"properties": {"a": {"type": "null"}, "b": {"type": "null"}}}
    two = {"properties": {"b": {"type": "null"}, "a": {"type": "null"}}}
    assert accepts(held(one, as_tool=False), {"a": None, "b": None})
    assert not accepts(held(two, as_tool=False), {"a": None, "b": None})


def test_tools_and_results_become_plain_messages() -> None:
    """The template sees only roles and texts: tools in the system message, calls as JSON, results from the user."""
    call = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}
    system, user, assistant, result = conversation(
        ask(
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Oslo?"}]},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "3 degrees"},
            tools=(WEATHER,),
        )
    )
    assert system["content"].startswith("Be brief.")
    assert 'get_weather(city: string, unit?: "c"|"f"): The weather now\n  city: Name of the city' in system["content"]
    assert user == {"role": "user", "content": "Oslo?"}
    assert assistant["content"] == '{"name": "get_weather", "arguments": {"city": "Oslo"}}'
    assert result == {"role": "user", "content": "Result of get_weather: 3 degrees"}


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "get_weather", "arguments": {"city":  "Oslo"}}',
        '[{"name": "get_weather", "arguments": {"city":  "Oslo"}}]',
        '```json\n{"name": "get_weather", "arguments": {"city":  "Oslo"}}\n```',
        '<tool_call>\n{"name": "get_weather", "arguments": {"city":  "Oslo"}}\n</tool_call>',
        '{"name": "get_weather", "parameters": {"city":  "Oslo"}}',
        '{"name": "get_weather", "arguments": "{\\"city\\":  \\"Oslo\\"}"}',
    ],
)
def test_a_call_is_understood_in_many_dresses(text: str) -> None:
    """Fences, tags, lists and doubly encoded arguments all give the call, its arguments exactly as generated."""
    assert parse(ask(tools=(WEATHER,)), text) == ("", "", (ParsedCall("get_weather", '{"city":  "Oslo"}'),))


def test_a_sentence_before_a_call_stays_text_and_is_shown_at_once() -> None:
    """Free text streams until a call may begin; the call comes at the end."""
    parser = AnswerParser(ask(tools=(WEATHER,)))
    assert parser.feed("I will look: ") == "I will look: "
    assert parser.feed('{"name": "get_weather", "arguments": {}}') == ""
    assert parser.finish().calls == (ParsedCall("get_weather", "{}"),)


def test_several_calls_keep_their_order() -> None:
    """A list and a sequence of objects are the same calls."""
    one, two = '{"name": "a", "arguments": {}}', '{"name": "b", "arguments": {}}'
    for text in (f"[{one}, {two}]", f"{one}\n{two}"):
        assert [c.name for c in parse(ask(tools=(WEATHER,)), text)[2]] == ["a", "b"]


def test_late_answers_give_their_reasoning_apart() -> None:
    """What was written before a late call or late JSON is reasoning, not the answer."""
    request = ask(tools=(WEATHER,), constraint=Constraint({}, "late"))
    assert parse(request, 'Oslo is a city. {"name": "get_weather", "arguments": {}}')[1:] == (
        "Oslo is a city.",
        (ParsedCall("get_weather", "{}"),),
    )
    request = ask(response_format=PERSON, constraint=Constraint({}, "late"))
    assert parse(request, 'Young. {"age": 3}') == ('{"age": 3}', "Young.", ())


def test_free_json_loses_its_fence() -> None:
    """A free answer to a JSON format is the JSON in it; without any it is left as it came."""
    assert parse(ask(response_format=PERSON), 'Sure:\n```json\n{"age": 3}\n```')[0] == '{"age": 3}'
    assert parse(ask(response_format=PERSON), "No idea {")[0] == "No idea {"


@given(st.text(alphabet='{}[]`<>"name arguments:,\\', max_size=60))
def test_text_that_holds_no_call_is_returned_whole(text: str) -> None:
    """Whatever is generated, nothing is lost and nothing fails: without a call the text comes back unchanged."""
    shown, reasoning, calls = parse(ask(tools=(WEATHER,)), text)
    assert reasoning == ""
    assert shown == text or calls


@given(st.text(max_size=60))
def test_without_tools_or_format_text_passes_through(text: str) -> None:
    """A plain answer is never held back."""
    parser = AnswerParser(ask())
    assert parser.feed(text) == text
    assert parser.finish().text == ""
