"""What a shortened context costs and what it keeps: accuracy, tokens and cost per success of a predictor behind it.

    qa        questions over documents: the full context beside every compressor at the same budget of predictor tokens;
              "guarded" is "extract" with the guard, which shortens less, or not at all, where the question needs it
    kept      without any model: how often the shortened text still holds the answer, and how fast it is made
    research  one question over many sources: the same run with readers that shorten and with readers that do not

Data: HotpotQA (two of up to ten paragraphs matter) and Lost in the Middle (one passage among those of nine other
questions). Questions of even position were looked at while settings were chosen; --split test takes the others. Every
answer is kept in --work and asked once: a run that was cut off, or a larger one, goes on from there, and `qa` asks all
methods a question before the next, so that what was reached is comparable.

A compressor gets the budget that makes the whole prompt --times shorter, in the predictor's own tokens. An answer is
right when it holds the gold answer, both without case and punctuation (yes and no: as its first word). Tokens of the
predictor are priced as those of a hosted model by --price (USD per million, input and output), the compressor's time
at --machine USD an hour. CPS is USD per 1,000 right answers; "free" leaves the machine's time out. Intervals are of
95 %, differences paired with the full context.

    python bench/compress.py kept --data ../shared/data
    python bench/compress.py qa --data ../shared/data --sets lost hotpot --questions 24
    python bench/compress.py qa --data ../shared/data --llmlingua /path/to/its/python --sets lost --questions 10
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random as chance
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from compressing import SETS, Answer, LLMLingua, Predictor, Question, chosen, counter, prompt
from smallfirst.backends.llamacpp import EngineConfig, LlamaCppBackend
from smallfirst.compress.base import Compressed, Compressor, Count, Identity, Lead, Random, count_tokens
from smallfirst.compress.compressor import guarded
from smallfirst.compress.extract import Bm25, Extract
from smallfirst.compress.guard import Guard
from smallfirst.compress.research import Library, Limits, Research, Researcher, Source
from smallfirst.report import figure_row
from smallfirst.stats import Figure, mean, ratio, wilson
from smallfirst.types import Stage

MODELS = Path.home() / ".cache" / "smallfirst-models"
PREDICTOR = "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"
COMPRESSOR = "smollm2-135m-instruct-q4_1.gguf"
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Guarded:
    """Extraction with the guard, as `CompressorBackend` uses them: shortened, shortened less, or left whole."""

    guard: Guard
    count: Count
    name: str = "guarded"

    async def compress(self, context: str, question: str, budget: int, *, seed: int = 0) -> Compressed:
        del seed
        begin = time.perf_counter()
        made, facts = await guarded(Extract(self.count), self.guard, [context], question, budget, self.count)
        size, seconds = self.count(context), time.perf_counter() - begin
        short = made[0] if self.guard.allows(facts) else Compressed(context, size, size)
        return replace(short, seconds=seconds)


def methods(count: Count, guard: Guard, llmlingua: LLMLingua | None) -> dict[str, Compressor]:
    """By name, what is compared; "full" first."""
    found: list[Compressor] = [Extract(count), Guarded(guard, count), Bm25(count), Lead(count), Random(count)]
    found += [llmlingua] if llmlingua else []
    return {"full": Identity(count), **{each.name: each for each in found}}


def budget(question: Question, count: Count, times: float) -> int:
    """Tokens of context that make the whole prompt `times` shorter."""
    return int(count(prompt(question.text, question.context)) / times - count(prompt(question.text, "")))


async def qa(args: argparse.Namespace, console: Console) -> list[Row]:
    """The tables of accuracy, tokens and cost, one for each set."""
    weights = args.models / args.predictor
    count = counter(weights)
    llmlingua = LLMLingua(args.llmlingua, args.models / COMPRESSOR, args.work) if args.llmlingua else None
    config = EngineConfig(weights=weights, name=weights.stem, context=8192, slots=1, threads=1, batch_threads=1)
    backend = LlamaCppBackend(config)
    await backend.start()
    rows: list[Row] = []
    try:
        predictor = Predictor(backend, weights.stem, args.work)
        with Progress(console=console, transient=True) as bar:
            for name in args.sets:
                questions = chosen(SETS[name](args.data), args.split, args.questions)
                shown = bar.add_task(name, total=len(questions))
                asked: dict[str, list[Answer]] = {}
                for question in questions:
                    for method, compressor in methods(count, Guard(args.coverage), llmlingua).items():
                        answer = await _ask(predictor, compressor, question, budget(question, count, args.times))
                        asked.setdefault(method, []).append(answer)
                    bar.advance(shown)
                rows += [_row(name, method, answers, asked["full"], args) for method, answers in asked.items()]
    finally:
        await backend.close()
        if llmlingua:
            llmlingua.close()
    return rows


async def _ask(predictor: Predictor, compressor: Compressor, question: Question, tokens: int) -> Answer:
    short = await compressor.compress(question.context, question.text, tokens)
    answer = await predictor.ask(prompt(question.text, short.text))
    right = question.right(answer["said"])
    return {**answer, "right": right, "seconds": short.seconds}


def _row(name: str, method: str, answers: Sequence[Answer], full: Sequence[Answer], args: argparse.Namespace) -> Row:
    right, whole = ([float(a["right"]) for a in each] for each in (answers, full))
    costs = {key: [_usd(a, args, machine=key == "priced") for a in answers] for key in ("priced", "free")}
    reference = {key: [_usd(a, args, machine=False) for a in full] for key in costs}
    return {
        "set": name,
        "method": method,
        "n": len(answers),
        "right": wilson(int(sum(right)), len(right)),
        "less full": mean([a - b for a, b in zip(right, whole, strict=True)]),
        "tokens": mean([float(a["input"]) for a in answers]),
        "shorter": ratio([float(a["input"]) for a in full], [float(a["input"]) for a in answers]),
        "CPS": ratio([1000 * c for c in costs["priced"]], right),
        "CPS free": ratio([1000 * c for c in costs["free"]], right),
        "full CPS": ratio([1000 * c for c in reference["free"]], whole),
        "compressing s": mean([a["seconds"] for a in answers]),
    }


def _usd(answer: Answer, args: argparse.Namespace, *, machine: bool) -> float:
    tokens = (answer["input"] * args.price[0] + answer["output"] * args.price[1]) / 1e6
    return tokens + machine * answer["seconds"] * args.machine / 3600


async def kept(args: argparse.Namespace, console: Console) -> list[Row]:
    """How often the answer still stands in the shortened text, of those that stand in the full one."""
    del console
    rows = []
    for name in args.sets:
        questions = [q for q in chosen(SETS[name](args.data), args.split, args.questions) if q.holds(q.context)]
        for method, compressor in methods(count_tokens, Guard(args.coverage), None).items():
            begin = time.perf_counter()
            made: list[Compressed] = [
                await compressor.compress(q.context, q.text, budget(q, count_tokens, args.times)) for q in questions
            ]
            seconds = time.perf_counter() - begin
            held = sum(q.holds(short.text) for q, short in zip(questions, made, strict=True))
            rows.append(
                {
                    "set": name,
                    "method": method,
                    "n": len(questions),
                    "holds the answer": wilson(held, len(questions)),
                    "share kept": mean([short.tokens_out / short.tokens_in for short in made]),
                    "tokens/s": sum(short.tokens_in for short in made) / seconds,
                }
            )
    return rows


async def research(args: argparse.Namespace, console: Console) -> list[Row]:
    """The same questions over the same sources, read in notes and read whole."""
    weights = args.models / args.predictor
    config = EngineConfig(weights=weights, name=weights.stem, context=16384, slots=1, threads=1, batch_threads=1)
    backend = LlamaCppBackend(config)
    await backend.start()
    questions = chosen(SETS["hotpot"](args.data), args.split, 50)
    sources = pages(questions)
    library, answers = Library(sources), dict[str, list[Row]]()
    limits = Limits(rounds=1, steps=2, hits=args.hits, tokens=40, words=60)
    readers: dict[str, Compressor] = {"notes": Extract(), "whole": Identity()}
    stage = Stage("predictor", backend, "m", timeout_s=600)
    try:
        for question in questions[: args.questions]:
            for name, reader in readers.items():
                made = await Researcher(stage, reader, library, limits).answer(question.text)
                row = _research_answer(question, made)
                answers.setdefault(name, []).append({**row, "sources": len(sources)})
                console.print(f"{name}: {row}", highlight=False)
    finally:
        await backend.close()
    return [_research_row(name, rows, answers["whole"]) for name, rows in answers.items()]


def pages(questions: Sequence[Question]) -> list[Source]:
    """The questions' paragraphs as sources of three each, in an order drawn once: reports have more than one matter."""
    texts = sorted({document for question in questions for document in question.documents})
    chance.Random(0).shuffle(texts)
    threes = (texts[n : n + 3] for n in range(0, len(texts), 3))
    bodies = ("\n\n".join(f"{title}\n{text}" for title, text in three) for three in threes)
    return [Source(str(n), f"Report {n}", body) for n, body in enumerate(bodies)]


