"""What calls came to, summed by hour, by day (UTC), task and API key, so that figures over a million calls are read in
milliseconds.

Every change of a record adds facts (`facts`), the difference that it makes to the sums, in the transaction of the
change itself. Facts wait in a table of their own until some hundreds are folded into the sums; readers add those that
wait. So sums and records agree at any time, whatever comes late: audits, feedback, removal by age. (Only two processes
that append the same id at the same moment would count it twice.) Sums hold numbers, tasks and keys' ids, never a
payload.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from smallfirst.store.database import Connection, Row, insert, marks
from smallfirst.store.facts import ATTEMPT, MEASURES, RECORD, SIZE, Floats, fact, measured, shadow, taken_back, together

FOLD_AT = 1024
"""Changes after which a process folds the facts that wait."""

_KEY = "hour, task, key_id"
_COLUMNS = f"{_KEY}, numbers"
_PAGE = 5000
_DAY = 24
_TABLES = (("", 1), ("day_", _DAY))
"""Prefixes of the tables of sums, and the hours that a sum in them covers."""
_CELL = "hour BIGINT NOT NULL, task TEXT NOT NULL, key_id TEXT NOT NULL"
_TIMES = "bucket BIGINT NOT NULL, calls BIGINT NOT NULL"
_SUMS = ", ".join(f"{name} DOUBLE PRECISION NOT NULL" for name in MEASURES)

SCHEMA = (
    f"CREATE TABLE rollups ({_CELL}, {_SUMS}, PRIMARY KEY ({_KEY}))",
    f"CREATE TABLE rollup_seconds ({_CELL}, {_TIMES}, PRIMARY KEY ({_KEY}, bucket))",
    f"CREATE TABLE facts ({_CELL}, bucket BIGINT NOT NULL, numbers BYTEA NOT NULL)",
    "CREATE INDEX attempts_audited ON attempts (record_id) WHERE decision = 'audit'",
)
DAYS = (
    f"CREATE TABLE day_rollups ({_CELL}, {_SUMS}, PRIMARY KEY ({_KEY}))",
    f"CREATE TABLE day_rollup_seconds ({_CELL}, {_TIMES}, PRIMARY KEY ({_KEY}, bucket))",
)


@dataclass(frozen=True, slots=True)
class Sums:
    """What the calls of a task came to from `hour` on: the sums of `MEASURES`, in their order."""

    hour: int
    task: str
    measures: Floats

    def by_name(self) -> dict[str, float]:
        """The sums by the names of their measures."""
        return dict(zip(MEASURES, self.measures.tolist(), strict=True))


@dataclass(frozen=True, slots=True)
class Span:
    """Which sums: hours from `first` to `last`, both included, of a key and a task, or of all (None)."""

    first: int
    last: int
    key: str | None = None
    task: str | None = None


def put_buckets_in_numbers(connection: Connection) -> None:
    """Schema 10: rows of facts hold any number of calls, so each call's bucket is one of its numbers."""
    connection.execute("ALTER TABLE facts RENAME TO former_facts")  # waits for whoever writes, and lets nobody write
    rows = connection.query(f"SELECT {_KEY}, numbers, bucket FROM former_facts")  # noqa: S608
    connection.execute("DROP TABLE former_facts")
    connection.execute(f"CREATE TABLE facts ({_CELL}, numbers BYTEA NOT NULL)")
    insert_facts(connection, [(*cell, numbers + np.float64(bucket).tobytes()) for *cell, numbers, bucket in rows])


def insert_facts(connection: Connection, rows: Iterable[Row]) -> None:
    """Add what new records add."""
    insert(connection, f"facts ({_COLUMNS})", together(rows))


def insert_fact_once(connection: Connection, record_id: str, row: Row) -> None:
    """Add what a record adds, unless it is there already."""
    unless = "WHERE NOT EXISTS (SELECT 1 FROM records WHERE id = ?)"
    connection.execute(f"INSERT INTO facts ({_COLUMNS}) SELECT ?, ?, ?, ? {unless}", (*row, record_id))


def insert_shadow(connection: Connection, place: Row, usd: float, attempt: Row) -> None:
    """Add what a shadow cost, unless its attempt (record and n) is there already; `place` is the record's `created_at`,
    task and key."""
    created_at, task, key = place
    unless = "WHERE NOT EXISTS (SELECT 1 FROM attempts WHERE record_id = ? AND n = ?)"
    sql = f"INSERT INTO facts ({_COLUMNS}) SELECT ?, ?, ?, ? {unless}"
    connection.execute(sql, (*shadow(created_at, task, key, usd), *attempt))


