"""Reads on connections of their own, in a few threads, so that they block neither the event loop nor the writer."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TypeVar

from smallfirst.store.database import Connection, ConnectionLost, Database

T = TypeVar("T")

_THREADS = 2


class Readers:
    """A small pool of read-only connections. They are made when first needed and replaced when lost."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._threads = ThreadPoolExecutor(max_workers=_THREADS, thread_name_prefix="smallfirst-store-reader")
        self._idle: deque[Connection] = deque()

    async def run(self, read: Callable[[Connection], T]) -> T:
        """The result of `read`, which sees the database as it was when it began. Raises StoreError."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._read, read)

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._threads, self._close_idle)
        self._threads.shutdown()

    def _read(self, read: Callable[[Connection], T]) -> T:
        idle = self._take()
        if idle is not None:
            try:
                return self._read_on(idle, read)
            except ConnectionLost:  # the other idle ones are as old
                self._close_idle()
        return self._read_on(self._database.connect(read_only=True), read)

    def _read_on(self, connection: Connection, read: Callable[[Connection], T]) -> T:
        with ExitStack() as on_error:
            on_error.callback(connection.close)
            with connection.transaction():
                result = read(connection)
            on_error.pop_all()
        self._idle.append(connection)
        return result

    def _take(self) -> Connection | None:
        try:
            return self._idle.popleft()
        except IndexError:
            return None

    def _close_idle(self) -> None:
        while (connection := self._take()) is not None:
            connection.close()
