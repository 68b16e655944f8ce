"""OpenAI and compatible servers: what is sent, what comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any, get_args

import msgspec
import providers
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from openai.types.chat.completion_create_params import CompletionCreateParams
from recording import CHAT_FIELDS, Loopback, answer, chat_body, events, sse

from smallfirst.backends.openai import PRESETS, OpenAIBackend
from smallfirst.errors import BackendGarbage, UpstreamError
from smallfirst.types import Constraint, Delta, Origin, Request, Sampling
from smallfirst.wire import chat, messages, responses
from smallfirst.wire.accumulate import Accumulator

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION = {"name": "get_weather", "description": "d", "parameters": SCHEMA, "strict": True}

OURS = ("model", "stream", "stream_options")


@asynccontextmanager
async def backend(upstream: Loopback, preset: str = "openai") -> AsyncIterator[OpenAIBackend]:
    it = OpenAIBackend("big", f"{upstream.url}/v1", "sk-1", PRESETS[preset])
    await it.start()
    yield it
    await it.close()


def chat_request(body: dict[str, Any]) -> Request:
    return chat.parse(msgspec.json.encode({"model": "client-name", **body}), Origin())


async def run(it: OpenAIBackend, request: Request) -> list[Delta]:
    async with aclosing(it.generate(request)) as deltas:  # type: ignore[type-var]
        return [delta async for delta in deltas]


def without_ours(body: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name not in OURS}


def test_the_differential_test_knows_every_field() -> None:
    """`CHAT_FIELDS` has a value for each field that the official client's request type has, and one of no client."""
    known = {name for kind in get_args(CompletionCreateParams) for name in kind.__annotations__}
    assert set(CHAT_FIELDS) - {"a_field_of_2031"} == known


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("field", sorted(set(CHAT_FIELDS) - {"model", "stream"}))
async def test_every_field_arrives_unchanged(upstream: Loopback, field: str, stream: bool) -> None:
    """A field of the client's request arrives as it was sent; only model and stream fields are ours to change."""
    upstream.handlers = [providers.openai_text()]
    body = chat_body(field)
    request = replace(chat_request(body), model="stage-model", stream=stream)
    async with backend(upstream) as it:
        await run(it, request)
    (seen,) = upstream.seen
    assert seen.path == "/v1/chat/completions"
    assert without_ours(seen.body) == without_ours(body)
    assert seen.body["model"] == "stage-model"
    assert bool(seen.body.get("stream")) is stream
    if stream and field == "stream_options":
        assert seen.body["stream_options"] == {"include_obfuscation": False, "include_usage": True}


async def test_all_fields_at_once_arrive_unchanged(upstream: Loopback) -> None:
    """The fullest request there is arrives whole."""
    upstream.handlers = [providers.openai_text()]
    body = {name: value for name, value in CHAT_FIELDS.items() if name not in ("functions", "function_call")}
    async with backend(upstream) as it:
        await run(it, chat_request(body))
    assert without_ours(upstream.seen[0].body) == without_ours(body)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(extra=st.dictionaries(st.text(min_size=1).map("x_{}".format), json_values, max_size=4))
async def test_unknown_fields_survive(upstream: Loopback, extra: dict[str, Any]) -> None:
    """Fields that nobody has heard of arrive with their very values."""
    upstream.handlers = [providers.openai_text()]
    upstream.seen.clear()
    body = {"messages": [{"role": "user", "content": "Hi"}], **extra}
    async with backend(upstream) as it:
        await run(it, chat_request(body))
    assert without_ours(upstream.seen[0].body) == body


