"""How far the information of summaries can be trusted: `python bench/information.py --help`.

Parts: `channels` (toy channels whose information is known), `bounds` (identical, disjoint, boilerplate, permuted),
`ways` (both ways of the embedded engine), `known` (compressors of known quality on made documents), `hotpot` (real
questions), `models` (real models as compressors). A JSON object a part goes to --out, a line a figure to the terminal.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from smallfirst import models, stats
from smallfirst.backends.llamacpp import EngineConfig, LlamaCppBackend
from smallfirst.compress.base import Compressed, Compressor, Empty, Identity, Lead, Random, count_tokens, sentences
from smallfirst.compress.cases import Case
from smallfirst.compress.distortion import Trial, compare, right, scaling
from smallfirst.compress.estimate import Floats, estimate
from smallfirst.compress.extract import Bm25, Extract
from smallfirst.compress.information import Report, measure, summarise
from smallfirst.compress.native import NativeModel
from smallfirst.compress.pictures import draw
from smallfirst.compress.scoring import Ask, Cached, LexicalScorer, PromptScorer, Scorer
from smallfirst.compress.summary import Summary
from smallfirst.compress.tokens import EngineModel, gguf_shape
from smallfirst.report import figure_row
from smallfirst.stats import Figure

Row = dict[str, Any]
err = Console(stderr=True)
DIMENSIONS = 4


def say(name: str, figure: Figure | float, more: str = "") -> None:
    if isinstance(figure, Figure):
        low, high = (math.nan if b is None else b for b in (figure.low, figure.high))
        print(f"{name:48} {figure.value:8.3f}  [{low:.3f}, {high:.3f}]  n={figure.n}  {more}", flush=True)
    else:
        print(f"{name:48} {figure:8.3f}  {more}", flush=True)


def channel(bits: float, count: int, summaries: int, seed: int) -> Floats:
    """log p(z | x) of a Gaussian channel of `bits` information in all, shape (count, summaries, count)."""
    rng = np.random.default_rng(seed)
    power = 2 ** (2 * bits / DIMENSIONS) - 1
    x = rng.normal(0, math.sqrt(power), (count, DIMENSIONS))
    z = x[:, None] + rng.normal(size=(count, summaries, DIMENSIONS))
    logs: Floats = -0.5 * ((z[:, :, None] - x[None, None]) ** 2).sum(-1)
    return logs


async def channels(args: argparse.Namespace) -> Row:
    """Both forms on channels of 0.68, 2.18 and 4.43 bits, N = 20, M = 5."""
    rows: Row = {}
    for bits in (0.68, 2.18, 4.43):
        found = [estimate(channel(bits, 20, 5, s), resamples=200, seed=s) for s in range(args.seeds)]
        held = [(e.information.low or 0.0) <= bits <= (e.leave_one_out.high or 0.0) for e in found]
        lower = [(e.information.low or 0.0) <= bits for e in found]
        rows[str(bits)] = {
            "bracketed": figure_row(stats.wilson(sum(held), len(held))),
            "lower_form": float(np.mean([e.information.value for e in found])),
            "upper_form": float(np.mean([e.leave_one_out.value for e in found])),
            "tuned": float(np.mean([e.tuned.value for e in found if e.tuned])),
            "lower_bound_holds": figure_row(stats.wilson(sum(lower), len(lower))),
        }
        forms = f"mean of forms {rows[str(bits)]['lower_form']:.2f} and {rows[str(bits)]['upper_form']:.2f}"
        say(f"{bits} bits: bracketed, of seeds", stats.wilson(sum(held), len(held)), forms)
    return rows


class Dropout:
    """Keeps `budget` percent of the sentences by chance; what it keeps at less, it keeps at more."""

    name = "dropout"

    async def compress(self, context: str, question: str, budget: int, *, seed: int = 0) -> Compressed:
        del question
        chance = random.Random(f"{seed} {context}")
        text = "".join(piece for piece in sentences(context) if chance.random() < budget / 100).strip()
        return Compressed(text, count_tokens(context), count_tokens(text))


@dataclass(frozen=True, slots=True)
class Fixed:
    """The same text of every context."""

    text: str
    name: str = "boilerplate"

    async def compress(self, context: str, question: str, budget: int, *, seed: int = 0) -> Compressed:
        del question, budget, seed
        return Compressed(self.text, count_tokens(context), count_tokens(self.text))


ATTRIBUTES = (
    "colour height weight owner builder origin price age length route cargo captain port speed engine flag crew depth"
).split()


def documents(count: int, seed: int = 0) -> list[Case]:
    """Made documents of twelve facts each, with a question for one of them."""
    chance = random.Random(seed)
    made = []
    for _ in range(count):
        chosen = chance.sample(ATTRIBUTES, 12)
        values = {
            a: f"{chance.choice('KLMNPRSTV')}{chance.choice('aeiou')}{chance.randrange(100, 999)}" for a in chosen
        }
        wanted = chance.choice(chosen)
        text = " ".join(f"The {a} of the vessel is said to be {v}." for a, v in values.items())
        made.append(Case(text, f"What is the {wanted} of the vessel?", (values[wanted],)))
    return made


async def bounds(args: argparse.Namespace) -> Row:
    """Where the answer is known without a formula: 0 or log2 N."""
    rows: Row = {}
    cases = documents(args.contexts)
    for name, scorer in await scorers(args):
        some = cases if name == "lexical" else cases[: args.real]
        same = [Case(some[0].context, c.question) for c in some]
        whole = await summarise(Identity(), some, 0)
        fixed = await summarise(Fixed("The text is about a vessel."), some, 0)
        shifted = type(whole)("permuted", 0, (*whole.made[1:], whole.made[0]), 0.0, None)
        trials = {
            "disjoint": (some, whole),
            "identical": (same, await summarise(Identity(), same, 0)),
            "boilerplate": (some, fixed),
            "permuted": (some, shifted),
        }
        for what, (of, made) in trials.items():
            report = await measure(of, made, scorer, baseline=False)
            told = report.estimate
            say(f"{name}: {what} (log2 N = {told.bound:.2f})", told.information, f"unclipped {told.unclipped:.3f}")
            rows[f"{name} {what}"] = {**figure_row(told.information), "unclipped": told.unclipped, "bound": told.bound}
        await scorer.close()
    return rows


async def scorers(args: argparse.Namespace) -> list[tuple[str, Scorer]]:
    """The lexical scorer, and the embedded model where --real asks for it; started."""
    found: list[tuple[str, Scorer]] = [("lexical", LexicalScorer())]
    if args.real:
        real = Cached(PromptScorer(NativeModel(models.locate(models.DEFAULT_MODEL))), args.work / "scores.jsonl")
        found.append(("135M", real))
    for _, scorer in found:
        await scorer.start()
    return found


async def ways(args: argparse.Namespace) -> Row:
    """The embedded engine's two ways on the same summaries."""
    cases = documents(args.real or 4)
    weights = models.locate(models.DEFAULT_MODEL)
    asks = [Ask(case.question, " ".join(sentences(case.context)[:1]).strip()) for case in cases]
    told: dict[str, list[float]] = {}
    for model in (NativeModel(weights), EngineModel(weights)):
        scorer = PromptScorer(model)
        await scorer.start()
        told[model.name] = [x for case in cases for x in (await scorer.score(case.context, asks)).logprobs]
        await scorer.close()
    one, other = (np.array(values) for values in told.values())
    apart = np.abs(one - other) / np.abs(other)
    count = len(cases)
    bits = [estimate(v.reshape(count, 1, count).transpose(2, 1, 0).copy()).information for v in (one, other)]
    sums = abs(one.sum() - other.sum()) / abs(other.sum())
    say("relative difference, sum", float(sums), f"{len(one)} scores")
    say("relative difference, mean and worst", float(apart.mean()), f"worst {apart.max():.4f}")
    for name, figure in zip(told, bits, strict=True):
        say(f"information, {name}", figure)
    return {
        "sum": sums,
        "mean": apart.mean(),
        "worst": apart.max(),
        "n": len(one),
        "bits": [figure_row(b) for b in bits],
    }


