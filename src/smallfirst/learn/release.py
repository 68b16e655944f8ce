"""Stage: a specialist becomes a version, and a version comes into service or is taken out of it.

Only the store is written; running gateways follow within a second (`serve.releases`).
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
import uuid
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Literal

import msgspec
import numpy as np

from smallfirst import models
from smallfirst.backends.specialist import Manifest, read_manifest
from smallfirst.compress.guard import load
from smallfirst.config import ModelConfig
from smallfirst.errors import ConfigError, ModelFileError, NotFoundError
from smallfirst.registry import Release, Target, Version, released, version_id, withdrawn
from smallfirst.rollout import Rules
from smallfirst.store import RecordFilter, Store
from smallfirst.trials import Judged, judged
from smallfirst.types import Json

AUDITED = 0.2
"""The least share of the incumbent's accepted answers that are audited during a rollout, where nothing else is said."""
_MEASURED, _LOOKED_AT = 500, 5000
_FEW = 20
_LATE = 2.0


async def register(
    store: Store, task: str, adapter: Path | None, base: str | ModelConfig, *, evaluation: Json | None = None
) -> Version:
    """Keep a version of the task's small model: an adapter (None: without) on `base`.

    `base` names weights for the embedded engine, as in `smallfirst models list` or by path, or is what a
    `[models.NAME]` table says of a server or a compressor. An adapter, or a compressor's guard, is copied to
    $SMALLFIRST_HOME/versions, so that making it again changes no version. The same files again are the same version;
    its evaluation is replaced.
    Raises ModelFileError for a file that is missing, damaged or of another base, and when it cannot be copied.
    """
    version = await asyncio.to_thread(version_of, task, adapter, base, evaluation)
    return await store.save_version(version)


async def release(
    store: Store,
    version: Version,
    *,
    to: Target,
    share: float | None = None,
    rules: Rules | None = None,
    reason: str = "by hand",
    by: str = "cli",
) -> Release:
    """Put `version` into service: beside what answers ("shadow"), for `share` of episodes ("canary"), or "live".

    From there evidence moves it on or takes it back. Its `rules` are by default those that the incumbent's recent calls
    give (`rules_for`). Raises ConfigError for a share that is none, and when the version is live already.
    """
    if share is not None and not 0 < share < 1 and not (to == "live" and share == 1):
        raise ConfigError(f"The share is {share!r}.", hint="Allowed: a number between 0 and 1; live also takes 1.")
    if to == "shadow" and share is not None:
        raise ConfigError("A share says who is served, and in the shadow nobody is.", hint="Leave it out.")
    live = (await store.release(version.task)).live
    rules = rules or await rules_for(store, version.task, live)
    rollout_id, now = uuid.uuid4().hex, time.time()

    def change(before: Release, _: frozenset[str]) -> tuple[Release, str]:
        after = released(before, version.id, to, share=share, rules=rules, rollout_id=rollout_id, now=now, by=by)
        return after, reason

    after = await store.change_release(version.task, change)
    if after.rollout is None or (after.rollout.candidate, after.rollout.step) != (version.id, to):
        raise ConfigError(f"{version.id} is live.", hint="Release another version, or roll this one back.")
    return after


async def rollback(store: Store, task: str, *, reason: str = "by hand", by: str = "cli") -> Release:
    """Withdraw the version on trial, or else put the previous one back in the live one's place.

    Without a previous one the configured stages answer again. Raises NotFoundError when nothing is released.
    """
    before = await store.release(task)
    if not before.candidate and not before.live:
        raise NotFoundError(f"Nothing of {task!r} is released.", hint="`smallfirst releases` lists what is.")
    now = time.time()
    return await store.change_release(task, lambda found, _: (withdrawn(found, now=now, by=by), reason))


async def rules_for(store: Store, task: str, incumbent: str) -> Rules:
    """The rules by which a candidate is compared, from the newest calls that `incumbent` ("": what is configured)
    answered: its success rate, what counts as late (twice its 95th percentile) and what a success costs."""
    found: list[Judged] = []
    looked = 0
    async for record in store.export(RecordFilter(task=task)):
        if (side := judged(record, incumbent)) is not None:
            found.append(side)
        looked += 1
        if len(found) == _MEASURED or looked == _LOOKED_AT:
            break
    rules = Rules(labelled_incumbent=AUDITED)
    told = [(side.answer.success, 1 / side.observed) for side in found if side.answer.success is not None]
    if len(found) < _FEW or len(told) < _FEW:
        return rules
    known = sum(right * weight for right, weight in told) / sum(weight for _, weight in told)
    seconds = float(np.quantile([side.answer.seconds for side in found], 0.95))
    usd = [side.answer.usd for side in found if side.answer.usd is not None]
    per_success = fmean(usd) / known if usd and known else 0.0
    return replace(
        rules,
        known=min(max(known, 0.02), 0.98),
        known_n=len(told),
        late_s=_LATE * seconds or None,
        usd_per_success=per_success or None,
    )


