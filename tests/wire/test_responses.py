"""OpenAI Responses."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, get_type_hints

import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from openai.types.responses.response_create_params import ResponseCreateParamsBase
from pydantic import TypeAdapter
from samples import CALLS, CUT, LOGPROBS, RESPONSES, SCHEMA, TEXT, USAGE, ask

from smallfirst.errors import RequestError, UpstreamError
from smallfirst.types import Capabilities, Choice, Completion, Delta, ResponseFormat, ToolChoice, Usage
from smallfirst.wire import responses, sse
from smallfirst.wire.accumulate import split

CALL = {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"}
RESULT = {"type": "function_call_output", "call_id": "c1", "output": "cold"}
INCLUDE = ["message.output_text.logprobs"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ...}, "input"),
        ({"input": []}, "input"),
        ({"input": ["x"]}, "input[0]"),
        ({"input": [{"type": "reasoning", "id": "r", "summary": []}]}, "input"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0].text"),
        ({"input": [RESULT]}, "input[0].call_id"),
        ({"input": [{"type": "function_call", "call_id": "c"}]}, "input[0].name"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tool_choice": {"type": "function", "name": "gone"}}, "tool_choice"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice"),
        ({"tools": ..., "tool_choice": "required"}, "tool_choice"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"top_logprobs": 21}, "top_logprobs"),
    ],
)
def test_wrong_fields_are_named(fields: dict[str, Any], param: str) -> None:
    """A refusal's `param` is the JSON path of what is wrong."""
    with pytest.raises(RequestError) as caught:
        ask("responses", **fields)
    assert caught.value.param == param


def test_items_become_chat_messages() -> None:
    """Instructions, parts, calls of one turn and their results are said in chat words; reasoning is left out."""
    items = [
        {"role": "developer", "content": "short"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "see"},
                                                        {"type": "input_image", "image_url": "u"}]},
        {"type": "reasoning", "id": "r", "summary": []},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "ok"}]},
        CALL, {**CALL, "call_id": "c2"}, RESULT,
        {**RESULT, "call_id": "c2", "output": [{"type": "input_text", "text": "x"}]},
    ]  # fmt: skip
    request = ask("responses", input=items, instructions="be kind")
    assert [message["role"] for message in request.messages] == [
        "system", "system", "user", "assistant", "tool", "tool"
    ]  # fmt: skip
    assert request.messages[2]["content"][1] == {"type": "image_url", "image_url": {"url": "u"}}
    assert [call["id"] for call in request.messages[3]["tool_calls"]] == ["c1", "c2"]
    assert request.needs == {"tools", "image"}


@pytest.mark.parametrize(
    "fields",
    [
        {"previous_response_id": "r", "input": [RESULT]},
        {"conversation": "c"},
        {"background": True},
        {"store": True},
        {"prompt": {"id": "p"}, "input": ...},
        {"tools": [{"type": "web_search"}], "tool_choice": {"type": "web_search"}},
        {"tools": [{"type": "mcp", "server_label": "s"}], "tool_choice": "required"},
        {"tools": [{"type": "custom", "name": "shell"}]},
        {"input": [{"type": "item_reference", "id": "i"}]},
        {"input": [{"type": "shell_call_output", "call_id": "c", "output": [{"stdout": ""}]}]},
        {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
    ],
)
def test_what_only_openai_can_do_is_a_need(fields: dict[str, Any]) -> None:
    """Stored state and hosted tools need an upstream of this wire."""
    assert "native:responses" in ask("responses", **fields).needs


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("auto", ToolChoice()),
        ("none", ToolChoice("none")),
        ("required", ToolChoice("required")),
        ({"type": "function", "name": "weather"}, ToolChoice("required", ("weather",))),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "weather"}]},
            ToolChoice("required", ("weather",)),
        ),
    ],
)
def test_every_form_of_tool_choice_is_understood(given: Any, expected: ToolChoice) -> None:
    """Words, a named function, a set of allowed tools."""
    assert ask("responses", tool_choice=given).tool_choice == expected


def test_settings_arrive_in_domain_words_and_go_out_again() -> None:
    """Text format, limits, log-probabilities and parallel calls are read, and built for an upstream of this wire."""
    wanted = {"type": "json_schema", "name": "s", "schema": SCHEMA, "strict": True}
    request = ask("responses", text={"format": wanted}, max_output_tokens=5, include=INCLUDE, top_logprobs=2,
                  parallel_tool_calls=False, temperature=0.5, top_p=0.5)  # fmt: skip
    assert request.response_format == ResponseFormat("json_schema", SCHEMA, "s", True)
    assert (request.sampling.max_tokens, request.sampling.logprobs, request.sampling.top_logprobs) == (5, True, 2)
    foreign = ask("chat", response_format={"type": "json_schema", "json_schema": wanted}, max_tokens=5, logprobs=True,
                  top_logprobs=2, parallel_tool_calls=False, temperature=0.5, top_p=0.5)  # fmt: skip
    sent = responses.body(foreign, model="m", stream=False, capabilities=Capabilities())
    said = [{"type": "message", "role": "user", "content": "Weather?"}]
    assert sent == {**request.body, "input": said, "store": False}


