"""Reads on connections of their own, in a few threads, so that they block neither the event loop nor the writer."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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
        """The result of `read`, which sees what was durable when it began. Raises StoreError."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._read, read)

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._threads, self._close_idle)
        self._threads.shutdown()

    def _read(self, read: Callable[[Connection], T]) -> T:
        if self._idle:
            connection = self._idle.popleft()
            try:
                result = read(connection)
            except ConnectionLost:
                connection.close()
                self._close_idle()
            else:
                self._idle.append(connection)
                return result
        return self._read_afresh(read)

    def _read_afresh(self, read: Callable[[Connection], T]) -> T:
        connection = self._database.connect(read_only=True)
        try:
            result = read(connection)
        except BaseException:
            connection.close()
            raise
        self._idle.append(connection)
        return result

    def _close_idle(self) -> None:
        while self._idle:
            self._idle.pop().close()