@contextmanager
def followed(connection: Connection, record_ids: Sequence[str]) -> Iterator[None]:
    """What is done to those records inside, their removal included, is added to the sums. Their rows are locked."""
    before = _facts(connection, record_ids, lock=connection.row_lock)
    yield
    after = _facts(connection, record_ids)
    changed = [record_id for record_id, row in before.items() if after.get(record_id) != row]
    rows = [taken_back(before[record_id]) for record_id in changed]
    rows += [after[record_id] for record_id in changed if record_id in after]
    insert(connection, f"facts ({_COLUMNS})", together(rows))


def rebuild(connection: Connection) -> None:
    """Make the sums anew from the records, inside a transaction."""
    connection.execute("DELETE FROM facts")
    for table, _ in _TABLES:
        connection.execute(f"DELETE FROM {table}rollups")  # noqa: S608
        connection.execute(f"DELETE FROM {table}rollup_seconds")  # noqa: S608
    after = ""
    while ids := connection.query("SELECT id FROM records WHERE id > ? ORDER BY id LIMIT ?", (after, _PAGE)):
        _add(connection, _facts(connection, [i for (i,) in ids]).values())
        after = ids[-1][0]


def fold(connection: Connection) -> None:
    """Add the facts that wait to the sums. Those that another process folds at the same time are its own."""
    _add(connection, connection.query(f"DELETE FROM facts RETURNING {_COLUMNS}"))  # noqa: S608


def sweep(connection: Connection) -> None:
    """Remove the sums of hours that have no calls any more."""
    fold(connection)
    for table, _ in _TABLES:
        connection.execute(f"DELETE FROM {table}rollups WHERE calls <= 0")  # noqa: S608
        connection.execute(f"DELETE FROM {table}rollup_seconds WHERE calls <= 0")  # noqa: S608


