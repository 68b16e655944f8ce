"""Anthropic's own API: what is sent, what comes back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any, get_args

import msgspec
import providers
import pytest
from anthropic.types.message_create_params import MessageCreateParams
from msgspec.structs import replace
from recording import Loopback, answer, events, sse

from smallfirst.backends.anthropic import AnthropicBackend
from smallfirst.errors import BackendGarbage, UpstreamError
from smallfirst.types import Delta, Origin, Request
from smallfirst.wire import chat, messages
from smallfirst.wire.accumulate import Accumulator

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TURN = [{"role": "user", "content": [{"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}}]}]

# A value for every field of Anthropic's messages request.
FIELDS: dict[str, Any] = {
    "max_tokens": 64,
    "messages": TURN,
    "cache_control": {"type": "ephemeral", "ttl": "1h"},
    "container": "c1",
    "diagnostics": {"previous_message_id": "m0"},
    "inference_geo": "eu",
    "metadata": {"user_id": "u1"},
    "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": SCHEMA}},
    "service_tier": "auto",
    "speed": "standard",
    "stop_sequences": ["END"],
    "system": [{"type": "text", "text": "Brief.", "cache_control": {"type": "ephemeral"}}],
    "temperature": 0.5,
    "thinking": {"type": "enabled", "budget_tokens": 1024},
    "tool_choice": {"type": "tool", "name": "get_weather", "disable_parallel_tool_use": True},
    "tools": [
        {"name": "get_weather", "input_schema": SCHEMA, "description": "d", "eager_input_streaming": True},
        {"type": "web_search_20250305", "name": "web_search", "max_uses": 1},
    ],
    "top_k": 5,
    "top_p": 0.9,
    "user_profile_id": "p1",
    "workspace_id": "w1",
}


@asynccontextmanager
async def backend(upstream: Loopback) -> AsyncIterator[AnthropicBackend]:
    it = AnthropicBackend("claude", upstream.url, "sk-ant-1")
    await it.start()
    yield it
    await it.close()


def request(body: dict[str, Any]) -> Request:
    whole = {"model": "client-name", "max_tokens": 64, "messages": TURN, **body}
    return messages.parse(msgspec.json.encode(whole), Origin())


async def run(it: AnthropicBackend, asked: Request) -> list[Delta]:
    async with aclosing(it.generate(asked)) as deltas:  # type: ignore[type-var]
        return [delta async for delta in deltas]


def test_the_differential_test_knows_every_field() -> None:
    """`FIELDS` has a value for each field that the official client's request type has."""
    known = {name for kind in get_args(MessageCreateParams) for name in kind.__annotations__}
    assert known <= set(FIELDS) | {"model", "stream"}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("field", sorted(FIELDS))
async def test_every_field_arrives_unchanged(upstream: Loopback, field: str, stream: bool) -> None:
    """A field of the client's request arrives as it was sent, unknown ones too; only model and stream may differ."""
    upstream.handlers = [providers.anthropic_text()]
    extra = {field: FIELDS[field], "an_unknown_field": [1, {"a": None}]}
    extra |= {"tools": FIELDS["tools"]} if field == "tool_choice" else {}
    async with backend(upstream) as it:
        await run(it, replace(request(extra), model="stage-model", stream=stream))
    (seen,) = upstream.seen
    expected = {"max_tokens": 64, "messages": TURN, **extra, "model": "stage-model"}
    assert {name: value for name, value in seen.body.items() if name != "stream"} == expected
    assert bool(seen.body.get("stream")) is stream
    assert seen.path == "/v1/messages"


async def test_the_api_s_headers(upstream: Loopback) -> None:
    """The key goes as x-api-key; the client's version and beta go along, and the version has a default."""
    upstream.handlers = [providers.anthropic_text()]
    async with backend(upstream) as it:
        await run(it, request({}))
        theirs = {"anthropic-beta": "a,b", "anthropic-version": "2030-01-01", "openai-project": "p"}
        await run(it, replace(request({}), headers=theirs))
    first, second = (seen.headers for seen in upstream.seen)
    assert (first["x-api-key"], first["anthropic-version"]) == ("sk-ant-1", "2023-06-01")
    assert "authorization" not in first
    assert (second["anthropic-version"], second["anthropic-beta"]) == ("2030-01-01", "a,b")
    assert "openai-project" not in second


async def test_chat_is_translated(upstream: Loopback) -> None:
    """A chat request with a tool is asked in Anthropic's words, and its answer comes back as a call."""
    upstream.handlers = [providers.anthropic_tool()]
    function = {"name": providers.TOOL, "description": "d", "parameters": SCHEMA}
    body = {
        "model": "x",
        "messages": [{"role": "system", "content": "Brief."}, {"role": "user", "content": "Weather?"}],
        "tools": [{"type": "function", "function": function}],
        "tool_choice": "required",
    }
    total = Accumulator()
    async with backend(upstream) as it:
        for delta in await run(it, chat.parse(msgspec.json.encode(body), Origin())):
            total.feed(delta)
    sent = upstream.seen[0].body
    assert sent["system"] == "Brief."
    assert sent["tools"][0]["input_schema"] == SCHEMA
    assert sent["tool_choice"]["type"] == "any"
    (call,) = total.completion().choices[0].tool_calls
    assert (call.name, call.arguments) == (providers.TOOL, providers.ARGUMENTS)


async def test_cached_tokens_are_input_tokens(upstream: Loopback) -> None:
    """Usage counts cached tokens among the input tokens, as prices expect, though Anthropic leaves them out."""
    upstream.handlers = [providers.anthropic_text()]
    async with backend(upstream) as it:
        (delta,) = await run(it, request({}))
    assert delta.usage is not None
    assert (delta.usage.input_tokens, delta.usage.cached_input_tokens) == (20, 16)


async def test_an_error_event_is_the_upstreams(upstream: Loopback) -> None:
    """An error event in a stream is raised with the status that its type stands for."""
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    upstream.handlers = [sse(events([{"type": "ping"}, error], named=True))]
    async with backend(upstream) as it:
        with pytest.raises(UpstreamError, match="Overloaded") as caught:
            await run(it, replace(request({}), stream=True))
    assert caught.value.upstream_status == 529


async def test_a_refusal_keeps_its_body(upstream: Loopback) -> None:
    """An HTTP error keeps Anthropic's own error object, so that its clients can be given exactly that."""
    body = {"type": "error", "error": {"type": "invalid_request_error", "message": "max_tokens: required"}}
    upstream.handlers = [answer(body, 400)]
    async with backend(upstream) as it:
        with pytest.raises(UpstreamError, match="max_tokens: required") as caught:
            await run(it, request({}))
    assert caught.value.body == body


async def test_a_stream_without_its_end_is_no_answer(upstream: Loopback) -> None:
    """A stream that ends before message_stop is an error, not a shorter answer."""
    upstream.handlers = [sse(events([{"type": "ping"}], named=True))]
    async with backend(upstream) as it:
        with pytest.raises(BackendGarbage, match="before the answer was complete"):
            await run(it, replace(request({}), stream=True))