def version_of(task: str, adapter: Path | None, base: str | ModelConfig, evaluation: Json | None = None) -> Version:
    """The version that `register` keeps; errors as there. Reads the files through."""
    model = ModelConfig(backend="llamacpp", weights=_anywhere(base)) if isinstance(base, str) else base
    weights = models.file_sha256(models.locate(model.weights)) if model.backend == "llamacpp" else ""
    table = _table(model)
    if adapter is None:
        guard, sha256 = Path(model.guard).expanduser(), ""
        if model.guard:
            sha256 = _sha256("guard", guard)
            load(guard, model.coverage)
        name = version_id(task, table, weights, sha256, {})
        kept = str(_kept({"guard.json": guard}, sha256, name)) if model.guard else ""
        return Version(name, task, time.time(), table, weights, kept, sha256, evaluation=evaluation)
    manifest = _checked(adapter, weights)
    prompt, values = msgspec.to_builtins(manifest.prompt), msgspec.to_builtins(manifest.values)
    name = version_id(task, table, weights, manifest.sha256, {"prompt": prompt, "values": values})
    files = {"adapter.gguf": adapter, "adapter.json": adapter.with_suffix(".json")}
    return Version(
        name,
        task,
        time.time(),
        table,
        weights,
        adapter=str(_kept(files, manifest.sha256, name)),
        adapter_sha256=manifest.sha256,
        prompt=prompt,
        recipe=dict(manifest.recipe),
        parents=manifest.parents,
        evaluation=evaluation,
    )


def _table(model: ModelConfig) -> Json:
    """What is not at its default, without guard and adapters, which are files of the version's own."""
    bare = ModelConfig(backend=model.backend)
    weights = _anywhere(model.weights) if model.weights else ""
    given = msgspec.to_builtins(msgspec.structs.replace(model, guard="", adapters={}, weights=weights))
    return {"backend": model.backend} | {key: value for key, value in given.items() if value != getattr(bare, key)}


def _anywhere(base: str) -> str:
    """The name, or the path as it is from any folder."""
    return base if base in models.CATALOGUE else str(Path(base).expanduser().resolve())


def _checked(adapter: Path, base_sha256: str) -> Manifest:
    """The manifest of an adapter that is what was exported, for weights of this sum."""
    found = _sha256("adapter", adapter)
    manifest = read_manifest(adapter)
    if manifest is None:
        raise ModelFileError(
            f"{adapter} has no manifest {adapter.with_suffix('.json').name!r} beside it.",
            hint="It says how the adapter is asked; export the adapter again.",
        )
    if manifest.sha256 != found:
        raise ModelFileError(
            f"{adapter} has sha256 {found}, not {manifest.sha256} as when it was exported.",
            hint="Export the adapter again.",
        )
    if base_sha256 and manifest.base_sha256 != base_sha256:
        raise ModelFileError(
            f"{adapter} belongs to weights of sha256 {manifest.base_sha256}, not {base_sha256}.",
            hint="Name the base that it was trained on.",
        )
    return manifest


def _sha256(what: Literal["adapter", "guard"], path: Path) -> str:
    if not path.is_file():
        verb = {"adapter": "train", "guard": "guard"}[what]
        raise ModelFileError(f"There is no {what} at {str(path)!r}.", hint=f"`smallfirst {verb}` makes one.")
    return models.file_sha256(path)


def _kept(files: Mapping[str, Path], sha256: str, name: str) -> Path:
    """A version's own copy of its files, by their names in it, of which the first has that sum; several processes may
    make it at the same time."""
    folder = models.home() / "versions" / name.rpartition("@")[2]
    target = folder / next(iter(files))
    if _is(target, sha256):
        return target
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=folder.parent, ignore_cleanup_errors=True) as scratch:
            draft = Path(scratch) / folder.name
            draft.mkdir()
            for copied, source in files.items():
                shutil.copyfile(source, draft / copied)
            if not _is(target, sha256):
                shutil.rmtree(folder, ignore_errors=True)
            draft.rename(folder)
    except OSError as error:
        if _is(target, sha256):  # another process was faster
            return target
        raise ModelFileError(
            f"{target.name} cannot be copied to {folder}: {error.strerror}.", hint="Set SMALLFIRST_HOME elsewhere."
        ) from error
    return target


def _is(path: Path, sha256: str) -> bool:
    return path.exists() and models.file_sha256(path) == sha256