async def rank(
    cases: Sequence[Case], compressors: Sequence[tuple[Compressor, int]], copies: int, picture: Path | None
) -> Row:
    """Information under the lexical scorer beside a reader that is right whenever the answer is there to be read."""
    trials, rows = [], []
    scorer = LexicalScorer()
    with Progress(console=err, transient=True) as bar:
        for compressor, budget in bar.track(compressors, description="compressors"):
            made = await summarise(compressor, cases, budget)
            report = await measure(cases, made, scorer, copies=copies, baseline=False, resamples=200)
            hits = [right(m.text, case.answers) for case, (m, *_) in zip(cases, made.made, strict=True)]
            lengths = [m.tokens_out for m, *_ in made.made]
            trials.append(Trial(report, tuple(hits), tuple(lengths), (0.0,) * len(hits), (0.0,) * len(hits)))
            told, accuracy = report.estimate, stats.wilson(sum(hits), len(hits))
            say(f"{trials[-1].name}", told.information, f"{np.mean(lengths):.0f} tokens, right {accuracy.value:.2f}")
            rows.append({"name": trials[-1].name, **report_row(report), "accuracy": figure_row(accuracy)})
    found = compare(trials)
    say("rank correlation with accuracy", found.spearman)
    for fit in found.fits:
        say(
            f"D({fit.x}) = C exp(-bx) + D0, b",
            fit.decay,
            f"C {fit.scale.value:.2f}, D0 {fit.floor.value:.2f}, R2 {fit.r2:.2f}",
        )
    if picture:
        draw(found, picture, f"{len(cases)} questions, a reader that finds every answer that is there")
    return {"points": rows, "spearman": figure_row(found.spearman)}


