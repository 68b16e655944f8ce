"""Group commit: one connection, one transaction for all that waits.

Work that arrives while a group commits forms the next group; so a lone call waits for nothing, and under load one
commit carries many. Groups commit in a thread; a group of records alone commits right on the event loop where that is
quicker than the way to the thread and back (`Connection.quick`), no other process holds the lock and no fold is due.
All calls are made on the event loop, so what waits needs no lock.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar, cast

from msgspec import Struct

from smallfirst.errors import StoreError
from smallfirst.store import rollups
from smallfirst.store.codec import RecordRows, insert_records
from smallfirst.store.database import Connection, ConnectionLost, Database, Locked, Rejected

T = TypeVar("T")
Work = Callable[[Connection], object]

_GROUP_MAX = 256
_FIRST_BACKOFF_S = 0.1
_LAST_BACKOFF_S = 5.0


class _Job(Struct, frozen=True, eq=False):
    """What waits: a record's rows, or other work. Work must be repeatable: a second run of it changes nothing."""

    work: RecordRows | Work
    order: str
    done: asyncio.Future[Any]


class Writer:
    """Writes for one event loop. At most `max_waiting` jobs wait; beyond that new ones fail at once."""

    def __init__(self, database: Database, *, max_waiting: int) -> None:
        self._database = database
        self._max_waiting = max_waiting
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="smallfirst-store-writer")
        self._waiting: list[_Job] = []
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = False
        self._connection: Connection | None = None
        self._backoff_s = 0.0
        self._retry_at = 0.0
        self._unfolded = 0

    def append(self, rows: RecordRows) -> asyncio.Future[None]:
        """Done when `rows` are durable; fails with StoreError when they are not, or raises it at once."""
        return self._submit(rows, "")

    async def run(self, work: Callable[[Connection], T], order: str = "") -> T:
        """The result of `work` once its transaction is durable. Work of a group runs sorted by `order`: name there
        the row that it locks, so that the groups of two processes lock in the same order."""
        return cast(T, await self._submit(work, order))

    async def close(self) -> None:
        """Refuse new work, finish what waits, and end the thread."""
        self._closed = True
        await self._idle.wait()
        if self._connection is not None:
            await self._loop.run_in_executor(self._thread, self._connection.close)
        self._thread.shutdown()

    def _submit(self, work: RecordRows | Work, order: str) -> asyncio.Future[Any]:
        if self._closed:
            raise StoreError("The store is closed.")
        if len(self._waiting) >= self._max_waiting:
            raise StoreError(
                f"{len(self._waiting)} writes wait for the database; no more are taken.",
                hint="The database is slower than the load, or locked.",
            )
        job = _Job(work, order, self._loop.create_future())
        self._waiting.append(job)
        if self._idle.is_set():
            self._idle.clear()
            # What else this turn of the loop and the next one bring joins the group.
            self._loop.call_soon(self._loop.call_soon, self._start)
        return job.done

    def _start(self) -> None:
        group, self._waiting = self._waiting[:_GROUP_MAX], self._waiting[_GROUP_MAX:]
        quick = self._connection is not None and self._connection.quick
        folds = self._unfolded + len(group) >= rollups.FOLD_AT
        if folds or not (quick and all(isinstance(job.work, RecordRows) for job in group)):
            return self._start_in_thread(group)
        try:
            self._settle(group, self._commit(group, wait=False))
        except Locked:
            self._start_in_thread(group)

    def _start_in_thread(self, group: Sequence[_Job]) -> None:
        running = self._loop.run_in_executor(self._thread, self._commit, group)
        running.add_done_callback(partial(self._finish, group))

    def _finish(self, group: Sequence[_Job], running: asyncio.Future[list[object]]) -> None:
        failure = running.exception()
        self._settle(group, running.result() if failure is None else [failure] * len(group))

    def _settle(self, group: Sequence[_Job], outcomes: Sequence[object]) -> None:
        """Tell each job's caller its outcome, and go on with what has come meanwhile."""
        for job, outcome in zip(group, outcomes, strict=True):
            if job.done.done():  # the caller went away
                continue
            if isinstance(outcome, StoreError):
                job.done.set_exception(StoreError(outcome.message, hint=outcome.hint))
            elif isinstance(outcome, BaseException):
                job.done.set_exception(outcome)
            else:
                job.done.set_result(outcome)
        if self._waiting:
            self._loop.call_soon(self._start)
        else:
            self._idle.set()

    def _commit(self, group: Sequence[_Job], wait: bool = True) -> list[object]:
        """The outcome of each job: its result, or the error that kept it from being durable. A record that is refused
        is written once more as one that may be there already, because it was written before.

        Without `wait`, raises Locked when another process holds the lock.
        """
        try:
            return self._transact(group, wait)
        except Rejected as error:
            if len(group) > 1:
                return [outcome for job in group for outcome in self._commit([job])]
            [job] = group
            if not isinstance(job.work, RecordRows):
                return [error]
            again = partial(insert_records, group=[job.work], repeated=True)
            return self._commit([_Job(again, job.order, job.done)])
        except StoreError as error:
            if isinstance(error, Locked) and not wait:
                raise
            return [error] * len(group)

    def _transact(self, group: Sequence[_Job], wait: bool) -> list[object]:
        """Run `group` in one transaction; once more when a connection that had been open turns out dead."""
        fresh = self._connection is None
        connection = self._connected()
        try:
            with connection.transaction(wait=wait):
                outcomes = _run(connection, group)
                self._fold(connection, len(group))
                return outcomes
        except ConnectionLost:
            self._connection = None
            connection.close()
            if fresh:
                raise
        return self._transact(group, wait)

    def _fold(self, connection: Connection, changes: int) -> None:
        self._unfolded += changes
        if self._unfolded >= rollups.FOLD_AT:
            rollups.fold(connection)
            self._unfolded = 0

    def _connected(self) -> Connection:
        """The connection, made anew when it was lost; while the database stays away, attempts are spaced out."""
        if self._connection is not None:
            return self._connection
        wait_s = self._retry_at - time.monotonic()
        if wait_s > 0:
            raise StoreError(f"The database cannot be reached; the next attempt is in {wait_s:.1f} s.")
        try:
            self._connection = self._database.connect()
        except StoreError:
            self._backoff_s = min(max(2 * self._backoff_s, _FIRST_BACKOFF_S), _LAST_BACKOFF_S)
            self._retry_at = time.monotonic() + self._backoff_s
            raise
        self._backoff_s = 0.0
        return self._connection


def _run(connection: Connection, group: Sequence[_Job]) -> list[object]:
    """Records first, in few statements; then the other work by its order."""
    records = [job.work for job in group if isinstance(job.work, RecordRows)]
    if records:
        insert_records(connection, records)
    outcomes: list[object] = [None] * len(group)
    others = [(job.order, n, job.work) for n, job in enumerate(group) if not isinstance(job.work, RecordRows)]
    for _, n, work in sorted(others, key=lambda other: other[:2]):
        outcomes[n] = work(connection)
    return outcomes
