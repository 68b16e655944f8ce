"""Jobs that one process at a time does, and that the next goes on with when it dies (see `store.jobs`)."""

from __future__ import annotations

import asyncio
import os
import socket
import uuid
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from smallfirst.errors import SmallfirstError, StoreError
from smallfirst.store import Store

T = TypeVar("T")
_BEAT_S = 20.0


class TakenOver(SmallfirstError):
    """Another process has taken the job over, because this one showed no life for long."""

    code = "taken_over"


@dataclass(slots=True)
class Owned:
    """A job that is this process's; `state` is what was kept last, "" at first."""

    task: str
    state: str
    _store: Store
    _owner: str

    async def keep(self, state: str) -> None:
        """Make a new state durable. Raises TakenOver, StoreError."""
        if not await self._store.beat_job(self.task, self._owner, state):
            raise self._taken_over()
        self.state = state

    async def during(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, showing life while it lasts. Raises TakenOver, and then `work` is cancelled."""
        doing, beating = asyncio.create_task(work), asyncio.create_task(self._beat())
        try:
            await asyncio.wait({doing, beating}, return_when=asyncio.FIRST_COMPLETED)
            if not doing.done():
                raise self._taken_over()
            return doing.result()
        finally:
            doing.cancel()
            beating.cancel()
            await asyncio.gather(doing, beating, return_exceptions=True)

    async def _beat(self) -> None:
        """Returns when the job is another's."""
        owned = True
        while owned:
            await asyncio.sleep(_BEAT_S)
            with suppress(StoreError):  # a store that is away for a moment takes no job away
                owned = await self._store.beat_job(self.task, self._owner)

    def _taken_over(self) -> TakenOver:
        return TakenOver(f"Another process works on {self.task or 'the records'!r}: it saw no life in this one.")


class Jobs:
    """The jobs in a store, on behalf of this process."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._owner = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex}"

    async def states(self) -> dict[str, str]:
        """What was kept last, by task."""
        return await self._store.jobs()

    @asynccontextmanager
    async def own(self, task: str) -> AsyncIterator[Owned | None]:
        """The job as long as the context lasts; None when another process has it."""
        state = await self._store.claim_job(task, self._owner, _gone)
        if state is None:
            yield None
            return
        try:
            yield Owned(task, state, self._store, self._owner)
        finally:
            await self._store.leave_job(task, self._owner)


def _gone(owner: str) -> bool:
    """Whether an owner is known to be dead: a process of this machine that does not run."""
    host, pid, _ = owner.split(":")
    if host != socket.gethostname():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # it runs, as another user
    return False
