"""`research`: a question over many sources; compressors read, a large model plans and writes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from smallfirst.assemble import StagePricing, started
from smallfirst.backends.fake import FakeBackend
from smallfirst.cli.common import ConfigOption, JsonOption, err, out, print_json, pull_weights
from smallfirst.compress.base import Compressor
from smallfirst.compress.extract import Extract
from smallfirst.compress.research import Library, Limits, Research, Researcher, read_sources
from smallfirst.compress.summary import Summary
from smallfirst.config import Config, load
from smallfirst.errors import ConfigError
from smallfirst.prices import Price
from smallfirst.router import Candidate
from smallfirst.types import Stage

EXTRACT = "extract"
app = typer.Typer()


@app.command(epilog='Example: smallfirst research "Which vendors missed the deadline, and why?" --sources reports/')
def research(
    question: Annotated[str, typer.Argument(help="What is to be found out.")],
    sources: Annotated[Path, typer.Option(help='A folder of text files, or JSON lines with "text" (and "title").')],
    model: Annotated[str, typer.Option(help="Plans and writes; default: the last of cascade.stages.")] = "",
    reader: Annotated[str, typer.Option(help='"extract" (no model), or the small model that takes notes.')] = EXTRACT,
    rounds: Annotated[int, typer.Option(min=1, max=10, help="Rounds of searching and reading at most.")] = 2,
    hits: Annotated[int, typer.Option(min=1, help="Sources that are read for each step.")] = 6,
    tokens: Annotated[int, typer.Option(min=20, help="Tokens of a note at most.")] = 120,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer a question from given sources, with citations, and tell what it took.

    Nothing but the sources is searched. The large model sees its plan and short notes; compressors on this machine read
    the sources. Without a large model configured the last model of the cascade stands in.
    """
    settings = load(config, os.environ)
    library = Library(read_sources(sources))
    name = _predictor(settings, model)
    used = _used(settings, name, reader)
    pull_weights(used)
    limits = Limits(rounds=rounds, hits=hits, tokens=tokens)

    pricing = StagePricing(used)

    async def run() -> Research:
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        async with started(used, os.environ, pricing) as candidates:
            made = Researcher(candidates[name].stage, _reader(reader, candidates), library, limits)
            with Progress(*columns, console=err, transient=True) as bar:
                shown = bar.add_task("")
                return await made.answer(question, lambda text: bar.update(shown, description=text))

    found = asyncio.run(run())
    ledger = _ledger(used, pricing, name, reader, found)
    if as_json:
        print_json(_facts(found, ledger))
    else:
        _tell(found, ledger)


def _predictor(config: Config, model: str) -> str:
    name = model or next(reversed(config.cascade.stages), "")
    if name not in config.models:
        raise ConfigError(f"--model is {name!r}.", hint=f"Defined models: {', '.join(config.models)}.")
    return name


def _used(config: Config, *names: str) -> Config:
    """The configuration with the named models only, and those that they ask."""
    if unknown := [name for name in names if name != EXTRACT and name not in config.models]:
        raise ConfigError(f"--reader is {unknown[0]!r}.", hint=f"Allowed: {EXTRACT!r}, {', '.join(config.models)}.")
    asked = [config.models[name] for name in names if name != EXTRACT]
    needed = {*names, *(m.predictor for m in asked), *(m.compressor for m in asked)}
    kept = {name: model for name, model in config.models.items() if name in needed}
    return msgspec.structs.replace(config, models=kept)


def _reader(reader: str, candidates: Mapping[str, Candidate]) -> Compressor:
    if reader == EXTRACT:
        return Extract()
    stage = candidates[reader].stage
    return Summary(stage.backend, stage.model, timeout_s=stage.timeout_s)


def _ledger(config: Config, pricing: StagePricing, predictor: str, reader: str, found: Research) -> dict[str, Any]:
    """By role: calls, tokens, seconds, and USD with the machine's time priced and free, None where unknown."""
    machine = Price(machine_usd_per_hour=config.machine_usd_per_hour)
    ledger = {}
    for role, name in (("predictor", predictor), ("compressor", reader)):
        spent = found.spent[role]
        usage = spent.usage
        if name == EXTRACT:
            usd: tuple[float | None, float | None] = (machine.cost(usage), 0.0)
        else:
            usd = pricing.cost(Stage(name, FakeBackend(), config.models[name].model or name), usage)
        row = {"calls": spent.calls, "input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens}
        ledger[role] = {**row, "seconds": usage.busy_seconds, "usd": usd[0], "usd_local_free": usd[1]}
    return ledger


def _facts(found: Research, ledger: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "question": found.question,
        "answer": found.answer,
        "rounds": [[step._asdict() for step in steps] for steps in found.rounds],
        "notes": [
            {
                "number": n,
                "source": note.source.id,
                "text": note.text,
                "verbatim": note.verbatim,
                "cited": n in found.cited,
            }
            for n, note in enumerate(found.notes, 1)
        ],
        "unknown_citations": list(found.unknown),
        "ledger": dict(ledger),
    }


def _tell(found: Research, ledger: Mapping[str, Any]) -> None:
    out.print(found.answer, markup=False, highlight=False)
    out.print()
    for n in found.cited:
        note = found.notes[n - 1]
        out.print(f"[{n}] {note.source.id}{'' if note.verbatim else ' (notes by a model)'}", markup=False)
    if found.unknown:
        out.print(f"[yellow]It cites notes that do not exist: {escape(str(list(found.unknown)))}.[/]")
    table = Table("role", "calls", "tokens in", "tokens out", "seconds", "USD", "USD, local free")
    for role, row in ledger.items():
        usd = ["unknown" if row[key] is None else f"{row[key]:.6f}" for key in ("usd", "usd_local_free")]
        seconds = "" if row["seconds"] is None else f"{row['seconds']:.1f}"
        table.add_row(role, str(row["calls"]), str(row["input_tokens"]), str(row["output_tokens"]), seconds, *usd)
    out.print(table)
