"""One HTTP exchange over ASGI: a bounded body, an answer that may stream, and the client's hanging up.

It is what Starlette's Request and Response would be used for, less what the hot path does not need.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.types import Receive, Scope, Send

from smallfirst.deadline import Deadline
from smallfirst.errors import SlowClientError, TooLargeError

JSON_TYPE = "application/json"
STREAM = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache", "x-accel-buffering": "no"}
_WATCHED_AFTER_S = 0.02  # a call that is over sooner needs no watching
_LONGEST = 256  # characters of a header's value
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]")


class ClientGone(Exception):
    """The client hung up, or reads too slowly to be served."""


class Exchange:
    """A request as it arrives and the answer as it leaves.

    `headers` have lower-case names; of a repeated header the last value.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, *, write_timeout_s: float) -> None:
        self.scope = scope
        self.headers: Mapping[str, str] = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        self.started = False
        self._ended = False
        self._receive, self._send, self._write_timeout = receive, send, write_timeout_s

    async def body(self, *, limit: int, timeout_s: float) -> bytes:
        """The whole body. Raises TooLargeError over `limit` bytes, SlowClientError after `timeout_s`, ClientGone."""
        length = self.headers.get("content-length", "0")
        if length.isdigit() and int(length) > limit:
            raise _too_large(int(length), limit)
        parts, size, more = [], 0, True
        try:
            with Deadline(timeout_s):
                while more:
                    message = await self._receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGone
                    parts.append(message.get("body", b""))
                    size, more = size + len(parts[-1]), bool(message.get("more_body"))
                    if size > limit:
                        raise _too_large(size, limit)
        except TimeoutError:
            raise SlowClientError(f"The body did not arrive within {timeout_s:g} s.") from None
        return b"".join(parts)

    async def reply(
        self, status: int, body: bytes, headers: Mapping[str, str] | None = None, media_type: str = JSON_TYPE
    ) -> None:
        """Send a complete answer."""
        raw = _encode({"content-type": media_type, "content-length": str(len(body)), **(headers or {})})
        self.started = self._ended = True
        start = {"type": "http.response.start", "status": status, "headers": raw}
        await self._write(start, {"type": "http.response.body", "body": body})

    async def start_stream(self, headers: Mapping[str, str]) -> None:
        """Begin a stream of server-sent events."""
        self.started = True
        await self._write({"type": "http.response.start", "status": 200, "headers": _encode({**STREAM, **headers})})

    async def write(self, data: bytes, *, last: bool = False) -> None:
        """Send a piece of a stream. Raises ClientGone when the client does not take it in time."""
        self._ended = last
        await self._write({"type": "http.response.body", "body": data, "more_body": not last})

    async def _write(self, *messages: dict[str, Any]) -> None:
        try:
            with Deadline(self._write_timeout):
                for message in messages:
                    await self._send(message)
        except (TimeoutError, OSError):
            raise ClientGone from None

    async def while_connected(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run `work` (after the body was read); when the client hangs up, cancel it and raise ClientGone."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        watching: asyncio.Task[None] | None = None

        def watch() -> None:
            nonlocal watching
            watching = loop.create_task(self._cancel_when_gone(task))

        later = loop.call_later(_WATCHED_AFTER_S, watch)
        try:
            await work()
        except asyncio.CancelledError:
            if watching is None or not watching.done():
                raise
            task.uncancel()
            raise ClientGone from None
        finally:
            later.cancel()
            if watching is not None:
                watching.cancel()

    async def _cancel_when_gone(self, task: asyncio.Task[Any]) -> None:
        """The server also says "disconnect" once the answer is complete; that cancels nothing."""
        await self._receive()
        if not self._ended:
            task.cancel()


def _too_large(size: int, limit: int) -> TooLargeError:
    return TooLargeError(
        f"The body has {size} bytes or more; allowed are {limit}.", hint="Raise server.max_body_mb in smallfirst.toml."
    )


def _all_printable(values: list[str]) -> bool:
    text = "".join(values)
    return len(max(values, key=len, default="")) <= _LONGEST and text.isascii() and text.isprintable()


def printable(value: str) -> str:
    """`value` as it may stand in a header: nothing in it can end the line or smuggle in another header, and no client
    refuses it for its length."""
    if _all_printable([value]):
        return value
    return _UNPRINTABLE.sub("?", value[:_LONGEST])


def _encode(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    values = list(headers.values())
    if not _all_printable(values):
        values = list(map(printable, values))
    return [(name.encode("ascii"), value.encode("ascii")) for name, value in zip(headers, values, strict=True)]
