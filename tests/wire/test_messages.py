"""Anthropic Messages."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, get_type_hints

import anthropic
import pytest
from anthropic.types import Message, RawMessageStreamEvent
from anthropic.types.message_create_params import MessageCreateParamsBase
from msgspec.structs import replace
from pydantic import TypeAdapter
from samples import CALLS, CUT, MESSAGES, SCHEMA, TEXT, USAGE, ask

from smallfirst.errors import LimitError, NoAnswerError, RequestError, TooLargeError, UpstreamError
from smallfirst.types import Capabilities, Choice, Completion, Delta, ResponseFormat, ToolCall, ToolChoice, Usage
from smallfirst.wire import messages, sse
from smallfirst.wire.accumulate import Accumulator, split

USE = {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Oslo"}}
RESULT = {"type": "tool_result", "tool_use_id": "t1", "content": "cold"}


def turns(*contents: Any) -> dict[str, Any]:
    """Messages of user and assistant in turn."""
    return {"messages": [{"role": ("user", "assistant")[i % 2], "content": c} for i, c in enumerate(contents)]}


def built(request: Any) -> dict[str, Any]:
    return messages.body(request, model="m", stream=False, capabilities=Capabilities())


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": ...}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        (turns(1), "messages[0].content"),
        (turns([{"text": "x"}]), "messages[0].content[0].type"),
        (turns([{"type": "text"}]), "messages[0].content[0].text"),
        (turns([{"type": "image"}]), "messages[0].content[0].source"),
        (turns("x", [{**USE, "input": "x"}]), "messages[1].content[0].input"),
        (turns([RESULT]), "messages[0].content[0].tool_use_id"),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
        ({"tools": [{"input_schema": {}}]}, "tools[0].name"),
        ({"tool_choice": {"type": "required"}}, "tool_choice.type"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"tool_choice": {"type": "tool", "name": "gone"}}, "tool_choice.name"),
        ({"tools": ..., "tool_choice": {"type": "any"}}, "tool_choice.type"),
        ({"temperature": 1.5}, "temperature"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
        ({"metadata": {"user_id": 1}}, "metadata.user_id"),
        ({"system": [{"type": "image", "text": ""}]}, "system[0].type"),
    ],
)
def test_wrong_fields_are_named(fields: dict[str, Any], param: str) -> None:
    """A refusal's `param` is the JSON path of what is wrong."""
    with pytest.raises(RequestError) as caught:
        ask("messages", **fields)
    assert caught.value.param == param


