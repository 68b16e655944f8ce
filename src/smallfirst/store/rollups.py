"""What calls came to, summed by hour, task and API key, so that figures over a million calls are read in milliseconds.

Every change of a record adds a `Fact`, the difference that it makes to the sums, in the transaction of the change
itself. Facts wait in a table of their own until some hundreds are folded into the sums; readers add those that wait.
So sums and records agree at any time, whatever comes late: audits, feedback, removal by age. (Only two processes that
append the same id at the same moment would count it twice.) Sums hold numbers, tasks and keys' ids, never a payload.

What is counted is what `rows.RecordSummary` says of a call; `MEASURES` names the sums.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import zip_longest
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from smallfirst.store.database import Connection, Row, insert, marks
from smallfirst.types import AFTERWARDS

Floats = NDArray[np.float64]

HOUR_S = 3600
FOLD_AT = 256
"""Changes after which a process folds the facts that wait."""
FASTEST_S = 1e-3
STEP = 2**0.25
"""Durations are counted in buckets: the first up to `FASTEST_S`, every next one up to `STEP` times the last one's end.
So the geometric middle of a bucket is at most 9.1 % off any duration in it."""

PAIR = ("wc", "wr", "wl", "w")
PRODUCTS = tuple((a, b) for n, a in enumerate(PAIR) for b in PAIR[n:])
_CALLS = (
    *("calls", "cache", "direct", "direct_abstained"),
    *("first_accepted", "first_escalated", "first_abstained"),
    *("repaired_accepted", "repaired_escalated", "repaired_abstained"),
    *("answered", "valid_first", "executable", "escalated", "failed"),
    *("priced", "usd", "usd_local_free", "afterwards_usd", "tokens_in", "tokens_out"),
)
_PAIRS = ("pairs", "pairs_small", *PAIR, *(f"{a}_{b}" for a, b in PRODUCTS), "wt", "wt_small", "usd_var", "tokens_var")
_AUDITS = ("audits", "audit_w", "audit_ww", "audit_wrong")
_LABELS = (
    *("labelled", "right_labelled", "valid_wrong", "small_labelled", "small_wrong"),
    *("cost_n", "cost_c", "cost_r", "cost_cc", "cost_cr"),
)
MEASURES = (*_CALLS, *_PAIRS, *_AUDITS, *_LABELS)
"""Of calls: how many; which way they went ("cache"; the large model asked at once: "direct"; else by the "first" or a
"repaired" small answer, and what was decided); counts; totals over the `priced` ones. `afterwards_usd` is what shadows
and audits cost.

