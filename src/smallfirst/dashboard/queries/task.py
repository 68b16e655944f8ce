"""One task's page: how its calls flow, how far its confidence can be trusted, what audits and labels say, what costs.

Figures over a period come from the hourly sums; `stages`, `tools` and `audits` look at the newest of the period only,
and say how many.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from smallfirst import stats
from smallfirst.dashboard.queries.base import Totals, mean, read, total
from smallfirst.dashboard.queries.overview import CostPoint, points, summary
from smallfirst.dashboard.queries.standing import Guarantee, guarantees, newest, worst
from smallfirst.dashboard.queries.tasks import TaskLine, line
from smallfirst.dashboard.queries.values import LEVEL, Filters, Value
from smallfirst.guarantee import ConfidenceSequence
from smallfirst.monitor import WINDOW, Monitor
from smallfirst.store import CalibrationRow, Store
from smallfirst.store.database import Connection, Row
from smallfirst.types import Attempt, Json

NEWEST_STAGES = 5000
"""Calls of a task, the newest, whose attempts are summed by stage."""
NEWEST_TOOLS = 500
"""Calls of a task, the newest that both models answered, whose answers are opened to compare tools."""
NEWEST_AUDITS = 1000
"""Audits of a task, the newest, that are shown."""
_DELTA = 0.05
_ENDS = ("accepted", "escalated", "abstained")


@dataclass(frozen=True, slots=True)
class Flow:
    """`calls` that went from one state to the next: from "calls" to "cache", "large at once" or "small first"; from
    there to "valid at once" or "repaired"; and in the end to "accepted", "escalated" or "abstained"."""

    source: str
    target: str
    calls: int


@dataclass(frozen=True, slots=True)
class Bin:
    """Labelled answers of like confidence: how confident on average, and how many of them were right."""

    confidence: float
    right: Value


@dataclass(frozen=True, slots=True)
class RiskPoint:
    """Were answers accepted from `threshold` on: the share accepted, and how many of those were wrong."""

    threshold: float
    coverage: float
    failure: Value


@dataclass(frozen=True, slots=True)
class Curves:
    """What the calibration in force was certified from: `bins` by confidence, `risk` by falling threshold, and the
    threshold that was chosen (None where it was refused) for a promise of `alpha`. `ece`, `brier` and `auroc` are of
    the cross-fitted confidences of all `n` labels."""

    stage: str
    labels: str
    n: int
    bins: tuple[Bin, ...]
    risk: tuple[RiskPoint, ...]
    threshold: float | None
    alpha: float
    ece: float | None
    brier: float | None
    auroc: float | None


@dataclass(frozen=True, slots=True)
class Audited:
    """An audit of an accepted answer, drawn with `probability`, and after it the bounds of a confidence sequence on the
    failure rate, begun afresh every `monitor.WINDOW` audits as the task's monitor does."""

    record: str
    at: float
    confidence: float | None
    probability: float
    wrong: bool
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class AuditStream:
    """The newest audits, oldest first, for a promise of `alpha` (None without a certificate)."""

    alpha: float | None
    audits: tuple[Audited, ...]


@dataclass(frozen=True, slots=True)
class StageCost:
    """What one stage's model did in the newest `calls`: attempts, their cost for 1,000 calls of the task, tokens, time.

    `part` tells what the attempts were for: "answer", "repair", "evidence", "shadow", "audit" or "cache". A cost whose
    price is unknown is in no sum."""

    stage: str
    model: str
    part: str
    small: bool
    attempts: int
    calls: int
    usd: float
    usd_per_1000: Value
    input_tokens: int
    output_tokens: int
    seconds: Value
    valid: Value


@dataclass(frozen=True, slots=True)
class Confusion:
    """Which tool the small model chose where the large one chose which; "" stands for an answer in words. `counts` has
    a row for each of `names` as the large model's choice, a column for each as the small one's."""

    names: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    agree: Value
    calls: int


@dataclass(frozen=True, slots=True)
class Event:
    """A moment in the life of a task: a calibration put in force or refused, an alarm, a release's step."""

    at: float
    kind: Literal["calibrated", "refused", "alarm", "shadow", "canary", "live", "rolled_back"]
    text: str