def sums(connection: Connection, span: Span, width: int) -> list[Sums]:
    """The sums of each task over every `width` hours of the span; where there were no calls there are none.

    Widths of whole days begin with the day (UTC) of the span's first hour.
    """
    days = width % _DAY == 0
    begin = span.first - span.first % _DAY if days else span.first
    cells: dict[tuple[int, str], Floats] = {}
    for table, where, params in _parts(span, days=days):
        columns = ", ".join(f"sum({name})" for name in MEASURES)
        sql = f"SELECT (hour - ?) / ?, task, {columns} FROM {table}rollups {where} GROUP BY 1, 2"  # noqa: S608
        for bin_, task, *summed in connection.query(sql, (begin, width, *params)):
            cells[bin_, task] = cells.get((bin_, task), 0.0) + np.array(summed, dtype=float)
    for (hour, task, _), found in _summed(_waiting(connection, span))[0].items():
        place = ((hour - begin) // width, task)
        cells[place] = cells.get(place, 0.0) + found
    return [
        Sums(max(span.first, begin + bin_ * width), task, cell)
        for (bin_, task), cell in sorted(cells.items())
        if cell[0] > 0
    ]


def durations(connection: Connection, span: Span) -> dict[int, int]:
    """How many calls of the span took a time of each bucket (see `bounds`)."""
    found = Counter[int]()
    for table, where, params in _parts(span):
        sql = f"SELECT bucket, sum(calls) FROM {table}rollup_seconds {where} GROUP BY bucket"  # noqa: S608
        found.update({int(bucket): int(calls) for bucket, calls in connection.query(sql, params)})
    for (*_, bucket), calls in _summed(_waiting(connection, span))[1].items():
        found[bucket] += calls
    return {bucket: calls for bucket, calls in sorted(found.items()) if calls > 0}


def by_key(connection: Connection, span: Span) -> dict[str, float]:
    """The calls of each key in the span."""
    found = defaultdict[str, float](float)
    for table, where, params in _parts(span):
        sql = f"SELECT key_id, sum(calls) FROM {table}rollups {where} GROUP BY 1"  # noqa: S608
        for key, calls in connection.query(sql, params):
            found[key] += calls
    for (*_, key), measures in _summed(_waiting(connection, span))[0].items():
        found[key] += measures[0]
    return dict(found)


def first_hour(connection: Connection) -> int | None:
    """The hour of the oldest sums; None when there are none."""
    hours = [connection.query(f"SELECT min(hour) FROM {table}")[0][0] for table in ("rollups", "facts")]  # noqa: S608
    return min((int(hour) for hour in hours if hour is not None), default=None)


def _parts(span: Span, *, days: bool = True) -> list[tuple[str, str, list[object]]]:
    """The span in parts, each the prefix of its tables, WHERE and parameters; whole days are read from sums by day."""
    first = span.first + -span.first % _DAY
    after = span.last + 1 - (span.last + 1) % _DAY
    if not days or first >= after:
        return [("", *_where(span))]
    edges = (replace(span, last=first - 1), replace(span, first=after))
    whole = ("day_", *_where(replace(span, first=first, last=after - 1)))
    return [whole, *(("", *_where(edge)) for edge in edges if edge.first <= edge.last)]


def _where(span: Span) -> tuple[str, list[object]]:
    given = {"hour >= ?": span.first, "hour <= ?": span.last, "key_id = ?": span.key, "task = ?": span.task}
    wanted = {condition: value for condition, value in given.items() if value is not None}
    return f"WHERE {' AND '.join(wanted)}", list(wanted.values())


def _waiting(connection: Connection, span: Span) -> list[Row]:
    where, params = _where(span)
    return connection.query(f"SELECT {_COLUMNS} FROM facts {where}", params)  # noqa: S608


def _facts(connection: Connection, record_ids: Sequence[str], *, lock: str = "") -> dict[str, Row]:
    """What each of the records that are there adds."""
    among = marks(record_ids)
    records = connection.query(f"SELECT {RECORD} FROM records WHERE id IN ({among}){lock}", record_ids)  # noqa: S608
    made = f"SELECT {ATTEMPT} FROM attempts WHERE record_id IN ({among}) ORDER BY record_id, n"  # noqa: S608
    attempts: dict[str, list[Row]] = {}
    for row in connection.query(made, record_ids):
        attempts.setdefault(row[0], []).append(row)
    said = (
        f"SELECT record_id, number FROM feedback WHERE record_id IN ({among}) AND kind = 'correct' "  # noqa: S608
        "ORDER BY created_at, id"
    )
    correct: dict[str, float] = dict(connection.query(said, record_ids))
    return {row[0]: fact(row, attempts.get(row[0], ()), correct.get(row[0])) for row in records}


def _add(connection: Connection, rows: Iterable[Row]) -> None:
    """Add rows of facts to the sums, cells in one order so that two processes never wait for each other."""
    measures, times = _summed(rows)
    for table, width in _TABLES:
        cells: dict[Row, Floats] = {}
        counts = Counter[Row]()
        for (hour, *cell), found in measures.items():
            place = (hour - hour % width, *cell)
            cells[place] = cells.get(place, 0.0) + found
        for (hour, *cell), calls in times.items():
            counts[hour - hour % width, *cell] += calls
        summed = [(*cell, *found.tolist()) for cell, found in sorted(cells.items())]
        _upsert(connection, f"{table}rollups", _KEY, MEASURES, summed)
        counted = [(*cell, calls) for cell, calls in sorted(counts.items()) if calls]
        _upsert(connection, f"{table}rollup_seconds", f"{_KEY}, bucket", ("calls",), counted)


def _upsert(connection: Connection, table: str, key: str, sums: Sequence[str], rows: Sequence[Row]) -> None:
    """Add to the sums of rows, by their key."""
    added = ", ".join(f"{name} = {table}.{name} + excluded.{name}" for name in sums)
    insert(connection, f"{table} ({key}, {', '.join(sums)})", rows, conflict=f"({key}) DO UPDATE SET {added}")


def _summed(rows: Iterable[Row]) -> tuple[dict[Row, Floats], dict[Row, int]]:
    """What rows of facts come to: measures by hour, task and key, and calls by these and the bucket."""
    cells = together(rows)
    if not cells:
        return {}, {}
    measures, buckets = measured(b"".join(numbers for *_, numbers in cells))
    sizes = [len(numbers) // SIZE for *_, numbers in cells]
    sums = np.add.reduceat(measures, np.cumsum([0, *sizes[:-1]]), axis=1)
    width = int(buckets.max()) + 1
    calls = np.bincount(np.repeat(np.arange(len(cells)), sizes) * width + buckets, weights=measures[0])
    return (
        {tuple(cell): found for (*cell, _), found in zip(cells, sums.T, strict=True)},
        {(*cells[n // width][:3], n % width): int(calls[n]) for n in np.flatnonzero(calls).tolist()},
    )