def report_row(report: Report) -> Row:
    told = report.estimate
    figures = {"information": told.information, "leave_one_out": told.leave_one_out, "length": report.length}
    figures |= {"rate": report.rate, "prefill_flops": report.prefill_flops, "decode_flops": report.decode_flops}
    rows: Row = {name: None if f is None else figure_row(f) for name, f in figures.items()}
    return rows | {"bound": told.bound, "tuned": told.tuned and figure_row(told.tuned)}


async def known(args: argparse.Namespace) -> Row:
    """Compressors whose quality is known, on made documents."""
    steps: list[tuple[Compressor, int]] = [(Dropout(), 100 - 10 * n) for n in range(10)]
    by_size = [(c, k) for c in (Lead(), Random(), Bm25()) for k in (15, 45, 90)]
    found = await rank(documents(args.contexts), [*steps, *by_size, (Empty(), 0)], args.copies, args.picture)
    falls = np.diff([point["information"]["value"] for point in found["points"][: len(steps)]])
    say("steps of dropout on which information falls", float((falls < 0).sum()), f"of {len(falls)}")
    return {**found, "falls": int((falls < 0).sum()), "steps": len(falls)}


def hotpot_cases(folder: Path) -> list[Case]:
    """HotpotQA: the two paragraphs that answer among up to eight others; yes-no questions are left out."""
    given = json.loads((folder / "hotpot100/hotpot_dev_distractor_100.json").read_text())
    cases = []
    for n, each in enumerate(given):
        parts = [(each["title_a"], each["para_a"]), (each["title_b"], each["para_b"])]
        parts += [(title, text) for title, text, _ in each["distractors"]]
        random.Random(n).shuffle(parts)
        text = "\n\n".join(f"{title}\n{' '.join(s.strip() for s in lines)}" for title, lines in parts)
        if each["answer"].lower() not in ("yes", "no"):
            cases.append(Case(text, each["question"], (each["answer"],)))
    return cases


async def hotpot(args: argparse.Namespace) -> Row:
    """Selections of several sizes from real documents."""
    chosen: list[tuple[Compressor, int]] = [(Empty(), 0), (Identity(), 0)]
    chosen += [(c, k) for c in (Lead(), Random(), Bm25(), Extract()) for k in (50, 100, 200, 400)]
    return await rank(hotpot_cases(args.data)[: args.contexts], chosen, args.copies, args.picture)


