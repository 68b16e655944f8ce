"""`dataset`: examples to train, calibrate and test a specialist of one task on."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from smallfirst.cli.common import (
    ConfigOption,
    JsonOption,
    SinceOption,
    StoreOption,
    err,
    out,
    parse_since,
    print_json,
    task_named,
    with_store,
)
from smallfirst.cli.scrub import scrubbed
from smallfirst.errors import ConfigError, unreadable
from smallfirst.store import RecordFilter, Store

if TYPE_CHECKING:
    from smallfirst.learn.card import Card, Folder
    from smallfirst.learn.dataset import Dataset, Settings
    from smallfirst.learn.scrub import ScrubbedRecord

app = typer.Typer()
DATASETS = Path("datasets")
_NO_NAME = str.maketrans(dict.fromkeys("/\\:", "-"))

TaskArgument = Annotated[str, typer.Argument(help="The task's id or name.")]


@app.command(epilog="Example: smallfirst dataset invoices --from invoices.jsonl --turns 3")
def dataset(
    task: TaskArgument,
    source: Annotated[
        Path | None, typer.Option("--from", help="An export of `smallfirst scrub`; default: the store, scrubbed now.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--out", help="Write here; default: datasets/TASK.")] = None,
    prompt: Annotated[
        str, typer.Option(help="How the specialist is asked. pruned: without system prompt and tools; full: with both.")
    ] = "pruned",
    turns: Annotated[int, typer.Option(min=0, help="Pruned: keep so many last messages; 0: all.")] = 0,
    system: Annotated[bool, typer.Option("--system", help="Pruned: keep the system prompt.")] = False,
    longest: Annotated[int, typer.Option(min=1, help="Leave out calls of more bytes; a token has about 4.")] = 8192,
    least: Annotated[int, typer.Option(min=3, help="Fewer usable calls are no dataset.")] = 20,
    seed: Annotated[int, typer.Option(help="Which episodes go where.")] = 0,
    config: ConfigOption = None,
    store: StoreOption = None,
    since: SinceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make train, calibration and test splits of a task's calls whose right answer is known, with a data card.

    Duplicates are left out; an episode, and what nearly repeats it, never stands in two splits, which is checked.
    """
    from smallfirst.backends.specialist import PromptTemplate
    from smallfirst.learn.card import save
    from smallfirst.learn.dataset import Settings

    if prompt not in ("pruned", "full"):
        raise ConfigError(f"--prompt is {prompt!r}.", hint="Allowed: pruned, full.")
    template = PromptTemplate("full") if prompt == "full" else PromptTemplate("pruned", turns=turns, system=system)
    settings = Settings(prompt=template, most_bytes=longest, least=least, seed=seed)
    if source is None:
        made, scrubbing = _from_store(task, settings, config, store, parse_since(since))
        origin = "the store"
    else:
        made, scrubbing = _from_file(task, settings, source), {}
        origin = source.name
    folder = output or folder_of(DATASETS, task)
    card = save(made, folder, source=origin, scrubbing=scrubbing)
    if as_json:
        print_json({"folder": str(folder), "card": card})
    else:
        _tell(card, folder)


def folder_of(parent: Path, task: str) -> Path:
    """The folder under `parent` that is a task's own."""
    return parent / task.translate(_NO_NAME)


def dataset_of(task: str, data: Path | None, config: Path | None, store: str | None) -> Folder:
    """The dataset in the folder `data`, else the task's own.

    Raises DataError where there is none, and NotFoundError where there is no such task either.
    """
    from smallfirst.learn.card import load

    folder = data or folder_of(DATASETS, task)
    if data is None and not folder.exists():
        with_store(config, lambda db: task_named(db, task), store)
    return load(folder)


def _from_file(task: str, settings: Settings, source: Path) -> Dataset:
    from smallfirst.learn.dataset import build
    from smallfirst.learn.scrubbed import Lines

    try:
        with _counted("reading", None, Lines(source)) as lines:
            return build(task, lines, settings)
    except OSError as error:
        raise ConfigError(unreadable(source, error), hint="`smallfirst scrub --out FILE` writes such a file.") from None


def _from_store(
    task: str, settings: Settings, config: Path | None, url: str | None, since: float | None
) -> tuple[Dataset, dict[str, Any]]:
    from smallfirst.learn.dataset import belonging, build
    from smallfirst.learn.scrubbed import Lines
    from smallfirst.learn.tasks import task_of_row

    found: list[tuple[Dataset, dict[str, Any]]] = []

    async def work(db: Store) -> None:
        await task_named(db, task)
        tasks = [task_of_row(row) for row in await db.tasks()]
        known = next((one for one in tasks if task in (one.id, one.name)), None)
        wanted = RecordFilter(task=None if known else task, since=since)  # calls of a found task need not carry its id
        with tempfile.TemporaryDirectory(prefix="smallfirst-") as folder:
            path = Path(folder) / "calls.jsonl"
            with path.open("wb") as file:
                result = await scrubbed(db, file, wanted)
            result.check()
            with _counted("selecting", result.records, Lines(path)) as lines:
                made = build(known.id if known else task, lines, settings, belonging(tasks, task))
        found.append((made, {"scrubbed": result.records, "refused": dict(result.refused)}))

    with_store(config, work, url)
    return found[0]


@contextmanager
def _counted(what: str, total: int | None, records: Iterable[ScrubbedRecord]) -> Iterator[Iterator[ScrubbedRecord]]:
    """The records, and a bar that counts them for as long as the context lasts."""
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=err, transient=True) as bar:
        yield iter(bar.track(records, total=total))


def _tell(card: Card, folder: Path) -> None:
    from smallfirst.learn.card import leakage
    from smallfirst.learn.dataset import told

    table = Table("split", "rows", "episodes", "tokens (about)", "labels")
    for name, split in card.splits.items():
        labels = ", ".join(f"{count} {kind}" for kind, count in split.labels.items())
        table.add_row(name, str(split.rows), str(split.episodes), str(split.tokens), labels)
    out.print(table)
    rows = sum(split.rows for split in card.splits.values())
    out.print(f"{rows} of {card.calls} calls; left out: {told(card.removed) or 'none'}.", highlight=False)
    out.print(leakage(card), highlight=False)
    where = escape(str(folder))
    out.print(f"Card: {where}/card.md. Next: [bold]smallfirst train --data {where}[/]", highlight=False)
