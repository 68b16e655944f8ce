"""What a gateway reads from the store and follows while it runs."""

from __future__ import annotations

import asyncio
from typing import Protocol

import structlog

from smallfirst.errors import SmallfirstError

log = structlog.get_logger("smallfirst.follow")
REFRESH_S = 0.5


class Followed(Protocol):
    async def refresh(self) -> None:
        """Read what has changed. Raises SmallfirstError."""
        ...


async def follow(*followed: Followed) -> None:
    """Refresh each, every `REFRESH_S` seconds, for ever; a store that cannot be read changes nothing."""
    while True:
        await asyncio.sleep(REFRESH_S)
        for one in followed:
            try:
                await one.refresh()
            except SmallfirstError as err:
                log.warning("changes not read", of=type(one).__name__, error=str(err))
            except Exception:  # one defect must not end what a gateway follows, for nobody would notice
                log.exception("defect", of=type(one).__name__)