def test_blocks_become_chat_messages() -> None:
    """System blocks, images, documents, calls and results are said in chat words; thinking stays in the body only."""
    png = {"type": "base64", "media_type": "image/png", "data": "QUJD"}
    pdf = {"type": "base64", "media_type": "application/pdf", "data": "QUJD"}
    cached = {"type": "text", "text": "b", "cache_control": {"type": "ephemeral"}}
    thinking = {"type": "thinking", "thinking": "hm", "signature": "s"}
    said = turns(
        [{"type": "image", "source": png}, {"type": "document", "source": pdf}, cached],
        [thinking, {"type": "text", "text": "ok"}, USE],
        [RESULT, {"type": "text", "text": "and?"}],
    )
    request = ask("messages", system=[{"type": "text", "text": "a"}, cached], **said)
    call = {"id": "t1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Oslo"}'}}
    data = "data:application/pdf;base64,QUJD"
    assert request.messages == (
        {"role": "system", "content": "a\n\nb"},
        {"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}},
            {"type": "file", "file": {"file_data": data, "filename": "document"}},
            {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "ok", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "t1", "content": "cold"},
        {"role": "user", "content": "and?"},
    )  # fmt: skip
    assert request.needs == {"tools", "image", "file"}
    assert request.body["messages"] == said["messages"]


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [{"type": "bash_20250124", "name": "bash"}], "tool_choice": {"type": "any"}},
        {"mcp_servers": [{"type": "url"}]},
        {"container": "c"},
        turns("x", [{"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}]),
        turns([{"type": "image", "source": {"type": "file", "file_id": "f"}}]),
    ],
)
def test_what_only_anthropic_can_do_is_a_need(fields: dict[str, Any]) -> None:
    """Anthropic's own tools, blocks and files need an upstream of this wire."""
    assert "native:messages" in ask("messages", **fields).needs


@pytest.mark.parametrize(
    ("given", "expected", "parallel"),
    [
        ({"type": "auto"}, ToolChoice(), True),
        ({"type": "none"}, ToolChoice("none"), True),
        ({"type": "any", "disable_parallel_tool_use": True}, ToolChoice("required"), False),
        ({"type": "tool", "name": "weather"}, ToolChoice("required", ("weather",)), True),
    ],
)
def test_every_form_of_tool_choice_is_understood(given: Any, expected: ToolChoice, parallel: bool) -> None:
    """auto, none, any and a named tool, with parallel use disabled or not."""
    request = ask("messages", tool_choice=given)
    assert (request.tool_choice, request.parallel_tool_calls) == (expected, parallel)


def test_a_chat_request_is_built_in_anthropics_words() -> None:
    """max_tokens has a default, temperature a smaller range, tool choice and schema their own form."""
    schema = {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}
    sent = built(ask("chat", temperature=1.7, stop="x", tool_choice="required", parallel_tool_calls=False,
                     response_format=schema))  # fmt: skip
    assert sent == {
        "model": "m",
        "max_tokens": 4096,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Weather?"}]}],
        "tools": MESSAGES["tools"],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
        "temperature": 1.0,
        "stop_sequences": ["x"],
        "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
    }
    assert "one JSON object" in built(ask("chat", response_format={"type": "json_object"}))["system"]
    assert ask("messages", output_config=sent["output_config"]).response_format == ResponseFormat(
        "json_schema", SCHEMA, strict=True
    )


def test_results_of_parallel_calls_stand_in_one_turn() -> None:
    """Anthropic refuses results of one turn's calls that are spread over several."""
    calls = [{"id": i, "type": "function", "function": {"name": "weather", "arguments": a}} for i, a in
             (("a", "{}"), ("b", "not json"))]  # fmt: skip
    said = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": None, "tool_calls": calls},
        *({"role": "tool", "tool_call_id": i, "content": i} for i in "ab"),
    ]
    sent = built(ask("chat", messages=said))["messages"]
    assert [turn["role"] for turn in sent] == ["user", "assistant", "user"]
    assert [block["tool_use_id"] for block in sent[2]["content"]] == ["a", "b"]
    assert [block["input"] for block in sent[1]["content"]] == [{}, {"arguments": "not json"}]


@pytest.mark.parametrize("field", sorted(get_type_hints(MessageCreateParamsBase)))
def test_every_field_of_the_official_client_reaches_the_upstream(field: str) -> None:
    """Each field that the anthropic package can send goes upstream untouched."""
    known: dict[str, Any] = {
        "max_tokens": 5, "messages": turns("x", "y", "z")["messages"], "model": "m", "metadata": {"user_id": "u"},
        "output_config": {"effort": "low"}, "stop_sequences": ["a"], "system": "s", "temperature": 1, "top_p": 1,
        "tool_choice": {"type": "auto"}, "tools": [{**MESSAGES["tools"][0], "cache_control": {"type": "ephemeral"}}],
    }  # fmt: skip
    request = ask("messages", **{field: known.get(field, {"some": ["value", None]})})
    assert built(request) == request.body


@pytest.mark.parametrize("completion", [TEXT, CALLS, CUT], ids=["text", "calls", "cut"])
def test_answers_are_what_the_official_client_expects(
    completion: Completion, anthropic_client: Callable[[bytes], anthropic.Anthropic]
) -> None:
    """A rendered answer validates strictly; the client's own accumulator makes the same of a written stream."""
    request = ask("messages", stream=True)
    payload = messages.render(completion, request, id="msg_1", created=1.0)
    whole = Message.model_validate(payload, strict=True)
    assert whole.usage.input_tokens == 6
    writer = messages.Writer(request, id="msg_1", created=1.0)
    data = b"".join(map(writer.feed, split(completion))) + writer.finish(completion.usage)
    for _, event in sse.Decoder().feed(data):
        TypeAdapter[Any](RawMessageStreamEvent).validate_json(event, strict=True)
    with anthropic_client(data).messages.stream(model="m", max_tokens=1, messages=[]) as stream:
        final = stream.get_final_message()
    assert (final.stop_reason, final.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens)
    assert [block.to_dict() for block in final.content] == [
        {key: value for key, value in block.to_dict().items() if value is not None} for block in whole.content
    ]
    answer = anthropic_client(json.dumps(payload).encode()).messages.create(model="m", max_tokens=1, messages=[])
    assert answer.to_dict() == payload


