"""What the store needs of a database: two implementations (`sqlite`, `postgres`) of two small protocols.

SQL is written once, with `?` for parameters, in the part of the language that both databases share.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from smallfirst.errors import ConfigError, StoreError

Durability = Literal["process", "power"]
Row = tuple[Any, ...]
_SQLITE = "sqlite:///"


class ConnectionLost(StoreError):
    """The connection is dead; the same work may be tried on a new one."""


class Rejected(StoreError):
    """The database refused this work and no other: a constraint, a value out of range, a deadlock."""


class Locked(StoreError):
    """Another process holds the lock that the work needs."""


class Connection(Protocol):
    """One connection, used by one thread at a time. Every method raises `StoreError` and nothing else.

    `row_lock` is what follows a SELECT to keep other processes from changing its rows before the transaction ends.
    `quick`: a commit takes less time than handing it to another thread and waits for no disk and no server.
    """

    row_lock: ClassVar[str]
    quick: bool

    def execute(self, sql: str, params: Sequence[object] = ()) -> None: ...
    def execute_many(self, sql: str, rows: Iterable[Row]) -> None: ...
    def query(self, sql: str, params: Sequence[object] = ()) -> list[Row]: ...
    def transaction(self, *, wait: bool = True) -> AbstractContextManager[None]:
        """Commit what is done inside, or roll all of it back. A read-only connection sees one state of the database.

        Without `wait`, a lock that another process holds raises Locked at once.
        """

    def lock_schema(self) -> None:
        """Inside a transaction: wait until no other process migrates."""

    def close(self) -> None: ...


class Database(Protocol):
    """Makes connections. `Database.connect` raises `StoreError` when the database cannot be reached."""

    def connect(self, *, read_only: bool = False) -> Connection: ...


def database(url: str, *, durability: Durability, busy_timeout_s: float) -> Database:
    """The database that `url` names: "sqlite:///relative/path", "sqlite:////absolute/path" or "postgresql://...".

    Raises ConfigError for anything else.
    """
    if url.startswith(_SQLITE):
        from smallfirst.store.sqlite import SqliteDatabase

        return SqliteDatabase(url.removeprefix(_SQLITE), durability, busy_timeout_s)
    if url.startswith(("postgresql://", "postgres://")):
        from smallfirst.store.postgres import PostgresDatabase

        return PostgresDatabase(url, durability, busy_timeout_s)
    scheme = url.partition("://")[0]
    raise ConfigError(
        f"The store's URL has the scheme {scheme!r}; allowed are 'sqlite' and 'postgresql'.",
        hint="Write sqlite:///smallfirst.db or postgresql://user@host/database.",
    )


def sqlite_path(url: str) -> Path | None:
    """The file that holds the store at `url`; None where a server does."""
    return Path(url.removeprefix(_SQLITE)) if url.startswith(_SQLITE) else None


def insert(connection: Connection, into: str, rows: Sequence[Row], *, conflict: str = "") -> None:
    """Insert `rows`. `into` is "table (columns)", `conflict` what follows ON CONFLICT; without it, a conflict raises
    Rejected."""
    if rows:
        otherwise = f" ON CONFLICT {conflict}" if conflict else ""
        sql = f"INSERT INTO {into} VALUES ({marks(rows[0])}){otherwise}"  # noqa: S608
        connection.execute_many(sql, rows)


def marks(values: Sequence[object]) -> str:
    """The parameter marks of a list of `values`."""
    return ", ".join("?" * len(values))
