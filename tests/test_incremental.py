"""A streamed answer is stopped at the first character after which no valid one can follow, and never before it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from smallfirst.incremental import JsonPrefix, StreamGuard
from smallfirst.schemas import MAX_DEPTH, JsonTextError, compiled, parse_json
from smallfirst.types import Delta, Request, ResponseFormat, Tool, ToolCallDelta, ToolChoice

DRAFT_7 = "http://json-schema.org/draft-07/schema#"
PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name"],
    "additionalProperties": False,
}
SHAPE: dict[str, Any] = {
    "anyOf": [
        {"properties": {"kind": {"const": "circle"}, "radius": {"type": "number"}}, "required": ["kind", "radius"]},
        {"properties": {"kind": {"const": "square"}, "side": {"type": "number"}}, "required": ["kind", "side"]},
    ],
    "type": "object",
}
TREE: dict[str, Any] = {
    "type": "object",
    "properties": {"value": {"type": ["string", "null"]}, "children": {"type": "array", "items": {"$ref": "#"}}},
    "required": ["value"],
    "additionalProperties": False,
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


def rejected_at(schema: Any, text: str) -> int | None:
    """Index of the character that the reader stops at, fed one by one; len(text) if only at the end; None if never."""
    reader = JsonPrefix(schema)
    for char in text:
        if reader.feed(char):
            return reader.position
    return reader.position if reader.finish() else None


def bad(marked: str) -> tuple[str, int]:
    """A text without its mark "^", which stands before the character to stop at, and the index of that character."""
    return marked.replace("^", ""), marked.index("^")


@pytest.mark.parametrize(
    "marked",
    [
        "^}",
        "^abc",
        "{^1",
        '{"a"^,',
        '{"a":^,',
        '{"a":1^"',
        '{"a":1,^}',
        "[1^}",
        "[1,^]",
        "[^,",
        "0^1",
        "-^.",
        "1.^e",
        "[1.^]",
        "[1e+^]",
        "tr^y",
        "nul^L",
        '"\\^x',
        '"\\u12^g',
        '"a^\n',
        '"\\ud83d^x',
        '"\\ud83d\\^n',
        '"\\ud83d\\u004^1',
        '"\\ude0^0',
        "{} ^{",
        "1 ^2",
        '{"a": 1, "a^": 2}',
        "[" * MAX_DEPTH + "^[",
        "[" + "1" * 5000 + "^]",
        "^",
        " ^",
        '{"a": 1^',
        '"a^',
        "-^",
        "tru^",
    ],
)
def test_grammar(marked: str) -> None:
    """Without a schema the reader stops exactly where the text stops being the beginning of JSON."""
    text, at = bad(marked)
    assert rejected_at(None, text) == at


@pytest.mark.parametrize(
    ("schema", "marked"),
    [
        ({"type": "object"}, "^["),
        ({"type": ["string", "null"]}, "^t"),
        ({"type": ["string", "null"]}, "^1"),
        ({"enum": ["red", "green"]}, '"r^o'),
        ({"enum": ["red", "green"]}, '"re^"'),
        ({"enum": ["red", "reddish"]}, '"red^e'),
        ({"enum": ["é"]}, '"\\u00e^8'),
        ({"const": "a\nb"}, '"a\\^t'),
        ({"enum": [1, 2]}, "^-"),
        ({"enum": [1, 2]}, '^"'),
        ({"enum": [1, 2]}, "3^"),
        ({"const": False}, "^t"),
        ({"minimum": 1, "type": "integer"}, "^-"),
        ({"maximum": -1, "type": "number"}, "^3"),
        ({"items": {"maximum": 10}}, "[10, 11^,"),
        ({"items": {"type": "integer"}}, "[1.5^]"),
        ({"maxLength": 3}, '"abc^d'),
        ({"maxLength": 1}, '"\\ud83d\\ude00^d'),
        ({"minLength": 3}, '"ab^"'),
        ({"pattern": "a$"}, '"ab^"'),
        ({"format": "date"}, '"2024-02-30^"'),
        (PERSON, '{"n^o'),
        (PERSON, '{"nam^"'),
        (PERSON, '{"name": "x", "^n'),
        (PERSON, '{"age": 3^}'),
        (PERSON, '{"age": -1^,'),
        (PERSON, '{"age": 3, "name": "x"^,'),
        ({"additionalProperties": False}, '{^"'),
        ({"properties": {"a": False}}, '{"a^"'),
        ({"propertyNames": {"pattern": "^[a-z]+$"}}, '{"A^"'),
        ({"patternProperties": {"^x": {"type": "null"}}, "additionalProperties": False}, '{"x": ^1'),
        ({"patternProperties": {"^x": {"type": "null"}}, "additionalProperties": False}, '{"y^"'),
        ({"maxProperties": 1}, '{"a": 1^,'),
        ({"minProperties": 1}, "{^}"),
        ({"maxItems": 0}, "[^1"),
        ({"maxItems": 2}, "[1, 2^,"),
        ({"minItems": 1}, "[^]"),
        ({"uniqueItems": True}, "[1, 1^]"),
        ({"prefixItems": [{"type": "null"}], "items": {"type": "string"}}, '[null, "a", ^1'),
        ({"prefixItems": [{"type": "null"}], "items": False}, "[null^,"),
        ({"$schema": DRAFT_7, "items": [{"type": "null"}], "additionalItems": False}, "[null^,"),
        (SHAPE, '{"kind": "s^p'),
        (SHAPE, '{"kind": "circle", "radius": ^"'),
        (SHAPE, '{"radius": "no", "kind": "^c'),
        (SHAPE, '{"kind": "circle", "side": 1^}'),
        (TREE, '{"value": null, "children": [{"value": ^3'),
        (TREE, '{"value": "x", "children": [{"value": "y", "c^c'),
        (TREE, '{"value": "x", "children": [{"children": []^}'),
        ({"allOf": [{"enum": ["ab", "cd"]}, {"enum": ["ax", "cd"]}]}, '"^a'),
        ({"oneOf": [{"type": "string"}, {"type": "integer"}]}, "^{"),
        ({"if": {"required": ["a"]}, "then": {"required": ["b"]}}, '{"a": 1^}'),
        ({"if": {"type": "string"}, "then": {"maxLength": 1}, "else": {"type": "null"}}, '"a^b'),
        ({"not": {"const": 1}, "items": {"not": {"const": 1}}}, "[1^]"),
        ({"not": {}}, "1^"),
    ],
)
def test_the_earliest_position(schema: Any, marked: str) -> None:
    """Each keyword stops the stream at the first character that it makes impossible."""
    text, at = bad(marked)
    assert rejected_at(schema, text) == at


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "integer"}, "1.0"),
        ({"type": "integer"}, "150e-1"),
        ({"enum": [1]}, "10e-1"),
        ({"enum": [0]}, "-0"),
        ({"minimum": 0}, "-0.0"),
        ({"const": "a"}, '"\\u0061"'),
        ({"maxLength": 1}, '"\\ud83d\\ude00"'),
        ({"maximum": 10}, "1000e-2"),
        (PERSON, ' {\n"age" : 3 , "name" : "x" } '),
        (SHAPE, '{"side": 2, "kind": "square", "radius": "x"}'),
        (TREE, '{"children": [{"value": "a"}, {"children": [], "value": null}], "value": "b"}'),
        (
            {"properties": {"a": {"$ref": "https://example.com/s#/$defs/x"}}, "$id": "https://example.com/s"}
            | {"$defs": {"x": {"type": "null"}}},
            '{"a": null}',
        ),
    ],
)
def test_unusual_but_valid_texts(schema: Any, text: str) -> None:
    """What is valid in an unusual way is not stopped."""
    assert compiled(schema).is_valid(parse_json(text))
    assert rejected_at(schema, text) is None


TEXTS = st.text(max_size=4) | st.text(alphabet="abc", max_size=6)
PEOPLE = st.fixed_dictionaries({"name": TEXTS}, optional={"age": st.integers(-1, 99)})
SHAPES = st.fixed_dictionaries(
    {"kind": st.sampled_from(["circle", "square"])},
    optional={"radius": st.floats(0, 9) | TEXTS, "side": st.integers() | TEXTS, "more": JSON},
)
TREES = st.recursive(
    st.fixed_dictionaries({"value": st.none() | TEXTS}),
    lambda inner: st.fixed_dictionaries({"value": TEXTS, "children": st.lists(inner, max_size=3)}),
    max_leaves=8,
)
NUMBERS = st.integers(-20, 60) | st.floats(-5, 20)
MAPS = st.dictionaries(st.text(alphabet="ab", max_size=3), st.integers() | TEXTS, max_size=4)
SCHEMAS: list[tuple[dict[str, Any], st.SearchStrategy[Any]]] = [
    (PERSON, PEOPLE),
    (SHAPE, SHAPES),
    (TREE, TREES),
    (
        {"enum": ["a", "ab", 1, 1.5, None, True, [1], {"a": 1}]},
        st.sampled_from(["a", "ab", 1, 1.5, None, [1], {"a": 1}]),
    ),
    (
        {"type": "array", "items": {"anyOf": [{"type": "integer"}, PERSON, SHAPE]}, "maxItems": 3},
        st.lists(st.integers() | PEOPLE | SHAPES, max_size=4),
    ),
    (
        {"prefixItems": [{"type": "null"}, {"type": "string", "maxLength": 3}], "items": {"type": "number"}},
        st.builds(lambda text, rest: [None, text, *rest], TEXTS, st.lists(NUMBERS, max_size=3)),
    ),
    ({"patternProperties": {"^a": {"type": "integer"}}, "additionalProperties": {"type": "string"}}, MAPS),
    ({"propertyNames": {"maxLength": 2}, "minProperties": 1, "maxProperties": 3}, MAPS),
    ({"oneOf": [{"type": "integer", "multipleOf": 3}, {"type": "integer", "multipleOf": 5}]}, NUMBERS),
    ({"allOf": [{"type": "number"}, {"exclusiveMinimum": 0}, {"anyOf": [{"maximum": 3}, {"minimum": 10}]}]}, NUMBERS),
    ({"type": "string", "pattern": "^(ab|c)*$", "minLength": 2}, TEXTS),
    ({"if": {"type": "integer"}, "then": {"maximum": 3}, "else": {"type": ["string", "object"]}}, NUMBERS | MAPS),
    (
        {"$schema": DRAFT_7, "items": [{"type": "integer"}, {"enum": ["x"]}], "additionalItems": {"type": "null"}},
        st.builds(lambda number, n: [number, "x", *[None] * n], NUMBERS, st.integers(0, 2)),
    ),
    ({"not": {"type": "object"}, "type": ["object", "string", "array"]}, MAPS | st.lists(MAPS)),
]


@settings(max_examples=50)
@given(st.data())
@pytest.mark.parametrize(("schema", "near"), SCHEMAS, ids=range(len(SCHEMAS)))
def test_no_prefix_of_a_valid_instance_is_rejected(
    schema: dict[str, Any], near: st.SearchStrategy[Any], data: st.DataObject
) -> None:
    """Soundness: valid instances pass however they are written and cut, and invalid ones do not."""
    value = data.draw(near | JSON)
    indent, ascii_only = data.draw(st.sampled_from([None, 1])), data.draw(st.booleans())
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    cut = data.draw(st.integers(0, len(text)))
    reader = JsonPrefix(schema)
    stopped = reader.feed(text[:cut]) or reader.feed(text[cut:]) or reader.finish()
    assert (stopped is None) == compiled(schema).is_valid(value), (text, stopped)


RANDOM_SCHEMAS = st.recursive(
    st.sampled_from(
        [
            {},
            {"type": "integer"},
            {"type": ["string", "null"]},
            {"const": "ab"},
            {"enum": ["a", "abc", 0, None]},
            {"maximum": 2},
            {"minLength": 1, "maxLength": 2},
            {"pattern": "b"},
            {"required": ["a"]},
            {"uniqueItems": True, "maxItems": 2},
            {"$ref": "#"},
        ]
    ),
    lambda inner: st.one_of(
        st.fixed_dictionaries({"anyOf": st.lists(inner, min_size=1, max_size=3)}),
        st.fixed_dictionaries({"oneOf": st.lists(inner, min_size=1, max_size=3)}),
        st.fixed_dictionaries({"allOf": st.lists(inner, min_size=1, max_size=2)}),
        st.fixed_dictionaries({"not": inner}),
        st.fixed_dictionaries({"if": inner, "then": inner, "else": inner}),
        st.fixed_dictionaries({"items": inner, "prefixItems": st.lists(inner, min_size=1, max_size=2)}),
        st.fixed_dictionaries(
            {"properties": st.fixed_dictionaries({"a": inner, "ab": inner})},
            optional={"additionalProperties": inner | st.just(False), "patternProperties": st.just({"b": {}})},
        ),
        st.fixed_dictionaries(
            {"properties": st.fixed_dictionaries({"a": inner}), "unevaluatedProperties": st.just(False)}
        ),
    ),
    max_leaves=8,
)
SMALL_JSON = st.recursive(
    st.sampled_from([None, True, 0, 1, 2.0, 3, "", "a", "ab", "abc", "b"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "ab", "b", "c"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=300)
@given(RANDOM_SCHEMAS.filter(lambda schema: "$ref" not in schema), SMALL_JSON)
def test_any_schema_is_judged_as_jsonschema_judges_it(schema: dict[str, Any], value: Any) -> None:
    """Whatever keywords are combined, a complete text is accepted exactly if jsonschema-rs accepts its value."""
    accepted = compiled(schema).is_valid(value)
    assert (rejected_at(schema, json.dumps(value)) is None) == accepted


@given(st.text(alphabet='{}[]",:01.eE-+ \\ua"trfn'), st.integers(0, 10))
def test_the_grammar_is_that_of_the_parser(text: str, cut: int) -> None:
    """With no schema a text passes exactly if it parses, however it is cut."""
    reader = JsonPrefix()
    stopped = reader.feed(text[:cut]) or reader.feed(text[cut:]) or reader.finish()
    try:
        parse_json(text)
    except JsonTextError:
        assert stopped
    else:
        assert stopped is None


@given(SMALL_JSON, st.data())
def test_a_prefix_that_is_stopped_has_no_valid_end(value: Any, data: st.DataObject) -> None:
    """A reader stopped within a text stays stopped and keeps its first violation."""
    schema, _ = data.draw(st.sampled_from(SCHEMAS))
    text = json.dumps(value)
    reader = JsonPrefix(schema)
    first = reader.feed(text)
    assume(first is not None)
    at = reader.position
    assert reader.feed("}") is first is reader.finish()
    assert reader.position == at < len(text)


def test_a_schema_with_many_alternatives_is_read_loosely() -> None:
    """Too many combinations to follow only delay a rejection to the end of the value."""
    pairs = [{"anyOf": [{"required": [f"a{i}"]}, {"required": [f"b{i}"]}]} for i in range(12)]
    assert rejected_at({"allOf": pairs}, "{}") == 1
    assert rejected_at({"allOf": pairs}, json.dumps({f"a{i}": i for i in range(12)})) is None


@pytest.mark.parametrize(
    ("schema", "marked"),
    [
        ({"$id": "relative", "properties": {"a": {"type": "null"}}}, '{"a": ^1'),
        ({"properties": {"a": {"$id": "https://x.test/a", "$ref": "#/$defs/b", "$defs": {"b": False}}}}, '{"a": 1^}'),
        (
            {
                "$defs": {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{j}"} for j in range(9)]} for i in range(9)},
                "properties": {"a": {"allOf": [{"$ref": "#/$defs/d0"}, {"type": "null"}]}},
            },
            '{"a": 1^}',
        ),
        (
            {
                "$defs": {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(200)} | {"d200": {"type": "null"}},
                "properties": {"a": {"$ref": "#/$defs/d0"}},
            },
            '{"a": 1^}',
        ),
        (
            {
                "$defs": {"b": {"properties": {f"p{i}": {"type": "null"} for i in range(1000)}}},
                "properties": {f"q{i}": {"$ref": "#/$defs/b"} for i in range(1000)},
            },
            '{"q7": {"p9": ^1',
        ),
    ],
    ids=["relative id", "inner id", "mutual recursion", "long chain", "many references"],
)
def test_difficult_schemas_are_followed_as_far_as_is_cheap(schema: Any, marked: str) -> None:
    """Where following a schema would be costly or uncertain the reader stops later, but still stops."""
    text, at = bad(marked)
    assert rejected_at(schema, text) == at


def test_a_violation_says_where_and_what_is_allowed() -> None:
    """The message names the character, the path and the choices."""
    reader = JsonPrefix({"type": "array", "items": {"properties": {"color": {"enum": ["red", "green"]}}}})
    violation = reader.feed('[{"color": "red"}, {"color": "blue"}]')
    assert violation is not None
    assert (violation.code, violation.path, reader.position) == ("schema", "$[1].color", 30)
    assert '"green", "red"' in violation.message


TOOLS = (Tool("person", parameters=PERSON), Tool("anything"))
REQUEST = Request("chat", {}, "m", (), tools=TOOLS)


def piece(index: int, name: str | None = None, arguments: str = "", choice: int = 0) -> Delta:
    return Delta(choice=choice, tool_calls=(ToolCallDelta(index, name and "id", name, arguments),))


def feed(request: Request, *deltas: Delta) -> tuple[int, str, str] | None:
    """Index of the delta that is stopped, with code and path."""
    guard = StreamGuard(request)
    for index, delta in enumerate(deltas):
        if violation := guard.feed(delta):
            return index, violation.code, violation.path
    return None


def test_arguments_of_each_call_are_guarded() -> None:
    """Fragments of several calls are followed by index, each under the schema of its tool."""
    good = (
        piece(0, "person", '{"na'),
        piece(1, "anything", '{"x'),
        piece(0, None, 'me": "a"}'),
        piece(1, None, '":1}'),
    )
    assert feed(REQUEST, *good, Delta(finish_reason="tool_calls")) is None
    assert feed(REQUEST, good[0], good[1], piece(0, None, "x")) == (2, "arguments", "$.tool_calls[0].arguments")
    assert feed(REQUEST, piece(1, "anything", "[1]")) == (0, "arguments", "$.tool_calls[1].arguments")
    wrong = feed(REQUEST, piece(0, "person", '{"name": 3'))
    assert wrong == (0, "arguments", "$.tool_calls[0].arguments.name")


def test_calls_that_may_not_be_made() -> None:
    """An unknown or forbidden name and a second call where one is allowed are stopped at once."""
    assert feed(REQUEST, piece(0, "nope")) == (0, "unknown_tool", "$.tool_calls[0].name")
    assert feed(replace(REQUEST, tool_choice=ToolChoice("none")), piece(0, "person")) is not None
    one = replace(REQUEST, parallel_tool_calls=False)
    assert feed(one, piece(0, "anything", "{}"), piece(1, "anything")) == (1, "too_many_calls", "$.tool_calls[1]")
    assert feed(replace(REQUEST, needs=frozenset({"custom_tools"})), piece(0, "shell", "ls -l")) is None
    assert feed(replace(REQUEST, needs=frozenset({"native:chat"})), piece(0, "bash", "{}")) is None


def test_structured_text_is_guarded_where_no_tool_may_be_called() -> None:
    """Text is held to response_format; beside tools it is free."""
    structured = replace(REQUEST, response_format=ResponseFormat("json_schema", PERSON), tools=())
    assert feed(structured, Delta(text='{"name"'), Delta(text=': "x"}'), Delta(finish_reason="stop")) is None
    assert feed(structured, Delta(text='{"name"'), Delta(text=": 1}")) == (1, "response_format", "$.text.name")
    assert feed(replace(structured, response_format=ResponseFormat("json_object")), Delta(text="[")) is not None
    assert feed(replace(structured, tools=TOOLS), Delta(text="Let me look.")) is None
    assert feed(replace(REQUEST, response_format=ResponseFormat()), Delta(text="free")) is None


def test_the_end_of_an_answer() -> None:
    """An answer that stops in the middle is a violation, one that was cut off is not; choices are apart."""
    start = piece(0, "person", '{"name": "x"')
    assert feed(REQUEST, start, Delta(finish_reason="stop")) == (1, "arguments", "$.tool_calls[0].arguments.name")
    assert feed(REQUEST, start, Delta(finish_reason="length")) is None
    assert feed(REQUEST, start, Delta(choice=1, finish_reason="stop")) is None
    assert feed(REQUEST, start, piece(0, "person", '{"age"', choice=1), piece(0, None, "}")) is None
