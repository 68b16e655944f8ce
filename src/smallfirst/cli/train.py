"""`train`: a specialist of one task, from its dataset."""

from __future__ import annotations

import json
import os
import warnings
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.markup import escape

from smallfirst import models
from smallfirst.cli.common import ConfigOption, JsonOption, err, out, print_json, pull_progress
from smallfirst.cli.dataset import DATASETS, folder_of
from smallfirst.config import load
from smallfirst.errors import ConfigError

if TYPE_CHECKING:
    from smallfirst.backends.specialist import Manifest
    from smallfirst.learn.specialise import Specialist

app = typer.Typer()
ADAPTERS = Path("adapters")


class Method(StrEnum):
    lora = "lora"
    dora = "dora"
    qlora = "qlora"


@app.command(epilog="Example: smallfirst train invoices --minutes 10")
def train(
    task: Annotated[str | None, typer.Argument(help="The task; its dataset is in datasets/TASK.")] = None,
    data: Annotated[Path | None, typer.Option(help="A folder that `smallfirst dataset` made.")] = None,
    base: Annotated[str, typer.Option(help="A model of `smallfirst models list`, or a file.")] = models.DEFAULT_MODEL,
    output: Annotated[Path | None, typer.Option("--out", help="Write here; default: adapters/TASK.")] = None,
    method: Annotated[Method, typer.Option(help="qlora needs a GPU; the engine cannot serve dora.")] = Method.lora,
    rank: Annotated[int, typer.Option(min=1, help="The adapter's rank; its scale is twice as much.")] = 16,
    epochs: Annotated[float, typer.Option(help="Go through the examples at most so often.")] = 3.0,
    minutes: Annotated[float | None, typer.Option(help="Train at most so long.")] = None,
    lr: Annotated[float, typer.Option(help="The learning rate's largest value.")] = 2e-3,
    seed: Annotated[int, typer.Option(help="Order of the examples, and where the adapter begins.")] = 0,
    prefer: Annotated[
        bool, typer.Option("--prefer", help="Then tune it to prefer right answers to wrong ones that were given (DPO).")
    ] = False,
    merged: Annotated[
        bool, typer.Option("--merged", help="Also write merged.gguf: the base with the adapter in it, in Q8_0.")
    ] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train an adapter on a dataset, and keep the one with the least loss on the calibration split.

    Broken off and run again, it goes on from its last checkpoint. Done, it tells what serves the adapter.
    """
    from smallfirst.learn.card import load as load_dataset
    from smallfirst.learn.prefer import PreferConfig
    from smallfirst.learn.progress import shown
    from smallfirst.learn.specialise import merge, specialise
    from smallfirst.learn.train import TrainConfig

    if (task is None) == (data is None):
        raise ConfigError("Give a TASK or --data FOLDER, one of them.", hint="`smallfirst dataset` makes datasets.")
    if method is Method.dora and (prefer or merged):
        raise ConfigError(
            "The embedded engine cannot serve DoRA.", hint="Leave out --prefer and --merged, or use lora."
        )
    material = load_dataset(data or folder_of(DATASETS, str(task)))
    name = material.card.task
    settings = TrainConfig(
        method=method.value,
        rank=rank,
        alpha=2 * rank,
        learning_rate=lr,
        epochs=epochs,
        max_minutes=minutes,
        seed=seed,
    )
    folder = output or folder_of(ADAPTERS, task or name)
    with pull_progress() as show:
        weights = models.pull(base, show) if base in models.CATALOGUE else models.locate(base)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # about words of its own
    with shown(err, escape(name)) as report:
        preference = PreferConfig(seed=seed) if prefer else None
        made = specialise(material, weights, folder, settings, preference=preference, report=report)
    whole = merge(weights, folder) if merged else None
    served = None if made.adapter is None else serving(name, base, made.adapter, _large(name, config))
    if as_json:
        print_json(_facts(made, folder, served) | {"merged": None if whole is None else str(whole)})
        return
    _tell(made, folder, served)
    if whole is not None:
        out.print(f"\nMerged: {whole}.", markup=False, highlight=False)


def serving(task: str, base: str, adapter: Path, large: str) -> str:
    """What smallfirst.toml needs to answer the task's calls with the adapter first, and then with the model `large`."""
    key = json.dumps(task)
    return "\n".join(
        (
            f"[models.{key}]",
            'backend = "llamacpp"',
            f"weights = {json.dumps(base)}",
            f"adapters = {{ {key} = {json.dumps(str(adapter.resolve()))} }}",
            f"adapter = {key}",
            "",
            f"[tasks.{key}]",
            f"stages = [{key}, {json.dumps(large)}]",
        )
    )


def _large(task: str, config: Path | None) -> str:
    """The large model of the configuration."""
    settings = load(config, os.environ)
    stages = settings.policy(task).stages
    large = [name for name in stages if not settings.models[name].is_small]
    return large[-1] if large else "large"


def _facts(made: Specialist, folder: Path, served: str | None) -> dict[str, Any]:
    trained = made.trained
    return {
        "folder": str(folder),
        "adapter": None if made.adapter is None else str(made.adapter),
        "manifest": made.manifest,
        "trained": None
        if trained is None
        else {
            "steps": trained.steps,
            "tokens": trained.tokens,
            "tokens_per_s": trained.tokens_per_s,
            "seconds": trained.seconds,
            "calibration_loss": -trained.score,
            "ended": trained.ended,
            "left_out": trained.left_out,
            "curve": [msgspec.to_builtins(point) for point in trained.curve],
        },
        "preferred": None if made.preferred is None else {"loss": made.preferred.loss, "gained": made.preferred.gained},
        "config": served,
    }


def _held(manifest: Manifest) -> str:
    """The arguments that decoding holds to values."""
    return ", ".join(f"{tool}.{name}".lstrip(".") for tool, names in manifest.values.items() for name in names)


def _tell(made: Specialist, folder: Path, served: str | None) -> None:
    trained = made.trained
    if trained is None:
        out.print("This adapter was trained already.", highlight=False)
    else:
        out.print(
            f"{trained.steps} steps of {trained.tokens} tokens in all, {trained.seconds:.0f} s "
            f"({trained.tokens_per_s:.0f} tokens/s), ended by {trained.ended}. The least loss on the calibration split "
            f"is {-trained.score:.3f} a token. The curve is in {folder}/training/curve.svg.",
            markup=False,
            highlight=False,
        )
        if trained.left_out:
            out.print(f"{trained.left_out} examples were too long for training.", highlight=False)
    if made.preferred is not None:
        out.print(f"Tuned by preference: {made.preferred.gained:.0%} of right answers gained on the wrong one.")
    if made.manifest is not None and (held := _held(made.manifest)):
        out.print(f"Values held to what recurs or stands in the prompt: {held}.", markup=False, highlight=False)
    if served is None:
        out.print(f"The embedded engine cannot serve DoRA; PEFT's adapter is in {folder}/training.", markup=False)
    else:
        out.print("Serve it with this in smallfirst.toml:\n", highlight=False)
        out.print(served, markup=False, highlight=False, soft_wrap=True)
