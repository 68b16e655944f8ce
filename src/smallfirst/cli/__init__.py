"""The command line: `smallfirst --help`. Exit codes: 0 done, 1 failed, 2 wrong usage or configuration.

Each file beside this one holds a group of commands as the typer app `app`; `GROUPS` lists them.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.markup import escape

from smallfirst import __version__
from smallfirst.cli import (
    calibrate,
    dataset,
    demo,
    evaluate,
    gateway,
    guard,
    information,
    ingest,
    keys,
    loop,
    models,
    records,
    releases,
    replay,
    report,
    research,
    scrub,
    select,
    tasks,
    train,
    whatif,
)
from smallfirst.cli.common import err, out
from smallfirst.errors import ConfigError, SmallfirstError

GROUPS: tuple[tuple[str | None, typer.Typer], ...] = (
    (None, gateway.app),
    (None, demo.app),
    (None, report.app),
    (None, ingest.app),
    (None, scrub.app),
    (None, dataset.app),
    (None, select.app),
    (None, train.app),
    (None, evaluate.app),
    (None, calibrate.app),
    (None, releases.app),
    (None, loop.app),
    (None, replay.app),
    (None, whatif.app),
    (None, information.app),
    ("compressors", information.compressors),
    (None, guard.app),
    (None, research.app),
    ("tasks", tasks.app),
    ("records", records.app),
    ("keys", keys.app),
    ("models", models.app),
)
"""Groups of commands in the order of `--help`; those of a group without a name stand at the top."""

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich")
for _name, _group in GROUPS:
    app.add_typer(_group, name=_name)


def main() -> None:
    """Entry point: runs a command and turns our errors into one clear line."""
    try:
        app()
    except SmallfirstError as error:
        err.print("[bold red]error:[/]", escape(error.message), highlight=False)
        if error.hint:
            err.print(f"       {error.hint}", highlight=False, markup=False)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    """Answers an agent's model calls with a small model first, and proves each saving."""
    if version:
        out.print(__version__)
        raise typer.Exit