def _research_answer(question: Question, made: Research) -> Row:
    usage = made.spent["predictor"].usage
    return {
        "right": question.right(made.answer),
        "read": question.holds("\n".join(note.text for note in made.notes)),
        "tokens": usage.input_tokens + usage.output_tokens,
        "seconds": made.spent["compressor"].usage.busy_seconds or 0.0,
    }


def _research_row(name: str, rows: Sequence[Row], whole: Sequence[Row]) -> Row:
    tokens, reference = ([float(r["tokens"]) for r in each] for each in (rows, whole))
    return {
        "readers": name,
        "n": len(rows),
        "sources": rows[0]["sources"],
        "predictor tokens": mean(tokens),
        "share of whole": ratio(tokens, reference),
        "right": wilson(sum(r["right"] for r in rows), len(rows)),
        "answer in what was read": wilson(sum(r["read"] for r in rows), len(rows)),
        "reading s": mean([r["seconds"] for r in rows]),
    }


def show(rows: Sequence[Row], console: Console) -> None:
    """One table of all rows."""
    made = Table(*rows[0])
    for row in rows:
        made.add_row(*(_cell(value) for value in row.values()))
    console.print(made)


def _cell(value: Any) -> str:
    if isinstance(value, Figure):
        return f"{value.value:.4g} [{value.low:.4g}, {value.high:.4g}]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