def test_a_call_that_was_forced_ends_with_tool_use() -> None:
    """OpenAI ends a call of a named tool with "stop"; loops of Anthropic's clients go on at tool_use only."""
    forced = Completion((replace(CALLS.choices[0], finish_reason="stop"),), USAGE, "small")
    assert messages.render(forced, ask("messages"), id="r", created=0)["stop_reason"] == "tool_use"
    writer = messages.Writer(ask("messages", stream=True), id="r", created=0)
    sent = b"".join(map(writer.feed, split(forced))) + writer.finish(USAGE)
    assert b'"stop_reason":"tool_use"' in sent


def test_a_streamed_error_reaches_the_official_client(
    anthropic_client: Callable[[bytes], anthropic.Anthropic],
) -> None:
    """An error in mid-stream is raised by the client with its message."""
    writer = messages.Writer(ask("messages", stream=True), id="r", created=1.0)
    data = writer.feed(Delta(text="Hel")) + writer.error(NoAnswerError("nothing valid"))
    stream = anthropic_client(data).messages.create(model="m", max_tokens=1, messages=[], stream=True)
    with pytest.raises(anthropic.APIStatusError, match="nothing valid"):
        list(stream)


def test_a_providers_stream_is_read_event_by_event() -> None:
    """Thinking, pings, a call without input, and usage that is said in two places."""
    usage = {"input_tokens": 6, "cache_read_input_tokens": 4, "cache_creation_input_tokens": 2, "output_tokens": 1}
    details = {"output_tokens": 5, "output_tokens_details": {"thinking_tokens": 1}}
    thinking = {"type": "thinking", "thinking": "", "signature": ""}
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": {"content": [], "model": "big", "usage": usage}},
        {"type": "content_block_start", "index": 0, "content_block": thinking},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "hm"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "s"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "ping"},
        {"type": "content_block_start", "index": 1, "content_block": {**USE, "input": {}}},
        {"type": "content_block_stop", "index": 1},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": details},
        {"type": "message_stop"},
    ]  # fmt: skip
    reader, accumulator = messages.Reader(), Accumulator()
    for event in events:
        (delta,) = reader.feed(event["type"], json.dumps(event).encode())
        assert delta.native is not None
        assert (delta.native.payload, delta.native.event) == (event, event["type"])
        accumulator.feed(delta)
    choice = Choice(reasoning="hm", tool_calls=(ToolCall("t1", "weather", "{}"),), finish_reason="tool_calls")
    assert accumulator.completion() == Completion((choice,), USAGE, "big")
    assert reader.done


@pytest.mark.parametrize(
    ("err", "kind"),
    [
        (RequestError("m"), "invalid_request_error"),
        (TooLargeError("m"), "request_too_large"),
        (LimitError("m"), "rate_limit_error"),
        (NoAnswerError("m"), "api_error"),
        (UpstreamError("m", upstream_status=401), "authentication_error"),
    ],
)
def test_errors_have_anthropics_names(err: Any, kind: str) -> None:
    """The type follows from the status."""
    assert messages.error(err) == {"type": "error", "error": {"type": kind, "message": "m"}}


def test_an_overloaded_provider_is_told_by_its_status() -> None:
    """An error event in a stream has the status that the provider's error of that type has."""
    body = {"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}
    with pytest.raises(UpstreamError, match="busy") as caught:
        messages.Reader().feed("error", json.dumps(body).encode())
    assert (caught.value.upstream_status, caught.value.body) == (529, body)


def test_reasoning_of_another_wire_is_not_shown() -> None:
    """Anthropic would refuse a thinking block that it did not sign, when the client sends it back."""
    writer = messages.Writer(ask("messages", stream=True), id="r", created=1.0)
    assert b"hm" not in writer.feed(Delta(reasoning="hm", text="x")) + writer.finish(Usage())
