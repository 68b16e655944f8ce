"""`information`, `compressors compare`, `attribute`: what compressors keep, what comes of it, and who is to blame."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group

from smallfirst import models
from smallfirst.artifact import write_json
from smallfirst.assemble import StagePricing, build_backend
from smallfirst.cli.common import (
    ConfigOption,
    JsonOption,
    calls_progress,
    drawn,
    err,
    out,
    print_json,
    pull_progress,
)
from smallfirst.compress import attribution, cases, distortion, native
from smallfirst.compress.base import DETERMINISTIC, Compressor, ModelShape
from smallfirst.compress.extract import Bm25, Extract
from smallfirst.compress.information import Progress, Report, Summaries, given, measure, summarise
from smallfirst.compress.pictures import draw
from smallfirst.compress.predict import trial
from smallfirst.compress.scoring import Cached, LexicalScorer, PromptScorer, Scorer
from smallfirst.compress.summary import Summary
from smallfirst.compress.tables import attributed, attribution_row, compared, comparison_row, report_row, shown
from smallfirst.compress.tokens import EngineModel, TokenModel, TransformersModel, VllmModel, gguf_shape
from smallfirst.config import Config, ModelConfig, load
from smallfirst.errors import ConfigError
from smallfirst.types import Backend, Stage, Usage

app = typer.Typer()
compressors = typer.Typer(no_args_is_help=True, help="Compressors of long contexts.")

GIVEN = "given"
_KNOWN: dict[str, Compressor] = {**DETERMINISTIC, **{c.name: c for c in (Bm25(), Extract())}}
_COMPARED = ["identity", "empty", "lead", "random", "bm25", "extract"]
_WITHOUT_BUDGET = ("identity", "empty", GIVEN)
_BUDGETS = [50, 100, 200]
_SCORERS = (
    "lexical, a model of smallfirst.toml or of `smallfirst models list`, a GGUF file, transformers:FOLDER, "
    "or http://HOST/v1#MODEL of a vLLM server"
)

ContextsOption = Annotated[
    Path, typer.Option("--contexts", help='JSON Lines: {"context": ..., "question": ..., "answers": [...]}.')
]
ScorerOption = Annotated[str, typer.Option("--scorer", help=f"Whose log-probabilities: {_SCORERS}.")]
WindowOption = Annotated[int, typer.Option(min=256, help="Tokens that the scorer reads at once.")]
NegativesOption = Annotated[
    int, typer.Option(min=0, help="Hard negatives: so many copies of each context with other names and numbers.")
]
CacheOption = Annotated[
    Path | None, typer.Option("--cache", help="Keep scores in this file, and go on from it when run again.")
]


@app.command(epilog="Example: smallfirst information --contexts docs.jsonl --compressor extract --budget 100")
def information(
    contexts: ContextsOption,
    compressor: Annotated[
        str,
        typer.Option(help=f"{', '.join(_KNOWN)}, a model that writes notes, or {GIVEN}: the file's own summaries."),
    ],
    scorer: ScorerOption = models.DEFAULT_MODEL,
    summaries: Annotated[int, typer.Option(min=1, help="Summaries of each context, sampled.")] = 1,
    budget: Annotated[int, typer.Option(min=1, help="Tokens that a summary may have.")] = 100,
    negatives: NegativesOption = 0,
    baseline: Annotated[bool, typer.Option(help="Measure random sentences of the same length too.")] = True,
    window: WindowOption = 4096,
    cache: CacheOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure how many bits of documents a compressor keeps, at what length and cost.

    Each summary is scored under every document: it keeps information as far as that tells which document it is of.
    """
    material, settings = cases.read(contexts), load(config, os.environ)

    async def run() -> Report:
        with calls_progress() as progress:
            async with _scorer(scorer, settings, window, cache) as by, _compressor(compressor, settings) as opened:
                made = await _made(opened, material, budget, summaries, progress)
                return await measure(
                    material.cases, made, by, shape=opened.shape, copies=negatives, baseline=baseline, progress=progress
                )

    report = asyncio.run(run())
    report = replace(report, notes=(*material.notes, *report.notes))
    if as_json:
        print_json(report_row(report))
    else:
        out.print(shown(report))


