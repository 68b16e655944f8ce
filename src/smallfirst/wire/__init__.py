"""The edges: the only code that knows OpenAI's and Anthropic's formats. Pure: bytes and dicts in, domain values or
bytes out, no I/O.

Each wire is a package with the same members, so that callers pick one by name from `WIRES` and never branch. On the
client's side: `parse` a request; `render` an answer, or stream it with a `Writer`; `error`. On the upstream's side:
`body` to send; `read` a whole answer, or a stream with a `Reader`. `extend` appends messages to a request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from smallfirst.errors import SmallfirstError
from smallfirst.types import Capabilities, Completion, Delta, Json, Origin, Request, Usage, Wire
from smallfirst.wire import chat, messages, responses


class Reader(Protocol):
    """Turns an upstream's stream events into Deltas; the first Delta of each event carries the event itself."""

    done: bool

    def feed(self, event: str | None, data: bytes) -> tuple[Delta, ...]: ...


class Writer(Protocol):
    """Turns Deltas, of any backend, into the stream that a client reads. The first Delta decides whether the stream
    is forwarded as the upstream sent it or built."""

    def feed(self, delta: Delta) -> bytes: ...
    def finish(self, usage: Usage) -> bytes: ...
    def error(self, err: SmallfirstError) -> bytes: ...


class Format(Protocol):
    """What every wire offers; each function's own docstring tells what is special to its wire."""

    def parse(self, raw: bytes, origin: Origin) -> Request: ...
    def extend(self, request: Request, messages: Sequence[Json]) -> Request: ...
    def body(
        self, request: Request, *, model: str, stream: bool, capabilities: Capabilities, top_logprobs: int = 0
    ) -> dict[str, Any]: ...
    def read(self, payload: Json) -> tuple[Delta, ...]: ...
    def render(self, completion: Completion, request: Request, *, id: str, created: float) -> dict[str, Any]: ...  # noqa: A002
    def error(self, err: SmallfirstError) -> dict[str, Any]: ...
    def Reader(self) -> Reader: ...  # noqa: N802
    def Writer(self, request: Request, *, id: str, created: float) -> Writer: ...  # noqa: A002, N802


WIRES: Mapping[Wire, Format] = {"chat": chat, "responses": responses, "messages": messages}
BODIES: Mapping[Wire, type] = {"chat": chat.Body, "responses": responses.Body, "messages": messages.Body}
"""What a request's body is checked against, per wire."""
