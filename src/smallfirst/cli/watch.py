"""`report --watch`: the dashboard's first page and its tasks in the terminal, kept up to date."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from smallfirst.dashboard import queries
from smallfirst.dashboard.queries import CostPoint, Filters, Overview, TaskLine, Value
from smallfirst.dashboard.words import interval, number
from smallfirst.store import Store

EVERY_S = 2.0
_BARS = "▁▂▃▄▅▆▇█"
_BAR_CELLS = 10


async def watch(store: Store, wanted: Filters, console: Console, rounds: int | None = None) -> None:
    """Show the calls wanted until the command is interrupted, or for so many `rounds`."""
    with Live(console=console, auto_refresh=False) as live:
        while rounds is None or rounds > 0:
            now = time.time()
            found, lines = await queries.overview(store, wanted, now), await queries.tasks(store, wanted, now)
            live.update(picture(found, lines), refresh=True)
            rounds = None if rounds is None else rounds - 1
            await asyncio.sleep(EVERY_S if rounds is None else 0)


def picture(found: Overview, lines: Sequence[TaskLine]) -> Group:
    """The page: sentence, alarms, figures with intervals, cost over time, tasks."""
    alarms = [Text(f"ALARM {alarm.task} {alarm.text}", style="bold red") for alarm in found.alarms]
    return Group(
        Text(found.sentence, style="bold"), *alarms, _figures(found.figures), *_costs(found.points), _tasks(lines)
    )


def _figures(values: Sequence[Value]) -> Table:
    table = Table("figure", "value", "95 % interval", box=None)
    for value in values:
        if value.value is not None:
            table.add_row(value.name, number(value.value, value.unit), Text(interval(value), style="dim"))
    return table


def _costs(points: Sequence[CostPoint]) -> list[Text]:
    """CPS over time as two rows of bars on one scale."""
    series = {
        "small-first": [point.small_first.value for point in points],
        "large only ": [point.large_only.value for point in points],
    }
    known = [value for values in series.values() for value in values if value is not None]
    if not known:
        return []
    rows = [Text(f"  {name} {_bars(values, max(known))}") for name, values in series.items()]
    return [Text(f"USD per 1,000 right answers, up to {number(max(known), 'usd')}"), *rows]


def _bars(values: Sequence[float | None], most: float) -> str:
    return "".join(" " if v is None else _BARS[min(int(v / most * len(_BARS)), len(_BARS) - 1)] for v in values)


def _tasks(lines: Sequence[TaskLine]) -> Table:
    table = Table("task", "calls", "a month", "coverage", "accepted failure", "next", box=None)
    for line in lines:
        share = line.coverage.value or 0.0
        bar = "█" * round(share * _BAR_CELLS)
        failure = number(line.accepted_failure.value, "rate")
        if line.bound is not None:
            failure += f" of {number(line.bound, 'rate')}"
        table.add_row(
            escape(line.task),
            f"{line.calls.n:,}",
            number(line.month_usd.value, "usd"),
            f"{bar:{_BAR_CELLS}} {share:.0%}",
            Text(failure, style="bold red" if line.alarm else ""),
            escape(line.action.text),
        )
    return table
