"""`scrub`: recorded calls without personal data."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from smallfirst.cli.common import (
    ConfigOption,
    JsonOption,
    SinceOption,
    StoreOption,
    TaskOption,
    err,
    parse_since,
    print_json,
    with_store,
    writing,
)
from smallfirst.errors import ConfigError, unreadable
from smallfirst.extra import need
from smallfirst.store import RecordFilter, Store

if TYPE_CHECKING:
    from smallfirst.learn.scrub import ScrubbedRecord
    from smallfirst.learn.scrubbed import Scrubbed

app = typer.Typer()
_SHOWN_CHARACTERS = 400


@app.command(epilog="Example: smallfirst scrub --task invoices --out invoices.jsonl")
def scrub(
    output: Annotated[Path | None, typer.Option("--out", help="Write here; default: standard output.")] = None,
    task: TaskOption = None,
    since: SinceOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many, the newest.")] = None,
    canaries: Annotated[Path | None, typer.Option(help="A file of values, one a line, that must not remain.")] = None,
    show: Annotated[int, typer.Option(min=0, help="Show the first so many on standard error.")] = 0,
    config: ConfigOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write recorded calls as JSON lines without personal data, secrets and names. Nothing is written if any leaks."""
    need("phonenumbers")
    need("stdnum")
    from smallfirst.learn.scrubbed import Scrubbed

    if as_json and output is None:
        raise ConfigError("--json tells what was written, and standard output holds the records.", hint="Give --out.")
    planted = _values(canaries) if canaries else []
    result = Scrubbed()

    async def work(db: Store) -> None:
        nonlocal result
        wanted = RecordFilter(task=task, since=parse_since(since))
        with writing(output), tempfile.TemporaryFile(dir=output.absolute().parent if output else None) as made:
            left = iter(range(show))
            result = await scrubbed(
                db,
                made,
                wanted,
                limit=limit,
                canaries=planted,
                show=lambda record: None if next(left, None) is None else _show(record),
            )
            if not result.leaked:
                _hand_over(made, output)

    with_store(config, work, store)
    if as_json:
        print_json(asdict(result))
    else:
        _tell(result)
    if result.leaked or not result.records:
        raise typer.Exit(1)


async def scrubbed(
    db: Store,
    to: IO[bytes],
    wanted: RecordFilter,
    *,
    limit: int | None = None,
    canaries: Sequence[str] = (),
    show: Callable[[ScrubbedRecord], None] = lambda _: None,
) -> Scrubbed:
    """`learn.scrubbed.write` with the store's own scrubber, and bars for both."""
    from smallfirst.learn.scrubbed import NEWEST, scrubber_of, write

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True) as bar:
        found = bar.add_task("shared values", total=min(await db.count(RecordFilter()), NEWEST))
        scrubber = await scrubber_of(db, lambda n: bar.update(found, completed=n))
        count = await db.count(wanted)
        shown = bar.add_task("scrubbing", total=count if limit is None else min(count, limit))
        return await write(
            db,
            to,
            scrubber,
            wanted,
            limit=limit,
            canaries=canaries,
            show=show,
            progress=lambda n: bar.update(shown, completed=n),
        )


def _values(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(unreadable(path, error), hint="Canaries stand in a text file, one a line.") from None


def _hand_over(made: IO[bytes], output: Path | None) -> None:
    """Give what was made and checked to the user."""
    made.seek(0)
    if output is None:
        shutil.copyfileobj(made, sys.stdout.buffer)
        sys.stdout.buffer.flush()
        return
    part = output.with_name(f"{output.name}.part")
    with part.open("wb") as file:
        shutil.copyfileobj(made, file)
    part.replace(output)


def _show(record: ScrubbedRecord) -> None:
    for message in (*record.messages, record.answer or {}):
        said = message.get("content") or message.get("tool_calls") or ""
        err.print(f"{message.get('role', '')}: {str(said)[:_SHOWN_CHARACTERS]}", markup=False, highlight=False)
    err.print()


def _tell(result: Scrubbed) -> None:
    for reason, count in result.refused.most_common():
        err.print(f"{count} records left out: {reason}", markup=False, highlight=False)
    if result.leaked:
        own = sum(place is None for _, place in result.leaked)
        planted = sorted({place + 1 for _, place in result.leaked if place is not None})
        records = ", ".join(dict.fromkeys(record for record, _ in result.leaked[:5]))
        lines = f"canaries of lines {planted}" if planted else "no canaries"
        err.print(
            f"[red]Leaks: {own} identifiers and {lines}, in {records}, ... Nothing was written.[/]", highlight=False
        )
    else:
        err.print(f"{result.records} records scrubbed; no leaks.", highlight=False)
