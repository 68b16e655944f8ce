"""What runs and how full it is, as far as the store knows; the gateway's live state is its own to tell."""

from __future__ import annotations

from dataclasses import dataclass

from smallfirst.config import Config
from smallfirst.dashboard.queries.values import Value
from smallfirst.store import Store


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
    last: float | None


@dataclass(frozen=True, slots=True)
class Setting:
    """One line of the configuration, as "server.port"; `value` is JSON text, secrets replaced by "***"."""

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


async def system(store: Store, config: Config, now: float) -> System:
    """The store's part of the System page."""
    raise NotImplementedError


def settings(config: Config) -> tuple[Setting, ...]:
    """Every setting, in the order of the configuration file, passwords in URLs masked."""
    raise NotImplementedError
