"""The tasks that were found: id, name and the model that assigns calls to them. Few rows, replaced together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from smallfirst.store.crypto import Sealer
from smallfirst.store.database import Connection, insert
from smallfirst.types import Json

_COLUMNS = "id, name, settled, payload, created_at"


@dataclass(frozen=True, slots=True)
class TaskRow:
    """A task as it is kept. `model` is JSON that the assignment understands, sealed like every payload; `settled`
    marks a person's decision."""

    id: str
    name: str
    settled: bool
    model: Json
    created_at: float


def select_tasks(connection: Connection, sealer: Sealer) -> list[TaskRow]:
    """All tasks, oldest first."""
    rows = connection.query(f"SELECT {_COLUMNS} FROM tasks ORDER BY created_at, id")  # noqa: S608
    return [
        TaskRow(row_id, name, bool(settled), msgspec.json.decode(sealer.open(payload, _identity(row_id))), created_at)
        for row_id, name, settled, payload, created_at in rows
    ]


def replace_tasks(connection: Connection, sealer: Sealer, tasks: Sequence[TaskRow]) -> None:
    """Keep exactly these tasks, in one transaction of the caller's."""
    rows = [
        (
            task.id,
            task.name,
            int(task.settled),
            sealer.seal(msgspec.json.encode(task.model), _identity(task.id)),
            task.created_at,
        )
        for task in tasks
    ]
    connection.execute("DELETE FROM tasks")
    insert(connection, f"tasks ({_COLUMNS})", rows, conflict="DO NOTHING")


def _identity(task_id: str) -> str:
    return f"task:{task_id}"
