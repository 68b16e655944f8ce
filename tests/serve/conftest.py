from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
from recording import Loopback
from running import Running, Start, says, started


@pytest.fixture(autouse=True)
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    """uvicorn looks every 0.1 s whether to stop, and waits as long again; tests have no time for that."""
    patient = asyncio.sleep
    own = SimpleNamespace(**{**vars(asyncio), "sleep": lambda seconds: patient(seconds / 20)})
    monkeypatch.setattr("uvicorn.server.asyncio", own)


@pytest.fixture
async def small() -> AsyncIterator[Loopback]:
    """The small model's server, which says "small"."""
    async with started(Loopback([says("small")])) as server:
        yield server


@pytest.fixture
async def large() -> AsyncIterator[Loopback]:
    """The large model's server, which says "large"."""
    async with started(Loopback([says("large")])) as server:
        yield server


@pytest.fixture
async def start(tmp_path: Path, small: Loopback, large: Loopback) -> AsyncIterator[Start]:
    """Starts gateways in front of `small` and `large`, and stops them after the test."""
    async with AsyncExitStack() as stack:

        async def start(*tables: str, env: dict[str, str] | None = None) -> Running:
            return await stack.enter_async_context(Running.open(tmp_path, small.url, large.url, tables, env or {}))

        yield start


@pytest.fixture
async def gateway(start: Start) -> Running:
    """A gateway with the default policy: uncalibrated, so the large model answers."""
    return await start()