COMMANDS = {"qa": qa, "kept": kept, "research": research}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--data", type=Path, required=True, help="folder with hotpot100 and lost_in_middle")
    parser.add_argument("--models", type=Path, default=MODELS, help="folder with GGUF files (tools/get_models.py)")
    parser.add_argument("--predictor", default=PREDICTOR, help="file in --models")
    parser.add_argument("--work", type=Path, default=Path(".bench/compress"), help="answers are kept here")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--split", choices=("dev", "test"), default="test")
    parser.add_argument("--questions", type=int, default=50, help="of each set at most")
    parser.add_argument("--times", type=float, default=5.2, help="how much shorter the whole prompt is to be")
    parser.add_argument("--coverage", type=float, default=0.8, help="of the guard")
    parser.add_argument("--price", type=float, nargs=2, default=(0.75, 4.5), help="USD per million tokens in, out")
    parser.add_argument("--machine", type=float, default=0.10, help="USD per hour of this machine")
    parser.add_argument("--llmlingua", help="a Python that has llmlingua (see llmlingua_worker.py)")
    parser.add_argument("--hits", type=int, default=4, help="sources read for each step of research")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    console = Console(stderr=True)
    rows = asyncio.run(COMMANDS[args.command](args, console))
    if args.json:
        print(json.dumps([{k: figure_row(v) if isinstance(v, Figure) else v for k, v in r.items()} for r in rows]))
    else:
        show(rows, Console(width=200))


if __name__ == "__main__":
    main()
