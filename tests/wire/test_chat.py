"""OpenAI chat completions."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, get_type_hints

import openai
import pytest
from msgspec.structs import replace
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.chat.completion_create_params import CompletionCreateParamsBase
from samples import CALLS, CHAT, LOGPROBS, SCHEMA, TEXT, USAGE, ask

from smallfirst.errors import BackendGarbage, NotFoundError, RequestError, UpstreamError
from smallfirst.types import (
    Capabilities,
    Choice,
    Completion,
    Delta,
    Native,
    ResponseFormat,
    Sampling,
    ToolChoice,
    Usage,
)
from smallfirst.wire import chat, sse
from smallfirst.wire.accumulate import Accumulator, split

CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
USER = {"role": "user", "content": "hi"}
OTHER = {"type": "function", "function": {"name": "other"}}
CUSTOM = {"type": "custom", "custom": {"name": "shell"}}


def send(request: Any, **capabilities: Any) -> dict[str, Any]:
    return chat.body(request, model="m", stream=False, capabilities=Capabilities(**capabilities))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": ...}, "model"),
        ({"model": ""}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": ["x"]}, "messages[0]"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [USER, {"role": "user"}]}, "messages[1].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].image_url"),
        ({"messages": [USER, {"role": "tool", "tool_call_id": "c1", "content": ""}]}, "messages[1].tool_call_id"),
        ({"messages": [{"role": "function", "name": "f", "content": ""}]}, "messages[0].name"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "x"}]}]}, "messages[0].tool_calls[0].function"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        ({"tool_choice": "maybe"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "gone"}}}, "tool_choice"),
        ({"tool_choice": {"type": "what"}}, "tool_choice"),
        ({"tools": ..., "tool_choice": "required"}, "tool_choice"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"n": True}, "n"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.schema"),
    ],
)
def test_wrong_fields_are_named(fields: dict[str, Any], param: str) -> None:
    """A refusal's `param` is the JSON path of what is wrong."""
    with pytest.raises(RequestError) as caught:
        ask("chat", **fields)
    assert caught.value.param == param
    assert param in caught.value.message


def test_a_refusal_says_what_was_given_and_allowed() -> None:
    """The message holds the value given and the bound that it broke."""
    with pytest.raises(RequestError, match=r"temperature: expected `float` <= 2.0 \(given: 2.5\)"):
        ask("chat", temperature=2.5)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("auto", ToolChoice()),
        ("none", ToolChoice("none")),
        ("required", ToolChoice("required")),
        ({"type": "function", "function": {"name": "other"}}, ToolChoice("required", ("other",))),
        ({"type": "custom", "custom": {"name": "shell"}}, ToolChoice("required", ("shell",))),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [OTHER, CUSTOM]}},
            ToolChoice("auto", ("other", "shell")),
        ),
    ],
)
def test_every_form_of_tool_choice_is_understood(given: Any, expected: ToolChoice) -> None:
    """Words, a named function, a named custom tool, a set of allowed tools."""
    assert ask("chat", tools=[*CHAT["tools"], OTHER, CUSTOM], tool_choice=given).tool_choice == expected


@pytest.mark.parametrize(
    ("given", "choice", "offered"),
    [
        ("none", "none", ["weather", "other"]),
        ({"type": "function", "function": {"name": "other"}}, "named", ["weather", "other"]),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [OTHER]}}, None, ["other"]),
    ],
)  # fmt: skip
def test_tool_choice_of_another_wire_is_built(given: Any, choice: Any, offered: list[str]) -> None:
    """For a server of this wire a set of allowed tools becomes the tools offered."""
    request = ask("chat", tools=[*CHAT["tools"], OTHER], tool_choice=given)
    foreign = replace(ask("messages"), tools=request.tools, tool_choice=request.tool_choice)
    sent = send(foreign)
    named = {"type": "function", "function": {"name": "other"}}
    assert sent.get("tool_choice") == (named if choice == "named" else choice)
    assert [tool["function"]["name"] for tool in sent["tools"]] == offered


