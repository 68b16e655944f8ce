"""The loopback upstream: a model server that answers at once, so that all time beyond it is the gateway's.

    cd bench && python -m loopback.upstream PORT MODEL

`GET /calls` tells how many completions were asked for.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator

import httptools
import uvloop

from loopback import wire

GAP_S = 0.001  # between the events of a stream


class Server(asyncio.Protocol):
    """One connection; requests come one after the other, as HTTP/1.1 clients without pipelining send them."""

    calls = 0
    answers: dict[bool, bytes]
    events: list[bytes]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport, self._parser = transport, httptools.HttpRequestParser(self)
        self._body: list[bytes] = []

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        body, self._body = b"".join(self._body).replace(b" ", b""), []
        if self._parser.get_method() == b"GET":
            self._transport.write(_whole(str(Server.calls).encode()))
            return
        Server.calls += 1
        if b'"stream":true' in body:
            kind = b"content-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
            self._transport.write(b"HTTP/1.1 200 OK\r\n" + kind + self.events[0])
            self._send(iter(self.events[1:]))
        else:
            self._transport.write(self.answers[b'"logprobs":true' in body])

    def _send(self, events: Iterator[bytes]) -> None:
        def step() -> None:
            if not self._transport.is_closing() and (event := next(events, None)) is not None:
                self._transport.write(event)
                loop.call_later(GAP_S, step)

        loop = asyncio.get_running_loop()
        loop.call_later(GAP_S, step)


def _whole(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


async def main(port: int, model: str) -> None:
    Server.answers = {asked: _whole(wire.answer(model, logprobs=asked)) for asked in (False, True)}
    Server.events = [b"%x\r\n%b\r\n" % (len(event), event) for event in wire.chunks(model)]
    Server.events[-1] += b"0\r\n\r\n"
    server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), sys.argv[2]))