@dataclass(frozen=True, slots=True)
class TaskPage:
    """All of a task's page. `guarantees` has one entry for each calibrated stage; `curves` likewise. `schemas` are JSON
    Schemas of answers that were suggested when tasks were found, by tool name ("": of the text)."""

    line: TaskLine
    figures: tuple[Value, ...]
    points: tuple[CostPoint, ...]
    flow: tuple[Flow, ...]
    guarantees: tuple[Guarantee, ...]
    curves: tuple[Curves, ...]
    audits: AuditStream
    stages: tuple[StageCost, ...]
    tools: Confusion
    events: tuple[Event, ...]
    schemas: Mapping[str, Json]


async def task_page(store: Store, wanted: Filters, now: float) -> TaskPage | None:
    """The page of `wanted.task`; None when it has no call in the period. Raises ValueError without a task."""
    if wanted.task is None:
        raise ValueError("task None: allowed is the name of a task")
    task = wanted.task
    book = await read(store, wanted, now)
    if not book.cells:
        return None
    standing = await guarantees(store, task)
    call = await store.read(lambda c: newest(c, task))
    calibrations = [row for row in await store.calibrations() if row.task == task]
    return TaskPage(
        line=line(task, book.cells, standing, {task: call}, wanted, now),
        figures=tuple(summary(book).values()),
        points=points(book),
        flow=flow(total(book.cells)),
        guarantees=tuple(standing),
        curves=tuple(curves for row in calibrations if (curves := _curves(row)) is not None),
        audits=AuditStream(worst(standing), await _audits(store, wanted)),
        stages=await store.read(lambda c: _stages(c, wanted)),
        tools=await _tools(store, wanted),
        events=await _events(store, task),
        schemas=await _schemas(store, task),
    )


def flow(t: Totals) -> tuple[Flow, ...]:
    """The calls that went each way; ways without calls are left out."""
    asked = {way: sum(t[f"{way}_{end}"] for end in _ENDS) for way in ("first", "repaired")}
    large = t["direct"] + t["direct_abstained"]
    found = [
        ("calls", "cache", t["cache"]),
        ("calls", "large at once", large),
        ("calls", "small first", sum(asked.values())),
        ("large at once", "escalated", t["direct"]),
        ("large at once", "abstained", t["direct_abstained"]),
    ]
    for way, name in (("first", "valid at once"), ("repaired", "repaired")):
        found.append(("small first", name, asked[way]))
        found += [(name, end, t[f"{way}_{end}"]) for end in _ENDS]
    return tuple(Flow(source, target, round(calls)) for source, target, calls in found if calls)


def _curves(row: CalibrationRow) -> Curves | None:
    """The curves that the calibration kept; None for one that kept none."""
    kept: dict[str, Any] = json.loads(row.payload)
    blocks: list[list[float]] = kept.get("curve") or []
    if not blocks:
        return None
    promised, refusal = kept.get("certificate"), kept.get("refusal") or {}
    n = sum(round(count) for _, _, count, _ in blocks)
    bins, risk, accepted, failed = [], [], 0, 0
    for threshold, confidence, count, wrong in blocks:
        accepted, failed = accepted + round(count), failed + round(wrong)
        bins.append(Bin(confidence, _share("right", round(count - wrong), round(count), "Right among these labels.")))
        failure = _share("failure", failed, accepted, "Wrong among the labelled answers from this confidence on.")
        risk.append(RiskPoint(threshold, accepted / n, failure))
    quality = kept["quality"]
    return Curves(
        stage=row.stage,
        labels=kept["label"],
        n=n,
        bins=tuple(bins[::-1]),
        risk=tuple(risk),
        threshold=promised["threshold"] if promised else None,
        alpha=(promised or refusal)["alpha"],
        ece=quality.get("ece"),
        brier=quality.get("brier"),
        auroc=quality.get("auroc"),
    )


def _share(name: str, hits: int, n: int, definition: str) -> Value:
    figure = stats.wilson(hits, n, LEVEL)
    return Value(name, figure.value, figure.low, figure.high, n, "rate", definition)