async def test_responses_go_natively_where_the_server_has_them(upstream: Loopback) -> None:
    """A responses request goes to /responses of OpenAI as it is, and as chat to a server without that endpoint."""
    body = {"model": "x", "input": "Hi", "reasoning": {"effort": "low"}, "include": ["reasoning.encrypted_content"]}
    request = replace(responses.parse(msgspec.json.encode(body), Origin()), model="stage-model")
    item = {
        "id": "i",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [{"type": "output_text", "text": "Hello", "annotations": []}],
    }
    whole = {"id": "r", "object": "response", "status": "completed", "model": "m", "output": [item], "usage": None}
    upstream.handlers = [answer(whole), providers.openai_text()]
    async with backend(upstream) as it:
        deltas = await run(it, request)
    async with backend(upstream, "vllm") as it:
        await run(it, request)
    native, translated = upstream.seen
    assert (native.path, without_ours(native.body)) == ("/v1/responses", without_ours(body))
    assert "".join(delta.text for delta in deltas) == "Hello"
    assert translated.path == "/v1/chat/completions"
    assert translated.body["messages"] == [{"role": "user", "content": "Hi"}]


async def test_messages_are_translated(upstream: Loopback) -> None:
    """An Anthropic request is asked as chat, with its limits in the field that this server reads."""
    upstream.handlers = [providers.openai_text()]
    body = {"model": "x", "max_tokens": 9, "system": "Brief.", "messages": [{"role": "user", "content": "Hi"}]}
    request = messages.parse(msgspec.json.encode(body), Origin())
    async with backend(upstream) as it:
        await run(it, request)
    sent = upstream.seen[0].body
    assert sent["messages"] == [{"role": "system", "content": "Brief."}, {"role": "user", "content": "Hi"}]
    assert sent["max_completion_tokens"] == 9


async def test_log_probabilities_are_asked_for(upstream: Loopback) -> None:
    """A request whose sampling wants log-probabilities asks for them, within what the server gives."""
    upstream.handlers = [providers.openai_text()]
    request = replace(
        chat_request({"messages": [{"role": "user", "content": "Hi"}]}),
        sampling=Sampling(logprobs=True, top_logprobs=50),
    )
    async with backend(upstream) as it:
        await run(it, request)
    sent = upstream.seen[0].body
    assert (sent["logprobs"], sent["top_logprobs"]) == (True, 20)


@pytest.mark.parametrize("preset", sorted(PRESETS))
async def test_constraints_go_where_they_are_honoured(upstream: Loopback, preset: str) -> None:
    """A constraint becomes a response format of servers that enforce it, over the client's own, and of no other."""
    upstream.handlers = [providers.openai_text()]
    body = {"messages": [{"role": "user", "content": "Hi"}], "response_format": {"type": "json_object"}}
    async with backend(upstream, preset) as it:
        await run(it, replace(chat_request(body), constraint=Constraint(SCHEMA)))
    sent = upstream.seen[0].body["response_format"]
    if PRESETS[preset].constraint:
        assert sent["json_schema"]["schema"] == SCHEMA
    else:
        assert sent == {"type": "json_object"}


async def test_a_constraint_leaves_tool_calls_to_the_server(upstream: Loopback) -> None:
    """With tools to call the text is not held to a schema, as calls are not in the text."""
    upstream.handlers = [providers.openai_tool()]
    body = {"messages": [{"role": "user", "content": "Hi"}], "tools": [{"type": "function", "function": FUNCTION}]}
    async with backend(upstream, "vllm") as it:
        await run(it, replace(chat_request(body), constraint=Constraint(SCHEMA)))
    assert "response_format" not in upstream.seen[0].body


async def test_an_adapter_is_a_model_by_name(upstream: Loopback) -> None:
    """A LoRA adapter is asked for by its name as the model."""
    upstream.handlers = [providers.openai_text()]
    request = replace(chat_request({"messages": [{"role": "user", "content": "Hi"}]}), adapter="weather-lora")
    async with backend(upstream, "vllm") as it:
        await run(it, request)
    assert upstream.seen[0].body["model"] == "weather-lora"


