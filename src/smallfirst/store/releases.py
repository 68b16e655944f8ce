"""Versions, what of each task is in service, and the audit trail of its moves.

A task's release is one row, so that its pointers, its rollout and the evidence change together or not at all, whichever
process dies when, and so that one lock orders the changes of all gateways. Versions are sealed like every payload;
releases and moves hold names and numbers only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from smallfirst.registry import Move, Release, Version, move_to
from smallfirst.rollout import Rollout
from smallfirst.store.crypto import Sealer
from smallfirst.store.database import Connection, Rejected, Row, insert, marks

Change = Callable[[Release, frozenset[str]], tuple[Release, str]]
"""(the release as it is, the records newly taken) -> the release as it is to be, and the reason."""

_VERSION = "id, task, created_at, payload"
_RELEASE = "task, changes, live, previous, candidate, rollout, evidence, changed_at, changed_by"
_MOVE = "id, task, at, moved_by, version, step, share, reason"


class _Payload(msgspec.Struct):
    model: dict[str, Any]
    base_sha256: str
    adapter: str
    adapter_sha256: str
    prompt: dict[str, Any]
    recipe: dict[str, Any]
    parents: tuple[str, ...]
    evaluation: dict[str, Any] | None


_FIELDS = _Payload.__struct_fields__


def save_version(connection: Connection, sealer: Sealer, version: Version) -> Version:
    """Keep `version`, and give what is kept: one of the same id keeps its age."""
    payload = _Payload(**{name: _plain(getattr(version, name)) for name in _FIELDS})
    sealed = sealer.seal(msgspec.json.encode(payload), _identity(version.id))
    row = (version.id, version.task, version.created_at, sealed)
    insert(connection, f"versions ({_VERSION})", [row], conflict="(id) DO UPDATE SET payload = excluded.payload")
    [(created_at,)] = connection.query("SELECT created_at FROM versions WHERE id = ?", (version.id,))
    return replace(version, created_at=created_at)


def select_versions(
    connection: Connection, sealer: Sealer, *, task: str | None = None, ids: Sequence[str] | None = None
) -> list[Version]:
    """The versions of a task, of these ids, or all, oldest first."""
    where, given = "", list[object]()
    if ids is not None:
        where, given = f"WHERE id IN ({marks(ids)})" if ids else "WHERE 1 = 0", [*ids]
    elif task is not None:
        where, given = "WHERE task = ?", [task]
    rows = connection.query(f"SELECT {_VERSION} FROM versions {where} ORDER BY created_at, id", given)  # noqa: S608
    return [_version(sealer, *row) for row in rows]


def select_releases(connection: Connection, task: str | None = None) -> list[Release]:
    """What is in service of a task, or of all that ever had a release, by task."""
    where, given = ("WHERE task = ?", (task,)) if task is not None else ("", ())
    rows = connection.query(f"SELECT {_RELEASE} FROM releases {where} ORDER BY task", given)  # noqa: S608
    return [_release(row) for row in rows]


def select_changes(connection: Connection) -> dict[str, int]:
    """How often each task's release has changed. Cheap enough to be asked for every second."""
    return dict(connection.query("SELECT task, changes FROM releases"))


def change_release(connection: Connection, task: str, records: Sequence[str], change: Change) -> Release:
    """Replace a task's release by what `change` makes of it, and give that; a move is written into the audit trail.

    The row is locked first, so that what other processes have changed is what `change` sees. Those of `records` whose
    outcome was not taken yet are taken with it, each once for ever.
    """
    lock = (
        f"INSERT INTO releases ({_RELEASE}) VALUES (?, 0, '', '', '', '', '', 0.0, '') "  # noqa: S608
        f"ON CONFLICT (task) DO UPDATE SET changes = releases.changes RETURNING {_RELEASE}"
    )
    before = _release(connection.query(lock, (task,))[0])
    try:
        after, reason = change(before, _taken(connection, records))
    except ValueError as error:
        raise Rejected(f"The release of {task!r} cannot be changed so: {error}.") from error
    if after == before:
        return before
    rollout = after.rollout.to_json() if after.rollout else ""
    connection.execute(
        "UPDATE releases SET changes = changes + 1, live = ?, previous = ?, candidate = ?, rollout = ?, evidence = ?, "
        "changed_at = ?, changed_by = ? WHERE task = ?",
        (
            after.live,
            after.previous,
            after.candidate,
            rollout,
            after.evidence,
            after.changed_at,
            after.changed_by,
            task,
        ),
    )
    if (move := move_to(before, after, reason)) is not None:
        row = (f"{before.changes:012}:{task}", *(getattr(move, field) for field in Move.__dataclass_fields__))
        insert(connection, f"moves ({_MOVE})", [row], conflict="DO NOTHING")
    return replace(after, changes=before.changes + 1)


def select_moves(connection: Connection, task: str | None) -> list[Move]:
    """The audit trail of a task, or of all, oldest first."""
    where, given = ("WHERE task = ?", (task,)) if task is not None else ("", ())
    rows = connection.query(f"SELECT {_MOVE} FROM moves {where} ORDER BY at, id", given)  # noqa: S608
    return [Move(*row[1:]) for row in rows]


def select_pending(connection: Connection, rollout: str, limit: int) -> list[str]:
    """The ids of the rollout's records whose outcome was not taken yet, in the order of their calls."""
    sql = "SELECT id FROM records WHERE rollout = ? AND pending = 1 ORDER BY created_at, id LIMIT ?"
    return [found for (found,) in connection.query(sql, (rollout, limit))]


def _taken(connection: Connection, records: Sequence[str]) -> frozenset[str]:
    if not records:
        return frozenset()
    sql = f"UPDATE records SET pending = 0 WHERE id IN ({marks(records)}) AND pending = 1 RETURNING id"  # noqa: S608
    return frozenset(found for (found,) in connection.query(sql, records))


def _version(sealer: Sealer, row_id: str, task: str, created_at: float, envelope: bytes) -> Version:
    payload = msgspec.json.decode(sealer.open(envelope, _identity(row_id)), type=_Payload)
    return Version(row_id, task, created_at, **{name: getattr(payload, name) for name in _FIELDS})


def _release(row: Row) -> Release:
    task, changes, live, previous, candidate, rollout, evidence, changed_at, changed_by = row
    try:
        parsed = Rollout.from_json(rollout) if rollout else None
    except ValueError as error:
        raise Rejected(
            f"The release of {task!r} cannot be read: {error}.", hint="Another version of smallfirst wrote it."
        ) from error
    return Release(task, live, previous, candidate, parsed, evidence, changed_at, changed_by, int(changes))


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value


def _identity(version: str) -> str:
    return f"version:{version}"
