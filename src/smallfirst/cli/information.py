"""`information`, `compressors compare`, `attribute`: what compressors keep, what comes of it, and who is to blame."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Group
from rich.markup import escape
from rich.table import Table

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
from smallfirst.compress.tokens import EngineModel, TokenModel, TransformersModel, VllmModel, gguf_shape
from smallfirst.config import Config, ModelConfig, load
from smallfirst.errors import ConfigError
from smallfirst.report import figure_row
from smallfirst.stats import Figure
from smallfirst.types import Backend, Stage, Usage

app = typer.Typer()
compressors = typer.Typer(no_args_is_help=True, help="Compressors of long contexts.")

GIVEN = "given"
_KNOWN: dict[str, Compressor] = {**DETERMINISTIC, **{c.name: c for c in (Bm25(), Extract())}}
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
        out.print(_shown(report))


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
    specs = compressor or ["identity", "empty", "lead", "random", "bm25", "extract"]

    async def run() -> distortion.Comparison:
        trials = []
        with calls_progress() as progress:
            async with _scorer(scorer, settings, window, cache) as by, _predictor(predictor, settings) as asked:
                for spec in specs:
                    async with _compressor(spec, settings) as opened:
                        for size in (budget or [50, 100, 200]) if spec not in ("identity", "empty", GIVEN) else [0]:
                            made = await _made(opened, material, size, 1, progress)
                            report = await measure(
                                material.cases, made, by, shape=opened.shape, copies=negatives, baseline=False,
                                progress=progress,
                            )  # fmt: skip
                            trials.append(
                                await trial(
                                    material.cases, made, report, asked.stage.backend, asked.stage.model,
                                    pricing=asked.cost, usd_per_second=settings.machine_usd_per_hour / 3600,
                                    progress=progress,
                                )
                            )  # fmt: skip
        return distortion.compare(trials, margin=margin)

    comparison = asyncio.run(run())
    rows = comparison_row(comparison)
    written = write_json(rows, output / "comparison.json")
    pictures = drawn(lambda: draw(comparison, output, f"{contexts.stem}: compressors before {predictor}"))
    if as_json:
        print_json(rows)
    else:
        out.print(_compared(comparison))
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
        out.print(Group(*(_attributed(one) for one in found)))


def report_row(report: Report) -> dict[str, Any]:
    """The report as JSON: bits, tokens, FLOPs and seconds per summary, joules of all of them."""
    told, compared = report.estimate, report.baseline
    return {
        "compressor": report.compressor,
        "scorer": report.scorer,
        "budget": report.budget,
        "contexts": report.contexts,
        "summaries": report.summaries,
        "information": figure_row(told.information),
        "leave_one_out": figure_row(told.leave_one_out),
        "tuned": None if told.tuned is None else figure_row(told.tuned),
        "temperature": told.temperature,
        "unclipped": told.unclipped,
        "bound": told.bound,
        "saturated": told.saturated,
        "length": figure_row(report.length),
        "rate": figure_row(report.rate),
        "prefill_flops": _row(report.prefill_flops),
        "decode_flops": _row(report.decode_flops),
        "seconds": figure_row(report.seconds),
        "tokens_read": figure_row(report.tokens_read),
        "tokens_written": figure_row(report.tokens_written),
        "joules": report.joules,
        "baseline": None
        if compared is None
        else {
            "information": figure_row(compared.information),
            "length": figure_row(compared.length),
            "rate": figure_row(compared.rate),
        },
        "cost": msgspec.to_builtins(report.cost),
        "notes": list(report.notes),
    }


def comparison_row(comparison: distortion.Comparison) -> dict[str, Any]:
    """The comparison as JSON: cost per right answer in USD."""
    figures = ("information", "length", "rate", "accuracy", "tokens", "cps", "cps_local_free")
    return {
        "points": [
            {
                "name": p.name,
                "compressor": p.compressor,
                "budget": p.budget,
                "front": p.front,
                "by_length": p.by_length,
            }
            | {name: figure_row(getattr(p, name)) for name in figures}
            for p in comparison.points
        ],
        "fits": [
            {"x": f.x, "r2": f.r2} | {"C": figure_row(f.scale), "b": figure_row(f.decay), "D0": figure_row(f.floor)}
            for f in comparison.fits
        ],
        "spearman": figure_row(comparison.spearman),
        "recommended": comparison.recommended,
        "margin": comparison.margin,
    }


def attribution_row(one: attribution.Attribution) -> dict[str, Any]:
    """The attribution as JSON."""
    return {
        "compressor": one.compressor,
        "predictor": one.predictor,
        "cases": one.cases,
        **{name: _row(getattr(one, name)) for name in (*_OF_ALL, *_OF_WRONG, *_OF_RIGHT)},
        "examples": [{"whose": e.whose, **msgspec.to_builtins(e.answer)} for e in one.examples],
    }


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


def _row(figure: Figure | None) -> dict[str, float | int | None] | None:
    return None if figure is None else figure_row(figure)


def _shown(report: Report) -> Group:
    told, compared = report.estimate, report.baseline
    title = f"{report.compressor} on {report.contexts} documents, scored by {report.scorer}"
    table = Table(title=escape(title), title_justify="left")
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_column("95% interval", justify="right")
    rows: list[tuple[str, Figure | None]] = [
        (f"information, bits (at most {told.bound:.2f})", told.information),
        ("the same, own document left out of the mean", told.leave_one_out),
        ("the same, temperature from the other half", told.tuned),
        ("length, the scorer's tokens", report.length),
        ("rate, bits a token", report.rate),
        ("random sentences as long: bits", None if compared is None else compared.information),
        ("random sentences as long: bits a token", None if compared is None else compared.rate),
        ("tokens read", report.tokens_read),
        ("tokens written", report.tokens_written),
        ("prefill, FLOPs", report.prefill_flops),
        ("decode, FLOPs", report.decode_flops),
        ("seconds", report.seconds),
    ]
    for name, figure in rows:
        table.add_row(name, *(_cells(figure) if figure is not None else ("not measured", "")))
    table.add_row("energy of all, joules", "not measured" if report.joules is None else f"{report.joules:.0f}", "")
    cost = report.cost
    spent = f"The estimate took {cost.scores:,} scores, {cost.tokens:,} tokens, {cost.flops:.2g} FLOPs"
    return Group(table, f"{spent}, {cost.seconds:.0f} s.", *(f"[yellow]{escape(note)}[/]" for note in report.notes))


def _compared(comparison: distortion.Comparison) -> Group:
    table = Table(title="Compressors, * on the front of tokens and right answers", title_justify="left")
    table.add_column("compressor")
    for name in ("bits", "tokens", "bits/token", "by length", "right", "read", "USD/1,000 right"):
        table.add_column(name, justify="right")
    for p in comparison.points:
        share = "" if p.by_length is None else f"{p.by_length:.0%}"
        accuracy = "\n".join(_cells(p.accuracy, 100))
        columns = ["\n".join(_cells(f)) for f in (p.information, p.length, p.rate)]
        cost = "\n".join(_cells(p.cps, 1000))
        table.add_row(escape(p.name) + ("*" if p.front else ""), *columns, share, accuracy, _cells(p.tokens)[0], cost)
    said = [
        f"D({'R' if f.x == 'rate' else 'I'}) = C exp(-b x) + D0: C {_said(f.scale)}, b {_said(f.decay)}, "
        f"D0 {_said(f.floor)}, R² {f.r2:.2f}."
        for f in comparison.fits
    ]
    rank = f"Rank correlation of information and right answers: {_said(comparison.spearman)}."
    name, margin = escape(comparison.recommended), f"{comparison.margin:.0%}"
    taken = f"Recommended: [bold]{name}[/], the least cost of those within {margin} of the best."
    return Group(table, *said, rank, taken)


_OF_ALL = {
    "accuracy": "right",
    "oracle": "right after the oracle",
    "empty": "right after nothing",
    "loss": "the compressor's loss",
    "rest": "the predictor's",
    "lucky": "right though not after the oracle",
}
_OF_WRONG = {
    "lost": "lost by the compressor",
    "missed": "missed by the predictor",
    "by_predictor": "another predictor has it right",
    "by_compressor": "after another compressor it is right",
}
_OF_RIGHT = {"guessed": "right after nothing too"}


def _attributed(one: attribution.Attribution) -> Group:
    table = Table(title=escape(f"{one.compressor}, then {one.predictor}: {one.cases} cases"), title_justify="left")
    table.add_column("share")
    table.add_column("%", justify="right")
    table.add_column("95% interval", justify="right")
    parts = ("of all", _OF_ALL), ("of wrong answers", _OF_WRONG), ("of right ones", _OF_RIGHT)
    for of, names in parts:
        for name, said in names.items():
            figure: Figure | None = getattr(one, name)
            if figure is not None:
                table.add_row(f"{of}: {said}", *_cells(figure, 100))
    return Group(table, *(_example(example) for example in one.examples))


def _example(example: attribution.Example) -> str:
    answer = example.answer
    texts = {"Q": answer.question, "Z": answer.summary, "said": answer.answer, "expected": answer.expected}
    told = "; ".join(f"{name}: {' '.join(text.split())[:160]}" for name, text in texts.items() if text)
    return escape(f"The {example.whose}'s, case {answer.id}. {told}")


def _cells(figure: Figure, times: float = 1.0) -> Sequence[str]:
    """Value and interval, in three digits."""
    if figure.value is None:
        return "-", ""
    low, high = (bound if bound is None else _number(bound * times) for bound in (figure.low, figure.high))
    return _number(figure.value * times), f"{low or ''} – {high or ''}"


def _said(figure: Figure) -> str:
    value, interval = _cells(figure)
    return f"{value} ({interval})"


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}" if abs(value) < 1e7 else f"{value:.2e}"