async def test_only_this_providers_headers_go_along(upstream: Loopback) -> None:
    """OpenAI's headers reach OpenAI, Anthropic's do not; one idempotency key becomes one for each distinct body."""
    upstream.handlers = [providers.openai_text()]
    first = replace(
        chat_request({"messages": [{"role": "user", "content": "Hi"}]}),
        headers={"openai-project": "p1", "anthropic-beta": "b", "idempotency-key": "k", "cookie": "c"},
    )
    async with backend(upstream) as it:
        for request in (first, first, replace(first, model="another")):
            await run(it, request)
    headers = [seen.headers for seen in upstream.seen]
    assert headers[0]["openai-project"] == "p1"
    assert not {"anthropic-beta", "cookie"} & set(headers[0])
    keys = [given["idempotency-key"] for given in headers]
    assert keys[0] == keys[1] != keys[2]
    assert all(key.startswith("k-") for key in keys)


async def test_a_whole_answer_keeps_its_native_form(upstream: Loopback) -> None:
    """An answer carries the upstream's own object, so that a chat client can be given exactly that."""
    whole = {**providers.chat_whole({"content": "Hi", "annotations": []}), "system_fingerprint": "fp", "x_new": [1]}
    upstream.handlers = [answer(whole)]
    async with backend(upstream) as it:
        (delta,) = await run(it, chat_request({"messages": [{"role": "user", "content": "Hi"}]}))
    assert delta.native is not None
    assert delta.native.payload == whole
    assert delta.usage is not None
    assert (delta.usage.input_tokens, delta.usage.cached_input_tokens) == (20, 16)


@pytest.mark.parametrize("cut", [1, 7, 64, 10_000])
async def test_a_stream_may_be_cut_anywhere(upstream: Loopback, cut: int) -> None:
    """However the network cuts a stream into pieces, the answer is the same."""
    data = events(providers.CHAT_TEXT)
    upstream.handlers = [sse(*(data[i : i + cut] for i in range(0, len(data), cut)))]
    total = Accumulator()
    async with backend(upstream) as it:
        for delta in await run(
            it, replace(chat_request({"messages": [{"role": "user", "content": "Hi"}]}), stream=True)
        ):
            total.feed(delta)
    assert total.completion().choices[0].text == providers.TEXT


async def test_a_stream_without_its_end_is_no_answer(upstream: Loopback) -> None:
    """A stream that ends politely but before [DONE] is an error, not a shorter answer."""
    upstream.handlers = [sse(events(providers.CHAT_TEXT, done=False))]
    async with backend(upstream) as it:
        with pytest.raises(BackendGarbage, match="before the answer was complete"):
            await run(it, replace(chat_request({"messages": [{"role": "user", "content": "Hi"}]}), stream=True))


async def test_an_error_inside_a_stream_is_the_upstreams(upstream: Loopback) -> None:
    """An error event in the middle of a stream is raised with the upstream's words."""
    upstream.handlers = [sse(events([*providers.CHAT_TEXT[:2], {"error": {"message": "out of memory", "code": 500}}]))]
    async with backend(upstream) as it:
        with pytest.raises(UpstreamError, match="out of memory"):
            await run(it, replace(chat_request({"messages": [{"role": "user", "content": "Hi"}]}), stream=True))


async def test_closing_a_stream_stops_the_upstream(upstream: Loopback) -> None:
    """A caller that closes the iterator early makes the upstream see the hang-up."""
    upstream.handlers = [sse(events(providers.CHAT_TEXT[:2], done=False), then="hang")]
    async with backend(upstream) as it:
        deltas = it.generate(replace(chat_request({"messages": [{"role": "user", "content": "Hi"}]}), stream=True))
        await anext(deltas)
        await deltas.aclose()  # type: ignore[attr-defined]
        await asyncio.wait_for(upstream.left.wait(), 5)


async def test_embeddings_pass_through(upstream: Loopback) -> None:
    """An embeddings body and its answer pass through byte for byte."""
    upstream.handlers = [answer({"data": [{"embedding": [0.25]}]}, x_request_id="r1")]
    async with backend(upstream) as it:
        status, headers, body = await it.embeddings(b'{"model":"e","input":"x","dimensions":1}')
    assert (status, headers["x-request-id"], body) == (200, "r1", b'{"data": [{"embedding": [0.25]}]}')
    assert upstream.seen[0].path == "/v1/embeddings"
    assert upstream.seen[0].body == {"model": "e", "input": "x", "dimensions": 1}
