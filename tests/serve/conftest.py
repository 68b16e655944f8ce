from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from recording import Loopback
from running import Running, Start, says, started


@pytest.fixture(autouse=True)
def brisk(brisk_server: None) -> None:
    """All tests here stop servers."""


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
