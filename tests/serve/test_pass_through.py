"""What the client sends reaches the provider unchanged but for the intended fields; what it answers comes back."""

from __future__ import annotations

from typing import Any, get_type_hints

import msgspec
import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsBase, CompletionCreateParamsStreaming
from recording import Loopback, answer, events, page, sse
from running import TOOL, WEATHER, Running, chunks, question, whole

CUSTOM = {"type": "custom", "custom": {"name": "shell", "description": "Runs a line."}}
CALLED = {"id": "t0", "type": "function", "function": {"name": "get_weather", "arguments": '{ "city" : "Paris" }'}}
FIELDS: dict[str, Any] = {
    "messages": [
        {"role": "developer", "content": "Be brief.", "name": "dev"},
        {"role": "user", "content": [{"type": "text", "text": "Hi \u00e9\U0001f600", "cache_control": {"type": "x"}}]},
        {"role": "assistant", "content": None, "tool_calls": [CALLED], "later": 1},
        {"role": "tool", "tool_call_id": "t0", "content": "sunny"},
    ],
    "model": "gpt-5-mini",
    "audio": {"format": "wav", "voice": "alloy"},
    "frequency_penalty": 0.5,
    "function_call": "auto",
    "functions": [{"name": "get_weather", "parameters": WEATHER}],
    "logit_bias": {"50256": -100},
    "logprobs": True,
    "max_completion_tokens": 100,
    "max_tokens": 99,
    "metadata": {"team": "search"},
    "modalities": ["text"],
    "moderation": {"model": "omni-moderation-latest"},
    "n": 2,
    "parallel_tool_calls": False,
    "prediction": {"type": "content", "content": "sunny"},
    "presence_penalty": -0.25,
    "prompt_cache_key": "k",
    "prompt_cache_options": {"mode": "explicit"},
    "prompt_cache_retention": "24h",
    "reasoning_effort": "low",
    "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": WEATHER, "strict": True}},
    "safety_identifier": "s",
    "seed": 2**53 + 1,
    "service_tier": "flex",
    "stop": ["\n", "END"],
    "store": True,
    "stream": True,
    "stream_options": {"include_obfuscation": False, "include_usage": True},
    "temperature": 1.0,
    "tool_choice": {"type": "function", "function": {"name": "get_weather"}},
    "tools": [TOOL, CUSTOM],
    "top_logprobs": 3,
    "top_p": 0.9,
    "user": "u1",
    "verbosity": "low",
    "web_search_options": {"search_context_size": "low"},
    "a_field_of_2031": {"deep": [1, 2.50, None, {"x": "\u2028"}]},
}
NEEDS = {
    "function_call": ("functions",),
    "parallel_tool_calls": ("tools",),
    "stream_options": ("stream",),
    "tool_choice": ("tools",),
    "top_logprobs": ("logprobs",),
}


def test_every_field_of_openai_has_a_value_here() -> None:
    """A field that OpenAI's client adds is missed by no test."""
    known = get_type_hints(CompletionCreateParamsBase) | get_type_hints(CompletionCreateParamsStreaming)
    assert set(known) - set(FIELDS) == set()


@pytest.mark.parametrize("field", [*FIELDS])
async def test_each_field_reaches_the_provider(gateway: Running, large: Loopback, field: str) -> None:
    """The provider gets the client's body; only a stream's options gain the usage that the gateway counts by."""
    body = question(**{name: FIELDS[name] for name in (field, *NEEDS.get(field, ()))} | {"model": "gpt-5-mini"})
    await gateway.chat(body)
    expected = body if not body.get("stream") else with_usage(body)
    assert large.seen[0].body == expected
    assert list(large.seen[0].body)[: len(body)] == list(body)


def with_usage(body: dict[str, Any]) -> dict[str, Any]:
    return {**body, "stream_options": {**body.get("stream_options", {}), "include_usage": True}}


@pytest.mark.parametrize("stream", [True, False])
async def test_a_model_is_mapped_and_nothing_else(gateway: Running, large: Loopback, stream: bool) -> None:
    """Where the gateway chooses the model, `model` is the only other field that changes."""
    body = {"model": "auto", "messages": FIELDS["messages"], "tools": [TOOL], "stream": stream, "new": [None]}
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
