"""What every backend does, whichever it is. A new backend is one entry in `BACKENDS`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
import providers
import pytest
import pytest_asyncio
from msgspec.structs import replace
from recording import Handler, Loopback, answer, page, sse

from smallfirst.backends.anthropic import AnthropicBackend
from smallfirst.backends.fake import FakeBackend, say
from smallfirst.backends.openai import PRESETS, OpenAIBackend
from smallfirst.backends.toolprompt import constraint_schema
from smallfirst.errors import BackendError, BackendGarbage
from smallfirst.types import (
    Backend,
    Choice,
    Completion,
    Constraint,
    Request,
    Sampling,
    Tool,
    ToolCall,
    ToolChoice,
    Usage,
)
from smallfirst.wire.accumulate import Accumulator

pytestmark = pytest.mark.asyncio(loop_scope="module")

WEATHER = Tool(
    providers.TOOL,
    "The weather in a city.",
    {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}, "days": {"type": "integer"}},
        "required": ["city"],
        "additionalProperties": False,
    },
)
QUESTION = {"role": "user", "content": "What is the capital of France? Answer in one sentence."}


def asked(*, stream: bool = False, tool: bool = False) -> Request:
    """A chat request, for an answer in words or for a call."""
    body: dict[str, Any] = {"model": "m", "messages": [QUESTION], "max_tokens": 32, "temperature": 0}
    tools = (WEATHER,) if tool else ()
    if tool:
        function = {"name": WEATHER.name, "description": WEATHER.description, "parameters": WEATHER.parameters}
        body |= {"tools": [{"type": "function", "function": function}], "tool_choice": "required"}
    return Request(
        wire="chat",
        body=body,
        model="m",
        messages=(QUESTION,),
        tools=tools,
        tool_choice=ToolChoice("required" if tool else "auto"),
        sampling=Sampling(temperature=0.0, max_tokens=32),
        stream=stream,
    )


@dataclass(frozen=True)
class Rig:
    """A started backend. `faults` are ways to make its next answers fail; an engine of our own has none to inject."""

    backend: Backend
    faults: tuple[Callable[[], None], ...] = ()


Make = Callable[[bool], Any]


@asynccontextmanager
async def fake(tool: bool) -> AsyncIterator[Rig]:
    call = Choice("", (ToolCall("t1", WEATHER.name, providers.ARGUMENTS),), "tool_calls")
    script = (lambda request: Completion((call,), Usage(9, 5), "m")) if tool else say(providers.TEXT)
    backend = FakeBackend("fake", script)

    def fail() -> None:
        backend._script = lambda request: BackendGarbage("scripted")

    await backend.start()
    try:
        yield Rig(backend, (fail,))
    finally:
        await backend.close()


@asynccontextmanager
async def hosted(make: Callable[[str], Backend], handler: Handler) -> AsyncIterator[Rig]:
    server = Loopback([handler])
    await server.start()
    backend = make(server.url)
    await backend.start()
    try:
        yield Rig(backend, tuple(_fault(server, bad) for bad in FAULTS))
    finally:
        await backend.close()
        await server.close()


FAULTS = (
    answer({"error": {"type": "invalid_request_error", "message": "no"}}, 400),
    page(b"<html>", "text/html"),
    page(b'{"unexpected": 1}', "application/json"),
    page(b'{"choices": 7, "content": 7}', "application/json"),
    sse(b"data: {broken\n\n"),
    sse(b"event: x\ndata: [1]\n\n"),
    sse(b"data: \xff\n\n"),
    sse(),
    sse(b'data: {"choices": []}\n\n', then="cut"),
    sse(b'event: error\ndata: {"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}\n\n'),
)


def _fault(server: Loopback, handler: Handler) -> Callable[[], None]:
    def inject() -> None:
        server.handlers = [handler]

    return inject


def openai(tool: bool) -> Any:
    return hosted(
        lambda url: OpenAIBackend("openai", f"{url}/v1", "sk-1", PRESETS["vllm"]),
        providers.openai_tool() if tool else providers.openai_text(),
    )


def anthropic(tool: bool) -> Any:
    return hosted(
        lambda url: AnthropicBackend("anthropic", url, "sk-1"),
        providers.anthropic_tool() if tool else providers.anthropic_text(),
    )


@asynccontextmanager
async def llamacpp(tool: bool) -> AsyncIterator[Rig]:
    """One engine for all tests, as starting it takes seconds; one thread, as two that wait for each other on a busy
    machine take ten times as long."""
    from smallfirst import models
    from smallfirst.backends.llamacpp import EngineConfig, LlamaCppBackend

    if not engines:
        backend = LlamaCppBackend(EngineConfig(weights=await asyncio.to_thread(models.pull), slots=2, batch_threads=1))
        await backend.start()
        engines.append(backend)
    yield Rig(engines[0])


engines: list[Backend] = []


@pytest_asyncio.fixture(scope="module", loop_scope="module", autouse=True)
async def engines_stopped() -> AsyncIterator[None]:
    yield
    for backend in engines:
        await backend.close()
    engines.clear()


BACKENDS = [
    pytest.param(fake, id="fake"),
    pytest.param(openai, id="openai"),
    pytest.param(anthropic, id="anthropic"),
    pytest.param(llamacpp, id="llamacpp", marks=pytest.mark.engine),
]
every_backend = pytest.mark.parametrize("make", BACKENDS)


async def complete(backend: Backend, request: Request) -> Completion:
    """The whole answer; a backend that takes constraints is given one, as the cascade does."""
    if backend.capabilities.constraint:
        schema = constraint_schema(request)
        request = replace(request, constraint=Constraint(schema) if schema else None)
    total = Accumulator()
    async with aclosing(backend.generate(request)) as deltas:  # type: ignore[type-var]
        async for delta in deltas:
            total.feed(delta)
    return total.completion()


@every_backend
async def test_text_is_answered(make: Make) -> None:
    """A question is answered by text, with the tokens it took and the model that answered."""
    async with make(False) as rig:
        done = await complete(rig.backend, asked())
    (choice,) = done.choices
    assert choice.text.strip()
    assert not choice.tool_calls
    assert choice.finish_reason in ("stop", "length")
    assert done.usage.input_tokens > 0
    assert done.usage.output_tokens > 0
    assert done.model


@every_backend
async def test_a_required_tool_is_called(make: Make) -> None:
    """A request that requires its tool gets a call of it, with an id and arguments that are a JSON object."""
    async with make(True) as rig:
        done = await complete(rig.backend, asked(tool=True))
    (call,) = done.choices[0].tool_calls
    assert (call.name, bool(call.id)) == (WEATHER.name, True)
    assert isinstance(msgspec.json.decode(call.arguments), dict)
    assert done.choices[0].finish_reason == "tool_calls"


@every_backend
@pytest.mark.parametrize("tool", [False, True], ids=["text", "tool"])
async def test_streaming_says_the_same(make: Make, tool: bool) -> None:
    """At temperature 0 the pieces of a streamed answer add up to the answer given at once, usage included."""
    async with make(tool) as rig:
        whole = await complete(rig.backend, asked(tool=tool))
        streamed = await complete(rig.backend, asked(tool=tool, stream=True))

    def essence(done: Completion) -> object:
        choice = done.choices[0]
        calls = [(call.name, msgspec.json.decode(call.arguments)) for call in choice.tool_calls]
        return choice.text, calls, choice.finish_reason, done.usage.input_tokens, done.usage.output_tokens, done.model

    assert essence(streamed) == essence(whole)


@every_backend
async def test_closing_the_iterator_frees_the_backend(make: Make) -> None:
    """A stream that is closed early leaves nothing behind: many can be, and the next call is answered."""
    async with make(False) as rig:
        for _ in range(5):
            deltas = rig.backend.generate(asked(stream=True))
            await anext(deltas)
            await deltas.aclose()  # type: ignore[attr-defined]
        assert (await complete(rig.backend, asked())).choices[0].text


@every_backend
async def test_cancelling_a_call_frees_the_backend(make: Make) -> None:
    """A task that is cancelled in its call ends at once, cancelled unless it was answered by then; the next call is
    answered."""
    async with make(False) as rig:
        task = asyncio.create_task(complete(rig.backend, asked()))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task], timeout=5)
        assert task.cancelled() or task.result()
        assert (await complete(rig.backend, asked())).choices[0].text


@every_backend
async def test_calls_run_side_by_side(make: Make) -> None:
    """Concurrent calls are all answered, each with its own answer."""
    async with make(False) as rig:
        stream = [index % 2 == 0 for index in range(6)]
        done = await asyncio.gather(*(complete(rig.backend, asked(stream=wish)) for wish in stream))
    assert len({answer.choices[0].text for answer in done}) == 1


@every_backend
async def test_every_failure_is_a_backend_error(make: Make) -> None:
    """Whatever the other side does, streamed or not, the caller sees a BackendError, never half an answer."""
    async with make(False) as rig:
        for fault in rig.faults:
            fault()
            for stream in (False, True):
                with pytest.raises(BackendError):
                    await complete(rig.backend, asked(stream=stream))


@every_backend
async def test_a_closed_backend_refuses(make: Make) -> None:
    """Closing twice is harmless, calls after it fail with a BackendError, and the backend may be started again."""
    async with make(False) as rig:
        await rig.backend.close()
        await rig.backend.close()
        with pytest.raises(BackendError):
            await complete(rig.backend, asked())
        await rig.backend.start()
        assert (await complete(rig.backend, asked())).choices[0].text


@every_backend
async def test_the_request_is_never_changed(make: Make) -> None:
    """A backend leaves the client's body as it was."""
    async with make(True) as rig:
        request = asked(tool=True)
        before = msgspec.json.encode(request.body)
        await complete(rig.backend, replace(request, stream=True))
    assert msgspec.json.encode(request.body) == before
