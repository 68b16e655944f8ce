"""Reading records: pages of full records and of summaries, newest first."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from smallfirst.store.codec import (
    ATTEMPT_COLUMNS,
    FEEDBACK_COLUMNS,
    RECORD_COLUMNS,
    Codec,
    Payload,
    features_of,
    put_together,
)
from smallfirst.store.database import Connection, Row, marks
from smallfirst.store.rows import AttemptSummary, RecordFilter, RecordSummary, StoredRecord
from smallfirst.types import Attempt, Feedback, Json, Trial

_SUMMARY_COLUMNS = (
    "id, created_at, task, mode, decision, reason, status, seconds, served, key_id, user_hash, episode_hash, "
    "rollout, arm, share"
)
_CORRECT = (
    "(SELECT f.number FROM feedback f WHERE f.record_id = records.id AND f.kind = 'correct' "
    "ORDER BY f.created_at DESC, f.id DESC LIMIT 1) AS correct"
)
_ATTEMPT_SUMMARY_COLUMNS = (
    "record_id, stage, model, kind, decision, reason, small, answered, violations, confidence, probability, "
    "cost_usd, cost_usd_local_free, seconds, first_token_s, input_tokens, output_tokens, features"
)


def summaries_page(
    connection: Connection, codec: Codec, wanted: RecordFilter, limit: int, after: str | None
) -> list[RecordSummary]:
    """At most `limit` summaries that follow the record `after`."""
    found = _page(connection, codec, f"{_SUMMARY_COLUMNS}, {_CORRECT}", wanted, limit, after)
    rows = _named(f"{_SUMMARY_COLUMNS}, correct", found)
    attempts: dict[str, list[AttemptSummary]] = defaultdict(list)
    for row in _of_records(connection, _ATTEMPT_SUMMARY_COLUMNS, "attempts", "n", [row["id"] for row in rows]):
        attempts[row[0]].append(_attempt_summary(row))
    return [_summary(row, tuple(attempts[row["id"]])) for row in rows]


def records_page(
    connection: Connection, codec: Codec, wanted: RecordFilter, limit: int, after: str | None
) -> list[StoredRecord]:
    """At most `limit` full records that follow the record `after`."""
    return _full(connection, codec, _page(connection, codec, RECORD_COLUMNS, wanted, limit, after))


def records(connection: Connection, codec: Codec, record_ids: Sequence[str]) -> list[StoredRecord]:
    """The records of those ids, at most some hundreds, oldest first; ids without one are left out."""
    if not record_ids:
        return []
    where = f"id IN ({marks(record_ids)}) ORDER BY created_at, id"
    return _full(connection, codec, connection.query(f"SELECT {RECORD_COLUMNS} FROM records WHERE {where}", record_ids))  # noqa: S608


def known(connection: Connection, record_ids: Sequence[str]) -> set[str]:
    """Those of the ids that records have."""
    if not record_ids:
        return set()
    sql = f"SELECT id FROM records WHERE id IN ({marks(record_ids)})"  # noqa: S608
    return {found for (found,) in connection.query(sql, record_ids)}


def feedback_of(connection: Connection, codec: Codec, record_ids: Sequence[str]) -> list[Feedback]:
    """The feedback of those records, oldest first."""
    rows = _of_records(connection, FEEDBACK_COLUMNS, "feedback", "created_at, id", record_ids)
    return [codec.open_feedback(row) for row in rows]


def attempts(connection: Connection, codec: Codec, record_ids: Sequence[str]) -> dict[str, list[Attempt]]:
    """The attempts of each of those records, opened."""
    found: dict[str, list[Attempt]] = defaultdict(list)
    for row in _of_records(connection, ATTEMPT_COLUMNS, "attempts", "n", record_ids):
        found[row[0]].append(codec.open_attempt(row))
    return found


def count(connection: Connection, codec: Codec, wanted: RecordFilter) -> int:
    """How many records there are."""
    conditions, params = _conditions(codec, wanted)
    [(found,)] = connection.query(f"SELECT count(*) FROM records {_where(conditions)}", params)  # noqa: S608
    return int(found)


def tasks(connection: Connection) -> list[str]:
    """The tasks of the records."""
    return [task for (task,) in connection.query("SELECT DISTINCT task FROM records ORDER BY task")]


def _page(
    connection: Connection, codec: Codec, columns: str, wanted: RecordFilter, limit: int, after: str | None
) -> list[Row]:
    conditions, params = _conditions(codec, wanted)
    if after is not None:
        conditions.append("(created_at, id) < (SELECT a.created_at, a.id FROM records a WHERE a.id = ?)")
        params.append(after)
    sql = f"SELECT {columns} FROM records {_where(conditions)} ORDER BY created_at DESC, id DESC LIMIT ?"  # noqa: S608
    return connection.query(sql, [*params, limit])


def _conditions(codec: Codec, wanted: RecordFilter) -> tuple[list[str], list[object]]:
    given: dict[str, object] = {
        "task = ?": wanted.task,
        "decision = ?": wanted.decision,
        "reason = ?": wanted.reason,
        "served_model = ?": wanted.model,
        "episode_hash = ?": codec.hasher.origin("episode", wanted.episode),
        "user_hash = ?": codec.hasher.origin("user", wanted.user),
        "key_id = ?": wanted.key,
        "created_at >= ?": wanted.since,
        "created_at < ?": wanted.until,
        "? = episode_hash": wanted.pseudonym,
    }
    conditions = [condition for condition, value in given.items() if value is not None]
    if wanted.has_feedback is not None:
        exists = "EXISTS (SELECT 1 FROM feedback f WHERE f.record_id = records.id)"
        conditions.append(exists if wanted.has_feedback else f"NOT {exists}")
    if wanted.failed is not None:
        conditions.append("status >= 400" if wanted.failed else "status < 400")
    return conditions, [value for value in given.values() if value is not None]


def _where(conditions: Sequence[str]) -> str:
    return f"WHERE {' AND '.join(conditions)}" if conditions else ""


def _of_records(connection: Connection, columns: str, table: str, order: str, record_ids: Sequence[str]) -> list[Row]:
    if not record_ids:
        return []
    where = f"record_id IN ({marks(record_ids)})"
    sql = f"SELECT {columns} FROM {table} WHERE {where} ORDER BY record_id, {order}"  # noqa: S608
    return connection.query(sql, record_ids)


def _named(columns: str, rows: Sequence[Row]) -> list[Json]:
    """The rows of a query for `columns`, by the columns' names."""
    names = columns.split(", ")
    return [dict(zip(names, row, strict=True)) for row in rows]