@compressors.command(
    epilog="Example: smallfirst compressors compare --contexts qa.jsonl --predictor large --out compared"
)
def compare(
    contexts: ContextsOption,
    predictor: Annotated[str, typer.Option(help="Who answers: a model of smallfirst.toml, or a GGUF file.")],
    compressor: Annotated[
        list[str] | None, typer.Option("--compressor", help="As in `smallfirst information`; may be repeated.")
    ] = None,
    budget: Annotated[list[int] | None, typer.Option("--budget", min=1, help="May be repeated.")] = None,
    scorer: ScorerOption = models.DEFAULT_MODEL,
    negatives: NegativesOption = 1,
    margin: Annotated[
        float, typer.Option(min=0, max=1, help="Accuracy that the chosen one may lose to the best.")
    ] = 0.02,
    output: Annotated[Path, typer.Option("--out", help="Write the figures and the picture here.")] = Path("compared"),
    window: WindowOption = 4096,
    cache: CacheOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare compressors on questions with known answers: information, right answers and cost.

    The first compressor is what others' lengths are compared with. Recommended is the least cost per right answer
    among those that are about as right as the best.
    """
    material, settings = cases.read(contexts), load(config, os.environ)

    async def run() -> distortion.Comparison:
        trials = list[distortion.Trial]()
        with calls_progress() as progress:
            async with _scorer(scorer, settings, window, cache) as by, _predictor(predictor, settings) as asked:
                trying = _Trying(material, by, asked, negatives, settings.machine_usd_per_hour / 3600, progress)
                for spec in compressor or _COMPARED:
                    async with _compressor(spec, settings) as opened:
                        sizes = [0] if spec in _WITHOUT_BUDGET else budget or _BUDGETS
                        trials += [await trying.trial(opened, size) for size in sizes]
        return distortion.compare(trials, margin=margin)

    comparison = asyncio.run(run())
    rows = comparison_row(comparison)
    written = write_json(rows, output / "comparison.json")
    pictures = drawn(lambda: draw(comparison, output, f"{contexts.stem}: compressors before {predictor}"))
    if as_json:
        print_json(rows)
    else:
        out.print(compared(comparison))
        for note in material.notes:
            err.print(note, style="yellow", markup=False)
        out.print(f"Written: {', '.join([str(written), *pictures])}.", markup=False, highlight=False)


@app.command(epilog="Example: smallfirst attribute answers.jsonl")
def attribute(
    file: Annotated[Path, typer.Argument(help='JSON Lines: {"id", "compressor", "predictor", "correct", ...}.')],
    as_json: JsonOption = False,
) -> None:
    """Tell of wrong answers which the compressor lost and which the predictor.

    The file has the same cases answered after each compressor, after the compressor "oracle" (exactly what the answer
    needs) and after "empty" (nothing). With question, summary, answer and expected in its lines, examples are shown.
    """
    found = attribution.attribute(attribution.read(file))
    if as_json:
        print_json([attribution_row(one) for one in found])
    else:
        out.print(Group(*(attributed(one) for one in found)))


@dataclass(frozen=True, slots=True)
class _Opened:
    """A compressor ready to work, or None for the file's own summaries; and the shape of its model, if it has one."""

    compressor: Compressor | None
    shape: ModelShape | None = None


@dataclass(frozen=True, slots=True)
class _Predictor:
    """A started model with what its answers cost."""

    stage: Stage
    pricing: StagePricing

    def cost(self, usage: Usage) -> tuple[float, float]:
        priced, free = self.pricing.cost(self.stage, usage)
        if priced is None or free is None:
            raise ConfigError(
                f"The price of {self.stage.model!r} is unknown.", hint=f"Give models.{self.stage.name}.price."
            )
        return priced, free


@dataclass(frozen=True, slots=True)
class _Trying:
    """What compressors are tried on: documents and their questions, who scores, and who answers at what cost."""

    material: cases.Material
    scorer: Scorer
    predictor: _Predictor
    negatives: int
    usd_per_second: float
    progress: Progress

    async def trial(self, opened: _Opened, budget: int) -> distortion.Trial:
        """What a compressor keeps with that budget, and what the predictor makes of it."""
        made = await _made(opened, self.material, budget, 1, self.progress)
        report = await measure(
            self.material.cases,
            made,
            self.scorer,
            shape=opened.shape,
            copies=self.negatives,
            baseline=False,
            progress=self.progress,
        )
        return await trial(
            self.material.cases,
            made,
            report,
            self.predictor.stage.backend,
            self.predictor.stage.model,
            pricing=self.predictor.cost,
            usd_per_second=self.usd_per_second,
            progress=self.progress,
        )


async def _made(opened: _Opened, material: cases.Material, budget: int, count: int, progress: Progress) -> Summaries:
    if opened.compressor is None:
        return given(material.cases, material.summaries)
    return await summarise(opened.compressor, material.cases, budget, count=count, progress=progress)


@asynccontextmanager
async def _scorer(spec: str, config: Config, window: int, cache: Path | None) -> AsyncIterator[Scorer]:
    scorer: Scorer = LexicalScorer() if spec == "lexical" else PromptScorer(_token_model(spec, config, window))
    if cache is not None:
        scorer = Cached(scorer, cache)
    await scorer.start()
    try:
        yield scorer
    finally:
        await scorer.close()


def _token_model(spec: str, config: Config, window: int) -> TokenModel:
    if spec.startswith("transformers:"):
        return TransformersModel(spec.removeprefix("transformers:"), window=window)
    if spec.startswith(("http://", "https://")):
        url, _, name = spec.partition("#")
        if not name:
            raise ConfigError(f"--scorer {spec!r} names no model.", hint="Write it as http://HOST/v1#MODEL.")
        return VllmModel(url, name)
    model = _model(spec, config)
    if model.backend == "openai":
        key = os.environ.get(model.api_key_env, "") if model.api_key_env else ""
        return VllmModel(model.base_url, model.model or spec, api_key=key)
    if model.backend != "llamacpp":
        raise ConfigError(f"models.{spec} gives no log-probabilities of prompts.", hint=f"Scorers are {_SCORERS}.")
    make = native.NativeModel if native.available() else EngineModel
    return make(_weights(model), window=window)


@asynccontextmanager
async def _compressor(spec: str, config: Config) -> AsyncIterator[_Opened]:
    if spec == GIVEN or spec in _KNOWN:
        yield _Opened(_KNOWN.get(spec))
        return
    model = _model(spec, config)
    backend = await _started(spec, model)
    try:
        shape = gguf_shape(_weights(model)) if model.backend == "llamacpp" else None
        yield _Opened(Summary(backend, model.model or Path(spec).stem), shape)
    finally:
        await backend.close()


@asynccontextmanager
async def _predictor(spec: str, config: Config) -> AsyncIterator[_Predictor]:
    model = _model(spec, config)
    pricing = StagePricing(config)
    pricing.add(spec, model)
    backend = await _started(spec, model)
    try:
        yield _Predictor(Stage(spec, backend, model.model or Path(spec).stem), pricing)
    finally:
        await backend.close()


async def _started(name: str, model: ModelConfig) -> Backend:
    if model.backend == "llamacpp":
        _weights(model)
    backend = build_backend(name, model, os.environ)
    await backend.start()
    return backend


def _model(spec: str, config: Config) -> ModelConfig:
    """A model of the configuration, else weights of the catalogue or at a path."""
    return config.models.get(spec) or ModelConfig(backend="llamacpp", weights=spec)


def _weights(model: ModelConfig) -> Path:
    """The GGUF file of a model, pulled when the catalogue has it and this machine lacks it."""
    if model.weights not in models.CATALOGUE:
        return models.locate(model.weights)
    with pull_progress() as show:
        return models.pull(model.weights, show)