async def real_models(args: argparse.Namespace) -> Row:
    """Small models as compressors at three budgets; summaries are kept in --work."""
    cases = [Case(_cut(c.context, args.length), c.question, c.answers) for c in hotpot_cases(args.data)[: args.real]]
    rows: list[Row] = []
    reports: dict[int, list[tuple[int, Report]]] = {}
    for weights in args.weights:
        path, shape = models.locate(weights), gguf_shape(models.locate(weights))
        backend = LlamaCppBackend(EngineConfig(weights=path, slots=1, context=2048, threads=1, batch_threads=1))
        await backend.start()
        made = {}
        for budget in args.budgets:
            err.print(f"{path.stem}, {budget} tokens")
            made[budget] = await summarise(Summary(backend, path.stem), cases, budget)
        await backend.close()
        for name, scorer in await scorers(args):
            for budget, summaries in made.items():
                report = await measure(
                    cases,
                    summaries,
                    scorer,
                    shape=shape,
                    copies=args.copies if name == "lexical" else 0,
                    baseline=False,
                )
                if name == "lexical":
                    reports.setdefault(budget, []).append((shape.parameters, report))
                flops = f"prefill {report.prefill_flops.value:.2e}, decode {report.decode_flops.value:.2e} FLOPs"  # type: ignore[union-attr]
                hits = [right(m.text, case.answers) for case, (m, *_) in zip(cases, summaries.made, strict=True)]
                say(f"{path.stem[:24]} {budget}, {name}: bits", report.estimate.information, flops)
                say("    tokens", report.length, f"answer kept {np.mean(hits):.2f}, {summaries.seconds:.0f} s")
                row = {"model": path.stem, "parameters": shape.parameters, "budget": budget, "scorer": name}
                rows.append({**row, **report_row(report), "kept": stats.wilson(sum(hits), len(hits)).value})
            await scorer.close()
    return {"points": rows, "scaling": _scaling(reports)}


def _scaling(reports: dict[int, list[tuple[int, Report]]]) -> Row:
    """The exponent of FLOPs over parameters at each budget, decode alone and with prefill, from the models' means."""
    found: Row = {}
    for budget, of_budget in reports.items():
        sizes = [size for size, _ in of_budget]
        if len(set(sizes)) < 2:
            continue
        decode = np.array([[r.decode_flops.value] for _, r in of_budget], dtype=np.float64)  # type: ignore[union-attr]
        prefill = np.array([[r.prefill_flops.value] for _, r in of_budget], dtype=np.float64)  # type: ignore[union-attr]
        both = scaling(sizes, decode), scaling(sizes, decode + prefill)
        say(f"FLOPs ~ P^e at {budget} tokens: decode, with prefill", both[0].value or 0.0, f"{both[1].value:.3f}")
        found[str(budget)] = {"decode": both[0].value, "with_prefill": both[1].value}
    return found


def _cut(context: str, tokens: int) -> str:
    """The first whole paragraphs of at most about `tokens` tokens."""
    kept = ""
    for part in context.split("\n\n"):
        if kept and count_tokens(kept + part) > tokens:
            break
        kept += part + "\n\n"
    return kept.strip()


PARTS: dict[str, Callable[[argparse.Namespace], Any]] = {
    "channels": channels,
    "bounds": bounds,
    "ways": ways,
    "known": known,
    "hotpot": hotpot,
    "models": real_models,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["channels", "bounds", "known"], help=f"of {', '.join(PARTS)}")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of public sets")
    parser.add_argument("--work", type=Path, default=Path("/tmp/smallfirst-information"), help="scores are kept here")
    parser.add_argument("--out", type=Path, help="write all figures as JSON")
    parser.add_argument("--picture", type=Path, help="draw `known` or `hotpot` into this folder")
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--contexts", type=int, default=48)
    parser.add_argument("--copies", type=int, default=1, help="hard negatives of each document")
    parser.add_argument("--real", type=int, default=0, help="documents for real models (0: lexical scorer alone)")
    parser.add_argument("--length", type=int, default=300, help="tokens of a document for real models")
    parser.add_argument("--weights", nargs="*", default=[models.DEFAULT_MODEL], help="compressors of `models`")
    parser.add_argument("--budgets", nargs="*", type=int, default=[32, 64, 128])
    args = parser.parse_args()
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"no part {sorted(unknown)}; there are {', '.join(PARTS)}")
    args.work.mkdir(parents=True, exist_ok=True)
    found = {}
    for part in args.parts:
        print(f"\n{part}: {(PARTS[part].__doc__ or '').strip()}", flush=True)
        found[part] = asyncio.run(PARTS[part](args))
    if args.out:
        args.out.write_text(json.dumps({"command": sys.argv[1:], **found}, indent=1))


if __name__ == "__main__":
    main()
