"""An answer is checked against what its request and its task ask for."""

from __future__ import annotations

import json
import sys
import types
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from smallfirst.errors import ConfigError, RequestError, TooLargeError
from smallfirst.types import (
    Choice,
    Completion,
    FinishReason,
    Request,
    ResponseFormat,
    Sampling,
    Tool,
    ToolCall,
    ToolChoice,
    Verdict,
)
from smallfirst.validators import check_schemas, repair_messages, task_validator, validate

WEATHER = Tool(
    "weather",
    parameters={
        "type": "object",
        "properties": {
            "city": {"type": "string", "minLength": 2},
            "unit": {"enum": ["celsius", "fahrenheit"]},
            "day": {"type": "string", "format": "date"},
            "where": {"anyOf": [{"type": "integer"}, {"type": "object", "required": ["lat"]}]},
        },
        "required": ["city"],
        "additionalProperties": False,
    },
)
SEARCH = Tool("search")
REQUEST = Request("chat", {}, "small", ({"role": "user", "content": "hi"},), tools=(WEATHER, SEARCH))
PERSON = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
STRUCTURED = replace(REQUEST, tools=(), response_format=ResponseFormat("json_schema", PERSON))


def calls(*made: tuple[str, Any]) -> Choice:
    """A choice that calls tools; arguments that are not text are written as JSON."""
    written = [(name, args if isinstance(args, str) else json.dumps(args)) for name, args in made]
    return Choice(tool_calls=tuple(ToolCall(f"c{i}", n, a) for i, (n, a) in enumerate(written)))


def verdict(choice: Choice, request: Request = REQUEST, *specs: dict[str, str]) -> Verdict:
    return validate(Completion((choice,)), request, tuple(task_validator(spec) for spec in specs))


def codes(choice: Choice, request: Request = REQUEST, *specs: dict[str, str]) -> list[str]:
    return [violation.code for violation in verdict(choice, request, *specs).violations]


def only(choice: Choice, request: Request = REQUEST, *specs: dict[str, str]) -> tuple[str, str, str]:
    (violation,) = verdict(choice, request, *specs).violations
    return violation.code, violation.path, violation.message


def test_a_right_call_and_a_text_are_valid() -> None:
    """Tools may be called rightly or not at all."""
    assert verdict(calls(("weather", {"city": "Rome", "unit": "celsius"}))).ok
    assert verdict(calls(("search", {"anything": [1]}), ("weather", {"city": "Rome"}))).ok
    assert verdict(Choice(text="Hello")).ok


@pytest.mark.parametrize(
    ("arguments", "path", "said"),
    [
        ({}, "", '"city" is missing'),
        ({"city": "Rome", "unit": "kelvin"}, ".unit", 'is not one of "celsius", "fahrenheit"'),
        ({"city": 5}, ".city", "5 is not of type string"),
        ({"city": "Rome", "town": 1}, "", '"town"'),
        ({"city": "Rome", "day": "2024-02-30"}, ".day", "is not a valid date"),
        ({"city": "R"}, ".city", "shorter than 2"),
        ({"city": "Rome", "where": {"lon": 1}}, ".where", 'the field "lat" is missing'),
        ([], "", "must be a JSON object, not []"),
        ("{'city': 1}", "", "must be JSON and nothing else"),
        ('{"city": "Rome", "city": "Bonn"}', "", 'the key "city" is repeated'),
    ],
)
def test_wrong_arguments_are_named(arguments: Any, path: str, said: str) -> None:
    """A violation says where in the arguments something is wrong and what is allowed."""
    code, where, message = only(calls(("weather", arguments)))
    assert (code, where) == ("arguments", f"$.tool_calls[0].arguments{path}")
    assert said in message
    assert len(message) <= 300


def test_several_faults_are_all_reported_up_to_a_limit() -> None:
    """Each fault of one value is a violation, but never more than eight."""
    assert codes(calls(("weather", {"city": 1, "unit": "k"}))) == ["arguments"] * 2
    many = replace(REQUEST, tools=(Tool("f", parameters={"items": {}, "additionalProperties": {"type": "null"}}),))
    assert len(codes(calls(("f", {str(i): i for i in range(50)})), many)) == 8


