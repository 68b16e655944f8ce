"""`records`: look at recorded calls."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Annotated

import msgspec
import typer
from rich.box import SIMPLE
from rich.table import Column, Table
from rich.text import Text

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
    tell,
    with_store,
)
from smallfirst.errors import ConfigError
from smallfirst.store import RecordFilter, RecordSummary, Store

app = typer.Typer(no_args_is_help=True, help="Look at recorded calls.")


@app.command("list", epilog="Example: smallfirst records list --task invoices --decision abstain --limit 5")
def records_list(
    config: ConfigOption = None,
    store: StoreOption = None,
    task: TaskOption = None,
    decision: Annotated[str | None, typer.Option(help="accept, escalate or abstain.")] = None,
    model: Annotated[str | None, typer.Option(help="Only what this model served.")] = None,
    episode: Annotated[str | None, typer.Option(help="Only this episode.")] = None,
    since: SinceOption = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many, newest first.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """List recorded calls, newest first."""
    if decision not in {None, "accept", "escalate", "abstain"}:
        raise ConfigError(f"--decision is {decision!r}.", hint="Allowed: accept, escalate, abstain.")
    wanted = RecordFilter(task, decision, model=model, episode=episode, since=parse_since(since))  # type: ignore[arg-type]

    async def work(db: Store) -> None:
        rows = await db.list_records(wanted, limit=limit)
        if as_json:
            print_json(rows)
            return
        if not rows:
            out.print(NOTHING_RECORDED)
            return
        out.print(_table(rows))

    with_store(config, work, store)


def _table(rows: Sequence[RecordSummary]) -> Table:
    """Two lines a record, so that 80 columns hold it; an id is never cut."""
    table = Table(
        Column("record\nwhen, how long", no_wrap=True),
        Column("task\nmodel", overflow="fold"),
        Column("decision\nreason", overflow="fold"),
        Column("USD\nright", justify="right", no_wrap=True),
        box=SIMPLE,
        padding=(0, 1, 0, 0),
    )
    for r in rows:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(r.created_at))
        usd = "?" if r.cost_usd is None else f"{r.cost_usd:.2g}"
        right = {None: "", True: "yes", False: "no"}[r.correct]
        lines = (r.id, f"{when}, {r.seconds:.2f} s"), (r.task, r.model), (r.decision, r.reason), (usd, right)
        table.add_row(*(Text.assemble(first, "\n", (second, "dim")) for first, second in lines))
    return table


@app.command("show", epilog="Example: smallfirst records show 0199...")
def records_show(
    record: Annotated[str, typer.Argument(help="The record's id.")],
    config: ConfigOption = None,
    store: StoreOption = None,
) -> None:
    """Print a recorded call whole, as JSON."""

    async def work(db: Store) -> None:
        print_json(await db.get(record))

    with_store(config, work, store)


@app.command("export", epilog="Example: smallfirst records export --task invoices > invoices.jsonl")
def records_export(
    config: ConfigOption = None,
    store: StoreOption = None,
    task: TaskOption = None,
    since: SinceOption = None,
) -> None:
    """Write recorded calls to standard output, one JSON object a line."""

    async def work(db: Store) -> None:
        async for record in db.export(RecordFilter(task=task, since=parse_since(since))):
            sys.stdout.buffer.write(msgspec.json.encode(record) + b"\n")

    with_store(config, work, store)


@app.command("rotate", epilog="Example: SMALLFIRST_ENCRYPTION_KEY=new:...,old:... smallfirst records rotate")
def records_rotate(config: ConfigOption = None, store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Encrypt every payload anew under the first key of the encryption key variable."""

    async def work(db: Store) -> None:
        count = await db.rotate()
        tell(f"Encrypted {count} payloads anew.", {"payloads": count}, as_json=as_json)

    with_store(config, work, store)
