"""`guard`: learn from audited calls when a shortened context may stand for the whole."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from smallfirst.artifact import write_json
from smallfirst.cli.common import (
    ConfigOption,
    JsonOption,
    SinceOption,
    StoreOption,
    check_shares,
    err,
    parse_since,
    tell,
    with_store,
)
from smallfirst.compress.audits import Audited, audited, certified
from smallfirst.compress.guard import promised
from smallfirst.guarantee import Certificate
from smallfirst.store import RecordFilter, Store

app = typer.Typer()


@app.command(epilog="Example: smallfirst guard reports --stage short --alpha 0.05 --out guard.json")
def guard(
    task: Annotated[str, typer.Argument(help="The task whose calls are looked at.")],
    stage: Annotated[str, typer.Option(help="The compressor: the NAME of its models.NAME table.")],
    output: Annotated[Path, typer.Option("--out", help="Write the guard here, for `guard = ...` of the compressor.")],
    alpha: Annotated[float, typer.Option(help="Shortening may change this share of answers at most.")] = 0.05,
    delta: Annotated[float, typer.Option(help="Chance that the audited calls mislead.")] = 0.05,
    config: ConfigOption = None,
    store: StoreOption = None,
    since: SinceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Certify when shortening leaves the answer the same, from calls that were answered from both texts.

    Such calls are recorded where the compressor runs in shadow of its predictor (mode = "observe"). Without a guard
    that passes, everything is sent in full.
    """
    check_shares({"--alpha": alpha, "--delta": delta})
    calls: list[Audited] = []

    async def work(db: Store) -> None:
        columns = (TextColumn("reading records"), BarColumn(), MofNCompleteColumn())
        after = parse_since(since)
        with Progress(*columns, console=err, transient=True) as bar:
            shown = bar.add_task("", total=await db.count(RecordFilter(task=task, since=after)))
            calls.extend(await audited(db, task, stage, since=after, progress=lambda n: bar.update(shown, completed=n)))

    with_store(config, work, store)
    made = certified(calls, task=task, stage=stage, alpha=alpha, delta=delta, made_at=time.time())
    write_json(made.to_json(), output)
    same = sum(call.same for call in calls)
    facts = {"calls": len(calls), "same": same, "guard": str(output), **made.to_json()}
    tell(f"{promised(made)} {same} of {len(calls)} answers were the same.", facts, as_json=as_json)
    if not isinstance(made.outcome, Certificate):
        raise typer.Exit(1)
