"""API keys: who may call, in which role and within which limits. Of a secret only its SHA-256 is kept."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from dataclasses import asdict, dataclass
from typing import Any

import msgspec

from smallfirst.store.database import Connection, Row
from smallfirst.types import Role

_KEY = re.compile(r"sf-([a-z2-7]{10})-([a-z2-7]{52})", re.ASCII)
_COLUMNS = "id, name, role, secret_hash, limits, created_at, revoked_at"


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """What a key may use; None means without limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent: int | None = None
    usd_per_day: float | None = None


@dataclass(frozen=True, slots=True)
class KeyRow:
    """A key as it is kept. `id` is public; `revoked_at` is None while the key may be used."""

    id: str
    name: str
    role: Role
    secret_hash: bytes
    limits: KeyLimits
    created_at: float
    revoked_at: float | None

    def accepts(self, secret: str) -> bool:
        """Whether `secret` is this key's and the key is not revoked; takes the same time whichever it is."""
        same = hmac.compare_digest(_hash(secret), self.secret_hash)
        return same and self.revoked_at is None


def parse_key(text: str) -> tuple[str, str] | None:
    """The public id and the secret of "sf-<id>-<secret>"; None when `text` is not such a key."""
    match = _KEY.fullmatch(text)
    return (match[1], match[2]) if match else None


def new_key(name: str, role: Role, limits: KeyLimits, now: float) -> tuple[KeyRow, str]:
    """A key with a random 256-bit secret, and its text, which is shown once."""
    key_id = _base32(secrets.token_bytes(7))[:10]
    secret = _base32(secrets.token_bytes(32))
    return KeyRow(key_id, name, role, _hash(secret), limits, now, None), f"sf-{key_id}-{secret}"


def insert_key(connection: Connection, key: KeyRow) -> None:
    limits = msgspec.json.encode(asdict(key.limits)).decode()
    connection.execute(
        f"INSERT INTO api_keys ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",  # noqa: S608
        (key.id, key.name, key.role, key.secret_hash, limits, key.created_at, key.revoked_at),
    )


def select_keys(connection: Connection) -> list[KeyRow]:
    """All keys, oldest first."""
    return [_key(row) for row in connection.query(f"SELECT {_COLUMNS} FROM api_keys ORDER BY created_at, id")]  # noqa: S608


def revoke(connection: Connection, key_id: str, now: float) -> bool:
    """Revoke the key from `now`; False when there is no such key. A second time changes nothing."""
    sql = "UPDATE api_keys SET revoked_at = coalesce(revoked_at, ?) WHERE id = ? RETURNING id"
    return bool(connection.query(sql, (now, key_id)))


def _key(row: Row) -> KeyRow:
    limits: dict[str, Any] = msgspec.json.decode(row[4])
    return KeyRow(row[0], row[1], row[2], bytes(row[3]), KeyLimits(**limits), row[5], row[6])


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def _base32(data: bytes) -> str:
    return base64.b32encode(data).decode().rstrip("=").lower()
