"""How calibrated tasks stand: what was promised, what audits say, what is wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from smallfirst import stats
from smallfirst.dashboard.queries.base import unknown, value
from smallfirst.dashboard.queries.values import Value
from smallfirst.monitor import Monitor
from smallfirst.registry import watched
from smallfirst.store import CalibrationRow, Store
from smallfirst.store.database import Connection

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Guarantee:
    """A calibrated task's stage: what was promised (`alpha`, with probability 1 - `delta`) and what its audits say.

    `failure` is the observed rate of wrong answers among those accepted, with the confidence sequence's bounds, which
    hold at any time. `alpha` is None where the calibration was refused: `refused` says why, and `needed` is how many
    labels are missing by estimate. `threshold` is the one in force, which drift may have made stricter.
    """

    task: str
    stage: str
    mode: str
    alpha: float | None
    delta: float | None
    threshold: float | None
    failure: Value
    audits: int
    wrong: int
    labels: str
    made_at: float
    alarm: bool
    since: float | None
    refused: str
    needed: int | None
    large_usd: float | None


@dataclass(frozen=True, slots=True)
class Newest:
    """A task's newest call: its mode, when it came, and the small model asked, else the one that answered."""

    mode: str
    model: str
    at: float


async def guarantees(store: Store, task: str | None = None) -> list[Guarantee]:
    """One for each calibration in force, by task and stage."""
    rows = [row for row in await store.calibrations() if task in (None, row.task)]
    monitors = await store.monitors()
    modes = await store.read(lambda c: {name: newest(c, name) for name in {row.task for row in rows}})
    return [_guarantee(row, Monitor.from_json(monitors.get(watched(row.task, row.stage), "")), modes) for row in rows]


def newest(connection: Connection, task: str) -> Newest | None:
    """None when the task has no call."""
    last = "FROM records WHERE task = ? ORDER BY created_at DESC, id DESC LIMIT 1"
    asked = "FROM attempts WHERE record_id = ? AND small = 1 AND decision <> 'evidence' ORDER BY n LIMIT 1"
    found = connection.query(f"SELECT id, mode, served_model, created_at {last}", (task,))
    if not found:
        return None
    record_id, mode, served, at = found[0]
    models = connection.query(f"SELECT model {asked}", (record_id,))
    return Newest(mode, models[0][0] if models else served, at)


def _guarantee(row: CalibrationRow, monitor: Monitor | None, newest_calls: Mapping[str, Newest | None]) -> Guarantee:
    kept: Json = json.loads(row.payload)
    promised: Json | None = kept.get("certificate")
    refusal: Json = kept.get("refusal") or {}
    if monitor is not None and monitor.calibration != row.id:
        monitor = None
    call = newest_calls.get(row.task)
    certified = promised["threshold"] if promised else None
    return Guarantee(
        task=row.task,
        stage=row.stage,
        mode=call.mode if call else "",
        alpha=promised["alpha"] if promised else None,
        delta=promised["delta"] if promised else None,
        threshold=monitor.threshold if monitor and promised else certified,
        failure=_failure(monitor),
        audits=monitor.audits if monitor else 0,
        wrong=monitor.wrong if monitor else 0,
        labels=kept.get("label", ""),
        made_at=row.created_at,
        alarm=bool(monitor and monitor.alarm),
        since=monitor.since if monitor and monitor.alarm else None,
        refused=refusal.get("reason", ""),
        needed=refusal.get("needed"),
        large_usd=(kept.get("costs") or {}).get("large_usd"),
    )


def _failure(monitor: Monitor | None) -> Value:
    if monitor is None or not monitor.weight:
        return unknown("audits' bound")
    rate, sequence = monitor.wrong_weight / monitor.weight, monitor.sequence
    return value("audits' bound", stats.Figure(rate, sequence.lower, sequence.upper, monitor.audits, "at any time"))


def worst(found: Sequence[Guarantee]) -> float | None:
    """The loosest promise, None without one."""
    return max((each.alpha for each in found if each.alpha is not None), default=None)
