"""`evaluate`: what a specialist is worth, measured on calls that it has not seen."""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.markup import escape

from smallfirst import models
from smallfirst.assemble import assemble
from smallfirst.cli.common import (
    ConfigOption,
    JsonOption,
    StoreOption,
    calls_progress,
    check_dataset,
    check_shares,
    configured,
    drawn,
    out,
    print_json,
    pull_progress,
)
from smallfirst.cli.dataset import TaskArgument, dataset_of, folder_of
from smallfirst.cli.train import ADAPTERS
from smallfirst.config import Config
from smallfirst.errors import ConfigError

if TYPE_CHECKING:
    from smallfirst.learn.card import Folder
    from smallfirst.learn.evaluation import Arm, Evaluation, Settings

app = typer.Typer()


@app.command(epilog="Example: smallfirst evaluate invoices --arms B0,B3,B4")
def evaluate(
    task: TaskArgument,
    arms: Annotated[str, typer.Option(help="Which to run, by commas.")] = "B0,B1,B2,B3,B4",
    adapter: Annotated[Path | None, typer.Option(help="Default: adapters/TASK/adapter.gguf.")] = None,
    untrained: Annotated[bool, typer.Option("--untrained", help="B3 and B4 ask the base without an adapter.")] = False,
    base: Annotated[str, typer.Option(help="A model of `smallfirst models list`, or a file.")] = models.DEFAULT_MODEL,
    data: Annotated[Path | None, typer.Option(help="The dataset; default: datasets/TASK.")] = None,
    large: Annotated[
        str | None, typer.Option(help="Ask this configured model in B0 and B4; default: its recorded answers.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Ask the newest test calls, so many at most.")] = 100,
    labels: Annotated[int, typer.Option(min=1, help="Calibrate on so many calls at most, the newest.")] = 400,
    alpha: Annotated[float, typer.Option(help="Accepted answers may fail at this rate at most.")] = 0.05,
    delta: Annotated[float, typer.Option(help="Chance that the labels mislead, and they fail more often.")] = 0.05,
    margin: Annotated[float, typer.Option(help="How much less often than B0 an arm may be right.")] = 0.02,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Keep no version and no calibration.")] = False,
    config: ConfigOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare a specialist with the large model, on the dataset's test calls and through the gateway's own cascade.

    B0 is the large model alone, B1 the small one zero-shot, B2 with the nearest examples, B3 the specialist, B4 the
    specialist where the calibration accepts its answer and the large model elsewhere. The version evaluated and its
    calibration are kept in the store, to be released; the report and its pictures go beside the adapter.
    """
    from smallfirst.learn.evaluation import Settings, render, save, to_json
    from smallfirst.learn.pictures import draw

    wanted = _arms(arms)
    check_shares({"--alpha": alpha, "--delta": delta, "--margin": margin})
    material = dataset_of(task, data, config, store)
    with pull_progress() as show:
        if base in models.CATALOGUE:
            models.pull(base, show)
    special = not untrained and not {"B3", "B4"}.isdisjoint(wanted)
    folder = (adapter or folder_of(ADAPTERS, task) / "adapter.gguf").parent
    work = _Work(
        task=task,
        data=material,
        adapter=adapter or (folder / "adapter.gguf" if special else None),
        base=base,
        large=large,
        settings=Settings(wanted, limit=limit, labels=labels, alpha=alpha, delta=delta, margin=margin),
        keep=not dry_run,
    )
    found = asyncio.run(work.run(configured(config, store)))
    report = save(found, folder)
    pictures = drawn(lambda: draw(found, folder))
    if as_json:
        print_json({**to_json(found), "report": str(report), "pictures": pictures})
        return
    out.print(render(found))
    out.print(f"Report: {report}.", *(f"Picture: {path}." for path in pictures), markup=False, highlight=False)
    if found.certificate is not None and not dry_run:
        out.print(f"Next: [bold]smallfirst release {escape(task)} --to shadow[/]", highlight=False)


@dataclass(frozen=True, slots=True)
class _Work:
    """What is evaluated with what; `keep`: the version and its calibration are put into the store."""

    task: str
    data: Folder
    adapter: Path | None
    base: str
    large: str | None
    settings: Settings
    keep: bool

    async def run(self, config: Config) -> Evaluation:
        from smallfirst.learn.evaluate import evaluate
        from smallfirst.learn.evaluation import to_json
        from smallfirst.learn.release import register, version_of

        task = self.data.card.task
        if self.large is not None and self.large not in config.models:
            raise ConfigError(f"--large is {self.large!r}.", hint=f"Configured: {', '.join(config.models)}.")
        needed = {self.large, *config.policy(task).others}
        asked = {name: model for name, model in config.models.items() if name in needed}
        version = await asyncio.to_thread(version_of, task, self.adapter, self.base)
        async with assemble(msgspec.structs.replace(config, models=asked), os.environ) as assembly:
            await check_dataset(assembly.store, task, self.task)
            with calls_progress() as progress:
                found = await evaluate(
                    assembly, self.data, version, large=self.large, settings=self.settings, progress=progress
                )
            if self.keep:
                await register(assembly.store, task, self.adapter, self.base, evaluation=to_json(found))
                if found.acceptance is not None:
                    payload = json.dumps(found.acceptance.to_json())
                    await assembly.store.save_calibration(task, version.id, payload)
        return found


def _arms(given: str) -> tuple[Arm, ...]:
    from smallfirst.learn.evaluation import ARMS

    names = [name.strip() for name in given.split(",")]
    if unknown := [name for name in names if name not in ARMS]:
        raise ConfigError(f"--arms names {', '.join(unknown)!r}.", hint=f"Allowed: {', '.join(ARMS)}.")
    return tuple(arm for arm in ARMS if arm in names)