@pytest.mark.parametrize(
    ("fields", "needs"),
    [
        ({"tools": ...}, set()),
        ({"logprobs": True, "n": 2}, {"tools", "logprobs", "n"}),
        ({"tools": [CUSTOM]}, {"tools", "custom_tools", "native:chat"}),
        ({"tools": [{"type": "web_search"}]}, {"tools", "native:chat"}),
        ({"web_search_options": {"search_context_size": "low"}}, {"tools", "native:chat"}),
        ({"modalities": ["text", "audio"]}, {"tools", "native:chat"}),
        (
            {"messages": [{"role": "user", "content": [
                {"type": "image_url", "image_url": {"url": "x"}},
                {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}},
                {"type": "file", "file": {"file_data": ""}}]}]},
            {"tools", "image", "audio", "file"},
        ),
        ({"messages": [{"role": "user", "content": [{"type": "hologram"}]}]}, {"tools", "native:chat"}),
    ],
)  # fmt: skip
def test_needs_name_what_a_backend_must_be_capable_of(fields: dict[str, Any], needs: set[str]) -> None:
    """Modalities, tools, log-probabilities, several choices, and what only the wire's own provider understands."""
    assert ask("chat", **fields).needs == needs


def test_settings_arrive_in_domain_words() -> None:
    """Sampling, response format, parallel calls and streaming are read."""
    schema = {"name": "s", "schema": SCHEMA, "strict": True}
    request = ask(
        "chat", temperature=0, top_p=0.5, max_tokens=9, max_completion_tokens=7, stop="x", seed=3, n=2, logprobs=True,
        top_logprobs=4, presence_penalty=1, frequency_penalty=-1, parallel_tool_calls=False, stream=True,
        stream_options={"include_usage": True}, response_format={"type": "json_schema", "json_schema": schema},
    )  # fmt: skip
    assert request.sampling == Sampling(0, 0.5, 7, ("x",), 3, 2, True, 4, 1, -1)
    assert request.response_format == ResponseFormat("json_schema", SCHEMA, "s", True)
    assert (request.parallel_tool_calls, request.stream, request.include_usage) == (False, True, True)
    assert ask("chat", stop=["a", "b"]).sampling.stop == ("a", "b")
    assert ask("chat", response_format={"type": "json_object"}).response_format == ResponseFormat("json_object")