def test_unknown_and_forbidden_tools() -> None:
    """A name must exist and be allowed by tool_choice; the message lists what is allowed."""
    code, path, message = only(calls(("wether", {})))
    assert (code, path) == ("unknown_tool", "$.tool_calls[0].name")
    assert 'allowed: "weather", "search"' in message
    named = replace(REQUEST, tool_choice=ToolChoice("required", ("search",)))
    assert codes(calls(("weather", {"city": "Rome"})), named) == ["tool_not_allowed"]
    assert codes(calls(("search", {})), named) == []
    assert codes(calls(("search", {})), replace(REQUEST, tool_choice=ToolChoice("none"))) == ["tool_not_allowed"]
    assert codes(calls(("search", {})), replace(REQUEST, tools=())) == ["unknown_tool"]


def test_custom_tools_are_not_judged_by_name() -> None:
    """Where the request has tools that are no functions, an unknown name may be one of them."""
    assert codes(calls(("shell", "ls")), replace(REQUEST, needs=frozenset({"custom_tools"}))) == []


def test_what_only_the_provider_understands_is_not_judged() -> None:
    """With hosted tools an answer may hold just a call of one, and a name may be that of a tool typed by the wire."""
    hosted = replace(REQUEST, needs=frozenset({"native:chat"}), tool_choice=ToolChoice("required"))
    assert (
        codes(Choice(), hosted) == codes(Choice(), replace(hosted, response_format=ResponseFormat("json_object"))) == []
    )
    assert codes(calls(("bash", {"command": "ls"})), hosted) == []
    assert codes(calls(("weather", {"city": 1})), hosted) == ["arguments"]
    assert codes(Choice(), replace(hosted, needs=frozenset({"native:messages", "tools"}))) == ["empty", "tool_required"]


def test_required_and_single_calls() -> None:
    """ "required" asks for a call; parallel_tool_calls false allows one at most."""
    required = replace(REQUEST, tool_choice=ToolChoice("required"))
    assert codes(Choice(text="no"), required) == ["tool_required"]
    assert codes(calls(("search", {})), required) == []
    single = replace(REQUEST, parallel_tool_calls=False)
    assert codes(calls(("search", {}), ("search", {})), single) == ["too_many_calls"]
    assert codes(calls(("search", {})), single) == []


def test_empty_answers() -> None:
    """An answer needs text, a call or a refusal."""
    assert codes(Choice(text=" \n")) == ["empty"]
    assert codes(Choice(refusal="I cannot.")) == []
    assert validate(Completion(()), REQUEST).violations[0].code == "empty"


@pytest.mark.parametrize(("reason", "code"), [("length", "truncated"), ("content_filter", "content_filter")])
def test_a_cut_off_answer_is_only_that(reason: FinishReason, code: str) -> None:
    """What was cut off is reported as such and its contents are not judged."""
    cut = replace(calls(("weather", '{"city": "Ro')), finish_reason=reason)
    assert codes(cut, replace(REQUEST, sampling=Sampling(max_tokens=4))) == [code]


def test_structured_text() -> None:
    """response_format holds the text to JSON, to an object, or to a schema."""
    assert verdict(Choice(text='{"name": "Ada"}'), STRUCTURED).ok
    assert only(Choice(text='{"name": 3}'), STRUCTURED)[:2] == ("response_format", "$.text.name")
    assert codes(Choice(text='```json\n{"name": "Ada"}\n```'), STRUCTURED) == ["response_format"]
    json_object = replace(STRUCTURED, response_format=ResponseFormat("json_object"))
    assert codes(Choice(text="[1]"), json_object) == ["response_format"]
    assert codes(Choice(text='{"x": 1}'), json_object) == []
    assert codes(Choice(refusal="no"), STRUCTURED) == []


