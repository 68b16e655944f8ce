"""The official OpenAI client works against the gateway as it does against OpenAI."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from pydantic import BaseModel
from recording import TOOL, WEATHER, Loopback, answer, events, sse
from running import CITY_FORMAT, Running, a_response, cascade, chunks, says, whole

ASK: list[Any] = [{"role": "user", "content": "Weather in Paris?"}]
PARIS = ("get_weather", '{"city":"Paris"}')
ROME = ("get_weather", '{"city":"Rome"}')


class City(BaseModel):
    """What `.parse()` should return."""

    city: str


async def test_chat_completion(gateway: Running) -> None:
    """A plain completion comes back as the client's own type, with usage and the gateway's headers."""
    async with gateway.openai() as client:
        raw = await client.chat.completions.with_raw_response.create(model="auto", messages=ASK)
    done = raw.parse()
    assert (done.choices[0].message.content, done.usage and done.usage.total_tokens) == ("large", 15)
    assert raw.headers["x-smallfirst-reason"] == "uncalibrated"


@pytest.mark.parametrize("include_usage", [True, False])
async def test_chat_stream(gateway: Running, large: Loopback, include_usage: bool) -> None:
    """A stream has every piece, and its usage exactly when the client asked for it."""
    large.handlers = [says("It is sunny")]
    async with gateway.openai() as client:
        stream = await client.chat.completions.create(
            model="auto", messages=ASK, stream=True, stream_options={"include_usage": include_usage}
        )
        got = [chunk async for chunk in stream]
    assert "".join(c.choices[0].delta.content or "" for c in got if c.choices) == "Itissunny"
    assert [c.usage.total_tokens for c in got if c.usage] == ([15] if include_usage else [])


async def test_tools_round_trip(gateway: Running, large: Loopback) -> None:
    """Parallel calls reach the client, and their results reach the model as the client sent them."""
    large.handlers = [says(None, PARIS, ROME), says("Sunny in both.")]
    async with gateway.openai() as client:
        async with client.chat.completions.stream(model="auto", messages=ASK, tools=[TOOL]) as stream:  # type: ignore[list-item]
            first = (await stream.get_final_completion()).choices[0].message
        calls = [c for c in first.tool_calls or [] if c.type == "function"]
        results = [{"role": "tool", "tool_call_id": c.id, "content": "sunny"} for c in calls]
        said = [*ASK, first.model_dump(exclude_none=True, exclude={"parsed"}), *results]
        done = await client.chat.completions.create(model="auto", messages=said, tools=[TOOL])  # type: ignore[list-item]
    assert [c.function.arguments for c in calls] == [PARIS[1], ROME[1]]
    assert done.choices[0].message.content == "Sunny in both."
    assert [m["tool_call_id"] for m in large.seen[1].body["messages"] if m["role"] == "tool"] == [c.id for c in calls]


@pytest.mark.parametrize(
    ("choice", "answered"),
    [
        ("auto", says("No.")),
        ("none", says("No.")),
        ("required", says(None, PARIS)),
        ({"type": "function", "function": {"name": "get_weather"}}, says(None, PARIS)),
        (
            {
                "type": "allowed_tools",
                "allowed_tools": {
                    "mode": "auto",
                    "tools": [{"type": "function", "function": {"name": "get_weather"}}],
                },
            },
            says(None, PARIS),
        ),
    ],
    ids=["auto", "none", "required", "named", "allowed"],
)
async def test_tool_choice_forms(gateway: Running, large: Loopback, choice: Any, answered: Any) -> None:
    """Every form of `tool_choice` is understood and handed on as it is."""
    large.handlers = [answered]
    async with gateway.openai() as client:
        await client.chat.completions.create(model="auto", messages=ASK, tools=[TOOL], tool_choice=choice)  # type: ignore[list-item]
    assert large.seen[0].body["tool_choice"] == choice


async def test_parse_structured_output(gateway: Running, large: Loopback) -> None:
    """`.parse()` sends a JSON Schema and gets the user's own type back."""
    large.handlers = [says('{"city": "Paris"}')]
    async with gateway.openai() as client:
        done = await client.chat.completions.parse(model="auto", messages=ASK, response_format=City)
    assert done.choices[0].message.parsed == City(city="Paris")
    assert large.seen[0].body["response_format"]["json_schema"]["strict"] is True


async def test_parse_responses(gateway: Running, large: Loopback) -> None:
    """`responses.parse()` works too."""
    large.handlers = [answer(a_response('{"city": "Paris"}'))]
    async with gateway.openai() as client:
        done = await client.responses.parse(model="auto", input="Where?", text_format=City)
    assert done.output_parsed == City(city="Paris")


async def test_sampling_reaches_the_model(gateway: Running, large: Loopback) -> None:
    """n, seed, stop and log-probabilities go upstream, and all choices come back."""
    token = {"token": "A", "logprob": -0.1, "bytes": [65], "top_logprobs": []}
    choices = [
        {
            "index": n,
            "message": {"role": "assistant", "content": text},
            "finish_reason": "stop",
            "logprobs": {"content": [token], "refusal": None},
        }
        for n, text in enumerate(("A", "B"))
    ]
    large.handlers = [answer(whole("") | {"choices": choices})]
    asked = {"n": 2, "seed": 7, "stop": ["END"], "logprobs": True, "top_logprobs": 2, "temperature": 0.5}
    async with gateway.openai() as client:
        done = await client.chat.completions.create(model="auto", messages=ASK, **asked)  # type: ignore[call-overload]
    assert [c.message.content for c in done.choices] == ["A", "B"]
    assert done.choices[0].logprobs.content[0].logprob == -0.1
    assert {name: large.seen[0].body[name] for name in asked} == asked


