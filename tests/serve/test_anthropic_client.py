"""The official Anthropic client works against the gateway, whatever model answers."""

from __future__ import annotations

from typing import Any

import anthropic
import pytest
from recording import WEATHER, Loopback, answer
from running import Running, Start, cascade, says

ASK: Any = [{"role": "user", "content": "Weather in Paris?"}]
TOOL: Any = {"name": "get_weather", "description": "Weather", "input_schema": WEATHER}


@pytest.fixture
async def gateway(start: Start) -> Running:
    """A gateway whose chat-only small model answers everything."""
    return await start(cascade("small_only", stages=["small"]))


async def test_message(gateway: Running, small: Loopback) -> None:
    """A message is answered by a model that speaks chat, with the system text in its place."""
    async with gateway.anthropic() as client:
        done = await client.messages.create(model="auto", max_tokens=50, system="Be brief.", messages=ASK)
    assert (done.content[0].text, done.stop_reason) == ("small", "end_turn")  # type: ignore[union-attr]
    assert (done.usage.input_tokens, done.usage.output_tokens) == (10, 5)
    assert small.seen[0].body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert small.seen[0].body["max_tokens"] == 50


async def test_stream(gateway: Running, small: Loopback) -> None:
    """A stream ends with the whole message."""
    small.handlers = [says("It is sunny")]
    async with (
        gateway.anthropic() as client,
        client.messages.stream(model="auto", max_tokens=50, messages=ASK) as stream,
    ):
        text = "".join([piece async for piece in stream.text_stream])
        final = await stream.get_final_message()
    assert text == final.content[0].text == "Itissunny"  # type: ignore[union-attr]
    assert final.usage.output_tokens == 5


@pytest.mark.parametrize("stream", [True, False])
async def test_tools_round_trip(gateway: Running, small: Loopback, stream: bool) -> None:
    """A tool's use reaches the client, and its result the model."""
    small.handlers = [says(None, ("get_weather", '{"city":"Paris"}')), says("Sunny.")]
    asked: Any = {"model": "auto", "max_tokens": 50, "tools": [TOOL]}
    async with gateway.anthropic() as client:
        if stream:
            async with client.messages.stream(**asked, messages=ASK) as events:
                first = await events.get_final_message()
        else:
            first = await client.messages.create(**asked, messages=ASK)
        use: Any = first.content[0]
        result = {"type": "tool_result", "tool_use_id": use.id, "content": "sunny"}
        said = [*ASK, {"role": "assistant", "content": [use.to_dict()]}, {"role": "user", "content": [result]}]
        done = await client.messages.create(**asked, messages=said)
    assert (first.stop_reason, use.name, use.input) == ("tool_use", "get_weather", {"city": "Paris"})
    assert done.content[0].text == "Sunny."  # type: ignore[union-attr]
    assert small.seen[1].body["messages"][-1] == {"role": "tool", "tool_call_id": use.id, "content": "sunny"}


async def test_images_to_a_model_without_eyes(gateway: Running, small: Loopback) -> None:
    """An image for a model without eyes is a clear 400 in Anthropic's shape; the model is not asked."""
    source = {"type": "base64", "media_type": "image/png", "data": "AA=="}
    said: Any = [{"role": "user", "content": [{"type": "image", "source": source}]}]
    async with gateway.anthropic() as client:
        with pytest.raises(anthropic.BadRequestError, match="image") as caught:
            await client.messages.create(model="auto", max_tokens=50, messages=said)
    assert caught.value.body["type"] == "error"  # type: ignore[index, call-overload]
    assert small.seen == []


async def test_errors_are_anthropics(gateway: Running, small: Loopback) -> None:
    """An OpenAI provider's refusal reaches the client in Anthropic's shape and status."""
    small.handlers = [answer({"error": {"message": "Slow down.", "type": "rate", "code": None}}, 429, retry_after="7")]
    async with gateway.anthropic() as client:
        with pytest.raises(anthropic.RateLimitError, match="Slow down") as caught:
            await client.messages.create(model="auto", max_tokens=50, messages=ASK)
    assert caught.value.response.headers["retry-after"] == "7"
    assert caught.value.body["error"]["type"] == "rate_limit_error"  # type: ignore[index, call-overload]


async def test_a_provider_of_anthropics_own(start: Start, large: Loopback) -> None:
    """With an Anthropic provider the client's body and the provider's answer go through as they are."""
    given = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-9",
        "content": [{"type": "text", "text": "Bonjour", "citations": None}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 3, "output_tokens": 2, "service_tier": "standard"},
        "later_field": {"x": 1},
    }
    large.handlers = [answer(given)]
    provider = f'[models.claude]\nbackend = "anthropic"\nbase_url = "{large.url}"\nmodels = ["claude-*"]\n'
    gateway = await start(provider, cascade("observe", stages=["claude"]))
    body = {"model": "claude-9", "max_tokens": 5, "messages": ASK, "system": [{"type": "text", "text": "x"}], "new": 1}
    done = await gateway.post("/v1/messages", body, anthropic_beta="b1")
    assert done.body == given
    assert large.seen[0].body == body
    assert large.seen[0].headers["anthropic-beta"] == "b1"
