"""The durable store of records: SQLite by default, PostgreSQL by URL."""

from smallfirst.store.calibrations import CalibrationRow, Versions
from smallfirst.store.crypto import Keyring
from smallfirst.store.database import sqlite_path
from smallfirst.store.keys import KeyLimits, KeyRow, parse_key
from smallfirst.store.ledger import Reservation
from smallfirst.store.rows import AttemptSummary, RecordFilter, RecordSummary, StoredRecord
from smallfirst.store.store import Store, open_store
from smallfirst.store.tasks import TaskRow

__all__ = [
    "AttemptSummary",
    "CalibrationRow",
    "KeyLimits",
    "KeyRow",
    "Keyring",
    "RecordFilter",
    "RecordSummary",
    "Reservation",
    "Store",
    "StoredRecord",
    "TaskRow",
    "Versions",
    "open_store",
    "parse_key",
    "sqlite_path",
]