def _full(connection: Connection, codec: Codec, found: Sequence[Row]) -> list[StoredRecord]:
    rows = _named(RECORD_COLUMNS, found)
    ids = [row["id"] for row in rows]
    made = attempts(connection, codec, ids)
    feedback: dict[str, list[Feedback]] = defaultdict(list)
    for item in feedback_of(connection, codec, ids):
        feedback[item.record_id].append(item)
    sealed = {row["id"]: row["payload"] for row in rows if row["payload"] is not None}
    payloads = {record_id: codec.open_payload(record_id, payload) for record_id, payload in sealed.items()}
    contents = _contents(connection, codec, list(payloads.values()))
    return [
        _stored(row, payloads.get(row["id"]), contents, tuple(made[row["id"]]), tuple(feedback[row["id"]]))
        for row in rows
    ]


def _stored(
    row: Json,
    payload: Payload | None,
    contents: dict[bytes, Any],
    attempts: tuple[Attempt, ...],
    feedback: tuple[Feedback, ...],
) -> StoredRecord:
    body, messages = put_together(payload, contents) if payload else ({}, ())
    return StoredRecord(
        id=row["id"],
        created_at=row["created_at"],
        task=row["task"],
        mode=row["mode"],
        decision=row["decision"],
        reason=row["reason"],
        status=row["status"],
        seconds=row["seconds"],
        config_hash=row["config_hash"],
        served=row["served"],
        wire=row["wire"],
        model=row["requested_model"],
        key=row["key_id"],
        user=row["user_hash"],
        episode=row["episode_hash"],
        captured=payload is not None,
        body=body,
        messages=messages,
        attempts=attempts,
        feedback=feedback,
        trial=_trial(row),
    )


def _contents(connection: Connection, codec: Codec, payloads: Sequence[Payload]) -> dict[bytes, Any]:
    wanted = list({digest for payload in payloads for digest in payload.hashes()})
    contents: dict[bytes, Any] = {}
    for start in range(0, len(wanted), 1000):
        some = wanted[start : start + 1000]
        sql = f"SELECT hash, payload FROM contents WHERE hash IN ({marks(some)})"  # noqa: S608
        for digest, envelope in connection.query(sql, some):
            contents[bytes(digest)] = codec.open_content(bytes(digest), envelope)
    return contents


def _summary(row: Json, attempts: tuple[AttemptSummary, ...]) -> RecordSummary:
    return RecordSummary(
        id=row["id"],
        created_at=row["created_at"],
        task=row["task"],
        mode=row["mode"],
        decision=row["decision"],
        reason=row["reason"],
        status=row["status"],
        seconds=row["seconds"],
        served=row["served"],
        key=row["key_id"],
        user=row["user_hash"],
        episode=row["episode_hash"],
        correct=None if row["correct"] is None else bool(row["correct"]),
        attempts=attempts,
        trial=_trial(row),
    )


def _trial(row: Json) -> Trial | None:
    return None if row["rollout"] is None else Trial(row["rollout"], row["arm"], row["share"])


def _attempt_summary(row: Row) -> AttemptSummary:
    return AttemptSummary(
        stage=row[1],
        model=row[2],
        kind=row[3],
        decision=row[4],
        reason=row[5],
        small=bool(row[6]),
        answered=bool(row[7]),
        violations=tuple(row[8].split()),
        confidence=row[9],
        probability=row[10],
        cost_usd=row[11],
        cost_usd_local_free=row[12],
        seconds=row[13],
        first_token_s=row[14],
        input_tokens=row[15],
        output_tokens=row[16],
        features=features_of(row[17]),
    )
