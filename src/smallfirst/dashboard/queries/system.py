"""What runs and how full it is, as far as the store knows; the gateway's live state is its own to tell."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from smallfirst import __version__
from smallfirst.config import Config
from smallfirst.dashboard.queries.base import counted
from smallfirst.dashboard.queries.values import HOUR_S, Value
from smallfirst.store import KeyRow, Store
from smallfirst.store.database import Connection
from smallfirst.store.rollups import Span, by_key

_DAY_S = 86_400
_PASSWORD = re.compile(r"(?<=://)([^/@:]*):[^/@]*@")


@dataclass(frozen=True, slots=True)
class KeyUse:
    """An API key and what it used: today's spending (UTC) against its limit in USD, None without one; calls of the last
    24 hours. The key "local" stands for calls without one."""

    id: str
    name: str
    role: str
    revoked: bool
    spent_usd: float
    limit_usd: float | None
    calls: Value


@dataclass(frozen=True, slots=True)
class Setting:
    """One line of the configuration, as "server.port"; `value` is JSON text, passwords replaced by "***"."""

    name: str
    value: str
    default: bool


@dataclass(frozen=True, slots=True)
class System:
    """`database` is "SQLite" or "PostgreSQL"; sizes in bytes; `oldest` and `newest` are when records were made, None in
    an empty store."""

    version: str
    schema_version: int
    database: str
    bytes: int
    records: int
    oldest: float | None
    newest: float | None
    encrypted: bool
    config_hash: str
    keys: tuple[KeyUse, ...]
    settings: tuple[Setting, ...]


@dataclass(frozen=True, slots=True)
class _Storage:
    schema_version: int
    bytes: int
    records: int
    oldest: float | None
    newest: float | None
    calls: dict[str, float]


async def system(store: Store, config: Config, now: float) -> System:
    """The store's part of the System page."""
    sqlite = config.store.url.startswith("sqlite:")
    found = await store.read(lambda c: _storage(c, sqlite, now))
    midnight = now - now % _DAY_S
    rows: list[KeyRow | None] = [*await store.list_keys(), *([None] if "local" in found.calls else [])]
    keys = [_use(row, found.calls, await store.spent(row.id if row else "local", midnight)) for row in rows]
    return System(
        version=__version__,
        schema_version=found.schema_version,
        database="SQLite" if sqlite else "PostgreSQL",
        bytes=found.bytes,
        records=found.records,
        oldest=found.oldest,
        newest=found.newest,
        encrypted=store.encrypts,
        config_hash=config.hash,
        keys=tuple(keys),
        settings=settings(config),
    )


def settings(config: Config) -> tuple[Setting, ...]:
    """Every setting, in the order of the configuration's types, passwords in URLs masked."""
    defaults = dict(_flat(Config()))
    return tuple(
        Setting(name, _PASSWORD.sub(r"\1:***@", msgspec.json.encode(value).decode()), defaults.get(name) == value)
        for name, value in _flat(config)
    )


def _flat(config: Config) -> Iterator[tuple[str, Any]]:
    def walk(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict) and (value or not path):
            for name, inner in value.items():
                yield from walk(inner, (*path, str(name)))
        else:
            yield ".".join(path), value

    return walk(msgspec.to_builtins(config), ())


def _storage(connection: Connection, sqlite: bool, now: float) -> _Storage:
    size = "page_count * page_size FROM pragma_page_count(), pragma_page_size()"
    size = size if sqlite else "pg_database_size(current_database())"
    [(version,)] = connection.query("SELECT max(version) FROM schema_version")
    [(stored,)] = connection.query(f"SELECT {size}")
    oldest, newest = (connection.query(f"SELECT {end}(created_at) FROM records")[0][0] for end in ("min", "max"))  # noqa: S608
    last = int(now // HOUR_S)
    today = by_key(connection, Span(last - 23, last))
    records = sum(by_key(connection, Span(0, 2**40)).values())
    return _Storage(int(version), int(stored), round(records), oldest, newest, today)


def _use(row: KeyRow | None, calls: dict[str, float], spent: float) -> KeyUse:
    used = counted("calls", calls.get(row.id if row else "local", 0.0), calls.get(row.id if row else "local", 0.0))
    if row is None:
        return KeyUse("local", "calls without a key", "agent", False, spent, None, used)
    return KeyUse(row.id, row.name, row.role, row.revoked_at is not None, spent, row.limits.usd_per_day, used)