def test_a_call_stands_in_for_structured_text() -> None:
    """Beside a tool call the text is not held to response_format."""
    request = replace(REQUEST, response_format=ResponseFormat("json_schema", PERSON))
    assert codes(replace(calls(("search", {})), text="I look it up."), request) == []


def test_every_choice_is_checked() -> None:
    """With n > 1 a violation names its choice."""
    found = validate(Completion((Choice(text="a"), calls(("nope", {})))), REQUEST).violations
    assert [violation.path for violation in found] == ["$.choices[1].tool_calls[0].name"]


def test_empty_arguments_are_no_arguments() -> None:
    """Some servers send empty text for a call without arguments: it is judged as an empty object."""
    free, bound = Tool("ping", "", {"type": "object"}), Tool("ping", "", {"type": "object", "required": ["a"]})
    called = Completion((Choice(tool_calls=(ToolCall("c", "ping", ""),), finish_reason="tool_calls"),))
    verdicts = [validate(called, Request("chat", {}, "m", (), tools=(tool,))) for tool in (free, bound)]
    assert [v.ok for v in verdicts] == [True, False]


@given(st.text(), st.text(max_size=30))
def test_any_answer_gets_a_verdict(arguments: str, name: str) -> None:
    """No answer, however odd, raises; messages stay short."""
    choice = Choice(text=arguments, tool_calls=(ToolCall("1", "weather", arguments), ToolCall("2", name, arguments)))
    for request in (REQUEST, replace(STRUCTURED, tools=(WEATHER,))):
        found = validate(Completion((choice, Choice(text=arguments))), request)
        assert all(len(violation.message) <= 300 for violation in found.violations)


def test_schemas_of_a_request_are_checked_beforehand() -> None:
    """An unusable schema names its field, and so does one that is not for an object."""
    bad = Tool("bad", parameters={"type": "objekt"})
    with pytest.raises(RequestError) as caught:
        check_schemas(replace(REQUEST, tools=(WEATHER, bad)))
    assert caught.value.param == "tools[1].function.parameters"
    with pytest.raises(RequestError, match="arguments of a tool are an object"):
        check_schemas(replace(REQUEST, tools=(Tool("f", parameters={"type": "string"}),)))
    with pytest.raises(RequestError) as caught:
        check_schemas(replace(STRUCTURED, response_format=ResponseFormat("json_schema", {"required": 1})))
    assert caught.value.param == "response_format.json_schema.schema"
    check_schemas(REQUEST)
    check_schemas(STRUCTURED)


def test_all_schemas_together_are_bounded() -> None:
    """Many large schemas are too large even where each is allowed."""
    large = {"type": "object", "description": "x" * 400_000}
    with pytest.raises(TooLargeError):
        check_schemas(replace(REQUEST, tools=tuple(Tool(f"t{i}", parameters=large) for i in range(12))))


def test_regex() -> None:
    """A text, or a named argument, holds a match of the pattern."""
    spec = {"kind": "regex", "pattern": "^[A-Z]{2}$"}
    assert codes(Choice(text="DE"), REQUEST, spec) == []
    assert only(Choice(text="Germany"), REQUEST, spec)[:2] == ("regex", "$.text")
    assert codes(Choice(text="a" * 30 + "!"), REQUEST, {"kind": "regex", "pattern": "(a+)+(?!b)c"}) == ["regex"]


def test_an_argument_is_selected_by_name() -> None:
    """`at` reaches into the arguments of every call that has them, and into lists."""
    spec = {"kind": "regex", "pattern": "^x", "at": "arguments.filters.term"}
    answer = calls(("search", {"filters": [{"term": "x1"}, {"term": "y"}, {"other": 1}]}), ("search", {"filters": 5}))
    assert only(answer, REQUEST, spec)[1] == "$.tool_calls[0].arguments.filters[1].term"
    assert "is not a string" in only(calls(("search", {"filters": {"term": 7}})), REQUEST, spec)[2]
    assert codes(calls(("search", "no json")), REQUEST, spec) == ["arguments"]


