"""`loop`: from recorded calls to specialists in service, again and again."""

from __future__ import annotations

import os
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Column, Table

from smallfirst import models
from smallfirst.cli.common import (
    ConfigOption,
    JsonOption,
    SinceOption,
    StoreOption,
    configured,
    err,
    out,
    parse_duration,
    parse_since,
    print_json,
    pull_progress,
    with_store,
)
from smallfirst.extra import need
from smallfirst.store import Store

if TYPE_CHECKING:
    from smallfirst.learn.loop import Pass

app = typer.Typer()
_LIBRARIES = ("torch", "peft", "transformers", "phonenumbers", "stdnum", "sklearn", "networkx")
_COLOURS = {"released": "green", "failed": "red", "declined": "yellow", "calibrated": "green"}


@app.command(epilog="Example: smallfirst loop --once --minutes 10")
def loop(
    once: Annotated[bool, typer.Option("--once", help="One pass, then end.")] = False,
    every: Annotated[str, typer.Option(help="Time between passes: 30m, 1h, 7d, ...")] = "1h",
    task: Annotated[list[str] | None, typer.Option(help="Only this task (id or name); may be repeated.")] = None,
    most: Annotated[int | None, typer.Option(min=1, help="Begin work on so many tasks a pass, the dearest.")] = None,
    folder: Annotated[Path, typer.Option(help="Where artifacts are kept.")] = Path("loop"),
    base: Annotated[str, typer.Option(help="The model to train on: a name of `models list`, or a file.")] = (
        models.DEFAULT_MODEL
    ),
    minutes: Annotated[float | None, typer.Option(help="Train a task at most so long.")] = None,
    to: Annotated[str, typer.Option(help="Where a new version goes: shadow or canary.")] = "shadow",
    least_calls: Annotated[int, typer.Option(min=1, help="A task with fewer calls is left alone.")] = 200,
    least_usd: Annotated[float, typer.Option(min=0, help="So is one that costs less a month, in USD.")] = 1.0,
    failures: Annotated[int, typer.Option(min=1, help="Train again after so many failures.")] = 20,
    more_calls: Annotated[float, typer.Option(min=0, help="Or after so many more calls, as a share.")] = 0.5,
    spread: Annotated[
        str | None,
        typer.Option(help="Tasks side by side: 4 (processes), local (Ray here), auto or HOST:PORT (a Ray cluster)."),
    ] = None,
    config: ConfigOption = None,
    store: StoreOption = None,
    since: SinceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find what recurs in the recorded calls, train a small model for each task that is worth it, and release it.

    A pass does what is due and ends; when nothing is, it says so. A pass that was killed is gone on with by the next.
    Running gateways follow by themselves, and take back what turns out to be worse.
    """
    from smallfirst.errors import ConfigError
    from smallfirst.learn.loop import Loop, Settings
    from smallfirst.learn.progress import stages
    from smallfirst.learn.rounds import Conversion, Recipe
    from smallfirst.learn.scale import elsewhere
    from smallfirst.learn.train import TrainConfig
    from smallfirst.learn.watch import Triggers

    for library in _LIBRARIES:
        need(library)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # about words of its own
    if to not in ("shadow", "canary"):
        raise ConfigError(f"--to is {to!r}.", hint="Allowed: shadow, canary.")
    pause, resolved = parse_duration("--every", every), configured(config, store)
    settings = Settings(
        folder=folder.absolute(),
        triggers=Triggers(least_calls, least_usd, more_calls, failures),
        only=tuple(task or ()),
        most=most,
        since=parse_since(since),
    )
    recipe = Recipe(base=base, training=TrainConfig(max_minutes=minutes), to=to)  # type: ignore[arg-type]
    if base in models.CATALOGUE:
        with pull_progress() as show:
            models.pull(base, show)
    ended: list[Pass] = []

    def done(finished: Pass) -> None:
        ended.append(finished)
        print_json(asdict(finished)) if as_json else _tell(finished)

    async def work(db: Store) -> None:
        workshop = Conversion(db, resolved, os.environ, recipe)
        rounds = None if spread is None else elsewhere(resolved, settings, recipe, _where(spread))
        passes = Loop(db, workshop, settings, stages(err), rounds)
        if once:
            done(await passes.once())
        else:
            await passes.every(pause, done, lambda error: err.print(f"[red]error:[/] {escape(str(error))}"))

    with_store(config, work, store)
    if ended and ended[-1].failed:
        raise typer.Exit(1)


def _where(spread: str) -> str | int:
    return int(spread) if spread.isdecimal() else spread


def _tell(finished: Pass) -> None:
    if not finished.tasks:
        out.print("Nothing to do: no calls came since the last pass.")
        return
    table = Table(Column("task", no_wrap=True), "outcome", "why")
    for each in finished.tasks:
        colour = _COLOURS.get(each.outcome, "dim")
        table.add_row(escape(each.name or each.task or "all records"), f"[{colour}]{each.outcome}[/]", escape(each.why))
    out.print(table)
    if not finished.worked:
        out.print("Nothing to do.")
