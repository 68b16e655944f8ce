"""The load generator, a process of its own: rounds of calls over kept-alive connections, each connection in a closed
loop. Reads one JSON object a line from stdin (the fields of `Round`), answers with one line (the fields of `Result`).
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from dataclasses import asdict, dataclass, field

import httptools
import uvloop

from loopback import wire

ALLOWED = 0.01
"""The share of calls that may fail."""
_numbers = itertools.count()


@dataclass(frozen=True)
class Round:
    """`calls` calls to `port`, or as many as `seconds` allow; 99 in 100 must be answered by 200 and the expected call.

    `warm` calls on each connection go before, unmeasured.
    """

    port: int
    model: str
    stream: bool
    concurrency: int
    calls: int
    seconds: float
    warm: int = 2


@dataclass
class Result:
    """Milliseconds to the last and to the first byte of each answer's body, the seconds of the whole round, and the
    calls answered and failed, unmeasured ones too. Failed calls have no times; too many of them are an `error`."""

    last_ms: list[float] = field(default_factory=list)
    first_ms: list[float] = field(default_factory=list)
    seconds: float = 0.0
    answered: int = 0
    failed: int = 0
    error: str = ""


class Client(asyncio.Protocol):
    """One connection, one call at a time. A server that ends an answer by closing leaves it `lost`."""

    lost = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        self._done: asyncio.Future[float] | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        if self._done is None or self._done.done():
            return
        if exc is None and self._body:
            self._done.set_result(time.perf_counter())
        else:
            self._done.set_exception(ConnectionError(f"connection lost: {exc}"))

    async def call(self, data: bytes) -> tuple[float, float, int, bytes]:
        """(seconds to the first byte of the body, to the last, status, body)."""
        self._body: list[bytes] = []
        self._parser = httptools.HttpResponseParser(self)
        self._done = asyncio.get_running_loop().create_future()
        start = time.perf_counter()
        self._transport.write(data)
        end = await self._done
        return self._first - start, end - start, self._parser.get_status_code(), b"".join(self._body)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        if not self._body:
            self._first = time.perf_counter()
        self._body.append(body)

    def on_message_complete(self) -> None:
        assert self._done is not None
        self._done.set_result(time.perf_counter())

    def close(self) -> None:
        self._transport.close()


class _Run:
    """One round in progress."""

    def __init__(self, wanted: Round) -> None:
        self.wanted, self.result = wanted, Result()
        body = wire.request(wanted.model, stream=wanted.stream)
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{wanted.port}\r\ncontent-type: application/json\r\n"
            f"authorization: Bearer none\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        self._before, self._after = (head.encode() + body).split(wire.PLACE)

    async def run(self) -> Result:
        """All connections are opened and warm before the clock starts."""
        places = range(self.wanted.concurrency)
        self._clients = [await self._connected() for _ in places]
        try:
            await asyncio.gather(*(self._warm(place) for place in places))
            start = time.perf_counter()
            self._left, self._end = self.wanted.calls, start + self.wanted.seconds
            await asyncio.gather(*(self._repeat(place) for place in places))
            self.result.seconds = time.perf_counter() - start
        finally:
            for client in self._clients:
                client.close()
        if self.result.failed > ALLOWED * (self.result.failed + self.result.answered):
            self.result.error = f"{self.result.failed} calls failed, the last one by {self._failure}"
        return self.result

    async def _connected(self) -> Client:
        _, client = await asyncio.get_running_loop().create_connection(Client, "127.0.0.1", self.wanted.port)
        return client

    async def _warm(self, place: int) -> None:
        for _ in range(self.wanted.warm):
            await self._call(place)

    async def _repeat(self, place: int) -> None:
        while self._left > 0 and time.perf_counter() < self._end:
            self._left -= 1
            if (times := await self._call(place)) is not None:
                self.result.first_ms.append(times[0] * 1000)
                self.result.last_ms.append(times[1] * 1000)

    async def _call(self, place: int) -> tuple[float, float] | None:
        """Seconds to the first and to the last byte; None when the call failed."""
        if self._clients[place].lost:
            self._clients[place] = await self._connected()
        number = b"%0*d" % (len(wire.PLACE), next(_numbers))
        first, last, status, body = await self._clients[place].call(self._before + number + self._after)
        if status != 200 or wire.EXPECTED.encode() not in body:
            self.result.failed += 1
            self._failure = f"status {status}: {body[:400]!r}"
            return None
        self.result.answered += 1
        return first, last


async def main() -> None:
    while line := await asyncio.to_thread(sys.stdin.readline):
        run = _Run(Round(**json.loads(line)))
        try:
            await run.run()
        except OSError as error:
            run.result = Result(error=str(error))
        print(json.dumps(asdict(run.result)), flush=True)


if __name__ == "__main__":
    uvloop.run(main())
