"""The scripted backend."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from smallfirst.backends.fake import HANG, FakeBackend, Script, Step, echo, failing, hang, say
from smallfirst.errors import BackendError, BackendTimeout
from smallfirst.types import Choice, Completion, Delta, Request, TokenLogprob, ToolCall, Usage
from smallfirst.wire.accumulate import Accumulator

ASKED = Request(wire="chat", body={}, model="m", messages=({"role": "user", "content": "say it again"},))


async def run(backend: FakeBackend, request: Request = ASKED) -> Completion:
    total = Accumulator()
    await backend.start()
    async with aclosing(backend.generate(request)) as deltas:  # type: ignore[type-var]
        async for delta in deltas:
            total.feed(delta)
    return total.completion()


async def test_echo_repeats_the_last_message() -> None:
    """The default script answers with the last message's text, parts joined, and records what it was asked."""
    backend = FakeBackend()
    assert (await run(backend)).choices[0].text == "say it again"
    parts = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}, {"type": "text", "text": "b"}]
    assert (await run(backend, replace(ASKED, messages=({"role": "user", "content": parts},)))).choices[0].text == "ab"
    assert backend.seen[0] == ASKED
    assert len(backend.seen) == 2


texts = st.text(max_size=30)
calls = st.builds(ToolCall, id=st.text(min_size=1), name=st.text(min_size=1), arguments=texts)
logprobs = st.builds(TokenLogprob, token=st.text(min_size=1), logprob=st.floats(-9, 0))
choices = st.builds(
    Choice,
    text=texts,
    tool_calls=st.lists(calls, max_size=3).map(tuple),
    reasoning=texts,
    refusal=texts,
    logprobs=st.lists(logprobs, max_size=3).map(tuple),
)


@given(st.lists(choices, min_size=1, max_size=3), st.booleans())
async def test_any_completion_comes_out_as_scripted(scripted: list[Choice], stream: bool) -> None:
    """A scripted completion is what an accumulator gets, in pieces or at once."""
    completion = Completion(tuple(scripted), Usage(3, 4), "m")
    assert await run(FakeBackend("fake", lambda request: completion), replace(ASKED, stream=stream)) == completion


async def test_streams_come_in_pieces() -> None:
    """A streamed answer comes as several pieces, the same ones each time."""
    backend = FakeBackend("fake", say("one two three four five"))
    await backend.start()
    first, second = [[delta async for delta in backend.generate(replace(ASKED, stream=True))] for _ in range(2)]
    assert first == second
    assert len([delta for delta in first if delta.text]) > 1


async def test_failing_then_answering() -> None:
    """A script may fail a number of times and then answer."""
    backend = FakeBackend("fake", failing(2, BackendTimeout("slow"), then=say("ok")))
    for _ in range(2):
        with pytest.raises(BackendTimeout):
            await run(backend)
    assert (await run(backend)).choices[0].text == "ok"
    assert backend.cancelled == 0


@pytest.mark.parametrize("script", [hang, lambda request: (Delta(text="a"), 0.0, *HANG)])
async def test_hanging_ends_by_cancellation(script: Script) -> None:
    """A script may hang, at once or after some pieces; cancelling ends it and is counted."""
    asked = asyncio.Event()

    def noted(request: Request) -> Completion | BackendError | Sequence[Step]:
        asked.set()
        return script(request)

    backend = FakeBackend("fake", noted)
    task = asyncio.create_task(run(backend))
    await asked.wait()
    assert backend.running == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (backend.running, backend.cancelled) == (0, 1)


async def test_an_error_may_come_in_the_middle() -> None:
    """A script may break off after some pieces."""
    backend = FakeBackend("fake", lambda request: (Delta(text="half"), BackendTimeout("gone")))
    await backend.start()
    deltas = backend.generate(ASKED)
    assert (await anext(deltas)).text == "half"
    with pytest.raises(BackendTimeout):
        await anext(deltas)


async def test_echo_says_what_it_would_cost() -> None:
    """Usage counts words in and out, so that costs in examples are not zero."""
    assert (await run(FakeBackend("fake", echo))).usage == Usage(3, 3)