@pytest.mark.parametrize("field", sorted(get_type_hints(ResponseCreateParamsBase)))
def test_every_field_of_the_official_client_reaches_the_upstream(field: str) -> None:
    """Each field that the openai package can send goes upstream untouched."""
    known: dict[str, Any] = {
        "input": [{"role": "user", "content": "x"}], "model": "m", "include": INCLUDE, "instructions": "i", "user": "u",
        "max_output_tokens": 9, "metadata": {"a": "b"}, "parallel_tool_calls": False, "temperature": 1, "top_p": 1,
        "text": {"format": {"type": "text"}, "verbosity": "low"}, "tool_choice": "auto", "tools": RESPONSES["tools"],
        "top_logprobs": 3,
    }  # fmt: skip
    request = ask("responses", **{field: known.get(field, {"some": ["value", None]})})
    sent = responses.body(request, model="m", stream=True, capabilities=Capabilities())
    assert sent == {**request.body, "stream": True}


@pytest.mark.parametrize(
    "completion",
    [TEXT, CALLS, CUT, Completion((Choice("Hello", logprobs=LOGPROBS),)), Completion((Choice(refusal="no"),))],
    ids=["text", "calls", "cut", "logprobs", "refusal"],
)
def test_answers_are_what_the_official_client_expects(
    completion: Completion, openai_client: Callable[[bytes], openai.OpenAI]
) -> None:
    """A rendered answer validates strictly; a written stream's events do too, and end in the same response."""
    request = ask("responses", stream=True, include=INCLUDE, top_logprobs=1)
    payload = responses.render(completion, request, id="resp_1", created=1.0)
    whole = Response.model_validate(payload, strict=True)
    writer = responses.Writer(request, id="resp_1", created=1.0)
    data = b"".join(map(writer.feed, split(completion))) + writer.finish(completion.usage)
    events = [json.loads(event) for _, event in sse.Decoder().feed(data)]
    for event in events:
        TypeAdapter[Any](ResponseStreamEvent).validate_python(event, strict=True)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[-1]["response"] == payload
    assert events[-1]["type"] == f"response.{whole.status}"
    if whole.status == "completed":
        with openai_client(data).responses.stream(model="m", input="") as stream:
            assert stream.get_final_response().output_text == whole.output_text
    answer = openai_client(json.dumps(payload).encode()).responses.create(model="m", input="")
    assert answer.output_text == completion.choices[0].text


def test_events_come_in_the_documented_order() -> None:
    """Each item and part is added, written, and done."""
    writer = responses.Writer(ask("responses", stream=True), id="r", created=1.0)
    data = b"".join(map(writer.feed, split(CALLS))) + writer.finish(USAGE)
    kinds = [str(name).removeprefix("response.") for name, _ in sse.Decoder().feed(data)]
    call = ["output_item.added", "function_call_arguments.delta"]
    done = ["function_call_arguments.done", "output_item.done"]
    assert kinds == [
        "created", "in_progress", "output_item.added", "content_part.added", "output_text.delta", *call, *call,
        "output_text.done", "content_part.done", "output_item.done", *done, *done, "completed",
    ]  # fmt: skip


def test_arguments_that_come_only_at_the_end_are_read() -> None:
    """Servers that send a call's arguments without pieces are understood, and their unknown events are kept."""
    reader = responses.Reader()
    events: list[dict[str, Any]] = [
        {"type": "response.output_item.added", "output_index": 3, "item": {**CALL, "arguments": ""}},
        {"type": "response.function_call_arguments.done", "output_index": 3, "arguments": "{}"},
        {"type": "response.web_search_call.searching"},
    ]
    deltas = [delta for event in events for delta in reader.feed(event["type"], json.dumps(event).encode())]
    assert [call.arguments for delta in deltas for call in delta.tool_calls] == ["", "{}"]
    assert [delta.native and delta.native.payload for delta in deltas] == events


def test_usage_is_read_with_its_details() -> None:
    """Cached, cache-written and reasoning tokens arrive."""
    payload = responses.render(TEXT, ask("responses"), id="r", created=1.0)
    assert responses.read(payload)[0].usage == USAGE
    assert responses.read({**payload, "usage": None})[0].usage is None


def test_a_failed_response_is_an_upstream_error() -> None:
    """Whole or streamed, a failed response is no answer."""
    failed = {"error": {"code": "server_error", "message": "broke"}, "output": [], "status": "failed"}
    with pytest.raises(UpstreamError, match="broke"):
        responses.read(failed)
    with pytest.raises(UpstreamError, match="broke"):
        responses.Reader().feed(None, json.dumps({"type": "response.failed", "response": failed}).encode())


def test_reasoning_of_another_wire_is_not_shown() -> None:
    """OpenAI would refuse a reasoning item that it did not make, when the client sends it back."""
    writer = responses.Writer(ask("responses", stream=True), id="r", created=1.0)
    stream = writer.feed(Delta(reasoning="hm", text="x")) + writer.finish(Usage())
    assert b"hm" not in stream
