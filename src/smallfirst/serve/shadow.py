"""Small models answer in shadow what the large one served, so that there is something to calibrate on.

Shadows run after the client was served, a few at a time, and never hold a call up: when too many wait, further ones
are dropped and counted.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import structlog

from smallfirst.budget import Allowance
from smallfirst.cascade import Cascade
from smallfirst.errors import SmallfirstError
from smallfirst.serve.telemetry import Telemetry
from smallfirst.store import Store
from smallfirst.types import Record, Request, Stage

log = structlog.get_logger("smallfirst.shadow")


class Shadows:
    """A bounded queue of shadow stages and the workers that run them."""

    def __init__(self, store: Store, telemetry: Telemetry, *, workers: int = 1, pending: int = 64) -> None:
        self._store, self._telemetry = store, telemetry
        self._queue: asyncio.Queue[tuple[Cascade, Stage, Request, str, bool]] = asyncio.Queue(pending)
        self._count, self._workers = workers, list[asyncio.Task[None]]()

    def submit(
        self, cascade: Cascade, stages: Sequence[Stage], request: Request, record: Record, *, capture: bool
    ) -> None:
        """Queue `stages` to answer `request`; their attempts are added to `record`."""
        for stage in stages:
            try:
                self._queue.put_nowait((cascade, stage, request, record.id, capture))
            except asyncio.QueueFull:
                self._telemetry.shadow_dropped()

    async def start(self) -> None:
        self._workers = [asyncio.create_task(self._work()) for _ in range(self._count)]

    async def drain(self) -> None:
        """Wait until nothing is queued or running."""
        await self._queue.join()

    async def close(self) -> None:
        """Stop at once; what waits is given up."""
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)

    async def _work(self) -> None:
        while True:
            cascade, stage, request, record_id, capture = await self._queue.get()
            try:
                attempts = await cascade.shadow(stage, request, Allowance(time.monotonic()))
                await self._store.add_attempts(record_id, attempts, capture=capture)
                self._telemetry.attempted(attempts)
            except SmallfirstError as err:
                log.warning("shadow attempt lost", record=record_id, stage=stage.name, error=str(err))
            except Exception:  # the defect of one call must not end the worker, for nobody would notice
                log.exception("defect", record=record_id, stage=stage.name)
            finally:
                self._queue.task_done()
