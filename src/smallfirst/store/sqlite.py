"""SQLite in WAL mode: one writer, any number of readers that never block it."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from smallfirst.errors import ConfigError, StoreError
from smallfirst.store.database import Durability, Locked, Rejected, Row

_CHECKPOINT_EVERY_S = 0.5
_LOOK_EVERY_S = 0.005
_WAL_PAGES_MAX = 16_384  # 64 MiB: from there on a commit checkpoints what is left

_HINTS = {
    sqlite3.SQLITE_BUSY: "Another process holds a lock on the database; end its transaction.",
    sqlite3.SQLITE_FULL: "The disk is full; free space or prune old records.",
    sqlite3.SQLITE_IOERR: "The disk failed or is full.",
    sqlite3.SQLITE_CANTOPEN: "Check that the directory exists and may be written.",
    sqlite3.SQLITE_READONLY: "Check that the file and its directory may be written.",
    sqlite3.SQLITE_NOTADB: "The file is not a SQLite database; name another.",
}


class SqliteDatabase:
    """The file at `path`, made (readable by its owner only) with its directory when it is missing.

    Durability "process" (synchronous=NORMAL) survives the end of any process; "power" (FULL) a power cut too.
    """

    def __init__(self, path: str, durability: Durability, busy_timeout_s: float) -> None:
        if path in ("", ":memory:"):
            raise ConfigError(
                f"The store's SQLite path is {path!r}; it must be a file, which readers and the writer share.",
                hint="Write sqlite:///smallfirst.db",
            )
        self._path = Path(path)
        self._synchronous = "FULL" if durability == "power" else "NORMAL"
        self._busy_timeout_s = busy_timeout_s

    def connect(self, *, read_only: bool = False) -> SqliteConnection:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.touch(mode=0o600)
            connection = self._open()
            if read_only:
                connection.execute("PRAGMA query_only = ON")
                return SqliteConnection(connection)
            connection.execute("PRAGMA busy_timeout = 0")  # `SqliteConnection.transaction` waits
            return SqliteConnection(
                connection,
                _Checkpointer(self._open()),
                busy_timeout_s=self._busy_timeout_s,
                quick=self._synchronous == "NORMAL",
            )
        except sqlite3.Error as error:
            raise _translated(error) from error
        except OSError as error:
            raise StoreError(
                f"The store's file {str(self._path)!r} cannot be made: {error.strerror}.",
                hint=_HINTS[sqlite3.SQLITE_CANTOPEN],
            ) from error

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path,
            timeout=self._busy_timeout_s,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=256,
        )
        self._set_wal(connection)
        connection.execute(f"PRAGMA synchronous = {self._synchronous}")
        connection.execute(f"PRAGMA wal_autocheckpoint = {_WAL_PAGES_MAX}")
        connection.execute("PRAGMA foreign_keys = ON")
        return connection

    def _set_wal(self, connection: sqlite3.Connection) -> None:
        """Switch to WAL. SQLite does not honour the busy timeout when two processes switch at once, so wait here."""
        deadline = time.monotonic() + self._busy_timeout_s
        while True:
            try:
                connection.execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError as error:
                if _code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
            else:
                return


class SqliteConnection:
    """See `database.Connection`. One that writes has a checkpointer."""

    row_lock: ClassVar[str] = ""  # whoever writes holds the only lock there is

    def __init__(
        self,
        connection: sqlite3.Connection,
        checkpointer: _Checkpointer | None = None,
        *,
        busy_timeout_s: float = 0.0,
        quick: bool = False,
    ) -> None:
        self.quick = quick
        self._connection = connection
        self._checkpointer = checkpointer
        self._busy_timeout_s = busy_timeout_s
        self._begin = "BEGIN IMMEDIATE" if checkpointer else "BEGIN"

    def execute(self, sql: str, params: Sequence[object] = ()) -> None:
        try:
            self._connection.execute(sql, params)
        except (sqlite3.Error, OverflowError) as error:
            raise _translated(error) from error

    def execute_many(self, sql: str, rows: Iterable[Row]) -> None:
        try:
            self._connection.executemany(sql, rows)
        except (sqlite3.Error, OverflowError) as error:
            raise _translated(error) from error

    def query(self, sql: str, params: Sequence[object] = ()) -> list[Row]:
        try:
            return self._connection.execute(sql, params).fetchall()
        except (sqlite3.Error, OverflowError) as error:
            raise _translated(error) from error

    @contextmanager
    def transaction(self, *, wait: bool = True) -> Iterator[None]:
        self._lock(self._busy_timeout_s if wait else 0.0)
        try:
            yield
            self.execute("COMMIT")
        finally:
            if self._connection.in_transaction:
                self.execute("ROLLBACK")
        if self._checkpointer:
            self._checkpointer.committed()

    def _lock(self, wait_s: float) -> None:
        """Begin, looking for up to `wait_s` seconds whether another process has let go of the lock."""
        deadline = time.monotonic() + wait_s
        while True:
            try:
                return self.execute(self._begin)
            except Locked:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(_LOOK_EVERY_S)

    def lock_schema(self) -> None:
        """Nothing to do: BEGIN IMMEDIATE holds the only write lock already."""

    def close(self) -> None:
        if self._checkpointer:
            self._checkpointer.close()
        self._connection.close()


class _Checkpointer:
    """Moves the write-ahead log into the database in a thread of its own, because that waits for the disk.

    A passive checkpoint holds up neither writer nor readers; one that fails is made up for by the next.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="smallfirst-store-checkpoint")
        self._running: Future[object] | None = None
        self._next_at = 0.0

    def committed(self) -> None:
        """Called by the writer after each commit."""
        now = time.monotonic()
        if now >= self._next_at and (self._running is None or self._running.done()):
            self._next_at = now + _CHECKPOINT_EVERY_S
            self._running = self._thread.submit(self._connection.execute, "PRAGMA wal_checkpoint(PASSIVE)")

    def close(self) -> None:
        self._thread.shutdown()
        self._connection.close()


def _code(error: sqlite3.Error | OverflowError) -> int:
    """SQLite's primary result code (the low byte of the extended one); 0 when the library did not set one."""
    return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF


def _translated(error: sqlite3.Error | OverflowError) -> StoreError:
    if _code(error) == sqlite3.SQLITE_BUSY:
        return Locked(f"SQLite: {error}.", hint=_HINTS[sqlite3.SQLITE_BUSY])
    if isinstance(error, sqlite3.OperationalError) or type(error) is sqlite3.DatabaseError:
        return StoreError(f"SQLite: {error}.", hint=_HINTS.get(_code(error), ""))
    return Rejected(f"SQLite refused a row: {error}.")
