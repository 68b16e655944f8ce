"""`whatif`: what another policy would have come to."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE
from rich.console import Group
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from smallfirst import targets, traces
from smallfirst.cli.common import (
    NOTHING_RECORDED,
    ConfigOption,
    JsonOption,
    SinceOption,
    StoreOption,
    TaskOption,
    err,
    out,
    parse_since,
    print_json,
    with_store,
)
from smallfirst.errors import ConfigError
from smallfirst.labels import Outcomes, label_of, request_of
from smallfirst.report import figure_row
from smallfirst.stats import Figure
from smallfirst.store import RecordFilter, Store
from smallfirst.whatif import FIGURES, MOST_UNSUPPORTED, Comparison, FigureSpec, Judgement, Whatif, judge

app = typer.Typer()

MOST = 50_000
"""Calls that are judged, the newest."""


@app.command(epilog="Example: smallfirst whatif --policy strict.toml --task invoices --since 7d")
def whatif(
    policy: Annotated[Path, typer.Option(help="TOML file that says what is to be otherwise.")],
    config: ConfigOption = None,
    store: StoreOption = None,
    task: TaskOption = None,
    since: SinceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Estimate from recorded calls what another policy would have cost and got right.

    The file has a table \\[cascade], and \\[tasks.NAME] for what one task does otherwise.
    Keys: threshold or alpha (with delta), stages, mode, constraint, repairs, max_usd, max_seconds.
    What is not given stays as recorded. A whole file:

        \\[cascade]
        threshold = 0.9

    Where the records cannot tell, no figure is given but what to record.
    """
    wanted = targets.load(policy)

    async def work(db: Store) -> None:
        calls, kinds = await _read(db, RecordFilter(task=task, since=parse_since(since)))
        unknown = sorted(set(wanted.tasks) - {call.task for call in calls}) if task is None else []
        if calls and unknown:
            found = ", ".join(sorted({call.task for call in calls})[:10])
            raise ConfigError(f"{policy}: no calls of {unknown!r} are recorded.", hint=f"Recorded tasks: {found}.")
        if not calls and not as_json:
            out.print(NOTHING_RECORDED)
            return
        result = judge(calls, wanted) if calls else None
        if as_json:
            print_json(_row(result, wanted, kinds))
        elif result is not None:
            out.print(_render(result, kinds, cut=len(calls) == MOST))

    with_store(config, work, store)