Of pairs with known prices (`RecordSummary.pair`): sums of the four numbers of `PAIR` (w the pair's weight, c the call's
cost, l the large model's, r 1 where both answers are the same), of their products, of weighted tokens of the large
model, and of (w^2 - w) (l - c)^2 and (w^2 - w) tokens^2 of the small ones, which estimate the variance of the totals
that audits tell (Horvitz and Thompson 1952).

Of audits of accepted answers: how many, their weights, squared weights, and weights of those that found another answer.
Of labelled calls ("correct" feedback): counts, and over those with known prices cost c and right r with products."""

_AT = {name: n for n, name in enumerate(MEASURES)}
_BECAME = {"accept": "accepted", "escalate": "escalated"}
_WAY = {
    (asked, decision): _AT[f"{asked}_{became}"]
    for asked in ("first", "repaired")
    for decision, became in (*_BECAME.items(), ("", "abstained"))
}
RECORD = "id, created_at, task, decision, status, seconds, served, key_id"
ATTEMPT = (
    "record_id, kind, decision, reason, small, answered, violations, probability, cost_usd, cost_usd_local_free, "
    "input_tokens, output_tokens"
)
_KEY = "hour, task, key_id"
_PAGE = 5000

_CELL = "hour BIGINT NOT NULL, task TEXT NOT NULL, key_id TEXT NOT NULL"
_TIMES = "bucket BIGINT NOT NULL, calls BIGINT NOT NULL"
_SUMS = ", ".join(f"{name} DOUBLE PRECISION NOT NULL" for name in MEASURES)
_ADDED = ", ".join(f"{name} = rollups.{name} + excluded.{name}" for name in MEASURES)

SCHEMA = (
    f"CREATE TABLE rollups ({_CELL}, {_SUMS}, PRIMARY KEY ({_KEY}))",
    f"CREATE TABLE rollup_seconds ({_CELL}, {_TIMES}, PRIMARY KEY ({_KEY}, bucket))",
    f"CREATE TABLE facts ({_CELL}, bucket BIGINT NOT NULL, measures BYTEA NOT NULL)",
    "CREATE INDEX attempts_audited ON attempts (record_id) WHERE decision = 'audit'",
)


@dataclass(frozen=True, slots=True)
class Fact:
    """What one change of a record adds to the sums of its hour, task and key; `bucket` is that of the call's time.

    `measures` are those of `MEASURES` in order; what is missing at the end is 0.
    """

    hour: int
    task: str
    key: str
    bucket: int
    measures: array[float]

    @property
    def row(self) -> Row:
        """As the table of facts keeps it."""
        return (self.hour, self.task, self.key, self.bucket, self.measures.tobytes())


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


def picker(columns: str, among: str) -> Callable[[Row], Row]:
    """Picks `columns` out of rows of the columns `among`."""
    names = among.split(", ")
    return itemgetter(*map(names.index, columns.split(", ")))


def bucket_of(seconds: float) -> int:
    """The bucket of a duration."""
    return max(0, math.ceil(math.log(seconds / FASTEST_S, STEP))) if seconds > FASTEST_S else 0


def fact(record: Row, attempts: Sequence[Row], correct: float | None = None) -> Fact:
    """What a record adds: its columns `RECORD`, those `ATTEMPT` of its attempts in order, and its latest label."""
    _, created_at, task, decision, status, seconds, served, key = record
    answer = None if served is None else attempts[served]
    cached = answer is not None and answer[1] == "cache"
    small = decision == "accept" and not cached
    executable = answer is not None and _ok(answer)
    usd: float | None = 0.0
    free: float | None = 0.0
    afterwards = tokens_in = tokens_out = 0.0
    asked = repaired = escalated = late = False
    for attempt in attempts:
        _, kind, decided, _, is_small, _, _, _, cost, cost_free, input_tokens, output_tokens = attempt
        late = late or decided in AFTERWARDS
        if late:
            afterwards += cost or 0.0
            continue
        usd = None if usd is None or cost is None else usd + cost
        free = None if free is None or cost_free is None else free + cost_free
        tokens_in, tokens_out = tokens_in + input_tokens, tokens_out + output_tokens
        if kind != "cache" and decided != "evidence":
            asked, escalated = asked or bool(is_small), escalated or not is_small
            repaired = repaired or (kind == "repair" and bool(is_small))
    priced = usd is not None and free is not None
    measures = [0.0] * 10
    measures[0] = measures[_way(cached, small or asked, repaired, decision)] = 1.0
    valid_first = bool(attempts) and attempts[0][2] not in AFTERWARDS and _ok(attempts[0])
    measures += (answer is not None, valid_first, executable, escalated, status >= 400, priced)
    measures += (usd, free) if priced else (0.0, 0.0)  # type: ignore[arg-type] # both are known
    measures += (afterwards, tokens_in, tokens_out)
    measures += _pair(attempts, answer, cached, small, usd)
    if correct is not None:
        measures += [0.0] * (_AT["labelled"] - len(measures))
        measures += _label(bool(correct), executable, small, usd if priced else None)
    return Fact(int(created_at // HOUR_S), task, key, bucket_of(seconds), array("d", measures))


def _ok(attempt: Row) -> bool:
    return bool(attempt[5]) and not attempt[6]


def _way(cached: bool, asked: bool, repaired: bool, decision: str) -> int:
    """Which of the ways through the stages the call went; `asked` and `repaired` are of small models."""
    if cached:
        return _AT["cache"]
    if not asked:
        return _AT["direct_abstained" if decision == "abstain" else "direct"]
    return _WAY["repaired" if repaired else "first", decision if decision in _BECAME else ""]


def _pair(attempts: Sequence[Row], answer: Row | None, cached: bool, small: bool, usd: float | None) -> list[float]:
    """The measures of the call's pair and its audit."""
    audit = next((a for a in attempts if a[2] == "audit" and a[3] != "not_told"), None) if small else None
    if audit is not None and audit[7] is not None:
        weight, differs = 1 / audit[7], audit[3] == "different"
        audits = [1.0, weight, weight**2, weight * differs]
        return _priced_pair(weight, differs, usd, audit, small) + audits
    if answer is None or answer[4] or cached:
        return []
    return _priced_pair(1.0, False, usd, answer, small)


def _priced_pair(weight: float, differs: bool, c: float | None, large: Row, small: bool) -> list[float]:
    if c is None or large[8] is None:
        return [0.0] * len(_PAIRS)
    wc, wr, wl, w = weight * c, weight * (not differs), weight * large[8], weight
    products = (wc * wc, wc * wr, wc * wl, wc * w, wr * wr, wr * wl, wr * w, wl * wl, wl * w, w * w)
    tokens = large[10] + large[11]
    spread = w * w - w
    totals = (w * tokens, w * tokens * small, spread * (large[8] - c) ** 2, spread * tokens**2)
    return [1.0, small, wc, wr, wl, w, *products, *totals]


def _label(right: bool, executable: bool, small: bool, usd: float | None) -> list[float]:
    counts = [1.0, right, executable and not right, small, small and not right]
    return [*counts, *([0.0] * 5 if usd is None else [1.0, usd, right, usd**2, usd * right])]


def insert_fact(connection: Connection, record_id: str, row: Row) -> None:
    """Add a record's first fact (`Fact.row`), unless the record is there already."""
    _insert_unless(connection, row, "records WHERE id = ?", (record_id,))


def insert_shadow(connection: Connection, place: Row, usd: float, attempt: Row) -> None:
    """Add what a shadow cost, unless its attempt (record and n) is there already; `place` is the record's `created_at`,
    task and key."""
    created_at, task, key = place
    row = Fact(int(created_at // HOUR_S), task, key, 0, array("d", [0.0] * _AT["afterwards_usd"] + [usd])).row
    _insert_unless(connection, row, "attempts WHERE record_id = ? AND n = ?", attempt)


def _insert_unless(connection: Connection, row: Row, there: str, params: Row) -> None:
    into = f"INSERT INTO facts ({_KEY}, bucket, measures)"
    sql = f"{into} SELECT ?, ?, ?, ?, ? WHERE NOT EXISTS (SELECT 1 FROM {there})"  # noqa: S608
    connection.execute(sql, (*row, *params))


@contextmanager
def followed(connection: Connection, record_ids: Sequence[str]) -> Iterator[None]:
    """What is done to those records inside, their removal included, is added to the sums. Their rows are locked."""
    before = _facts(connection, record_ids, lock=connection.row_lock)
    yield
    after = _facts(connection, record_ids)
    changes = [_difference(fact, after.get(record_id)) for record_id, fact in before.items()]
    _insert(connection, [change for change in changes if any(change.measures)])


def rebuild(connection: Connection) -> None:
    """Make the sums anew from the records, inside a transaction."""
    for table in ("facts", "rollups", "rollup_seconds"):
        connection.execute(f"DELETE FROM {table}")  # noqa: S608
    after = ""
    while ids := connection.query("SELECT id FROM records WHERE id > ? ORDER BY id LIMIT ?", (after, _PAGE)):
        _add(connection, [fact.row for fact in _facts(connection, [i for (i,) in ids]).values()])
        after = ids[-1][0]


def fold(connection: Connection) -> None:
    """Add the facts that wait to the sums, Facts that another process folds at the same
    time are its own."""
    _add(connection, connection.query(f"DELETE FROM facts RETURNING {_KEY}, bucket, measures"))  # noqa: S608


def sweep(connection: Connection) -> None:
    """Remove the sums of hours that have no calls any more."""
    fold(connection)
    connection.execute("DELETE FROM rollups WHERE calls <= 0")
    connection.execute("DELETE FROM rollup_seconds WHERE calls <= 0")


def sums(connection: Connection, span: Span, width: int) -> list[Sums]:
    """The sums of each task over every `width` hours of the span; where there were no calls there are none."""
    where, params = _where(span)
    columns = ", ".join(f"sum({name})" for name in MEASURES)
    sql = f"SELECT (hour - ?) / ?, task, {columns} FROM rollups {where} GROUP BY 1, 2"  # noqa: S608
    rows = connection.query(sql, (span.first, width, *params))
    cells = {(bin_, task): np.array(found, dtype=float) for bin_, task, *found in rows}
    for (hour, task, _, _), found in _summed(_waiting(connection, span)).items():
        place = ((hour - span.first) // width, task)
        cells[place] = cells.get(place, 0.0) + found
    return [Sums(span.first + bin_ * width, task, cell) for (bin_, task), cell in sorted(cells.items()) if cell[0] > 0]


def durations(connection: Connection, span: Span) -> dict[int, int]:
    """How many calls of the span took a time of each bucket (see `bounds`)."""
    where, params = _where(span)
    sql = f"SELECT bucket, sum(calls) FROM rollup_seconds {where} GROUP BY bucket"  # noqa: S608
    found = Counter({int(bucket): int(calls) for bucket, calls in connection.query(sql, params)})
    for (_, _, _, bucket), measures in _summed(_waiting(connection, span)).items():
        found[bucket] += int(measures[0])
    return {bucket: calls for bucket, calls in sorted(found.items()) if calls > 0}


def by_key(connection: Connection, span: Span) -> dict[str, float]:
    """The calls of each key in the span."""
    where, params = _where(span)
    rows = connection.query(f"SELECT key_id, sum(calls) FROM rollups {where} GROUP BY 1", params)  # noqa: S608
    found = defaultdict[str, float](float, rows)
    for (_, _, key, _), measures in _summed(_waiting(connection, span)).items():
        found[key] += measures[0]
    return dict(found)


def first_hour(connection: Connection) -> int | None:
    """The hour of the oldest sums; None when there are none."""
    hours = [connection.query(f"SELECT min(hour) FROM {table}")[0][0] for table in ("rollups", "facts")]  # noqa: S608
    return min((int(hour) for hour in hours if hour is not None), default=None)


def bounds(bucket: int) -> tuple[float, float]:
    """From above which to up to which duration a bucket goes, in seconds."""
    return (FASTEST_S * STEP ** (bucket - 1) if bucket else 0.0), FASTEST_S * STEP**bucket


def _where(span: Span) -> tuple[str, list[object]]:
    given = {"hour >= ?": span.first, "hour <= ?": span.last, "key_id = ?": span.key, "task = ?": span.task}
    wanted = {condition: value for condition, value in given.items() if value is not None}
    return f"WHERE {' AND '.join(wanted)}", list(wanted.values())


def _waiting(connection: Connection, span: Span) -> list[Row]:
    where, params = _where(span)
    return connection.query(f"SELECT {_KEY}, bucket, measures FROM facts {where}", params)  # noqa: S608


def _facts(connection: Connection, record_ids: Sequence[str], *, lock: str = "") -> dict[str, Fact]:
    """What each of the records that are there adds by itself."""
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


def _difference(before: Fact, after: Fact | None) -> Fact:
    now = array("d") if after is None else after.measures
    pairs = zip_longest(now, before.measures, fillvalue=0.0)
    return replace(before, measures=array("d", [new - old for new, old in pairs]))


def _insert(connection: Connection, facts: Sequence[Fact]) -> None:
    insert(connection, f"facts ({_KEY}, bucket, measures)", [fact.row for fact in facts], conflict="DO NOTHING")


def _add(connection: Connection, rows: Iterable[Row]) -> None:
    """Add rows of facts to the sums, cells in one order so that two processes never wait for each other."""
    cells: dict[Row, Floats] = {}
    times: list[Row] = []
    for key, found in sorted(_summed(rows).items()):
        cells[key[:3]] = cells.get(key[:3], 0.0) + found
        times += [(*key, int(found[0]))] if found[0] else []
    insert(
        connection,
        f"rollups ({_KEY}, {', '.join(MEASURES)})",
        [(*key, *cell.tolist()) for key, cell in cells.items()],
        conflict=f"({_KEY}) DO UPDATE SET {_ADDED}",
    )
    insert(
        connection,
        f"rollup_seconds ({_KEY}, bucket, calls)",
        times,
        conflict=f"({_KEY}, bucket) DO UPDATE SET calls = rollup_seconds.calls + excluded.calls",
    )


def _summed(rows: Iterable[Row]) -> dict[Row, Floats]:
    """The measures of rows of facts, added up by hour, task, key and bucket."""
    parts: dict[Row, dict[int, list[bytes]]] = defaultdict(dict)
    for *key, packed in rows:
        parts[tuple(key)].setdefault(len(packed), []).append(packed)
    found = {place: np.zeros(len(MEASURES)) for place in parts}
    for place, by_length in parts.items():
        for length, several in by_length.items():
            found[place][: length // 8] += np.frombuffer(b"".join(several)).reshape(-1, length // 8).sum(axis=0)
    return found
