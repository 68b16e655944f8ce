"""`import`: calls that other tools have logged."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from smallfirst.cli.common import ConfigOption, JsonOption, StoreOption, err, out, print_json, with_store
from smallfirst.store import Store

if TYPE_CHECKING:
    from smallfirst.learn.ingest import Imported

app = typer.Typer()
_SHOWN = 20
_LINES = 10


@app.command("import", epilog="Example: smallfirst import spend-logs.jsonl.gz --format litellm")
def import_(
    files: Annotated[list[Path], typer.Argument(help="JSON lines or one JSON document each; may be gzipped.")],
    form: Annotated[
        str, typer.Option("--format", help="auto, openai, otel, litellm, langfuse or tensorzero.")
    ] = "auto",
    task: Annotated[str | None, typer.Option(help="Name the task of all these calls.")] = None,
    config: ConfigOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Record calls from other tools' logs. Importing the same again changes nothing; what cannot be read is named."""
    from smallfirst.learn.ingest import Imported, run

    result = Imported()

    async def work(db: Store) -> None:
        nonlocal result
        columns = (TextColumn("importing"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        with Progress(*columns, console=err, transient=True) as bar:
            shown = bar.add_task("", total=sum(path.stat().st_size for path in files if path.is_file()))
            result = await run(db, files, form=form, task=task, progress=lambda n: bar.update(shown, completed=n))

    with_store(config, work, store, make=True)
    if as_json:
        print_json(asdict(result))
    else:
        _tell(result)
    if not result.added and not result.known:
        raise typer.Exit(1)


def _tell(result: Imported) -> None:
    alike = defaultdict[tuple[str, str], list[int]](list)
    for problem in result.problems:
        alike[problem.file, problem.reason].append(problem.line)
    shown = [*alike.items()][:_SHOWN]
    for (file, reason), lines in shown:
        where = ",".join(str(line) for line in [*dict.fromkeys(lines)][:_LINES])
        times = f" ({len(lines)} times)" if len(lines) > 1 else ""
        err.print(f"{file}:{where}: {reason}{times}", markup=False, highlight=False, soft_wrap=True)
    if rest := result.bad - sum(len(lines) for _, lines in shown):
        err.print(f"... and {rest} more", highlight=False)
    parts = [f"{result.added} calls imported"]
    parts += [f"{result.known} were there already"] if result.known else []
    parts += [f"{result.others} things that are no answered calls passed over"] if result.others else []
    parts += [f"{result.bad} could not be read"] if result.bad else []
    if not result.added and not result.known:
        parts[0] = "No calls found"
    out.print("; ".join(parts) + ("; nothing changed." if result.known and not result.added else "."), highlight=False)
