"""PostgreSQL through psycopg 3, an optional dependency."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

from smallfirst.errors import ConfigError, StoreError
from smallfirst.store.database import ConnectionLost, Durability, Rejected, Row

if TYPE_CHECKING:
    import psycopg

_SCHEMA_LOCK = 0x736D616C6C666972  # "smallfir": the advisory lock of those who migrate


class PostgresDatabase:
    """The database at `url` (libpq's URI; a schema is chosen by ?options=-csearch_path%3Dname).

    Durability "process" leaves synchronous_commit as the server, database or role has it; "power" turns it on.
    """

    def __init__(self, url: str, durability: Durability, busy_timeout_s: float) -> None:
        try:
            import psycopg
        except ImportError as error:
            raise ConfigError(
                "The store's URL is PostgreSQL's, but psycopg is not installed.",
                hint="Run: pip install 'smallfirst[postgres]'",
            ) from error
        self._psycopg = psycopg
        self._url = url
        self._durability = durability
        self._busy_timeout_s = busy_timeout_s

    def connect(self, *, read_only: bool = False) -> PostgresConnection:
        milliseconds = max(1, round(self._busy_timeout_s * 1000))
        try:
            connection = self._psycopg.connect(
                self._url,
                autocommit=True,
                connect_timeout=max(2, round(self._busy_timeout_s)),
                tcp_user_timeout=milliseconds,
                application_name="smallfirst",
            )
            connection.execute(f"SET lock_timeout = {milliseconds}")
            if read_only:
                connection.execute("SET default_transaction_read_only = on")
                connection.execute("SET default_transaction_isolation = 'repeatable read'")
            if self._durability == "power":
                connection.execute("SET synchronous_commit = on")
        except self._psycopg.ProgrammingError as error:  # the URL itself is wrong; its text may hold a password
            raise ConfigError(
                "The store's PostgreSQL URL cannot be read.", hint="Write postgresql://user@host/database."
            ) from error
        except self._psycopg.Error as error:
            raise ConnectionLost(f"PostgreSQL cannot be reached: {_first_line(error)}.") from error
        return PostgresConnection(connection)


class PostgresConnection:
    """See `database.Connection`. The statements of a transaction go out in one pipeline, so few wait for a reply."""

    quick = False
    row_lock: ClassVar[str] = " FOR UPDATE"

    def __init__(self, connection: psycopg.Connection) -> None:
        self._connection = connection

    def execute(self, sql: str, params: Sequence[object] = ()) -> None:
        with self._translating():
            self._connection.execute(_percent(sql), params)

    def execute_many(self, sql: str, rows: Iterable[Row]) -> None:
        with self._translating(), self._connection.cursor() as cursor:
            cursor.executemany(_percent(sql), rows)

    def query(self, sql: str, params: Sequence[object] = ()) -> list[Row]:
        with self._translating():
            return self._connection.execute(_percent(sql), params).fetchall()

    @contextmanager
    def transaction(self, *, wait: bool = True) -> Iterator[None]:  # noqa: ARG002 - lock_timeout bounds the wait
        with self._translating(), self._connection.pipeline(), self._connection.transaction():
            yield

    def lock_schema(self) -> None:
        self.execute("SELECT pg_advisory_xact_lock(?)", (_SCHEMA_LOCK,))

    def close(self) -> None:
        self._connection.close()

    @contextmanager
    def _translating(self) -> Iterator[None]:
        import psycopg

        try:
            yield
        except (psycopg.errors.LockNotAvailable, psycopg.errors.InsufficientResources) as error:
            raise StoreError(f"PostgreSQL: {_first_line(error)}.") from error
        except (psycopg.OperationalError, psycopg.InterfaceError) as error:
            if self._connection.closed:
                raise ConnectionLost(f"The connection to PostgreSQL is lost: {_first_line(error)}.") from error
            raise Rejected(f"PostgreSQL refused: {_first_line(error)}.") from error
        except psycopg.Error as error:
            raise Rejected(f"PostgreSQL refused: {_first_line(error)}.") from error


@lru_cache(maxsize=512)
def _percent(sql: str) -> bytes:
    return sql.replace("?", "%s").encode()


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".")
