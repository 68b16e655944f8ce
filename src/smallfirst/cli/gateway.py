"""`init`, `serve`, `demo`: write a configuration, run the gateway, see it at work."""

from __future__ import annotations

import asyncio
import os
import sys
from enum import StrEnum
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.markup import escape

from smallfirst import __version__
from smallfirst.assemble import open_configured_store
from smallfirst.cli.common import ConfigOption, JsonOption, err, out, pull_weights, tell, with_store_url
from smallfirst.config import Config, ModelConfig, load, parse
from smallfirst.errors import ConfigError

app = typer.Typer()


class ToolChoiceName(StrEnum):
    """What the demo asks for."""

    auto = "auto"
    required = "required"


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
    err.print(f"  look at  http://{settings.server.host}:{settings.server.port}{PATH}", highlight=False, markup=False)
    run(settings, {PATH: dashboard})


@app.command(epilog="Example: smallfirst demo --calls 60")
def demo(
    calls: Annotated[int, typer.Option(min=4, help="Questions to ask at most.")] = 60,
    seconds: Annotated[float, typer.Option(min=1, help="Begin no question after so many seconds.")] = 150,
    tool_choice: Annotated[
        ToolChoiceName, typer.Option(help="required: questions that want a call; auto: also some that want none.")
    ] = ToolChoiceName.required,
    store: Annotated[Path, typer.Option(help="SQLite file that keeps the records.")] = Path("demo.db"),
    seed: Annotated[int, typer.Option(help="Which questions are drawn.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Answer real function-calling questions with the embedded model, and measure the answers against gold."""
    from smallfirst import demo as job
    from smallfirst.serve.server import serving
    from smallfirst.serve.telemetry import configure_logging

    settings = _demo_settings(store)
    configure_logging(settings.telemetry)
    pull_weights(settings)

    async def work() -> None:
        async with serving(settings, {}) as url:
            db = await open_configured_store(settings, {})
            try:
                opened_by = f"--store {store}"
                ask = partial(job.run, db, f"{url}/v1", "unused", out, where=str(store), opened_by=opened_by)
                await ask(n=calls, seconds=seconds, seed=seed, tool_choice=tool_choice.value, as_json=as_json)
            finally:
                await db.close()

    asyncio.run(work())


def _asked(model: ModelConfig) -> str:
    """What answers `auto` there."""
    return model.model or model.weights or ("names handed on" if model.models else model.backend)


def _demo_settings(store: Path) -> Config:
    """The defaults whatever keys the environment holds, so without a large model, and a store of its own."""
    return with_store_url(parse("", {}), f"sqlite:///{store}")
