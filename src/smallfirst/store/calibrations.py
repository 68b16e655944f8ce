"""Calibrations, of which the newest of a task and stage is in force and the older ones are kept, and the monitors that
watch them. Both are JSON texts that hold numbers and names only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from smallfirst.store.database import Connection, insert, marks

_COLUMNS = "id, task, stage, created_at, payload"


@dataclass(frozen=True, slots=True)
class CalibrationRow:
    """A calibration as it is kept; `payload` is JSON text that `acceptance` understands."""

    id: str
    task: str
    stage: str
    created_at: float
    payload: str


def insert_calibration(connection: Connection, row: CalibrationRow) -> None:
    """Keep `row`; the same id again changes nothing."""
    values = (row.id, row.task, row.stage, row.created_at, row.payload)
    insert(connection, f"calibrations ({_COLUMNS})", [values], conflict="DO NOTHING")


def select_calibrations(connection: Connection) -> list[CalibrationRow]:
    """The newest of each task and stage, by task and stage."""
    newer = (
        "SELECT 1 FROM calibrations b WHERE b.task = a.task AND b.stage = a.stage "
        "AND (b.created_at, b.id) > (a.created_at, a.id)"
    )
    sql = f"SELECT {_COLUMNS} FROM calibrations a WHERE NOT EXISTS ({newer}) ORDER BY task, stage"  # noqa: S608
    return [CalibrationRow(*row) for row in connection.query(sql)]


def change_monitor(connection: Connection, task: str, change: Callable[[str], str]) -> str:
    """Replace the state of a task's monitor ("" when it has none) by what `change` makes of it, and return that.

    The row is locked first, so that what other processes have changed is what `change` sees.
    """
    lock = (
        "INSERT INTO monitors (task, version, state) VALUES (?, 0, '') "
        "ON CONFLICT (task) DO UPDATE SET version = monitors.version RETURNING state"
    )
    [(state,)] = connection.query(lock, (task,))
    changed = change(state)
    connection.execute("UPDATE monitors SET state = ?, version = version + 1 WHERE task = ?", (changed, task))
    return changed


def select_monitors(connection: Connection, tasks: Sequence[str] | None) -> dict[str, str]:
    """The states of the monitors of `tasks` (None: of all) by task."""
    where = "" if tasks is None else f"WHERE task IN ({marks(tasks)})"
    rows = connection.query(f"SELECT task, state FROM monitors {where}", tasks or ())  # noqa: S608
    return dict(rows)


@dataclass(frozen=True, slots=True)
class Versions:
    """What tells that something changed: how many calibrations there are, and each monitor's number of changes."""

    calibrations: int = 0
    monitors: Mapping[str, int] | None = None


def select_versions(connection: Connection) -> Versions:
    """Cheap enough to be asked for every second."""
    [(count,)] = connection.query("SELECT count(*) FROM calibrations")
    return Versions(int(count), dict(connection.query("SELECT task, version FROM monitors")))