def test_developer_and_legacy_function_messages_are_translated() -> None:
    """Developer is system; a function's call and result are a tool's; the client's body keeps its own words."""
    messages = [
        {"role": "developer", "content": "be kind"},
        USER,
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "function", "name": "f", "content": "done"},
    ]
    request = ask("chat", messages=messages, tools=..., functions=[{"name": "f"}], function_call={"name": "f"})
    assert request.body["messages"] == messages
    call = {"id": "call_2", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    assert request.messages == (
        {"role": "system", "content": "be kind"},
        USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_2", "content": "done"},
    )
    assert request.tool_choice == ToolChoice("required", ("f",))
    assert not request.parallel_tool_calls
    assert send(request) == request.body


def test_a_client_of_functions_is_answered_in_its_words() -> None:
    """The legacy form goes out as it came in, whole and streamed."""
    request = ask("chat", tools=..., functions=[{"name": "weather"}], stream=True)
    answer = ChatCompletion.model_validate(chat.render(CALLS, request, id="r", created=1.0), strict=True)
    called = answer.choices[0].message.function_call
    assert answer.choices[0].finish_reason == "function_call"
    assert called is not None
    assert called.name == "weather"
    writer = chat.Writer(request, id="r", created=1.0)
    stream = b"".join(map(writer.feed, split(CALLS))) + writer.finish(USAGE)
    assert b'"function_call":{"name":"weather"' in stream
    reader, accumulator = chat.Reader(), Accumulator()
    for name, data in sse.Decoder().feed(stream):
        for delta in reader.feed(name, data):
            accumulator.feed(delta)
    assert accumulator.completion().choices[0].tool_calls[0].name == "weather"


VALUES: dict[str, Any] = {
    "messages": [USER], "model": "m", "frequency_penalty": 1.5, "function_call": "auto", "functions": [{"name": "f"}],
    "logprobs": True, "max_completion_tokens": 5, "max_tokens": 6, "metadata": {"a": "b"}, "n": 2, "stream": False,
    "parallel_tool_calls": False, "presence_penalty": 0.5, "response_format": {"type": "json_object"}, "seed": 1,
    "stop": ["a"], "store": True, "temperature": 0.1, "tool_choice": "none", "tools": CHAT["tools"], "top_logprobs": 2,
    "top_p": 0.3, "user": "u", "modalities": ["text"], "stream_options": {"include_usage": True, "x": 1},
}  # fmt: skip


@pytest.mark.parametrize("field", sorted(get_type_hints(CompletionCreateParamsBase)))
def test_every_field_of_the_official_client_reaches_the_upstream(field: str) -> None:
    """Each field that the openai package can send goes upstream untouched, also those that we know nothing of."""
    value = VALUES.get(field, {"some": ["value", None, 1.5]})
    extra = {"logprobs": True} if field == "top_logprobs" else {}
    request = ask("chat", **{**extra, field: value})
    sent = chat.body(request, model=request.model, stream=True, capabilities=Capabilities(stream_usage=False))
    assert sent[field] == value
    assert sent == {**request.body, "stream": True}


def test_stream_options_follow_the_stream() -> None:
    """Usage is asked for when streaming, beside the client's own options; without streaming they go."""
    request = ask("chat", stream=True, stream_options={"include_obfuscation": False})
    sent = chat.body(request, model="m", stream=True, capabilities=Capabilities())
    assert sent["stream_options"] == {"include_obfuscation": False, "include_usage": True}
    assert "stream_options" not in send(request)
    assert request.body["stream_options"] == {"include_obfuscation": False}


def test_log_probabilities_are_added_only_if_the_client_did_not_ask() -> None:
    """We ask for our own k; a client's wish stays as it is."""
    args: dict[str, Any] = {"model": "m", "stream": False, "capabilities": Capabilities(), "top_logprobs": 5}
    assert chat.body(ask("chat"), **args) == {**CHAT, "logprobs": True, "top_logprobs": 5}
    asked = ask("chat", logprobs=True, top_logprobs=1)
    assert chat.body(asked, **args) == asked.body


def test_max_tokens_of_another_wire_go_under_the_servers_field() -> None:
    """OpenAI's newer models want max_completion_tokens."""
    sent = send(ask("messages"), max_tokens_field="max_completion_tokens")
    assert sent["max_completion_tokens"] == 99
    assert "max_tokens" not in sent


def test_answers_are_what_the_official_client_expects(openai_client: Callable[[bytes], openai.OpenAI]) -> None:
    """A rendered answer validates strictly and parses in the client, with calls, usage and log-probabilities."""
    request = ask("chat", logprobs=True, top_logprobs=1)
    completion = Completion((Choice("Hello", logprobs=LOGPROBS), CALLS.choices[0]), USAGE, "small")
    payload = chat.render(completion, request, id="r1", created=7.9)
    assert ChatCompletion.model_validate(payload, strict=True).model_dump(exclude_unset=True) == payload
    answer = openai_client(json.dumps(payload).encode()).chat.completions.create(model="m", messages=[])
    assert answer.choices[0].logprobs is not None
    assert (answer.choices[0].logprobs.content or [])[0].top_logprobs[0].token == "Hel"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert (answer.usage.total_tokens, answer.usage.prompt_tokens_details.cached_tokens) == (17, 4)


def test_streams_are_what_the_official_client_expects(openai_client: Callable[[bytes], openai.OpenAI]) -> None:
    """The client's own accumulator puts a written stream together."""
    writer = chat.Writer(ask("chat", stream=True, stream_options={"include_usage": True}), id="r1", created=1.0)
    data = b"".join(map(writer.feed, split(CALLS))) + writer.finish(USAGE)
    for _, event in sse.Decoder().feed(data)[:-1]:
        ChatCompletionChunk.model_validate(json.loads(event), strict=True)
    with openai_client(data).chat.completions.stream(model="m", messages=[]) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == "Let me see."
    assert [call.function.arguments for call in final.choices[0].message.tool_calls or ()] == [
        call.arguments for call in CALLS.choices[0].tool_calls
    ]
    assert final.usage is not None
    assert final.usage.completion_tokens == USAGE.output_tokens


def test_a_streamed_error_reaches_the_official_client(openai_client: Callable[[bytes], openai.OpenAI]) -> None:
    """An error in mid-stream is raised by the client with its message."""
    writer = chat.Writer(ask("chat", stream=True), id="r1", created=1.0)
    data = writer.feed(Delta(text="Hel")) + writer.error(NotFoundError("no such model", hint="Name another."))
    stream = openai_client(data).chat.completions.create(model="m", messages=[], stream=True)
    with pytest.raises(openai.APIError, match="no such model Name another"):
        list(stream)


NATIVE: dict[str, Any] = {
    "id": "up", "object": "chat.completion", "created": 1, "model": "big", "x": 1,
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hi", "y": 2},
                 "logprobs": {"content": [{"token": "hi", "logprob": -0.1, "bytes": None, "top_logprobs": []}]}}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4},
}  # fmt: skip


