"""The tasks that were found: id, name and the model that assigns calls to them. Few rows, replaced together."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from smallfirst.store.crypto import Sealer
from smallfirst.store.database import Connection, insert
from smallfirst.types import Json

_COLUMNS = "id, name, settled, payload, created_at"
_VERSION_ROW = "meta:tasks"


@dataclass(frozen=True, slots=True)
class TaskRow:
    """A task as it is kept. `model` is JSON that the assignment understands, `figures` what its calls came to when they
    were last counted (empty before); both are sealed like every payload. `settled` marks a person's decision."""

    id: str
    name: str
    settled: bool
    model: Json
    created_at: float
    figures: Json = field(default_factory=dict)


class _Payload(msgspec.Struct):
    model: dict[str, Any]
    figures: dict[str, Any]


def select_tasks(connection: Connection, sealer: Sealer) -> list[TaskRow]:
    """All tasks, oldest first."""
    rows = connection.query(f"SELECT {_COLUMNS} FROM tasks ORDER BY created_at, id")  # noqa: S608
    return [_row(sealer, *row) for row in rows]


def _row(sealer: Sealer, row_id: str, name: str, settled: int, envelope: bytes, created_at: float) -> TaskRow:
    payload = msgspec.json.decode(sealer.open(envelope, _identity(row_id)), type=_Payload)
    return TaskRow(row_id, name, bool(settled), payload.model, created_at, payload.figures)


def select_tasks_version(connection: Connection) -> bytes:
    """Bytes that change whenever the tasks are replaced; b"" before the first time."""
    rows = connection.query("SELECT payload FROM meta WHERE name = 'tasks'")
    return bytes(rows[0][0]) if rows else b""


def replace_tasks(connection: Connection, sealer: Sealer, tasks: Sequence[TaskRow]) -> None:
    """Keep exactly these tasks, in one transaction of the caller's."""
    rows = [
        (
            task.id,
            task.name,
            int(task.settled),
            sealer.seal(msgspec.json.encode({"model": task.model, "figures": task.figures}), _identity(task.id)),
            task.created_at,
        )
        for task in tasks
    ]
    connection.execute("DELETE FROM tasks")
    insert(connection, f"tasks ({_COLUMNS})", rows, conflict="DO NOTHING")
    version = ("tasks", sealer.seal(os.urandom(16), _VERSION_ROW))
    insert(connection, "meta (name, payload)", [version], conflict="(name) DO UPDATE SET payload = excluded.payload")


def _identity(task_id: str) -> str:
    return f"task:{task_id}"
