"""Who may call, and how much: API keys, roles, and the limits of a key.

As long as no key was ever made the gateway is open, to this machine only. Limits are counted in this process;
spending in USD is the store's ledger, exact across processes.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from smallfirst.errors import AuthenticationError, LimitError, PermissionDenied
from smallfirst.store import KeyLimits, KeyRow, Store, parse_key
from smallfirst.types import Role

RANK: Mapping[Role, int] = {"agent": 0, "viewer": 1, "operator": 2, "admin": 3}
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
REFRESH_S = 2.0


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated caller."""

    key: str
    role: Role
    limits: KeyLimits


LOCAL = Caller("local", "admin", KeyLimits())


class Access:
    """Authenticates callers. A revoked or new key takes effect within `REFRESH_S` seconds."""

    def __init__(self, store: Store, *, host: str) -> None:
        self._store = store
        self._needed = host not in LOOPBACK
        self._keys: dict[str, KeyRow] = {}
        self._until = 0.0
        self._refreshing = asyncio.Lock()

    async def authenticate(self, headers: Mapping[str, str], least: Role = "agent") -> Caller:
        """The caller that `headers` (lower-case names) prove.

        Raises AuthenticationError without a valid key where one is needed, PermissionDenied below role `least`.
        """
        await self._refresh()
        given = headers.get("x-api-key") or headers.get("authorization", "").removeprefix("Bearer ").strip()
        if not self._needed:
            return LOCAL
        key_id, secret = parse_key(given) or ("", "")
        row = self._keys.get(key_id)
        if row is None or not row.accepts(secret):
            raise AuthenticationError(
                "Missing or invalid API key.",
                hint="Send `Authorization: Bearer sf-...` or `x-api-key`; `smallfirst keys add` makes one.",
            )
        return _caller(row, least)

    async def recall(self, key_id: str, least: Role = "agent") -> Caller:
        """The caller whose key of this id was proven before, as a session remembers it.

        Raises AuthenticationError when the key was revoked since or there is none, PermissionDenied below role `least`.
        """
        await self._refresh()
        if not self._needed:
            return LOCAL
        row = self._keys.get(key_id)
        if row is None:
            raise AuthenticationError("The session's API key is not valid any more.", hint="Log in again.")
        return _caller(row, least)

    async def _refresh(self) -> None:
        """Read the keys when what is known is too old; nobody is let in on keys that are still being read."""
        if time.monotonic() < self._until:
            return
        async with self._refreshing:
            if time.monotonic() < self._until:
                return
            rows = await self._store.list_keys()
            self._keys = {row.id: row for row in rows if row.revoked_at is None}
            self._needed = self._needed or bool(rows)
            self._until = time.monotonic() + REFRESH_S


def _caller(row: KeyRow, least: Role) -> Caller:
    if RANK[row.role] < RANK[least]:
        raise PermissionDenied(f"Key {row.id!r} has the role {row.role!r}; this needs {least!r}.")
    return Caller(row.id, row.role, row.limits)


@dataclass(slots=True)
class _Bucket:
    """A token bucket that refills `per_minute` a minute and holds a minute's worth."""

    per_minute: float
    level: float
    at: float

    def refill(self, now: float) -> None:
        self.level = min(self.per_minute, self.level + (now - self.at) * self.per_minute / 60)
        self.at = now

    def wait_for(self, amount: float) -> float:
        """Seconds until `amount` is there."""
        return max(0.0, (amount - self.level) * 60 / self.per_minute)


@dataclass(slots=True)
class _Use:
    running: int = 0
    buckets: dict[str, _Bucket] = field(default_factory=dict)


class Admission:
    """Limits per key (requests and tokens a minute, concurrent calls) and calls at once for all."""

    def __init__(self, max_concurrent: int) -> None:
        self._max = max_concurrent
        self._running = 0
        self._uses: defaultdict[str, _Use] = defaultdict(_Use)

    @property
    def running(self) -> int:
        """How many calls are running."""
        return self._running

    @contextmanager
    def admit(self, caller: Caller) -> Iterator[None]:
        """Hold a place for one call. Raises LimitError with `retry_after` when there is none."""
        use = self._uses[caller.key]
        if self._running >= self._max:
            raise LimitError(f"All {self._max} places are taken.", hint="Retry shortly.", retry_after=1)
        if caller.limits.concurrent is not None and use.running >= caller.limits.concurrent:
            raise LimitError(f"Key {caller.key!r} has {use.running} calls running, its limit.", retry_after=1)
        now = time.monotonic()
        self._take(use, "requests", caller.limits.requests_per_minute, 1, now)
        self._take(use, "tokens", caller.limits.tokens_per_minute, 0, now)
        self._running += 1
        use.running += 1
        try:
            yield
        finally:
            self._running -= 1
            use.running -= 1

    def used(self, caller: Caller, tokens: int) -> None:
        """Charge the tokens of a finished call; they may overdraw, and later calls wait until that is refilled."""
        bucket = self._uses[caller.key].buckets.get("tokens")
        if bucket is not None:
            bucket.level -= tokens

    def _take(self, use: _Use, kind: str, per_minute: float | None, amount: float, now: float) -> None:
        if per_minute is None:
            return
        bucket = use.buckets.get(kind)
        if bucket is None or bucket.per_minute != per_minute:
            bucket = use.buckets[kind] = _Bucket(per_minute, per_minute, now)
        bucket.refill(now)
        if wait := bucket.wait_for(amount if amount else 1e-9):
            raise LimitError(f"The limit of {per_minute:g} {kind} a minute is reached.", retry_after=wait)
        bucket.level -= amount
