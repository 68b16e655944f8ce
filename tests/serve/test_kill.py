"""A gateway killed in the middle of load has lost no call that it acknowledged."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
from running import CHAT, PROVIDER_KEY, question

from smallfirst.store import open_store

CONFIG = """
[models.small]
backend = "fake"
small = true
[store]
url = "sqlite:///{folder}/calls.db"
[server]
port = {port}
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@asynccontextmanager
async def process(folder: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """`smallfirst serve` in a process of its own, ready; killed at the end if it still runs."""
    port = free_port()
    path = folder / "smallfirst.toml"
    path.write_text(CONFIG.format(folder=folder, port=port))
    env = {"PATH": os.environ["PATH"], "HOME": str(folder), "PROVIDER_KEY": PROVIDER_KEY}
    command = [str(Path(sys.executable).with_name("smallfirst")), "serve", "--config", str(path)]
    running = await asyncio.create_subprocess_exec(*command, env=env, stderr=asyncio.subprocess.PIPE)
    try:
        url = f"http://127.0.0.1:{port}"
        await ready(running, url)
        yield running, url
    finally:
        if running.returncode is None:
            running.kill()
        await running.communicate()


async def ready(running: asyncio.subprocess.Process, url: str) -> None:
    async with asyncio.timeout(30), aiohttp.ClientSession(url) as http:
        while True:
            assert running.returncode is None
            try:
                async with http.get("/readyz") as reply:
                    if reply.status == 200:
                        return
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.05)


async def ask_until_dead(url: str, stream: bool, acknowledged: set[str]) -> None:
    """Call without end; add the record of every answer that ended well."""
    async with aiohttp.ClientSession(url) as http:
        try:
            while True:
                async with http.post(CHAT, json=question(stream=stream)) as reply:
                    body = await reply.read()
                    if not stream or body.endswith(b"data: [DONE]\n\n"):
                        acknowledged.add(reply.headers["x-smallfirst-record"])
        except (aiohttp.ClientError, ConnectionError):
            return


async def test_kill_9_loses_no_acknowledged_record(tmp_path: Path) -> None:
    """Every record whose answer was complete before `kill -9` is in the store afterwards, and the gateway restarts."""
    acknowledged: set[str] = set()
    async with process(tmp_path) as (running, url):
        calls = [asyncio.create_task(ask_until_dead(url, bool(n % 2), acknowledged)) for n in range(16)]
        while len(acknowledged) < 300:  # noqa: ASYNC110 - tasks beside this one fill it
            await asyncio.sleep(0.01)
        os.kill(running.pid, signal.SIGKILL)
        await asyncio.gather(*calls)
    async with process(tmp_path):
        store = await open_store(f"sqlite:///{tmp_path}/calls.db")
        kept = {summary.id async for summary in store.summaries()}
        await store.close()
    assert acknowledged - kept == set()


async def test_sigterm_stops_in_order(tmp_path: Path) -> None:
    """`smallfirst serve` answers, says where it is, and ends with exit code 0 on SIGTERM."""
    async with process(tmp_path) as (running, url):
        async with aiohttp.ClientSession(url) as http, http.post(CHAT, json=question()) as reply:
            assert reply.status == 200
        running.terminate()
        async with asyncio.timeout(10):
            _, said = await running.communicate()
        assert running.returncode == 0
        assert url in said.decode()
        assert "Traceback" not in said.decode()
