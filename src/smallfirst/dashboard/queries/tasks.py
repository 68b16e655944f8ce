"""The table of tasks: what each costs, how it stands and what to do next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from smallfirst import stats
from smallfirst.dashboard.queries.base import (
    Totals,
    accepted_failure,
    counted,
    cps_ratio,
    rate,
    read,
    small,
    told,
    total,
    unknown,
    value,
)
from smallfirst.dashboard.queries.standing import Guarantee, Newest, guarantees, newest, worst
from smallfirst.dashboard.queries.values import HOUR_S, MONTH_S, Filters, Value
from smallfirst.store import Store
from smallfirst.store.rollups import Sums

Step = Literal["observe", "label", "calibrate", "train", "audit", "none"]
_DAY_S = 86_400.0
_FEW = 200
_WORTH_USD = 1.0


@dataclass(frozen=True, slots=True)
class Action:
    """The next best thing to do for a task: `step` and one sentence. `saves_usd` is what it would save in a month at
    most, `labels` how many are missing; None where that is not known or not the point."""

    step: Step
    text: str
    saves_usd: float | None = None
    labels: int | None = None


@dataclass(frozen=True, slots=True)
class TaskLine:
    """A task in the table. `mode` and `model` are those of its newest call, which came at `last`; `bound` is the
    promised limit of accepted failure, None without a certificate."""

    task: str
    calls: Value
    month_usd: Value
    mode: str
    model: str
    coverage: Value
    accepted_failure: Value
    bound: float | None
    alarm: bool
    cps_ratio: Value
    last: float
    action: Action


async def tasks(store: Store, wanted: Filters, now: float) -> tuple[TaskLine, ...]:
    """A line for each task with calls in the period, the dearest first."""
    book = await read(store, wanted, now)
    by_task = book.tasks
    standing = await guarantees(store, wanted.task)
    calls = await store.read(lambda c: {task: newest(c, task) for task in by_task})
    lines = [
        line(task, cells, [each for each in standing if each.task == task], calls, wanted, now)
        for task, cells in by_task.items()
    ]
    return tuple(sorted(lines, key=lambda each: (-(each.month_usd.value or 0.0), -each.calls.n, each.task)))


def line(
    task: str,
    cells: Sequence[Sums],
    standing: Sequence[Guarantee],
    newest_calls: Mapping[str, Newest | None],
    wanted: Filters,
    now: float,
) -> TaskLine:
    """The line of a task from its sums."""
    t, pairs, call = total(cells), total(told(cells)), newest_calls.get(task)
    first = max(min(cell.hour for cell in cells) * float(HOUR_S), wanted.since or 0.0)
    seen = (now if wanted.until is None else min(now, wanted.until)) - first
    month = MONTH_S / seen if seen >= _DAY_S else None
    return TaskLine(
        task=task,
        calls=counted("calls", t["calls"], t["calls"]),
        month_usd=_month(t, month),
        mode=call.mode if call else "",
        model=call.model if call else "",
        coverage=rate("coverage", small(t), t["calls"]),
        accepted_failure=accepted_failure(t),
        bound=worst(standing),
        alarm=any(each.alarm for each in standing),
        cps_ratio=cps_ratio(pairs) if pairs["pairs_small"] else unknown("CPS to large-only"),
        last=call.at if call else 0.0,
        action=action(task, t, standing, month),
    )


def _month(t: Totals, month: float | None) -> Value:
    if month is None:
        return unknown("cost a month")
    return value("cost a month", stats.Figure(t["usd"] * month, None, None, round(t["priced"]), "extended"))


def action(task: str, t: Totals, standing: Sequence[Guarantee], month: float | None) -> Action:
    """The first of these that applies: an alarm, missing labels, no calibration, no audits, dear escalations."""
    if any(each.alarm for each in standing):
        return Action("calibrate", f"Audits raised an alarm: run `smallfirst calibrate --task {task}` on newer labels.")
    refused = [each for each in standing if each.alpha is None]
    if standing and len(refused) == len(standing):
        missing = min((each.needed for each in refused if each.needed is not None), default=None)
        if missing is None:
            return Action("train", f"No threshold keeps the promise: {refused[0].refused}")
        return Action("label", f"Needs {missing:,} more labels.", labels=missing)
    asked = t["calls"] - t["cache"] - t["direct"] - t["direct_abstained"]
    if not standing:
        if asked + (t["afterwards_usd"] > 0) * t["direct"] < _FEW:
            return Action("observe", f"Collect calls: {t['calls']:,.0f} of about {_FEW} are here.")
        return Action("calibrate", f"Run `smallfirst calibrate --task {task}`.")
    if small(t) >= _FEW and not t["audits"]:
        return Action("audit", "No accepted answer was audited: set `audit` above 0.")
    prices = [each.large_usd for each in standing if each.large_usd is not None]
    saves = t["escalated"] * month * min(prices) if month is not None and prices else None
    if saves is not None and saves >= _WORTH_USD:
        return Action("train", f"Train a specialist: up to {saves:,.0f} USD a month saved.", saves_usd=saves)
    return Action("none", "Nothing to do.")
