"""Stage: a dataset becomes an adapter that the embedded engine serves.

In the folder given: `adapter.gguf` and its manifest `adapter.json`, and `training/` with PEFT's adapter and the loss
curve (`curve.svg`). Run again with the same dataset, base and configuration, it goes on where it was broken off, and
does nothing when it is done.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from smallfirst.backends.specialist import Manifest, read_manifest
from smallfirst.errors import ConfigError
from smallfirst.extra import need
from smallfirst.learn.base import find_base
from smallfirst.learn.card import Folder
from smallfirst.learn.export import export_adapter
from smallfirst.learn.targeted import weighted
from smallfirst.learn.train import Progress, TrainConfig, Trained, train
from smallfirst.models import file_sha256

ADAPTER = "adapter.gguf"
TRAINING = "training"


@dataclass(frozen=True, slots=True)
class Specialist:
    """What came out. `trained` is None when it was there already. `adapter` and `manifest` are None for DoRA, whose
    adapters the engine cannot hold."""

    adapter: Path | None
    manifest: Manifest | None
    trained: Trained | None


def specialise(
    data: Folder,
    weights: Path,
    folder: Path,
    config: TrainConfig,
    *,
    report: Callable[[Progress], None] = lambda _: None,
) -> Specialist:
    """Trains on the train split, keeps the adapter with the least loss on the calibration split, and exports it.

    What small models got wrong before counts more (`targeted`).

    Raises ConfigError when the `learn` extra is missing or the folder holds another dataset's specialist, TrainError
    and ModelFileError as `train` and `find_base` do.
    """
    need("torch")
    need("peft")
    need("transformers").utils.logging.disable_progress_bar()  # `report` is the progress
    recipe, parents = asdict(config), (data.sha256,)
    target = folder / ADAPTER
    manifest = read_manifest(target)
    if manifest is not None and manifest.recipe.get("task") != data.card.task:
        raise ConfigError(
            f"{folder} holds the specialist of the task {manifest.recipe.get('task')!r}.", hint="Name another folder."
        )
    if manifest is not None and (manifest.parents, manifest.recipe.get("training")) == (parents, recipe):
        found = {path: file_sha256(path) for path in (target, weights) if path.exists()}
        if found == {target: manifest.sha256, weights: manifest.base_sha256}:
            return Specialist(target, manifest, None)
    base = find_base(weights)
    training = folder / TRAINING
    trained = train(base, weighted(data), data.examples("calibration"), training, config, report=report)
    if config.method == "dora":
        return Specialist(None, None, trained)
    reached = {name: getattr(trained, name) for name in ("steps", "tokens", "seconds", "score", "ended", "left_out")}
    made = export_adapter(
        training,
        base,
        target,
        prompt=data.card.prompt,
        recipe={"task": data.card.task, "training": recipe, "reached": reached},
        parents=parents,
    )
    return Specialist(target, made, trained)
