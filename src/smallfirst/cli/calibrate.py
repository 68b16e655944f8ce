"""`calibrate`: decide from records which small answers may be used."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from smallfirst.artifact import write_json
from smallfirst.cli.common import (
    NOTHING_RECORDED,
    ConfigOption,
    JsonOption,
    SinceOption,
    StoreOption,
    check_shares,
    err,
    out,
    parse_since,
    print_json,
    task_named,
    with_store,
)
from smallfirst.errors import ConfigError
from smallfirst.guarantee import Certificate
from smallfirst.store import RecordFilter, Store

app = typer.Typer()


@app.command(epilog="Example: smallfirst calibrate invoices --alpha 0.05 --delta 0.05")
def calibrate(
    task: Annotated[str | None, typer.Argument(help="The task to calibrate.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Calibrate every task.")] = False,
    alpha: Annotated[float, typer.Option(help="Accepted answers may fail at this rate at most.")] = 0.05,
    delta: Annotated[float, typer.Option(help="Chance that the labels mislead, and they fail more often.")] = 0.05,
    output: Annotated[Path | None, typer.Option(help="Also write the calibrations here, as a JSON array.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Put nothing in force.")] = False,
    config: ConfigOption = None,
    store: StoreOption = None,
    since: SinceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fit P(correct) on labelled records, and certify from which confidence on small answers are accepted.

    A task is refused, and its large model answers, when its labels are too few or its answers fail too often.
    """
    from smallfirst.learn.calibrate import Result, run

    if (task is None) != every:
        raise ConfigError("Give a TASK or --all, one of them.", hint="`smallfirst report` lists the tasks.")
    check_shares({"--alpha": alpha, "--delta": delta})
    results: list[Result] = []

    async def work(db: Store) -> None:
        start, name = parse_since(since), None if task is None else await task_named(db, task)
        columns = (TextColumn("reading records"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, console=err, transient=True) as bar:
            shown = bar.add_task("", total=await db.count(RecordFilter(task=name, since=start)))
            results.extend(
                await run(
                    db,
                    task=name,
                    alpha=alpha,
                    delta=delta,
                    since=start,
                    now=time.time(),
                    save=not dry_run,
                    progress=lambda n: bar.update(shown, completed=n),
                )
            )

    with_store(config, work, store)
    if output is not None:
        write_json([result.acceptance.to_json() for result in results if result.acceptance], output)
    if as_json:
        print_json([_row(result) for result in results])
    else:
        out.print(_table(results) if results else NOTHING_RECORDED)
        for result in (result for result in results if result.refused):
            out.print(f"[yellow]{escape(result.sample.task)} refused:[/] {escape(result.refused)}", highlight=False)
    if not any(result.certificate for result in results):
        raise typer.Exit(1)


def _row(result: Any) -> dict[str, Any]:
    acceptance, sample = result.acceptance, result.sample
    return {
        "task": sample.task,
        "stage": sample.stage,
        "model": sample.model,
        "labels": dict(sample.kinds),
        "right": sum(row.label.correct for row in sample.rows),
        "unlabelled": sample.unlabelled,
        "certificate": result.certificate,
        "refused": result.refused,
        "needed": result.needed,
        "quality": acceptance.quality if acceptance else None,
        "costs": acceptance.costs if acceptance else None,
    }


def _table(results: list[Any]) -> Table:
    table = Table("task", "stage", "labels", "right", "threshold", "coverage", "bound", "ECE", "AUROC")
    for result in results:
        sample, quality = result.sample, result.acceptance.quality if result.acceptance else {}
        kinds = ", ".join(f"{n} {kind}" for kind, n in sample.kinds.most_common()) or "none"
        kinds += f"; {sample.unlabelled} answers without" if sample.unlabelled else ""
        cells = [escape(sample.task), sample.stage, kinds, str(sum(row.label.correct for row in sample.rows))]
        measured = ["" if (value := quality.get(name)) is None else f"{value:.3f}" for name in ("ece", "auroc")]
        table.add_row(*cells, *_promise(result.certificate), *measured)
    return table


def _promise(certificate: Certificate | None) -> list[str]:
    if certificate is None:
        return ["", "", ""]
    coverage = f"{certificate.coverage:.1%} of {certificate.n}"
    return [f"{certificate.threshold:.3f}", coverage, f"≤ {certificate.bound:.1%}"]
