"""The budget ledger: money is reserved before a call and settled after it, exactly, by any number of processes.

Amounts are whole nano-dollars (1e-9 USD) in the database, so that sums are exact. The row of a key and period in
`spend` is locked first by every operation; what follows in the transaction sees all that others did before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from smallfirst.errors import RequestError
from smallfirst.store.database import Connection

_NANO = 1_000_000_000
_FORGET_AFTER_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Reservation:
    """Money set aside for one call until `expires_at`; after that it counts no more, unless it is settled."""

    id: str
    key_id: str
    usd: float
    period_start: float
    expires_at: float


def reserve(connection: Connection, wanted: Reservation, limit_usd: float, now: float) -> bool:
    """Set `wanted` aside if spent + reserved + wanted <= limit; False, and nothing is kept, otherwise."""
    spent = _locked_spend(connection, wanted.key_id, wanted.period_start)
    connection.execute(
        "DELETE FROM reservations WHERE key_id = ? AND expires_at < ?", (wanted.key_id, now - _FORGET_AFTER_S)
    )
    [(reserved,)] = connection.query(
        "SELECT coalesce(sum(nano_usd), 0) FROM reservations "
        "WHERE key_id = ? AND period_start = ? AND expires_at > ? AND id <> ?",
        (wanted.key_id, wanted.period_start, now, wanted.id),
    )
    nano = _nano(wanted.usd)
    if spent + int(reserved) + nano > _nano(limit_usd):
        return False
    connection.execute(
        "INSERT INTO reservations (id, key_id, period_start, nano_usd, expires_at) VALUES (?, ?, ?, ?, ?) "
        "ON CONFLICT DO NOTHING",
        (wanted.id, wanted.key_id, wanted.period_start, nano, wanted.expires_at),
    )
    return True


def settle(connection: Connection, reservation: Reservation, actual_usd: float) -> None:
    """Turn the reservation into spending of `actual_usd`; a second time changes nothing. 0 releases it."""
    _locked_spend(connection, reservation.key_id, reservation.period_start)
    if connection.query("DELETE FROM reservations WHERE id = ? RETURNING id", (reservation.id,)):
        connection.execute(
            "UPDATE spend SET nano_usd = nano_usd + ? WHERE key_id = ? AND period_start = ?",
            (_nano(actual_usd), reservation.key_id, reservation.period_start),
        )


def spent_usd(connection: Connection, key_id: str, period_start: float) -> float:
    """What the key has spent in the period, in USD, reservations not counted."""
    sql = "SELECT nano_usd FROM spend WHERE key_id = ? AND period_start = ?"
    rows = connection.query(sql, (key_id, period_start))
    return rows[0][0] / _NANO if rows else 0.0


def check_usd(name: str, usd: float) -> None:
    """Raises RequestError for an amount that is negative or no number."""
    if not (math.isfinite(usd) and usd >= 0):
        raise RequestError(f"{name} is {usd!r}; it must be a number of USD, 0 or more.", param=name)


def _locked_spend(connection: Connection, key_id: str, period_start: float) -> int:
    sql = (
        "INSERT INTO spend (key_id, period_start, nano_usd) VALUES (?, ?, 0) "
        "ON CONFLICT (key_id, period_start) DO UPDATE SET nano_usd = spend.nano_usd RETURNING nano_usd"
    )
    [(nano,)] = connection.query(sql, (key_id, period_start))
    return int(nano)


def _nano(usd: float) -> int:
    return round(usd * _NANO)