@pytest.mark.parametrize(
    "text", ["select a from t", "with x as (select 1) select * from x", "(select 1)", "delete from t; drop table t"]
)
def test_sql_is_accepted(text: str) -> None:
    """Statements are SQL."""
    assert codes(Choice(text=text), REQUEST, {"kind": "sql"}) == []


@pytest.mark.parametrize("text", ["hello world", "select * from", "'", "42", ";", "select " + "(" * 5000])
def test_what_is_not_sql_is_not_accepted(text: str) -> None:
    """A sentence, a fragment or a bare expression is no SQL statement."""
    assert codes(Choice(text=text), REQUEST, {"kind": "sql"}) == ["sql"]


def test_sql_knows_dialects() -> None:
    """The dialect decides what parses, and must be known."""
    text = "select `a` from `t`"
    assert codes(Choice(text=text), REQUEST, {"kind": "sql", "dialect": "mysql"}) == []
    assert codes(Choice(text=text), REQUEST, {"kind": "sql", "dialect": "postgres"}) == ["sql"]
    with pytest.raises(ConfigError, match="klingon"):
        task_validator({"kind": "sql", "dialect": "klingon"})


def test_python() -> None:
    """Source that parses is accepted, without a warning for its style and without being run."""
    spec = {"kind": "python"}
    assert codes(Choice(text="import re\nre.match('\\d', x)"), REQUEST, spec) == []
    for text in ("def f(:", "x = '\0'", "(" * 500, "-" * 100_000 + "1"):
        assert codes(Choice(text=text), REQUEST, spec) == ["python"]


@pytest.fixture
def user_module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("user_checks")
    monkeypatch.setitem(sys.modules, "user_checks", module)
    return module


def _raise(request: Request, choice: Choice) -> None:
    raise KeyError(choice.text)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda request, choice: None, []),
        (lambda request, choice: "too rude", ["function"]),
        (lambda request, choice: ["a", "b"], ["function"] * 2),
        (lambda request, choice: True, ["validator_error"]),
        (_raise, ["validator_error"]),
    ],
)
def test_a_users_function_fails_closed(user_module: types.ModuleType, function: Any, expected: list[str]) -> None:
    """None is valid, sentences are violations, and anything else counts as a failed check."""
    user_module.check = function  # type: ignore[attr-defined]
    assert codes(Choice(text="x"), REQUEST, {"kind": "function", "function": "user_checks:check"}) == expected


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"kind": "xml"},
        {"kind": "regex"},
        {"kind": "regex", "pattern": "("},
        {"kind": "regex", "pattern": "a", "dialect": "x"},
        {"kind": "regex", "pattern": 5},
        {"kind": "python", "at": "arguments"},
        {"kind": "python", "at": "body.x"},
        {"kind": "function", "function": "no_such_module:f"},
        {"kind": "function", "function": "json:no_such_name"},
        {"kind": "function", "function": ""},
    ],
)
def test_a_wrong_configuration_is_refused(spec: dict[str, Any]) -> None:
    """Unknown kinds and keys, missing ones and unusable values are ConfigErrors at the start."""
    with pytest.raises(ConfigError):
        task_validator(spec)


def test_keys_left_empty_are_not_given() -> None:
    """A configuration table with empty and default keys equals one without them."""
    spec = {"kind": "python", "at": "text", "pattern": "", "dialect": "", "function": ""}
    assert codes(Choice(text="("), REQUEST, spec) == ["python"]


def test_a_repair_quotes_answer_and_faults() -> None:
    """The model sees its own answer and what was wrong, as plain text of bounded length."""
    answer = Completion((calls(("weather", {"city": 1, "pad": "y" * 5000})),))
    own, fault = repair_messages(REQUEST, answer, validate(answer, REQUEST))
    assert (own["role"], fault["role"]) == ("assistant", "user")
    assert own["content"].startswith('{"name": "weather", "arguments": ')
    assert len(own["content"]) <= 2000
    assert "1 is not of type string" in fault["content"]
    assert "tool call" in fault["content"]
    empty = Completion((Choice(),))
    assert repair_messages(REQUEST, empty, validate(empty, REQUEST))[0]["content"] == "(nothing)"
