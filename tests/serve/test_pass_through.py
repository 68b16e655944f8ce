"""What the client sends reaches the provider unchanged but for the intended fields; what it answers comes back."""

from __future__ import annotations

from typing import Any, get_type_hints

import msgspec
import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsBase, CompletionCreateParamsStreaming
from recording import CHAT_FIELDS, TOOL, Loopback, answer, chat_body, events, page, sse
from running import Running, chunks, whole


def test_every_field_of_openai_has_a_value_here() -> None:
    """A field that OpenAI's client adds is missed by no test."""
    known = get_type_hints(CompletionCreateParamsBase) | get_type_hints(CompletionCreateParamsStreaming)
    assert set(known) - set(CHAT_FIELDS) == set()


@pytest.mark.parametrize("field", [*CHAT_FIELDS])
async def test_each_field_reaches_the_provider(gateway: Running, large: Loopback, field: str) -> None:
    """The provider gets the client's body; only a stream's options gain the usage that the gateway counts by."""
    body = chat_body(field)
    await gateway.chat(body)
    expected = body if not body.get("stream") else with_usage(body)
    assert large.seen[0].body == expected
    assert list(large.seen[0].body)[: len(body)] == list(body)


def with_usage(body: dict[str, Any]) -> dict[str, Any]:
    return {**body, "stream_options": {**body.get("stream_options", {}), "include_usage": True}}


@pytest.mark.parametrize("stream", [True, False])
async def test_a_model_is_mapped_and_nothing_else(gateway: Running, large: Loopback, stream: bool) -> None:
    """Where the gateway chooses the model, `model` is the only other field that changes."""
    body = {"model": "auto", "messages": CHAT_FIELDS["messages"], "tools": [TOOL], "stream": stream, "new": [None]}
    await gateway.chat(body)
    assert large.seen[0].body == (with_usage(body) if stream else body) | {"model": "big"}


async def test_words_for_the_gateway_stay_here(gateway: Running, large: Loopback) -> None:
    """Metadata and headers that are addressed to the gateway do not go upstream; the client's credentials neither."""
    metadata = {"smallfirst_task": "t", "smallfirst_episode": "e", "smallfirst_user": "u", "team": "x"}
    await gateway.chat({"metadata": metadata}, x_smallfirst_cache="skip", authorization="Bearer client-secret")
    seen = large.seen[0]
    assert seen.body["metadata"] == {"team": "x"}
    assert [name for name in seen.headers if name.startswith("x-smallfirst")] == []
    assert "client-secret" not in str(seen)


async def test_headers_for_the_provider_go_through(gateway: Running, large: Loopback) -> None:
    """The few headers that a provider must see are handed on."""
    await gateway.chat(openai_organization="org-1", openai_project="p-1")
    assert (large.seen[0].headers["openai-organization"], large.seen[0].headers["openai-project"]) == ("org-1", "p-1")


async def test_unknown_fields_of_an_answer_come_back(gateway: Running, large: Loopback) -> None:
    """A provider's answer is handed on whole, fields of tomorrow included."""
    given = whole("hi", service_tier="flex", tomorrow={"x": [1, None]})
    given["choices"][0]["message"]["annotations"] = [{"type": "url"}]
    given["choices"][0]["stop_sequence"] = "\n"
    large.handlers = [answer(given)]
    assert (await gateway.chat()).body == given


async def test_unknown_fields_of_chunks_come_back(gateway: Running, large: Loopback) -> None:
    """Each chunk of a provider's stream is handed on whole."""
    given = chunks("It is sunny", tomorrow={"x": 1}, obfuscation="abc")
    given[1]["choices"][0]["delta"]["reasoning_details"] = [{"t": 1}]
    large.handlers = [sse(events(given))]
    done = await gateway.chat({"stream": True, "stream_options": {"include_usage": True}})
    assert done.events == given
    assert done.raw.endswith(b"data: [DONE]\n\n")


async def test_responses_events_come_back(gateway: Running, large: Loopback) -> None:
    """The responses API's events are handed on whole and in order, names too."""
    usage = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}
    response = {"id": "r1", "object": "response", "status": "completed", "model": "big", "output": [], "usage": usage}
    given = [
        {"type": "response.created", "sequence_number": 0, "response": {**response, "status": "in_progress"}},
        {"type": "response.of_tomorrow", "sequence_number": 1, "x": 1},
        {"type": "response.output_text.delta", "sequence_number": 2, "item_id": "m", "output_index": 0, "delta": "hi"},
        {"type": "response.completed", "sequence_number": 3, "response": response},
    ]
    large.handlers = [sse(events(given, named=True))]
    body = {"model": "gpt-5", "input": "x", "stream": True, "store": False, "tools": [{"type": "web_search"}], "new": 1}
    done = await gateway.post("/v1/responses", body)
    assert done.events == given
    assert b"event: response.of_tomorrow\n" in done.raw
    assert large.seen[0].body == body


async def test_embeddings_choose_the_server_that_knows_the_name(
    gateway: Running, small: Loopback, large: Loopback
) -> None:
    """A name that a server hands on goes to that server; an answer keeps its status, type and bytes."""
    large.handlers = [page(b"\x00\x01", "application/octet-stream", 202)]
    done = await gateway.post("/v1/embeddings", {"model": "gpt-embed", "input": ["x"]})
    assert (done.status, done.headers["content-type"], done.raw) == (202, "application/octet-stream", b"\x00\x01")
    await gateway.post("/v1/embeddings", {"model": "tiny", "input": ["x"]})
    assert [s.body["model"] for s in small.seen] == ["tiny"]


async def test_numbers_and_text_keep_their_spelling(gateway: Running, large: Loopback) -> None:
    """Big integers, exponents and escapes arrive as the same values."""
    said = b'[{"role":"user","content":"\\u00e9\\ud83d\\ude00"}]'
    raw = b'{"model":"gpt-4o","messages":' + said + b',"seed":9007199254740993,"x":1e-7}'
    await gateway.post("/v1/chat/completions", raw)
    assert large.seen[0].body == msgspec.json.decode(raw)
