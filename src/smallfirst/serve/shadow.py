"""Small models answer in shadow what the large one served, so that there is something to calibrate on.

Shadows (and audits, the other way round: see `audit`) run after the client was served, a few at a time, and never hold
a call up: when too many wait, or the caller's budget does not allow them, they are dropped and counted.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass

import structlog

from smallfirst.budget import Allowance
from smallfirst.cascade import Cascade
from smallfirst.errors import LimitError, SmallfirstError
from smallfirst.serve.access import Caller
from smallfirst.serve.spending import within_budget
from smallfirst.serve.telemetry import Telemetry
from smallfirst.store import Store
from smallfirst.types import Attempt, Calibrator, Request, Stage

log = structlog.get_logger("smallfirst.shadow")


@dataclass(frozen=True, slots=True)
class Shadow:
    """A stage that is to answer `request` for the record of `record_id`, at the expense of `caller`, with `others`
    beside it as evidence; `calibrator` is the stage's, where it has one."""

    record_id: str
    caller: Caller
    cascade: Cascade
    stage: Stage
    request: Request
    capture: bool
    others: tuple[Stage, ...] = ()
    calibrator: Calibrator | None = None

    @property
    def stages(self) -> tuple[Stage, ...]:
        """All that is asked."""
        return (self.stage, *self.others)

    async def attempts(self, allowance: Allowance) -> tuple[Attempt, ...]:
        """Answer."""
        return await self.cascade.shadow(self.stage, self.request, allowance, self.others, self.calibrator)

    async def recorded(self, store: Store, attempts: tuple[Attempt, ...]) -> None:
        """Called when the attempts are durable."""


class Shadows:
    """Two bounded queues and the workers that run them: small stages one at a time, so that they leave the machine to
    calls, and large ones, which mostly wait for a server, several at once."""

    def __init__(
        self, store: Store, telemetry: Telemetry, *, small: int = 1, large: int = 8, pending: int = 64
    ) -> None:
        self._store, self._telemetry = store, telemetry
        self._counts = {True: small, False: large}  # workers, by whether the stage is small
        self._queues = {of_small: asyncio.Queue[Shadow](pending) for of_small in self._counts}
        self._workers = list[asyncio.Task[None]]()

    @property
    def waiting(self) -> int:
        """How many shadows and audits wait for a worker."""
        return sum(queue.qsize() for queue in self._queues.values())

    def submit(self, shadow: Shadow) -> None:
        """Queue it; its attempts are added to its record."""
        try:
            self._queues[shadow.stage.small].put_nowait(shadow)
        except asyncio.QueueFull:
            self._telemetry.shadow_dropped()

    async def start(self) -> None:
        self._workers = [
            asyncio.create_task(self._work(self._queues[of_small]))
            for of_small, count in self._counts.items()
            for _ in range(count)
        ]

    async def close(self) -> None:
        """Stop at once; what waits is given up."""
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)

    async def _work(self, queue: asyncio.Queue[Shadow]) -> None:
        while True:
            shadow = await queue.get()
            try:
                await self._answer(shadow)
            except LimitError:
                self._telemetry.shadow_dropped()
            except SmallfirstError as err:
                log.warning("shadow attempt lost", record=shadow.record_id, stage=shadow.stage.name, error=str(err))
            except Exception:  # the defect of one call must not end the worker, for nobody would notice
                log.exception("defect", record=shadow.record_id, stage=shadow.stage.name)

    async def _answer(self, shadow: Shadow) -> None:
        allowance = Allowance(time.monotonic())
        async with self._budget(shadow, allowance):
            attempts = await shadow.attempts(allowance)
        if attempts:
            await self._store.add_attempts(shadow.record_id, attempts, capture=shadow.capture)
            self._telemetry.attempted(attempts)
        await shadow.recorded(self._store, attempts)

    def _budget(self, shadow: Shadow, allowance: Allowance) -> AbstractAsyncContextManager[None]:
        """The caller's daily budget, where there is one and the shadow costs more than this machine's time."""
        pricing, stages = shadow.cascade.pricing, shadow.stages
        free = all(pricing.expected(stage, shadow.request) == 0 for stage in stages)
        if shadow.caller.limits.usd_per_day is None or free:
            return nullcontext()
        return within_budget(self._store, shadow.caller, pricing, stages, shadow.request, allowance)
