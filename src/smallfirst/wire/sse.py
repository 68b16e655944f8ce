"""Server-sent events: bytes out, events in (WHATWG HTML, "Server-sent events", section 9.2.6)."""

from __future__ import annotations

from smallfirst.errors import BackendGarbage

MAX_EVENT_BYTES = 16 * 1024 * 1024


def encode(data: bytes, event: str | None = None) -> bytes:
    """One event with `data`, named `event` if that is given and not empty."""
    head = b"event: " + event.encode() + b"\n" if event else b""
    if b"\n" in data or b"\r" in data:
        return head + b"".join(b"data: " + line + b"\n" for line in data.splitlines()) + b"\n"
    return head + b"data: " + data + b"\n\n"


class Decoder:
    """Reads events from chunks that may be cut anywhere, inside a line end too.

    Raises BackendGarbage when one event grows over `max_bytes`.
    """

    def __init__(self, max_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max_bytes = max_bytes
        self._partial = bytearray()
        self._after_cr = False
        self._event: str | None = None
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> list[tuple[str | None, bytes]]:
        """The events that `chunk` completes, as (name, data); an event without data is not reported."""
        events: list[tuple[str | None, bytes]] = []
        if not chunk:
            return events
        if self._after_cr:
            chunk = chunk.removeprefix(b"\n")
        self._after_cr = chunk.endswith(b"\r")
        for line in chunk.splitlines(keepends=True):
            text = line.rstrip(b"\r\n")
            self._grow(len(text))
            if len(text) == len(line):
                self._partial += line
                break
            if self._partial:
                text = bytes(self._partial + text)
                self._partial.clear()
            self._line(text, events)
        return events

    def _grow(self, size: int) -> None:
        self._size += size
        if self._size > self._max_bytes:
            raise BackendGarbage(
                f"The upstream sent an event of more than {self._max_bytes} bytes.",
                hint="Check that the upstream's base URL answers with server-sent events.",
            )

    def _line(self, line: bytes, events: list[tuple[str | None, bytes]]) -> None:
        if not line:
            if self._data:
                events.append((self._event, b"\n".join(self._data)))
            self._event, self._data, self._size = None, [], 0
            return
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
        elif name == b"event":
            self._event = value.decode("utf-8", "replace") or None