async def _read(db: Store, wanted: RecordFilter) -> tuple[list[traces.Trace], dict[str, int]]:
    """The newest calls in short, and how many answers have a label of each kind."""
    calls: list[traces.Trace] = []
    kinds: dict[str, int] = {}
    outcomes = Outcomes()
    columns = (TextColumn("reading records"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=err, transient=True) as bar:
        shown = bar.add_task("", total=min(await db.count(wanted), MOST))
        async for record in db.export(wanted):
            request = request_of(record)
            labels = [label_of(record, request, n, outcomes) for n in range(len(record.attempts))]
            outcomes.learn(record)
            calls.append(traces.trace(record, labels))
            for attempt, label in zip(record.attempts, labels, strict=True):
                if attempt.small and label is not None:
                    kinds[label.kind] = kinds.get(label.kind, 0) + 1
            bar.advance(shown)
            if len(calls) == MOST:
                break
    return calls, kinds


def _row(result: Whatif | None, wanted: targets.Targets, kinds: dict[str, int]) -> dict[str, Any]:
    """The JSON object: the figures of all calls, then those of each task."""
    settings = {"cascade": wanted.default.changes, "tasks": {n: t.changes for n, t in wanted.tasks.items()}}
    head = {"settings": settings, "labels": kinds, "most_unsupported": MOST_UNSUPPORTED}
    if result is None:
        return {**head, "calls": 0, "figures": {}, "gaps": [], "tasks": [], "notes": []}
    tasks = [_judgement_row(one) for one in result.tasks]
    return {**head, "level": result.level, **_judgement_row(result.overall), "tasks": tasks, "notes": result.notes}


def _judgement_row(one: Judgement) -> dict[str, Any]:
    figures = {
        key: {
            "recorded": figure_row(each.recorded),
            "target": figure_row(each.target),
            "difference": figure_row(each.difference),
            "unsupported": each.unsupported,
            "effective": each.effective,
        }
        for key, each in one.figures.items()
    }
    gaps = [{"share": gap.share, "what": gap.what, "advice": gap.advice} for gap in one.gaps]
    nothing = one.threshold == math.inf
    head = {"task": one.task, "calls": one.calls, "threshold": None if nothing else one.threshold}
    return {**head, "accepts_nothing": nothing, "figures": figures, "gaps": gaps}


def _render(result: Whatif, kinds: dict[str, int], *, cut: bool) -> Group:
    shown = [_table(result.overall, result.level)]
    if len(result.tasks) > 1:
        shown.append(_task_table(result))
    labels = ", ".join(f"{n:,} by {kind}" for kind, n in sorted(kinds.items())) or "none"
    told = "; by agreement the large model's answers are right" if "agreement" in kinds else ""
    notes = [f"Labels of small answers: {labels}{told}.", *result.notes]
    notes += [f"Judged on the newest {MOST:,} calls."] if cut else []
    gaps = [
        f"Records cannot tell of {gap.share:.0%} of calls: {gap.what}; {gap.advice}." for gap in result.overall.gaps
    ]
    return Group(*shown, *(Text(note) for note in notes), *(Text(gap, style="yellow") for gap in gaps))


def _table(one: Judgement, level: float) -> Table:
    table = Table(title=f"{one.calls:,} calls, {level:.0%} intervals", title_justify="left")
    table.add_column("figure")
    for name in ("as recorded", "target", "difference"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("no support", justify="right", no_wrap=True)
    for spec in FIGURES:
        each = one.figures[spec.key]
        cells = [_cell(figure, spec, each) for figure in (each.recorded, each.target, each.difference)]
        title = Text.assemble(spec.name, "\n", (spec.meaning, "dim"))
        table.add_row(title, *cells, f"{each.unsupported:.0%}")
    return table


def _task_table(result: Whatif) -> Table:
    table = Table(title="By task: target, and difference to as recorded", title_justify="left", box=SIMPLE)
    table.add_column("task", overflow="fold")
    table.add_column("calls", justify="right")
    shown = [spec for spec in FIGURES if spec.key in {"cps", "failure", "escalation"}]
    for spec in shown:
        table.add_column(spec.name, justify="right")
        table.add_column("difference", justify="right")
    for one in result.tasks:
        cells = [
            _cell(figure, spec, each)
            for spec in shown
            for each in (one.figures[spec.key],)
            for figure in (each.target, each.difference)
        ]
        table.add_row(escape(one.task or ""), f"{one.calls:,}", *cells)
    return table


def _cell(figure: Figure, spec: FigureSpec, among: Comparison) -> Text:
    """The value over its interval; where there is none, whether records lack support or only numbers."""
    if figure.value is None:
        return Text("cannot tell" if among.unsupported > MOST_UNSUPPORTED else "too few", style="yellow")
    low, high = ("" if bound is None else _number(bound, spec) for bound in (figure.low, figure.high))
    unit = {"rate": " %", "seconds": " s"}.get(spec.unit, "")
    return Text.assemble(_number(figure.value, spec), unit, "\n", (f"{low} – {high}", "dim"))


def _number(value: float, spec: FigureSpec) -> str:
    """Rates in percent, USD per thousand, seconds; three significant digits."""
    if spec.unit == "rate":
        return f"{100 * value:.1f}"
    scaled = 1000 * value if spec.unit == "usd" else value
    return f"{float(f'{scaled:.3g}'):g}"