async def test_small_models_log_probabilities_stay_inside(start: Any, small: Loopback) -> None:
    """Log-probabilities that only the gateway asked for are recorded and not shown."""
    token = {"token": "{", "logprob": -0.1, "bytes": None, "top_logprobs": [{"token": "[", "logprob": -3.0}]}
    given = whole('{"city":"X"}')
    given["choices"][0]["logprobs"] = {"content": [token], "refusal": None}
    small.handlers = [answer(given)]
    gateway = await start(cascade("small_only"))
    async with gateway.openai() as client:
        raw = await client.chat.completions.with_raw_response.create(
            model="auto", messages=ASK, response_format=CITY_FORMAT
        )
    assert small.seen[0].body["logprobs"] is True
    assert raw.parse().choices[0].logprobs is None
    record = await gateway.record(raw.headers["x-smallfirst-record"])
    assert record.attempts[0].features


async def test_responses(gateway: Running, large: Loopback) -> None:
    """A response is passed to a provider of that API and comes back."""
    large.handlers = [answer(a_response("Sunny."))]
    async with gateway.openai() as client:
        done = await client.responses.create(model="auto", input="Weather?", instructions="Be brief.")
    assert done.output_text == "Sunny."
    assert (large.seen[0].path, large.seen[0].body["instructions"]) == ("/v1/responses", "Be brief.")


async def test_responses_by_a_chat_model(start: Any, small: Loopback) -> None:
    """A model that only speaks chat answers the responses API, with tools and text formats translated."""
    small.handlers = [says(None, PARIS), says('{"city": "Paris"}')]
    gateway = await start(cascade("small_only"))
    tool: Any = {"type": "function", "name": "get_weather", "parameters": WEATHER, "strict": False}
    form: Any = {"format": {"type": "json_schema", "name": "city", "schema": WEATHER}}
    async with gateway.openai() as client:
        first = await client.responses.create(model="auto", input="Weather in Paris?", tools=[tool])
        call: Any = first.output[0]
        result = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
        items: Any = [{"role": "user", "content": "Weather in Paris?"}, call.model_dump(exclude_none=True), result]
        second = await client.responses.create(model="auto", input=items, tools=[tool], text=form)
    assert (call.type, call.name, call.arguments) == ("function_call", *PARIS)
    assert second.output_text == '{"city": "Paris"}'
    assert [m["role"] for m in small.seen[1].body["messages"]] == ["user", "assistant", "tool"]


async def test_responses_stream(start: Any, small: Loopback) -> None:
    """The responses API streams text deltas and ends with the whole response."""
    small.handlers = [says("It is sunny")]
    gateway = await start(cascade("small_only"))
    async with gateway.openai() as client, client.responses.stream(model="auto", input="Weather?") as stream:
        deltas = [event.delta async for event in stream if event.type == "response.output_text.delta"]
        final = await stream.get_final_response()
    assert "".join(deltas) == final.output_text == "Itissunny"
    assert final.usage is not None
    assert final.usage.total_tokens == 15


async def test_embeddings_pass_through(gateway: Running, large: Loopback) -> None:
    """Embeddings go to a server that makes them, and come back untouched."""
    data = [{"object": "embedding", "index": 0, "embedding": [0.25, 0.5]}]
    usage = {"prompt_tokens": 1, "total_tokens": 1}
    body = {"object": "list", "data": data, "model": "text-embedding-3-small", "usage": usage}
    large.handlers = [answer(body)]
    async with gateway.openai() as client:
        done = await client.embeddings.create(model="text-embedding-3-small", input="x", encoding_format="float")
    assert done.data[0].embedding == [0.25, 0.5]
    assert large.seen[0].body == {"model": "text-embedding-3-small", "input": "x", "encoding_format": "float"}


async def test_models_list(gateway: Running) -> None:
    """The models list names what a call may use."""
    async with gateway.openai() as client:
        names = [model.id async for model in client.models.list()]
    assert names[0] == "auto"
    assert {"tiny", "big"} <= set(names)


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, openai.BadRequestError), (429, openai.RateLimitError), (500, openai.InternalServerError)],
)
async def test_upstream_errors_are_the_clients_own(
    gateway: Running, large: Loopback, status: int, kind: type[openai.APIStatusError]
) -> None:
    """A provider's refusal reaches the client as the exception it knows, with the provider's words."""
    said = {"error": {"message": "No, because.", "type": "t", "code": "c", "param": None}}
    large.handlers = [answer(said, status)]
    async with gateway.openai() as client:
        with pytest.raises(kind, match="No, because") as caught:
            await client.chat.completions.create(model="auto", messages=ASK)
    assert caught.value.body == said["error"]


async def test_a_stream_that_breaks_raises_in_the_client(gateway: Running, large: Loopback) -> None:
    """A provider that drops a stream is an error in the client, not a short answer."""
    large.handlers = [sse(events(chunks("It is sunny")[:3], done=False), then="cut")]
    async with gateway.openai() as client:
        stream = await client.chat.completions.create(model="auto", messages=ASK, stream=True)
        with pytest.raises(openai.APIError):
            async for _ in stream:
                pass


async def test_an_incapable_model_is_not_asked(start: Any, small: Loopback) -> None:
    """An image for a model without eyes is refused with a clear 400, and the model is not asked."""
    gateway = await start(cascade("small_only", stages=["small"]))
    image: Any = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]
    async with gateway.openai() as client:
        with pytest.raises(openai.BadRequestError, match="image"):
            await client.chat.completions.create(model="auto", messages=[{"role": "user", "content": image}])
    assert small.seen == []
