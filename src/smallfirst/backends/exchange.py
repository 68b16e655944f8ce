"""One question to an upstream and its answer, in the words of one wire."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from hashlib import blake2b
from typing import Any

import msgspec

from smallfirst.backends.http import Upstream
from smallfirst.errors import BackendGarbage
from smallfirst.types import Delta, Request
from smallfirst.wire import Format, sse


async def ask(
    upstream: Upstream, path: str, body: Mapping[str, Any], request: Request, *, wire: Format, keep: tuple[str, ...]
) -> AsyncIterator[Delta]:
    """Send `body` to `path` and yield the answer as it comes, or at once when `request` does not stream.

    `keep` names the headers of the request that this upstream is to see. Raises BackendError only; a stream that stops
    before its end is BackendGarbage, never a complete answer.
    """
    data = msgspec.json.encode(body)
    headers = _headers(request, keep, data)
    if not request.stream:
        for delta in wire.read(await upstream.json(path, data, headers=headers, timeout_s=request.timeout_s)):
            yield delta
        return
    decoder, reader = sse.Decoder(), wire.Reader()
    async with upstream.stream(path, data, headers=headers, timeout_s=request.timeout_s) as reply:
        while not reader.done and (chunk := await reply.chunk()):
            for name, event in decoder.feed(chunk):
                for delta in reader.feed(name, event):
                    yield delta
    if not reader.done:
        raise BackendGarbage(f"{upstream.name}: the stream stopped before the answer was complete.")


def _headers(request: Request, keep: tuple[str, ...], body: bytes) -> dict[str, str]:
    """The kept headers. An idempotency key covers one body: stages and repairs that send another get a key of their
    own, and a client that repeats its call gets the same keys again."""
    headers = {name: value for name, value in request.headers.items() if name in keep and value.isprintable()}
    if "idempotency-key" in headers:
        headers["idempotency-key"] += "-" + blake2b(body, digest_size=8).hexdigest()
    return headers