def test_log_probabilities_that_only_we_asked_for_are_not_shown() -> None:
    """They are null in what the client gets, whole and streamed; a client that asked gets them."""
    accumulator = Accumulator()
    for delta in chat.read(NATIVE):
        accumulator.feed(delta)
    completion = accumulator.completion()
    assert completion.choices[0].logprobs[0].logprob == -0.1
    shown = chat.render(completion, ask("chat"), id="r", created=1.0)
    assert shown == {**NATIVE, "choices": [{**NATIVE["choices"][0], "logprobs": None}]}
    assert chat.render(completion, ask("chat", logprobs=True), id="r", created=1.0) == NATIVE
    top = [{"token": "hi", "logprob": -0.1, "bytes": None}]
    tokens = [{"token": "hi", "logprob": -0.1, "bytes": None, "top_logprobs": top}]
    ours = {**NATIVE, "choices": [{**NATIVE["choices"][0], "logprobs": {"content": tokens, "refusal": None}}]}
    completion = replace(completion, native=Native("chat", ours))
    assert chat.render(completion, ask("chat", logprobs=True, top_logprobs=1), id="r", created=1.0) == ours
    (choice,) = chat.render(completion, ask("chat", logprobs=True), id="r", created=1.0)["choices"]
    assert choice["logprobs"] == {"content": [{**tokens[0], "top_logprobs": []}], "refusal": None}
    chunk = {**NATIVE, "choices": [{"index": 0, "delta": {"content": "hi"}, "logprobs": {"content": []}}]}
    writer = chat.Writer(ask("chat", stream=True), id="r", created=1.0)
    (delta,) = chat.Reader().feed(None, json.dumps(chunk).encode())
    assert b'"logprobs":null' in writer.feed(delta)


def test_the_upstreams_usage_chunk_is_for_who_asked() -> None:
    """A usage chunk is forwarded, or made if the upstream sent none, only for a client that asked."""
    (delta,) = chat.Reader().feed(None, json.dumps({**NATIVE, "choices": []}).encode())
    assert delta.usage == Usage(3, 1)
    silent = chat.Writer(ask("chat", stream=True), id="r", created=1.0)
    assert silent.feed(delta) + silent.finish(USAGE) == b"data: [DONE]\n\n"
    asked = ask("chat", stream=True, stream_options={"include_usage": True})
    writer = chat.Writer(asked, id="r", created=1.0)
    assert (writer.feed(delta) + writer.finish(USAGE)).count(b'"usage"') == 1
    writer = chat.Writer(asked, id="r", created=1.0)
    assert writer.finish(USAGE).count(b'"prompt_tokens":12') == 1


def test_a_chunk_with_several_choices_is_forwarded_once() -> None:
    """One event gives a Delta per choice, the first of which carries it."""
    choices = [{"index": i, "delta": {"content": str(i)}} for i in range(2)]
    deltas = chat.Reader().feed(None, json.dumps({**NATIVE, "choices": choices}).encode())
    assert [(d.choice, d.text, d.native is None) for d in deltas] == [(0, "0", False), (1, "1", True)]
    writer = chat.Writer(ask("chat", stream=True), id="r", created=1.0)
    assert len(sse.Decoder().feed(b"".join(map(writer.feed, deltas)))) == 1


def test_an_answer_without_an_end_is_garbage() -> None:
    """A choice that never finished is not taken for a complete answer."""
    with pytest.raises(BackendGarbage, match="no finished choice"):
        chat.read({**NATIVE, "choices": [{"index": 0, "message": {"content": "h"}}]})


def test_an_error_object_in_an_answer_is_an_upstream_error() -> None:
    """Servers that answer 200 with an error are seen through."""
    with pytest.raises(UpstreamError, match="busy") as caught:
        chat.read({"error": {"message": "busy", "code": 529}})
    assert caught.value.upstream_status == 529


def test_text_streams_start_with_the_role() -> None:
    """The first chunk of each choice names the assistant."""
    writer = chat.Writer(ask("chat", stream=True), id="r", created=1.0)
    assert b'"role":"assistant"' in writer.feed(split(TEXT)[0])
    assert b'"role"' not in writer.feed(Delta(text="more"))
