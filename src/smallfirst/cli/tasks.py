"""`tasks`: the recurring tasks among recorded calls."""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Column, Table

from smallfirst.cli.common import (
    NOTHING_RECORDED,
    ConfigOption,
    JsonOption,
    SinceOption,
    StoreOption,
    out,
    parse_since,
    print_json,
    tell,
    with_store,
)
from smallfirst.cli.scrub import scrubbed
from smallfirst.errors import NotFoundError
from smallfirst.extra import need
from smallfirst.store import RecordFilter, Store

if TYPE_CHECKING:
    from smallfirst.learn.scrubbed import Lines
    from smallfirst.learn.tasks import Figures

app = typer.Typer(no_args_is_help=True, help="Find the recurring tasks among recorded calls, and correct them.")
TaskArgument = Annotated[str, typer.Argument(help="The task's id or name.")]
LeastOption = Annotated[int, typer.Option("--least-calls", min=2, help="Fewer calls (of 4,000 sampled) are no task.")]
LimitOption = Annotated[int | None, typer.Option(min=1, help="Only so many calls, the newest.")]
NO_TASKS = "No tasks are known. [bold]smallfirst tasks find[/] looks for them."


@app.command("find", epilog="Example: smallfirst tasks find --since 30d")
def tasks_find(
    least_calls: LeastOption = 10,
    since: SinceOption = None,
    limit: LimitOption = None,
    config: ConfigOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find the tasks among recorded calls, and what each costs. Tasks that were known keep their ids and names."""
    from smallfirst.learn.tasks import find, row_of, task_of_row

    async def work(db: Store) -> None:
        known = [task_of_row(row) for row in await db.tasks()]

        async def look(calls: Lines) -> None:
            found = find(calls, known, least_calls=least_calls)
            if not found.task_of:
                _nothing(as_json)
            await db.replace_tasks([row_of(task, found.of(task.id)) for task in found.tasks])
            _print(found.figures, as_json)

        await _scrubbed(db, look, since, limit)

    with_store(config, work, store)


@app.command("list", epilog="Example: smallfirst tasks list --json")
def tasks_list(config: ConfigOption = None, store: StoreOption = None, as_json: JsonOption = False) -> None:
    """List the tasks, the dearest first, with figures of when they were last counted."""
    from smallfirst.learn.tasks import by_cost, figures_of_row

    async def work(db: Store) -> None:
        figures = by_cost(figures_of_row(row) for row in await db.tasks())
        if figures or as_json:
            _print(figures, as_json)
        else:
            out.print(NO_TASKS)

    with_store(config, work, store)


@app.command("show", epilog="Example: smallfirst tasks show find-bus")
def tasks_show(
    task: TaskArgument, config: ConfigOption = None, store: StoreOption = None, as_json: JsonOption = False
) -> None:
    """Show a task: its figures, and the JSON Schemas that its answers suggest."""
    from smallfirst.learn.tasks import figures_of_row

    async def work(db: Store) -> None:
        rows = [row for row in await db.tasks() if task in (row.id, row.name)]
        if not rows:
            raise NotFoundError(
                f"There is no task {task!r}.", hint="`smallfirst tasks list` shows their ids and names."
            )
        figures = figures_of_row(rows[0])
        if as_json:
            print_json({**_row(figures), "schemas": figures.schemas, "settled": rows[0].settled})
            return
        out.print(_table([figures]))
        for form, schema in figures.schemas.items():
            out.print(f"Suggested schema of {f'the arguments of {form}' if form else 'the answer'}:", markup=False)
            print_json(schema)

    with_store(config, work, store)


@app.command("merge", epilog="Example: smallfirst tasks merge find-bus find-coach")
def tasks_merge(
    tasks: Annotated[list[str], typer.Argument(help="Two ids or names or more; the first one's stay.")],
    config: ConfigOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make several tasks one, for good."""
    from smallfirst.learn.tasks import figures_of_row, merge, merged_figures, row_of, task_of_row

    async def work(db: Store) -> None:
        rows = await db.tasks()
        known = [task_of_row(row) for row in rows]
        after = merge(known, tasks)
        kept = {task.id for task in after}
        figures = {row.id: figures_of_row(row) for row in rows}
        whole = next(task for task in after if tasks[0] in (task.id, task.name))
        parts = [figures[task.id] for task in known if task.id == whole.id or task.id not in kept]
        figures[whole.id] = merged_figures(parts)
        await db.replace_tasks([row_of(task, figures[task.id]) for task in after])
        text = f"{len(parts)} tasks are now {whole.name} ({whole.id})."
        tell(escape(text), {"task": whole.id, "name": whole.name, "merged": len(parts)}, as_json=as_json)

    with_store(config, work, store)


@app.command("split", epilog="Example: smallfirst tasks split small-talk --least-calls 20")
def tasks_split(
    task: TaskArgument,
    least_calls: LeastOption = 10,
    since: SinceOption = None,
    limit: LimitOption = None,
    config: ConfigOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take a task apart, for good: into its versions, else by what its users say."""
    from smallfirst.learn.tasks import count, row_of, split, task_of_row

    async def work(db: Store) -> None:
        known = [task_of_row(row) for row in await db.tasks()]

        async def look(calls: Lines) -> None:
            counted = count(split(known, task, calls, least_calls=least_calls), calls)
            await db.replace_tasks([row_of(one, counted.of(one.id)) for one in counted.tasks])
            _print(counted.figures, as_json)

        await _scrubbed(db, look, since, limit)

    with_store(config, work, store)


@app.command("name", epilog="Example: smallfirst tasks name t-0b2c3d4e5f60 find-bus")
def tasks_name(
    task: TaskArgument,
    new: Annotated[str, typer.Argument(help="The new name.")],
    config: ConfigOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give a task another name; its id stays."""
    from smallfirst.learn.tasks import figures_of_row, rename, row_of, task_of_row

    async def work(db: Store) -> None:
        rows = await db.tasks()
        renamed = rename([task_of_row(row) for row in rows], task, new)
        figures = {row.id: figures_of_row(row) for row in rows}
        await db.replace_tasks([row_of(one, figures[one.id]) for one in renamed])
        tell(f"The task {escape(task)} is named {escape(new)}.", {"task": task, "name": new}, as_json=as_json)

    with_store(config, work, store)


async def _scrubbed(db: Store, look: Callable[[Lines], Awaitable[None]], since: str | None, limit: int | None) -> None:
    """Call `look` with the store's calls, scrubbed once into a file that lives as long."""
    need("phonenumbers")
    need("stdnum")
    from smallfirst.learn.scrubbed import Lines

    wanted = RecordFilter(since=parse_since(since))
    with tempfile.TemporaryDirectory(prefix="smallfirst-") as folder:
        path = Path(folder) / "calls.jsonl"
        with path.open("wb") as file:
            await scrubbed(db, file, wanted, limit=limit)
        await look(Lines(path))


def _nothing(as_json: bool) -> None:
    if as_json:
        print_json([])
    else:
        out.print(NOTHING_RECORDED)
    raise typer.Exit(1)


def _print(figures: Sequence[Figures], as_json: bool) -> None:
    if as_json:
        print_json([_row(one) for one in figures])
    else:
        out.print(_table(figures))


def _row(figures: Figures) -> dict[str, Any]:
    return {name: value for name, value in asdict(figures).items() if name != "schemas"}


def _table(figures: Sequence[Figures]) -> Table:
    table = Table(Column("task", no_wrap=True), "calls", "episodes", "tokens", "USD", "a month", "share", "right")
    for one in figures:
        usd = "?" if one.cost_usd is None else f"{one.cost_usd:.4g}"
        month = "" if one.cost_month_usd is None else f"{one.cost_month_usd:.4g}"
        share = one.share_calls if one.share_cost is None else one.share_cost
        right = f"{one.correct / one.labelled:.0%} of {one.labelled}" if one.labelled else ""
        name = "[dim]no task[/]" if one.task is None else escape(one.name)
        name += f"\n[dim]{escape(one.task)}[/]" if one.task not in (None, one.name) else ""
        tokens = f"{one.input_tokens + one.output_tokens:,}"
        table.add_row(name, str(one.calls), str(one.episodes), tokens, usd, month, f"{share:.1%}", right)
    return table
