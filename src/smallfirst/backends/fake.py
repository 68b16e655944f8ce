"""A backend that answers by a script: for tests, documentation and demonstrations. No model, no network, no chance."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

from msgspec.structs import replace

from smallfirst.errors import BackendError, BackendUnavailable
from smallfirst.types import Capabilities, Choice, Completion, Delta, Request, ToolCallDelta, Usage
from smallfirst.wire.accumulate import split

Step = Delta | float | BackendError
Script = Callable[[Request], "Completion | BackendError | Sequence[Step]"]

HANG: Sequence[Step] = (float("inf"),)
CAPABILITIES = Capabilities(
    modalities=frozenset({"text", "image", "audio", "file"}), native=frozenset({"chat"}), top_logprobs=20
)
_PIECE = 8  # characters in a piece of a stream


def say(text: str) -> Script:
    """A script that always answers `text`."""
    return lambda request: _said(text, request)


def echo(request: Request) -> Completion:
    """A script that answers with the text of the last message."""
    return _said(_text(request.messages[-1].get("content")), request)


def failing(times: int, error: BackendError, then: Script) -> Script:
    """A script that fails with `error` the first `times` calls and is `then` afterwards."""
    left = iter(range(times))
    return lambda request: error if next(left, None) is not None else then(request)


def hang(request: Request) -> Sequence[Step]:  # noqa: ARG001 - a script takes the request
    """A script that never answers; closing the iterator or a time limit ends it."""
    return HANG


class FakeBackend:
    """Answers as `script` says, as a real backend would: in pieces when the request streams, at once when it does not.

    A script returns a Completion, an error to raise, or the very deltas to yield, with waits in seconds (`HANG`:
    forever) and errors between them. `seen` holds the requests so far, `running` counts answers under way and
    `cancelled` those that were closed before their end.
    """

    def __init__(self, name: str = "fake", script: Script = echo, capabilities: Capabilities = CAPABILITIES) -> None:
        self.name = name
        self.capabilities = capabilities
        self.seen: list[Request] = []
        self.running = 0
        self.cancelled = 0
        self._script = script
        self._open = False

    async def start(self) -> None:
        """Begin to answer."""
        self._open = True

    async def close(self) -> None:
        """Answer no more. May be called twice."""
        self._open = False

    async def generate(self, request: Request) -> AsyncIterator[Delta]:
        """What the script says to `request`. Raises the script's errors, and BackendUnavailable unless started."""
        if not self._open:
            raise BackendUnavailable(f"{self.name} is not started, or is closed.")
        self.seen.append(request)
        self.running += 1
        finished = False
        try:
            for step in self._steps(request):
                if isinstance(step, Delta):
                    yield step
                elif isinstance(step, BackendError):
                    finished = True
                    raise step
                else:
                    await _wait(step)
            finished = True
        finally:
            self.running -= 1
            self.cancelled += not finished

    def _steps(self, request: Request) -> Sequence[Step]:
        answer = self._script(request)
        if isinstance(answer, BackendError):
            return (answer,)
        if not isinstance(answer, Completion):
            return answer
        whole = split(answer)
        return [piece for delta in whole for piece in _pieces(delta)] if request.stream else whole


async def _wait(seconds: float) -> None:
    if seconds == float("inf"):
        await asyncio.Event().wait()
    await asyncio.sleep(seconds)


def _said(text: str, request: Request) -> Completion:
    asked = sum(_words(_text(message.get("content"))) for message in request.messages)
    return Completion((Choice(text),), Usage(asked, _words(text)), request.model)


def _words(text: str) -> int:
    return len(text.split())


def _text(content: object) -> str:
    """The text of a message's content, which is a string, a list of parts or nothing."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "".join(part.get("text", "") for part in parts if isinstance(part, dict))


def _pieces(whole: Delta) -> Iterator[Delta]:
    """`whole` as a model would stream it: reasoning, text, refusal, calls, then all the rest."""
    for piece in _cut(whole.reasoning):
        yield Delta(whole.choice, reasoning=piece)
    for piece in _cut(whole.text):
        yield Delta(whole.choice, text=piece)
    for piece in _cut(whole.refusal):
        yield Delta(whole.choice, refusal=piece)
    for call in whole.tool_calls:
        yield Delta(whole.choice, tool_calls=(replace(call, arguments=""),))
        for piece in _cut(call.arguments):
            yield Delta(whole.choice, tool_calls=(ToolCallDelta(call.index, arguments=piece),))
    yield replace(whole, text="", reasoning="", refusal="", tool_calls=(), native=None)


def _cut(text: str) -> Iterator[str]:
    return (text[start : start + _PIECE] for start in range(0, len(text), _PIECE))
