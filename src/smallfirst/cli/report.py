"""`report`: what the recorded calls came to, and how their tasks stand."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Column, Table

from smallfirst import report as reports
from smallfirst.acceptance import Acceptance
from smallfirst.cli.common import (
    NOTHING_RECORDED,
    ConfigOption,
    JsonOption,
    SinceOption,
    StoreOption,
    TaskOption,
    out,
    parse_since,
    print_json,
    with_store,
)
from smallfirst.config import load
from smallfirst.errors import CalibrationError, ConfigError
from smallfirst.guarantee import Certificate
from smallfirst.monitor import Monitor
from smallfirst.store import CalibrationRow, RecordFilter, Store

app = typer.Typer()


@app.command(epilog="Example: smallfirst report --since 7d --json")
def report(
    config: ConfigOption = None,
    store: StoreOption = None,
    task: TaskOption = None,
    since: SinceOption = None,
    as_json: JsonOption = False,
    keep: Annotated[bool, typer.Option("--watch", help="Keep figures on screen, up to date, until Ctrl-C.")] = False,
) -> None:
    """What the calls cost, how many succeeded, what small-first saved, and how sure that is."""
    if keep and as_json:
        raise ConfigError("--watch and --json are given together.", hint="Give one of them.")

    async def work(db: Store) -> None:
        if keep:
            from smallfirst.cli.watch import watch
            from smallfirst.dashboard.queries import Filters

            await watch(db, Filters(since=parse_since(since), task=task), out)
            return
        tally = reports.Tally()
        async for summary in db.summaries(RecordFilter(task=task, since=parse_since(since))):
            tally.add(summary)
        result = tally.report()
        standings = [each for each in await _standings(db, config) if task in (None, each["task"])]
        if as_json:
            print_json([_with_standing(row, standings) for row in reports.to_rows(result)])
            return
        out.print(reports.render(result) if result.overall.calls else NOTHING_RECORDED)
        if standings:
            out.print(_table(standings))

    with_store(config, work, store)


async def _standings(db: Store, config: Path | None) -> list[dict[str, Any]]:
    """How each calibrated task stands: mode, calibration in force, and what its audits say."""
    settings, monitors = load(config, os.environ), await db.monitors()
    found = []
    for row in await db.calibrations():
        monitor = Monitor.from_json(monitors.get(row.task, ""))
        if monitor is not None and monitor.calibration != row.id:
            monitor = None
        mode = settings.policy(row.task).mode
        found.append({"task": row.task, "stage": row.stage, "mode": mode, **_calibration(row), **_monitor(monitor)})
    return found


def _calibration(row: CalibrationRow) -> dict[str, Any]:
    try:
        acceptance = Acceptance.from_json(json.loads(row.payload))
    except CalibrationError as err:
        return {"labels": "", "certificate": None, "refused": str(err), "made_at": row.created_at}
    outcome = acceptance.outcome
    found = {"labels": acceptance.label, "made_at": acceptance.made_at}
    if isinstance(outcome, Certificate):
        return {**found, "certificate": outcome, "refused": ""}
    return {**found, "certificate": None, "refused": outcome.reason}


def _monitor(monitor: Monitor | None) -> dict[str, Any]:
    if monitor is None:
        return {"alarm": False, "monitor": None}
    state = {
        "audits": monitor.audits,
        "wrong": monitor.wrong,
        "failure_low": monitor.sequence.lower,
        "failure_high": monitor.sequence.upper,
        "threshold": monitor.threshold,
    }
    return {"alarm": monitor.alarm, "monitor": state}


def _with_standing(row: dict[str, Any], standings: list[dict[str, Any]]) -> dict[str, Any]:
    """A row of the report with the calibrations of its task, and whether any of them has an alarm."""
    own = [each for each in standings if each["task"] == row["task"]]
    return row if row["task"] is None else {**row, "alarm": any(each["alarm"] for each in own), "calibrations": own}


def _table(standings: list[dict[str, Any]]) -> Table:
    table = Table(
        Column("task\nstage", overflow="fold"),
        *("mode", "accepts\nfrom", "promise", "labels", "audits"),
        title="Calibrations in force",
        title_justify="left",
        box=SIMPLE,
        padding=(0, 1, 0, 0),
    )
    for each in standings:
        certificate, monitor = each["certificate"], each["monitor"]
        threshold, promise = "nothing", each["refused"]
        if certificate is not None:
            threshold = f"{monitor['threshold'] if monitor else certificate.threshold:.3f}"
            promise = f"≤ {certificate.alpha:.1%} wrong ({1 - certificate.delta:.0%} sure)"
        made = time.strftime("%Y-%m-%d", time.localtime(each["made_at"]))
        audits = "none yet"
        if monitor is not None:
            audits = f"{monitor['audits']}, {monitor['wrong']} wrong"
        if each["alarm"]:
            audits = f"[bold red]ALARM[/]: {audits}; calibrate again"
        name = f"{escape(each['task'])}\n[dim]{escape(each['stage'])}[/]"
        table.add_row(name, each["mode"], threshold, escape(promise), f"{each['labels']}\n{made}", audits)
    return table
