"""`init`, `serve`: write a configuration, run the gateway."""

from __future__ import annotations

import os
import sys
from importlib import resources
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.markup import escape

from smallfirst import __version__
from smallfirst.cli.common import ConfigOption, JsonOption, err, pull_weights, tell, writing
from smallfirst.config import ModelConfig, load
from smallfirst.errors import ConfigError

app = typer.Typer()


@app.command(epilog="Example: smallfirst init && smallfirst serve")
def init(
    path: Annotated[Path, typer.Argument(help="File to write.")] = Path("smallfirst.toml"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
    print_it: Annotated[bool, typer.Option("--print", help="Print it instead.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a commented configuration file."""
    text = resources.files("smallfirst").joinpath("smallfirst.toml").read_text(encoding="utf-8")
    if print_it:
        sys.stdout.write(text)
        return
    if path.exists() and not force:
        raise ConfigError(f"{str(path)!r} exists.", hint="Use --force to overwrite it, or give another name.")
    with writing(path):
        path.write_text(text, encoding="utf-8")
    tell(f"Wrote {escape(str(path))}. Next: [bold]smallfirst serve[/]", {"path": str(path)}, as_json=as_json)


@app.command(epilog="Example: OPENAI_API_KEY=... smallfirst serve, then point any client to http://127.0.0.1:8787/v1")
def serve(
    config: ConfigOption = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; overrides server.host.")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port to listen on; overrides server.port.")
    ] = None,
) -> None:
    """Run the gateway."""
    from smallfirst.dashboard import PATH, dashboard
    from smallfirst.serve.server import run

    settings = load(config, os.environ)
    given = {k: v for k, v in {"host": host, "port": port}.items() if v is not None}
    settings = msgspec.structs.replace(settings, server=msgspec.structs.replace(settings.server, **given))
    pull_weights(settings)
    stages = " -> ".join(f"{name} ({_asked(settings.models[name])})" for name in settings.cascade.stages)
    err.print(f"smallfirst {__version__} on [bold]http://{settings.server.host}:{settings.server.port}[/]")
    err.print(f"  models   {stages}  [{settings.cascade.mode}]", highlight=False, markup=False)
    err.print(f"  records  {settings.store.url}", highlight=False, markup=False)
    err.print(f"  pages    http://{settings.server.host}:{settings.server.port}{PATH}", highlight=False, markup=False)
    run(settings, {PATH: dashboard})


def _asked(model: ModelConfig) -> str:
    """What answers `auto` there."""
    return model.model or model.weights or ("names handed on" if model.models else model.backend)
