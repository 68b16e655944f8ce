"""Stage: a dataset becomes an adapter that the embedded engine serves.

In the folder given: `adapter.gguf` and its manifest `adapter.json`, and `training/` with PEFT's adapter and the loss
curve (`curve.svg`); what tuning by preference made of it is in `preferred/`. Run again with the same dataset, base and
configuration, it goes on where it was broken off, and does nothing when it is done.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from smallfirst.backends.specialist import Manifest, read_manifest
from smallfirst.errors import ConfigError, TrainError
from smallfirst.extra import need
from smallfirst.learn.base import find_base
from smallfirst.learn.card import Folder
from smallfirst.learn.export import export_adapter, export_merged
from smallfirst.learn.prefer import PreferConfig, Preferred, prefer
from smallfirst.learn.targeted import weighted
from smallfirst.learn.train import Progress, TrainConfig, Trained, train
from smallfirst.learn.values import learn_values
from smallfirst.models import file_sha256

ADAPTER = "adapter.gguf"
MERGED = "merged.gguf"
TRAINING = "training"
PREFERRED = "preferred"


@dataclass(frozen=True, slots=True)
class Specialist:
    """What came out. `trained` is None when it was there already. `adapter` and `manifest` are None for DoRA, whose
    adapters the engine cannot hold. `preferred` is what tuning by preference came to, where it was done."""

    adapter: Path | None
    manifest: Manifest | None
    trained: Trained | None
    preferred: Preferred | None = None


def specialise(
    data: Folder,
    weights: Path,
    folder: Path,
    config: TrainConfig,
    *,
    preference: PreferConfig | None = None,
    report: Callable[[Progress], None] = lambda _: None,
) -> Specialist:
    """Trains on the train split, keeps the adapter with the least loss on the calibration split, and exports it.

    What small models got wrong before counts more (`targeted`). With a `preference` the adapter is then tuned to prefer
    right answers to the wrong ones that the dataset knows.

    Raises ConfigError when the `learn` extra is missing or the folder holds another dataset's specialist, TrainError
    and ModelFileError as `train` and `find_base` do, TrainError for a preference without wrong answers.
    """
    need("torch")
    need("peft")
    need("transformers").utils.logging.disable_progress_bar()  # `report` is the progress
    recipe, parents = {"task": data.card.task, "training": asdict(config)}, (data.sha256,)
    if preference is not None:
        recipe["preference"] = asdict(preference)
        if not data.pairs():
            raise TrainError("The dataset has no wrong answers to its training calls.", hint="Leave --prefer out.")
    target = folder / ADAPTER
    manifest = read_manifest(target)
    if manifest is not None and manifest.recipe.get("task") != data.card.task:
        raise ConfigError(
            f"{folder} holds the specialist of the task {manifest.recipe.get('task')!r}.", hint="Name another folder."
        )
    known = {} if manifest is None else {k: v for k, v in manifest.recipe.items() if k != "reached"}
    if manifest is not None and (manifest.parents, known) == (parents, recipe):
        found = {path: file_sha256(path) for path in (target, weights) if path.exists()}
        if found == {target: manifest.sha256, weights: manifest.base_sha256}:
            return Specialist(target, manifest, None)
    base = find_base(weights)
    training = folder / TRAINING
    trained = train(base, weighted(data), data.examples("calibration"), training, config, report=report)
    if config.method == "dora":
        return Specialist(None, None, trained)
    tuned = None
    if preference is not None:
        tuned = prefer(base, training, data.pairs(), folder / PREFERRED, preference)
    reached = {name: getattr(trained, name) for name in ("steps", "tokens", "seconds", "score", "ended", "left_out")}
    made = export_adapter(
        training if tuned is None else tuned.folder,
        base,
        target,
        prompt=data.card.prompt,
        recipe=recipe | {"reached": reached},
        parents=parents,
        values=learn_values(data.examples("train")),
    )
    return Specialist(target, made, trained, tuned)


def merge(weights: Path, folder: Path) -> Path:
    """Writes `merged.gguf`: the base `weights` with the adapter in `folder` added, its matrices in Q8_0.

    For servers that load no adapters; it is asked as the adapter is. Raises TrainError when there is no adapter.
    """
    target, manifest = folder / MERGED, read_manifest(folder / ADAPTER)
    source = PREFERRED if manifest is not None and "preference" in manifest.recipe else TRAINING
    export_merged(folder / source, find_base(weights), weights, target)
    return target
