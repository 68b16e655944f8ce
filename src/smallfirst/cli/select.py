"""`select`: which small model could answer a task as it is."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from smallfirst import report
from smallfirst.assemble import open_configured_store
from smallfirst.cli.common import (
    ConfigOption,
    JsonOption,
    StoreOption,
    calls_progress,
    check_dataset,
    check_shares,
    configured,
    out,
    print_json,
)
from smallfirst.cli.dataset import TaskArgument, dataset_of, folder_of
from smallfirst.config import Config
from smallfirst.report import FigureSpec
from smallfirst.stats import Figure

if TYPE_CHECKING:
    from smallfirst.learn.card import Folder
    from smallfirst.learn.select import Selection, Settings, Trial

app = typer.Typer()
SELECTIONS = Path("selections")
_RATE, _SECONDS = FigureSpec("", "", "rate", ""), FigureSpec("", "", "seconds", "")
_USD = FigureSpec("", "", "usd", "")


@app.command(epilog="Example: smallfirst select invoices --candidates smollm2-135m,./other.gguf")
def select(
    task: TaskArgument,
    candidates: Annotated[
        str | None,
        typer.Option(
            help="Models, by commas: of smallfirst.toml, of `smallfirst models list`, GGUF files, SERVER/MODEL. "
            "Default: the pulled ones, and what servers configured as small list."
        ),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="The dataset; default: datasets/TASK.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Ask the newest calibration calls, so many at most.")] = 100,
    margin: Annotated[float, typer.Option(help="How much less often than the large model one may be right.")] = 0.05,
    output: Annotated[Path | None, typer.Option("--out", help="Write here; default: selections/TASK.")] = None,
    config: ConfigOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Try small models on a task's held-out calls, and name the cheapest that is shown to be as good as the large one.

    Each is asked zero-shot and with the nearest examples. Broken off and run again, it goes on where it was.
    Fails when none of the --candidates can be tried.
    """
    from smallfirst.learn.select import Settings, save, to_json

    check_shares({"--margin": margin})
    material = dataset_of(task, data, config, store)
    folder = output or folder_of(SELECTIONS, task)
    names = [name.strip() for name in candidates.split(",")] if candidates else []
    settings = Settings(limit=limit, margin=margin)
    found = asyncio.run(_select(task, material, names, settings, folder, configured(config, store)))
    written = save(found, folder)
    if as_json:
        print_json({**to_json(found), "report": str(written)})
    else:
        _tell(task, found, written)
    if names and not found.trials:  # none of those asked for could be tried
        raise typer.Exit(1)


def _tell(task: str, found: Selection, written: Path) -> None:
    if found.trials:
        out.print(_table(found))
    for name, why in found.excluded.items():
        out.print(f"Not tried: {name}: {why}", markup=False, highlight=False)
    out.print(found.why, markup=False, highlight=False)
    out.print(f"Report: {written}.", markup=False, highlight=False)
    if found.chosen is None:
        out.print(f"Next: [bold]smallfirst train {escape(task)}[/]", highlight=False)


async def _select(
    task: str, data: Folder, names: list[str], settings: Settings, folder: Path, config: Config
) -> Selection:
    from smallfirst.learn.candidates import chosen, listed, on_disk
    from smallfirst.learn.past import answers_of
    from smallfirst.learn.select import select

    store = await open_configured_store(config, os.environ)
    try:
        await check_dataset(store, data.card.task, task)
        past = await answers_of(store, data.splits["calibration"])
    finally:
        await store.close()
    on_servers, silent = await listed(config, os.environ)
    known = [*on_disk(config, os.environ), *on_servers]
    wanted = chosen(names, known, config, os.environ) if names else known
    with calls_progress() as progress:
        return await select(data, wanted, past, settings=settings, excluded=silent, folder=folder, progress=progress)


def _table(found: Selection) -> Table:
    title = f"{found.calls} calls; the large model is right on {_cell(found.accuracy, _RATE)} of 100"
    table = Table("", "right", "- large's", "p", "USD", "p50, s", "calls", "licence", "MB", "context", title=title)
    for trial in found.trials:
        name = f"{trial.name}, {trial.prompting}"
        table.add_row(escape(name), *_figures(trial), style="bold" if trial is found.chosen else "")
    table.caption = "Intervals at 95 %; USD for 1,000 right answers; trials end when the test cannot pass any more."
    return table


def _figures(trial: Trial) -> list[str]:
    return [
        _cell(trial.accuracy, _RATE),
        _cell(trial.difference, _RATE),
        f"{trial.p:.2g}",
        _cell(trial.cps, _USD),
        _cell(trial.latency_p50, _SECONDS),
        f"{trial.calls} of {trial.planned}",
        trial.facts.licence,
        "" if trial.memory is None else f"{trial.memory / 1e6:.0f}",
        "" if trial.facts.context is None else str(trial.facts.context),
    ]


def _cell(figure: Figure, spec: FigureSpec) -> str:
    if figure.value is None:
        return ""
    interval = report.interval_text(figure, spec, 2).replace(" ", "")
    return f"{report.number_text(figure.value, spec, 2)} ({interval})"