async def _audits(store: Store, wanted: Filters) -> tuple[Audited, ...]:
    rows = (await store.read(lambda c: _audit_rows(c, wanted)))[::-1]
    least = min((probability for *_, probability in rows), default=1.0)
    found: list[Audited] = []
    for n, (record, at, confidence, reason, probability) in enumerate(rows):
        if n % WINDOW == 0:
            window = n // WINDOW + 1
            sequence = ConfidenceSequence(delta=_DELTA / (window * (window + 1)), least=least)
        sequence.update(reason == "different", probability)
        bounds = (sequence.lower, sequence.upper)
        found.append(Audited(record, at, confidence, probability, reason == "different", *bounds))
    return tuple(found)


def _audit_rows(connection: Connection, wanted: Filters) -> list[Row]:
    """Newest first: record, time, confidence of the small answer, what was found, probability."""
    where, params = _of_task(wanted, "r")
    confidence = (
        "(SELECT s.confidence FROM attempts s WHERE s.record_id = a.record_id AND s.small = 1 AND "
        "s.decision = 'accept' ORDER BY s.n DESC LIMIT 1)"
    )
    sql = (  # CROSS JOIN: SQLite goes through the few audits, not through the task's calls
        f"SELECT r.id, r.created_at, {confidence}, a.reason, a.probability FROM attempts a CROSS JOIN records r "  # noqa: S608
        f"WHERE a.decision = 'audit' AND a.reason <> 'not_told' AND a.probability IS NOT NULL "
        f"AND r.decision = 'accept' AND r.id = a.record_id AND {where} ORDER BY r.created_at DESC, r.id DESC LIMIT ?"
    )
    return connection.query(sql, (*params, NEWEST_AUDITS))


def _of_task(wanted: Filters, table: str) -> tuple[str, list[object]]:
    given = {"task = ?": wanted.task, "key_id = ?": wanted.key, "created_at >= ?": wanted.since}
    given["created_at < ?"] = wanted.until
    chosen = {f"{table}.{condition}": value for condition, value in given.items() if value is not None}
    return " AND ".join(chosen), list(chosen.values())


def _stages(connection: Connection, wanted: Filters) -> tuple[StageCost, ...]:
    """By cost, the dearest first."""
    where, params = _of_task(wanted, "r")
    newest_calls = f"SELECT r.id FROM records r WHERE {where} ORDER BY r.created_at DESC, r.id DESC LIMIT ?"  # noqa: S608
    calls = connection.query(f"SELECT count(*) FROM ({newest_calls}) AS newest", (*params, NEWEST_STAGES))[0][0]  # noqa: S608
    part = (
        "CASE WHEN a.kind <> 'generate' THEN a.kind WHEN a.decision IN ('evidence', 'shadow', 'audit') "
        "THEN a.decision ELSE 'answer' END"
    )
    sql = (
        f"SELECT a.stage, a.model, {part}, a.small, count(*), sum(coalesce(a.cost_usd, 0)), "  # noqa: S608
        "sum(a.cost_usd * a.cost_usd), sum(a.seconds), sum(a.seconds * a.seconds), sum(a.input_tokens), "
        "sum(a.output_tokens), sum(CASE WHEN a.answered = 1 AND a.violations = '' THEN 1 ELSE 0 END) "
        f"FROM ({newest_calls}) AS newest CROSS JOIN attempts a WHERE a.record_id = newest.id GROUP BY 1, 2, 3, 4"
    )
    rows = connection.query(sql, (*params, NEWEST_STAGES))
    made = [_stage(row, int(calls)) for row in rows]
    return tuple(sorted(made, key=lambda stage: (-stage.usd, stage.stage, stage.part)))


def _stage(row: Row, calls: int) -> StageCost:
    stage, model, part, small, attempts, usd, squared, seconds, seconds_squared, tokens_in, tokens_out, valid = row
    right = _share("valid", int(valid), int(attempts), "Attempts whose answer broke no rule of the request.")
    return StageCost(
        stage=stage,
        model=model,
        part=part,
        small=bool(small),
        attempts=int(attempts),
        calls=calls,
        usd=usd,
        usd_per_1000=mean("stage cost", usd, squared or 0.0, calls, scale=1000.0),
        input_tokens=int(tokens_in),
        output_tokens=int(tokens_out),
        seconds=mean("stage time", seconds, seconds_squared, int(attempts)),
        valid=right,
    )


