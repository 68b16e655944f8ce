"""Retention and key rotation, in batches small enough that appends between them wait for milliseconds only."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from smallfirst.store import rollups
from smallfirst.store.codec import content_row, hour_of
from smallfirst.store.crypto import Hasher, Sealer
from smallfirst.store.database import Connection, Row, marks
from smallfirst.store.readers import Readers
from smallfirst.store.writer import Writer

_BATCH = 200
_SECRET_ROW = "meta:secret"  # noqa: S105 (a row's name)


def load_secret(connection: Connection, sealer: Sealer) -> Hasher:
    """The store's own secret, made when the store is new and sealed as soon as there is a key.

    So a store that was ever opened with a key is refused without it (ConfigError), before it writes anything plain.
    """
    with connection.transaction():
        fresh = sealer.seal(secrets.token_bytes(32), _SECRET_ROW)
        connection.execute("INSERT INTO meta (name, payload) VALUES ('secret', ?) ON CONFLICT DO NOTHING", (fresh,))
        [(envelope,)] = connection.query("SELECT payload FROM meta WHERE name = 'secret'")
        secret = sealer.open(envelope, _SECRET_ROW)
        if sealer.encrypts and not sealer.is_sealed(envelope):
            sealed = sealer.seal(secret, _SECRET_ROW)
            connection.execute("UPDATE meta SET payload = ? WHERE name = 'secret'", (sealed,))
    return Hasher(secret)


async def prune(writer: Writer, older_than: float) -> int:
    """Remove the records made before `older_than` and what only they used; returns how many records.

    A content is unused when the hour of its last use is over before `older_than`; so it may outlive its last record
    by up to an hour. Expired responses go too.
    """
    now = time.time()
    before = min(older_than, now)
    removed = 0
    while batch := await writer.run(partial(_delete_records, before)):
        removed += batch
    await writer.run(rollups.sweep)
    while await _delete(writer, "contents", "hash", "last_hour < ?", hour_of(before)):
        pass
    while await _delete(writer, "responses", "key_hash", "expires_at < ?", now):
        pass
    return removed


def _delete_records(before: float, connection: Connection) -> int:
    """Delete a batch, which the sums forget too; how many records it was."""
    sql = f"SELECT id FROM records WHERE created_at < ? LIMIT {_BATCH}"  # noqa: S608
    ids = [record_id for (record_id,) in connection.query(sql, (before,))]
    if not ids:
        return 0
    with rollups.followed(connection, ids):
        gone = connection.query(f"DELETE FROM records WHERE id IN ({marks(ids)}) RETURNING id", ids)  # noqa: S608
    return len(gone)


async def _delete(writer: Writer, table: str, key: str, condition: str, bound: float) -> int:
    """Delete a batch; how many rows it was. The condition stands twice because PostgreSQL looks again only at the outer
    one when another process has changed a row in the meantime (used a content once more, say)."""
    sql = (
        f"DELETE FROM {table} WHERE {key} IN (SELECT {key} FROM {table} WHERE {condition} LIMIT {_BATCH}) "  # noqa: S608
        f"AND {condition} RETURNING {key}"
    )
    return len(await writer.run(lambda connection: connection.query(sql, (bound, bound))))


@dataclass(frozen=True, slots=True)
class _Sealed:
    """A table with payloads: its key columns, a key before all keys, and the prefix of its rows' identity."""

    table: str
    key: tuple[str, ...]
    first: tuple[object, ...]
    kind: str

    def row(self, key: Sequence[object]) -> str:
        """The identity that the payload under `key` was sealed for."""
        if self.table == "contents":
            return content_row(bytes(key[0]))  # type: ignore[call-overload]
        return ":".join([self.kind, *map(str, key)])


_TABLES = (
    _Sealed("meta", ("name",), ("",), "meta"),
    _Sealed("records", ("id",), ("",), "record"),
    _Sealed("attempts", ("record_id", "n"), ("", -1), "attempt"),
    _Sealed("contents", ("hash",), (b"",), "content"),
    _Sealed("feedback", ("id",), ("",), "feedback"),
    _Sealed("responses", ("key_hash",), ("",), "response"),
    _Sealed("tasks", ("id",), ("",), "task"),
    _Sealed("versions", ("id",), ("",), "version"),
)


async def rotate(writer: Writer, readers: Readers, sealer: Sealer) -> int:
    """Seal under the active key every payload that is not; returns how many. May be stopped and started again."""
    rotated = 0
    for table in _TABLES:
        after = table.first
        while batch := await readers.run(partial(_resealed, sealer, table, after)):
            await writer.run(partial(_replace, table, batch))
            rotated += len(batch)
            after = batch[-1][1]
    return rotated


_Change = tuple[bytes, tuple[object, ...], bytes]


def _resealed(sealer: Sealer, table: _Sealed, after: tuple[object, ...], connection: Connection) -> list[_Change]:
    """The next batch: (new envelope, key, old envelope)."""
    columns = ", ".join(table.key)
    sql = (
        f"SELECT {columns}, payload FROM {table.table} WHERE ({columns}) > ({', '.join('?' * len(table.key))}) "  # noqa: S608
        f"AND substr(payload, 1, {len(sealer.prefix)}) <> ? ORDER BY {columns} LIMIT {_BATCH}"
    )
    return [_change(sealer, table, row) for row in connection.query(sql, (*after, sealer.prefix))]


def _change(sealer: Sealer, table: _Sealed, row: Row) -> _Change:
    *key, envelope = row
    identity = table.row(key)
    return sealer.seal(sealer.open(envelope, identity), identity), tuple(key), envelope


def _replace(table: _Sealed, batch: Sequence[_Change], connection: Connection) -> None:
    conditions = " AND ".join(f"{column} = ?" for column in table.key)
    sql = f"UPDATE {table.table} SET payload = ? WHERE {conditions} AND payload = ?"  # noqa: S608
    for new, key, old in batch:
        connection.execute(sql, (new, *key, old))
