"""What commands share: consoles, options, the store, JSON, progress."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from smallfirst import models
from smallfirst.assemble import open_configured_store
from smallfirst.config import Config, load
from smallfirst.errors import ConfigError, NotFoundError
from smallfirst.store import Store, sqlite_path

NOTHING_RECORDED = "No such calls are recorded. [bold]smallfirst serve[/] records those sent through it."
_SOME = 8
out, err = Console(), Console(stderr=True)

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="Configuration file; default: smallfirst.toml here, if there is one."),
]
StoreOption = Annotated[
    str | None, typer.Option("--store", help="SQLite file or database URL; overrides store.url of the configuration.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
TaskOption = Annotated[str | None, typer.Option("--task", help="Only this task.")]
SinceOption = Annotated[str | None, typer.Option("--since", help="Only calls of the last 30m, 12h, 7d, ...")]


@contextmanager
def writing(path: Path | None) -> Iterator[None]:
    """Where `path` cannot be written (None: a temporary file), ConfigError says so."""
    try:
        yield
    except OSError as error:
        where = "A temporary file" if path is None else repr(str(path))
        raise ConfigError(
            f"{where} cannot be written: {error.strerror or error}.", hint="Name another place, or make room there."
        ) from None


def with_store(
    config: Path | None, work: Callable[[Store], Awaitable[object]], url: str | None = None, *, make: bool = False
) -> None:
    """Run `work` with the configured store open, or the one at `url`; see `configured`."""
    settings = configured(config, url, make=make)

    async def run() -> None:
        store = await open_configured_store(settings, os.environ)
        try:
            await work(store)
        finally:
            await store.close()

    asyncio.run(run())


def configured(config: Path | None, url: str | None = None, *, make: bool = False) -> Config:
    """The configuration in the file `config`, with its records at `url` (or path) where that is given.

    Raises ConfigError where the SQLite file is not there, unless the command is one to `make` it.
    """
    settings = load(config, os.environ)
    if url is not None:
        settings = with_store_url(settings, url if "://" in url else f"sqlite:///{url}")
    if not make and (path := sqlite_path(settings.store.url)) is not None and not path.is_file():
        raise ConfigError(
            f"There is no store at {str(path)!r}.",
            hint="`smallfirst serve` and `smallfirst import` make one; store.url or --store names another.",
        )
    return settings


def with_store_url(config: Config, url: str) -> Config:
    """`config` with its records at `url`."""
    return msgspec.structs.replace(config, store=msgspec.structs.replace(config.store, url=url))


async def task_named(store: Store, said: str) -> str:
    """The id of the task that was found and is named so, else `said`, where records have it.

    Raises NotFoundError, which names some of the tasks, where it is neither.
    """
    names = {row.id: row.name for row in await store.tasks()}
    names |= {task: names.get(task, task) for task in await store.recorded_tasks()}
    task = next((task for task, name in names.items() if name == said), said)
    if task not in names:
        some = ", ".join([*names.values()][:_SOME]) + (", ..." if len(names) > _SOME else "")
        raise NotFoundError(f"There is no task {said!r}.", hint=f"Tasks here: {some or 'none'}.")
    return task


async def check_dataset(store: Store, made_for: str, task: str) -> None:
    """Raises ConfigError unless a dataset made for the task `made_for` is of the task that `task` names."""
    named = {row.id for row in await store.tasks() if row.name == task}
    if made_for not in {task, *named}:
        raise ConfigError(
            f"The dataset is of the task {made_for!r}, not of {task!r}.", hint="Name the task of the dataset."
        )


def drawn(draw: Callable[[], list[Path]]) -> list[str]:
    """Where the pictures are that `draw` writes; without the library that draws them, a hint instead."""
    try:
        return [str(path) for path in draw()]
    except ConfigError as error:
        err.print(f"No pictures: {error}", markup=False, highlight=False)
        return []


def check_shares(given: Mapping[str, float]) -> None:
    """Raises ConfigError unless each option's value is between 0 and 1."""
    for option, share in given.items():
        if not 0 < share < 1:
            raise ConfigError(f"{option} is {share!r}.", hint="Allowed: a number between 0 and 1.")


def parse_since(text: str | None) -> float | None:
    """ "30m", "12h", "7d" -> seconds since the epoch, that long ago. Raises ConfigError for anything else."""
    return None if text is None else time.time() - parse_duration("--since", text)


def parse_duration(option: str, text: str) -> float:
    """ "30m", "12h", "7d" -> seconds. Raises ConfigError for anything else."""
    units = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
    number, unit = text[:-1], text[-1:]
    if unit not in units or not number.replace(".", "", 1).isdigit():
        raise ConfigError(f"{option} is {text!r}.", hint="Give a number and one of s m h d w, as in 12h.")
    return float(number) * units[unit]


def tell(text: str, facts: Mapping[str, Any], *, as_json: bool) -> None:
    """Say that a command is done: `text` to people, `facts` as JSON."""
    if as_json:
        print_json(facts)
    else:
        out.print(text, highlight=False)


def print_json(value: Any) -> None:
    """Write `value` as indented JSON to standard output."""
    sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")


@contextmanager
def calls_progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar of calls with the time left; what it yields takes what is asked, calls done and calls in all."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True) as bar:
        shown = bar.add_task("", total=None)
        yield lambda what, done, total: bar.update(shown, description=escape(what), completed=done, total=total)


def pull_weights(config: Config) -> None:
    """Fetch the catalogue's weights that `config` needs and this machine lacks, with a progress bar."""
    for model in config.models.values():
        if model.backend == "llamacpp" and model.weights in models.CATALOGUE:
            with pull_progress() as show:
                models.pull(model.weights, show)


class pull_progress:  # noqa: N801 - a context manager that reads as a verb
    """A progress bar for `models.pull`; appears with the first report."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=err, transient=True)
        self._task: Any = None

    def __enter__(self) -> models.Progress:
        return self._show

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def _show(self, what: str, done: int, total: int) -> None:
        if self._task is None:
            self._bar.start()
            self._task = self._bar.add_task(what)
        self._bar.update(self._task, description=what, completed=done, total=total or None)
