"""The workshop of the loop. Each stage leaves its artifact in the round's folder:

    dataset/           the task's calls, from the scrubbed records
    adapter/           the specialist
    evaluation.json    what it is worth
    acceptance.json    the calibration with the promise that it is released with

A stage that was broken off is called again: it goes on, or does again what it did.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from smallfirst import models
from smallfirst.artifact import write_json
from smallfirst.assemble import assemble
from smallfirst.config import Config
from smallfirst.errors import TrainError
from smallfirst.learn import card, evaluation
from smallfirst.learn.dataset import Settings as DatasetSettings
from smallfirst.learn.dataset import belonging, build, told
from smallfirst.learn.evaluate import evaluate
from smallfirst.learn.evaluation import Evaluation
from smallfirst.learn.release import register, release, version_of
from smallfirst.learn.scrubbed import Lines
from smallfirst.learn.specialise import ADAPTER, specialise
from smallfirst.learn.targeted import targets
from smallfirst.learn.tasks import task_of_row
from smallfirst.learn.train import Progress, TrainConfig
from smallfirst.learn.workshop import Done, Round, Tell
from smallfirst.registry import Target
from smallfirst.report import figure_row
from smallfirst.rollout import Rules
from smallfirst.store import Store

_ADAPTER = Path("adapter") / ADAPTER
_ACCEPTANCE = "acceptance.json"
_MATERIAL, _TRAINING, _ARMS = DatasetSettings(), TrainConfig(), evaluation.Settings(arms=("B0", "B4"))


@dataclass(frozen=True, slots=True)
class Recipe:
    """How specialists are made: on which `base`, from which material, and where they are put. `rules` are those of
    the rollout, None for those that the incumbent's calls give."""

    base: str = models.DEFAULT_MODEL
    material: DatasetSettings = _MATERIAL
    training: TrainConfig = _TRAINING
    evaluation: evaluation.Settings = _ARMS
    to: Target = "shadow"
    rules: Rules | None = None


@dataclass(frozen=True, slots=True)
class Conversion:
    """The workshop of the loop, on the tasks of `store` under `config`."""

    store: Store
    config: Config
    env: Mapping[str, str]
    recipe: Recipe = field(default_factory=Recipe)

    async def dataset(self, work: Round, tell: Tell) -> Done:
        """The task's dataset, from the scrubbed records."""
        tasks = [task_of_row(row) for row in await self.store.tasks()]
        lines, settings = Lines(work.calls), self.recipe.material
        made = await asyncio.to_thread(build, work.task, lines, settings, belonging(tasks, work.task))
        saved = card.save(made, work.folder / "dataset", source="the store", scrubbing={})
        rows = {split: facts.rows for split, facts in saved.splits.items()}
        tell(1.0, ", ".join(f"{count} {split}" for split, count in rows.items()))
        return Done({"rows": rows, "left_out": told(made.removed), "wrong": len(made.wrong)})

    async def train(self, work: Round, tell: Tell) -> Done:
        """The specialist. What small models got wrong before counts more."""
        data = card.load(work.folder / "dataset")
        stop = threading.Event()

        def report(at: Progress) -> None:
            if stop.is_set():
                raise TrainError("Training was broken off.", hint="Run the loop again: it goes on.")
            tell(at.done, f"loss {at.loss:.3f}, {at.tokens_per_s:.0f} tokens/s")

        try:
            weights = models.locate(self.recipe.base)
            folder = work.folder / "adapter"
            made = await asyncio.to_thread(specialise, data, weights, folder, self.recipe.training, report=report)
        finally:
            stop.set()
        clusters = [{"places": c.places, "failures": len(c.examples)} for c in targets(data).clusters]
        reached = dict(made.manifest.recipe.get("reached", {})) if made.manifest else {}
        return Done({"reached": reached, "targeted": clusters})

    async def evaluate(self, work: Round, tell: Tell) -> Done:
        """What the specialist is worth; declined when it promises or saves nothing."""
        found = await self.evaluated(work, tell)
        return Done(_worth(found), declined(found))

    async def evaluated(self, work: Round, tell: Tell) -> Evaluation:
        """What the specialist is worth on calls that it has not seen, kept in the round's folder."""
        data, wanted = card.load(work.folder / "dataset"), self.config.policy(work.task).others
        others = {name: model for name, model in self.config.models.items() if name in wanted}
        version = await asyncio.to_thread(version_of, work.task, work.folder / _ADAPTER, self.recipe.base)
        async with assemble(msgspec.structs.replace(self.config, models=others), self.env) as parts:
            found = await evaluate(
                parts,
                data,
                version,
                settings=self.recipe.evaluation,
                progress=lambda what, done, total: tell(done / max(total, 1), what),
            )
        evaluation.save(found, work.folder)
        write_json(None if found.acceptance is None else found.acceptance.to_json(), work.folder / _ACCEPTANCE)
        return found

    async def release(self, work: Round, tell: Tell) -> Done:
        """The version, its calibration, and its rollout; running gateways follow."""
        recipe, known = self.recipe, json.loads((work.folder / evaluation.FILE).read_bytes())
        version = await register(self.store, work.task, work.folder / _ADAPTER, recipe.base, evaluation=known)
        acceptance = (work.folder / _ACCEPTANCE).read_text(encoding="utf-8")
        await self.store.save_calibration(work.task, version.id, acceptance)
        tell(1.0, version.id)
        if (await self.store.release(work.task)).live == version.id:  # broken off here before, and live since
            return Done({"version": version.id, "step": "live"})
        why = "its evaluation keeps the promise and saves"
        await release(self.store, version, to=recipe.to, rules=recipe.rules, reason=why, by="loop")
        return Done({"version": version.id, "step": recipe.to})


def _worth(found: Evaluation) -> dict[str, Any]:
    """The figures that decide, each with its interval."""
    names = ("accuracy", "coverage", "accepted_failure", "cps", "cps_ratio", "cost_saved", "latency_p50")
    arms = {
        arm.arm: {name: figure_row(arm.figures[name]) for name in names if arm.figures[name].value is not None}
        for arm in found.arms
    }
    return {"arms": arms, "promise": " ".join(evaluation.sentences(found)[:1])}


def declined(found: Evaluation) -> str:
    """Why the large model keeps the task, "" if the specialist is worth a release."""
    if found.certificate is None:
        return found.refused or "nothing can be promised of its answers"
    together = found.arm("B4")
    saved = None if together is None else together.figures["cost_saved"].value
    if saved is not None and saved <= 0:
        return f"it would not save anything ({saved:.1%} of the cost)"
    return ""
