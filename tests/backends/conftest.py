from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from recording import Loopback, answer


@pytest.fixture
async def upstream() -> AsyncIterator[Loopback]:
    """A provider on loopback; tests put their own handlers in."""
    server = Loopback([answer({})])
    await server.start()
    yield server
    await server.close()
