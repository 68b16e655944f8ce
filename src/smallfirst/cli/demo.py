"""`demo`: the gateway at work, and the whole loop."""

from __future__ import annotations

import asyncio
import itertools
import json
import warnings
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from smallfirst.assemble import open_configured_store
from smallfirst.cli.common import JsonOption, err, out, print_json, pull_weights, with_store_url
from smallfirst.config import Config, parse

app = typer.Typer()


class ToolChoiceName(StrEnum):
    """What the questions' calls ask for."""

    auto = "auto"
    required = "required"


class Part(StrEnum):
    all = "all"
    questions = "questions"
    loop = "loop"


@app.command(epilog="Example: smallfirst demo --part loop --minutes 2")
def demo(
    part: Annotated[Part, typer.Option(help="questions: an untrained model; loop: from a log to specialists.")] = (
        Part.all
    ),
    calls: Annotated[int, typer.Option(min=4, help="Questions to ask at most.")] = 60,
    seconds: Annotated[float, typer.Option(min=1, help="Begin no question after so many seconds.")] = 60,
    tool_choice: Annotated[
        ToolChoiceName, typer.Option(help="required: questions that want a call; auto: also some that want none.")
    ] = ToolChoiceName.required,
    minutes: Annotated[float, typer.Option(min=0.01, help="Train each specialist at most so long.")] = 1.5,
    store: Annotated[Path, typer.Option(help="SQLite file to make for the records; NAME.2, ... where it is.")] = (
        Path("demo.db")
    ),
    seed: Annotated[int, typer.Option(help="Which questions and texts are drawn.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Show small models at work: untrained on real function-calling questions, then trained on an agent's own log.

    The second part is the whole loop: import, scrub, find tasks, train, calibrate, release by rollout, take a bad
    release back, and take on a call site that appears later. Every figure is measured in this run.
    """
    from smallfirst.demo import conversion, questions
    from smallfirst.serve.server import serving
    from smallfirst.serve.telemetry import configure_logging

    if part is not Part.questions:
        conversion.check()
        warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # about words of its own
    where = _free(store)
    settings = _settings(where)
    configure_logging(settings.telemetry)
    pull_weights(settings)
    console, folder, found = err if as_json else out, where.with_name(f"{where.name}.loop"), dict[str, Any]()

    async def ask() -> dict[str, Any]:
        async with serving(settings, {}) as url:
            db = await open_configured_store(settings, {})
            try:
                run = partial(questions.run, db, f"{url}/v1", "unused", console, where=str(where))
                done = await run(
                    opened_by=f"--store {where}", n=calls, seconds=seconds, seed=seed, tool_choice=tool_choice.value
                )
                return done.to_json()
            finally:
                await db.close()

    async def work() -> None:
        if part is not Part.loop:
            found["questions"] = await ask()
        if part is not Part.questions:
            folder.mkdir(exist_ok=True)
            plan = conversion.Plan(minutes=minutes, seed=seed)
            found["loop"] = await conversion.run(settings, folder, console, plan)

    asyncio.run(work())
    if as_json:
        print_json(found)
    elif part is not Part.questions:
        _tell_next(where, folder, found["loop"]["seconds"])


def _tell_next(where: Path, folder: Path, seconds: float) -> None:
    """Where everything is, and what to type next."""
    config = folder / "smallfirst.toml"
    config.write_text(f"[store]\nurl = {json.dumps(f'sqlite:///{where}')}\n", encoding="utf-8")
    lines = [f"{seconds:.0f} s. The records are in {where}, datasets, adapters and evaluations in {folder}. Look:"]
    lines += [f"  smallfirst {command} --store {where}" for command in ("releases", "tasks list", "report")]
    lines += [f"  smallfirst serve --config {config}    # then http://127.0.0.1:8787/dashboard"]
    out.print("\n" + "\n".join(lines), highlight=False, markup=False, soft_wrap=True)


def _free(store: Path) -> Path:
    """`store`, or where there is such a file the first of NAME.2, NAME.3, ... that there is not."""
    names = itertools.chain([store], (store.with_name(f"{store.name}.{n}") for n in itertools.count(2)))
    return next(name for name in names if not name.exists())


def _settings(store: Path) -> Config:
    """The defaults whatever keys the environment holds, so without a large model, a store of its own, and no log in
    between."""
    return with_store_url(parse('[telemetry]\nlog_level = "warning"', {}), f"sqlite:///{store}")