async def _tools(store: Store, wanted: Filters) -> Confusion:
    ids = await store.read(lambda c: _answered_twice(c, wanted))
    pairs: Counter[tuple[str, str]] = Counter()
    for start in range(0, len(ids), 100):
        for attempts in (await store.attempts(ids[start : start + 100])).values():
            large = _choice([a for a in attempts if not a.small and a.decision != "evidence"])
            small = _choice([a for a in attempts if a.small and a.decision != "evidence" and a.kind != "cache"])
            if large is not None and small is not None:
                pairs[large, small] += 1
    often = Counter(name for pair, calls in pairs.items() for name in set(pair) for _ in range(calls))
    names = tuple(name for name, _ in sorted(often.items(), key=lambda item: (-item[1], item[0])))
    counts = tuple(tuple(pairs[large, small] for small in names) for large in names)
    same, calls = sum(n for (large, small), n in pairs.items() if large == small), pairs.total()
    said = f"Both models chose the same tool, in the newest {calls:,} calls that both answered."
    return Confusion(names, counts, _share("same tool", same, calls, said), calls)


def _choice(attempts: Sequence[Attempt]) -> str | None:
    """The tool that the last of these answers calls first, "" for words; None where nothing is known of the answer."""
    for attempt in reversed(attempts):
        if attempt.completion is not None and attempt.completion.choices:
            calls = attempt.completion.choices[0].tool_calls
            return calls[0].name if calls else ""
    return None


def _answered_twice(connection: Connection, wanted: Filters) -> list[str]:
    """The newest calls with a small and a large model's answer, of the newest `NEWEST_STAGES`."""
    where, params = _of_task(wanted, "r")
    sql = (
        f"SELECT newest.id FROM (SELECT r.id, r.created_at FROM records r WHERE {where} AND r.payload IS NOT NULL "  # noqa: S608
        "ORDER BY r.created_at DESC, r.id DESC LIMIT ?) AS newest CROSS JOIN attempts a "
        "WHERE a.record_id = newest.id AND a.answered = 1 AND a.decision <> 'evidence' AND a.kind <> 'cache' "
        "GROUP BY newest.id, newest.created_at HAVING min(a.small) < max(a.small) "
        "ORDER BY newest.created_at DESC, newest.id DESC LIMIT ?"
    )
    return [record for (record,) in connection.query(sql, (*params, NEWEST_STAGES, NEWEST_TOOLS))]


async def _events(store: Store, task: str) -> tuple[Event, ...]:
    """Oldest first."""
    sql = "SELECT stage, created_at, payload FROM calibrations WHERE task = ?"
    found = [_calibrated(*row) for row in await store.read(lambda c: c.query(sql, (task,)))]
    monitors = await store.monitors()
    for name, state in monitors.items():
        monitor = Monitor.from_json(state)
        if name.partition("@")[0] == task and monitor is not None and monitor.alarm:
            found.append(Event(monitor.since, "alarm", f"Audits of {name} found too many wrong answers."))
    found += [Event(move.at, move.step, f"{move.version}: {move.reason}") for move in await store.moves(task)]
    return tuple(sorted(found, key=lambda event: event.at))


def _calibrated(stage: str, at: float, payload: str) -> Event:
    kept = json.loads(payload)
    promised = kept.get("certificate")
    if promised is None:
        return Event(at, "refused", f"{stage}: {kept['refusal']['reason']}")
    said = f"{stage}: accepts from {promised['threshold']:.3f}, at most {promised['alpha']:.1%} wrong"
    return Event(at, "calibrated", f"{said}, by {promised['n']:,} labels.")


async def _schemas(store: Store, task: str) -> Mapping[str, Json]:
    for row in await store.tasks():
        if task in (row.id, row.name):
            schemas: Mapping[str, Json] = row.figures.get("schemas") or {}
            return schemas
    return {}
