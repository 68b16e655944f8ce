"""Faults around the gateway: providers, disk, locks, clients. Each ends in a clear answer, and nothing hangs."""

from __future__ import annotations

import asyncio
import socket
import sqlite3
from contextlib import closing
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import pytest
from recording import Handler, Loopback, answer, events, hang, page, slam, sse
from running import CHAT, MESSAGES, RESPONSES, Running, Start, cascade, chunks, every, question, says, until

from smallfirst import assemble
from smallfirst.cascade import Cascade
from smallfirst.store import open_store
from smallfirst.store.sqlite import SqliteConnection

FAULTS: dict[str, tuple[Handler, int, str]] = {
    "hangs": (hang, 504, "timeout"),
    "slams": (slam, 503, "unavailable"),
    "500": (answer({"error": {"message": "boom"}}, 500), 500, "upstream_error"),
    "redirect": (answer({}, 302), 502, "upstream_error"),
    "page": (page(b"<html>", "text/html"), 502, "unreadable_answer"),
    "cut-json": (page(b'{"choices":', "application/json"), 502, "unreadable_answer"),
    "empty": (page(b"", "application/json"), 502, "unreadable_answer"),
    "no-choices": (answer({"id": "x", "choices": []}), 502, "unreadable_answer"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("stream", [True, False])
async def test_provider_faults(start: Start, large: Loopback, fault: str, stream: bool) -> None:
    """A provider that hangs, slams, fails or answers garbage is a clear error with its own status, and recorded."""
    handler, status, code = FAULTS[fault]
    large.handlers = [handler, says("fine")]
    gateway = await start(cascade(stages=["large"], max_seconds=0.2))
    done = await gateway.chat({"stream": stream})
    assert done.status == status
    assert done.body["error"]["message"]
    record = await gateway.record(done)
    assert (record.reason, record.status) == (f"error:{code}", status)
    assert (await gateway.chat()).text == "fine"


@pytest.mark.parametrize("path", [CHAT, RESPONSES, MESSAGES])
async def test_retry_after_is_passed_on(start: Start, small: Loopback, path: str) -> None:
    """A provider's 429 and the time it asks for reach the client."""
    small.handlers = [answer({"error": {"message": "slow down", "type": "r", "code": None}}, 429, retry_after="33")]
    gateway = await start(cascade("small_only"))
    done = await gateway.post(path, every(path, "x"))
    assert (done.status, done.headers["retry-after"]) == (429, "33")
    assert "slow down" in done.body["error"]["message"]


@pytest.mark.parametrize("path", [CHAT, RESPONSES, MESSAGES])
@pytest.mark.parametrize("then", ["cut", "hang", "end", "garbage"])
async def test_streams_that_break_off(start: Start, small: Loopback, path: str, then: str) -> None:
    """A stream that breaks off ends with an error event of its wire, never as if it were whole, and is recorded."""
    begun = events(chunks("It is sunny")[:3], done=False)
    broken = sse(begun, b"data: {nonsense\n\n") if then == "garbage" else sse(begun, then=then)
    small.handlers = [broken]
    gateway = await start(cascade("small_only", max_seconds=0.3))
    done = await gateway.post(path, every(path, "x") | {"stream": True})
    assert done.status == 200
    last = done.events[-1]
    if path == MESSAGES:
        assert last["type"] == "error"
    elif path == RESPONSES:
        assert last["type"] in {"error", "response.failed"}
    else:
        assert last["error"]["code"] in {"unreadable_answer", "timeout"}
    assert b"[DONE]" not in done.raw
    record = await gateway.record(done)
    assert (record.served, record.decision) == (None, "abstain")


async def test_a_client_that_hangs_up(gateway: Running, large: Loopback) -> None:
    """When the client goes away the provider's work is stopped and the call is recorded as 499."""
    large.handlers = [hang]
    call = asyncio.create_task(gateway.chat())
    await large.asked.wait()
    call.cancel()
    async with asyncio.timeout(5):
        await large.left.wait()
    [record] = await gateway.records()
    assert (record.status, record.reason) == (499, "client_gone")


async def test_a_client_that_hangs_up_in_a_stream(gateway: Running, large: Loopback) -> None:
    """The same in mid-stream."""
    large.handlers = [sse(events(chunks("It is sunny")[:3], done=False), then="hang")]
    async with gateway.http.post(CHAT, json=question(stream=True)) as reply:
        await reply.content.readany()
        reply.close()
    async with asyncio.timeout(5):
        await large.left.wait()
    [record] = await gateway.records()
    assert record.status == 499


async def test_a_client_that_does_not_read(start: Start, large: Loopback) -> None:
    """A client that takes nothing of its stream is dropped in time, and the provider is told to stop."""
    lump = {"choices": [{"index": 0, "delta": {"content": "x" * 100_000}, "finish_reason": None}]}
    large.handlers = [sse(*[events([lump], done=False)] * 400)]
    gateway = await start("[server]\nwrite_timeout_s = 0.2")
    host, port = gateway.url.removeprefix("http://").split(":")
    body = msgspec.json.encode(question(stream=True))
    with socket.create_connection((host, int(port))) as client:
        client.sendall(
            f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body
        )
        [record] = await gateway.records()
        assert record.status == 499
        await until(lambda: connected(client), lambda yes: not yes)
    large.handlers = [says("fine")]
    assert (await gateway.chat()).text == "fine"


async def connected(client: socket.socket) -> bool:
    """Whether the other end still has the connection of `client`; only Linux tells and ends it."""
    table = Path("/proc/net/tcp")
    ends = f":{client.getpeername()[1]:04X} 0100007F:{client.getsockname()[1]:04X} 01 "
    return table.exists() and ends in table.read_text()  # noqa: ASYNC240


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that waits 0.1 s for a lock, not 3."""
    monkeypatch.setattr(assemble, "open_store", partial(open_store, busy_timeout_s=0.1))


@pytest.mark.usefixtures("impatient")
async def test_a_locked_database(start: Start, tmp_path: Path, large: Loopback) -> None:
    """While another process holds the database, calls are 503 and not acknowledged; afterwards they work."""
    gateway = await start()
    await gateway.chat()
    with closing(sqlite3.connect(tmp_path / "calls.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        refused, ready = await asyncio.gather(gateway.chat(), gateway.get("/readyz"))
        other.execute("ROLLBACK")
    assert (refused.status, ready.status) == (503, 503)
    assert refused.body["error"]["code"] == "store_unavailable"
    assert (await gateway.chat()).status == 200
    assert (await gateway.get("/readyz")).status == 200


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("table", ["", "cache = {}"], ids=["record", "cache"])
async def test_a_stream_whose_record_cannot_be_kept(start: Start, tmp_path: Path, table: str) -> None:
    """A stream whose record is not durable ends with an error, not with an acknowledgement."""
    gateway = await start(cascade(), table)
    with closing(sqlite3.connect(tmp_path / "calls.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        done = await gateway.chat({"stream": True, "temperature": 0})
        other.execute("ROLLBACK")
    assert done.events[-1]["error"]["code"] == "store_unavailable"
    assert b"[DONE]" not in done.raw


async def test_a_full_disk(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the disk is full calls are 503 with the reason, and work again when there is room."""
    execute = SqliteConnection.execute
    full = True

    def limited(self: Any, sql: str, params: Any = ()) -> None:
        if sql.startswith("BEGIN"):
            pages = self.query("PRAGMA page_count")[0][0] if full else 1_000_000
            execute(self, f"PRAGMA max_page_count = {pages}")
        execute(self, sql, params)

    gateway = await start()
    monkeypatch.setattr(SqliteConnection, "execute", limited)
    refused = await gateway.chat({"messages": [{"role": "user", "content": "x" * 100_000}]})
    assert refused.status == 503
    assert "full" in refused.body["error"]["message"]
    full = False
    assert (await gateway.chat()).status == 200


async def test_a_dead_engine(start: Start, small: Loopback, large: Loopback) -> None:
    """A small model whose process is gone is escalated past; without a large one the error says so."""
    await small.close()
    escalated = await (await start(cascade(accept_uncalibrated=True))).chat()
    assert (escalated.text, escalated.said("reason")) == ("large", "error:unavailable")
    alone = await (await start(cascade("small_only"))).chat()
    assert (alone.status, alone.body["error"]["code"]) == (503, "unavailable")


async def test_shadow_failures_hurt_nobody(start: Start, small: Loopback) -> None:
    """A shadow attempt that fails is recorded as failed; the client does not notice."""
    small.handlers = [slam]
    gateway = await start(cascade("observe"))
    done = await gateway.chat()
    assert done.text == "large"
    assert (await gateway.record(done, attempts=2)).attempts[1].error


async def test_a_defect_does_not_end_the_shadows(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a shadow attempt that failed in our own code, later calls are still answered in shadow, and counted."""
    shadow, calls = Cascade.shadow, count()

    async def once(self: Cascade, *given: Any) -> Any:
        return 1 // next(calls) and await shadow(self, *given)

    monkeypatch.setattr(Cascade, "shadow", once)
    gateway = await start(cascade("observe"))
    await gateway.chat()
    assert (await gateway.record(await gateway.chat(), attempts=2)).attempts[1].decision == "shadow"
    counted = 'smallfirst_attempts_total{decision="shadow",kind="generate",reason="",stage="small"} 1.0'
    assert counted in (await gateway.get("/metrics")).raw.decode()
