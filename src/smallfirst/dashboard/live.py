"""Live updates: a stream of server-sent events that tells pages when calls were recorded."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

from starlette.responses import Response, StreamingResponse

from smallfirst.dashboard.view import Visit
from smallfirst.errors import LimitError
from smallfirst.serve.exchange import STREAM
from smallfirst.store import Store

LOOKS_EVERY_S = 2.0
_TICK_S = 0.5
_MOST = 64
_LASTS_S = 600


class Stream:
    """Looks for new calls as long as a page listens, and ends when the server wants to stop."""

    def __init__(self, store: Store, stopping: Callable[[], bool]) -> None:
        self._store, self._stopping = store, stopping
        self._listeners = 0

    async def events(self, _: Visit) -> Response:
        """The stream. Raises LimitError when too many pages listen."""
        if self._listeners >= _MOST:
            raise LimitError(f"{_MOST} pages listen already.", hint="Close some.", retry_after=60)
        return StreamingResponse(self._events(), headers=dict(STREAM))

    async def _events(self) -> AsyncIterator[str]:
        self._listeners += 1
        try:
            yield "retry: 5000\n\n"
            seen, until = await self._newest(), time.monotonic() + _LASTS_S
            while not self._stopping() and time.monotonic() < until:
                if await self._pause() and (newest := await self._newest()) != seen:
                    seen = newest
                    yield f"event: recorded\ndata: {newest}\n\n"
                else:
                    yield ":\n\n"
        finally:
            self._listeners -= 1

    async def _pause(self) -> bool:
        """Wait until it is time to look again; False when the server stops first."""
        for _ in range(int(LOOKS_EVERY_S / _TICK_S)):
            if self._stopping():
                return False
            await asyncio.sleep(_TICK_S)
        return True

    async def _newest(self) -> str:
        page = await self._store.list_records(limit=1)
        return page[0].id if page else ""
