"""`models`: weights of embedded models."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from smallfirst import models
from smallfirst.cli.common import JsonOption, out, print_json, pull_progress, tell
from smallfirst.errors import ConfigError

app = typer.Typer(no_args_is_help=True, help="Weights of embedded models.")


@app.command("pull", epilog="Example: smallfirst models pull smollm2-135m")
def models_pull(
    name: Annotated[str, typer.Argument(help="The model's name.")] = models.DEFAULT_MODEL,
    as_json: JsonOption = False,
) -> None:
    """Fetch a model's weights, check them, and convert them once to the format they are served in."""
    with pull_progress() as show:
        path = models.pull(name, show)
    tell(f"{name} is at {escape(str(path))}", {"name": name, "path": str(path)}, as_json=as_json)


@app.command("list", epilog="Example: smallfirst models list")
def models_list(as_json: JsonOption = False) -> None:
    """List the models that can be pulled and those that are here."""
    here = {m.name: m for m in models.installed()}
    rows = [
        {"name": w.name, "summary": w.summary, "licence": w.licence, "format": w.format, "here": w.name in here}
        for w in models.CATALOGUE.values()
    ]
    if as_json:
        print_json(rows)
        return
    table = Table("name", "model", "licence", "format", "here")
    for row in rows:
        table.add_row(*(str(row[k]) for k in ("name", "summary", "licence", "format")), "yes" if row["here"] else "no")
    out.print(table)


@app.command("rm", epilog="Example: smallfirst models rm smollm2-135m")
def models_rm(name: Annotated[str, typer.Argument(help="The model's name.")], as_json: JsonOption = False) -> None:
    """Delete a model's weights from this machine."""
    if not models.remove(name):
        raise ConfigError(f"{name!r} is not on this machine.", hint="`smallfirst models list` shows what is.")
    tell(f"Removed {name}.", {"name": name}, as_json=as_json)
