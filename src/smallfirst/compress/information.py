"""Measures a compressor: how many bits of its contexts its summaries keep, how long they are, and what they cost.

`summarise` has a compressor make them, `measure` scores every summary under every context and reports. A context is
read once for all that is asked of it. What the figures mean stands in `estimate` and in docs/information.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

import numpy as np

from smallfirst import stats
from smallfirst.compress.base import Compressed, Compressor, ModelShape, Random, count_tokens
from smallfirst.compress.cases import Case
from smallfirst.compress.estimate import Estimate, Floats, estimate, pointwise_bits, rate
from smallfirst.compress.negatives import names, swapped
from smallfirst.compress.scoring import Ask, Scored, Scorer
from smallfirst.energy import Meter
from smallfirst.errors import DataError
from smallfirst.stats import Figure

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""

_FEW = 8


@dataclass(frozen=True, slots=True)
class Summaries:
    """What one compressor made of cases: for each case as many texts. `seconds` and `joules` are those of making them
    all; joules are None where this machine does not measure them."""

    compressor: str
    budget: int
    made: tuple[tuple[Compressed, ...], ...]
    seconds: float
    joules: float | None


@dataclass(frozen=True, slots=True)
class Cost:
    """What an estimate took: summaries scored under a context, tokens evaluated, operations (0: unknown), seconds."""

    scores: int
    tokens: int
    flops: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Report:
    """Everything about one compressor at one budget. Figures are per summary, with intervals over contexts.

    `length` is in the scorer's tokens, `rate` in bits per such token; `tokens_read` and `tokens_written` are the
    compressor's own; `prefill_flops` and `decode_flops` are None for a model of unknown shape. `baseline` is what
    random sentences of the same length keep. `notes` say what bears on how far the figures can be trusted.
    """

    compressor: str
    scorer: str
    budget: int
    contexts: int
    summaries: int
    estimate: Estimate
    length: Figure
    rate: Figure
    prefill_flops: Figure | None
    decode_flops: Figure | None
    seconds: Figure
    tokens_read: Figure
    tokens_written: Figure
    joules: float | None
    baseline: Baseline | None
    cost: Cost
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Baseline:
    """Random sentences of the contexts, as many tokens as the summaries had."""

    information: Figure
    length: Figure
    rate: Figure


@dataclass(frozen=True, slots=True)
class Scores:
    """Log-probabilities under contexts and under own hard negatives as `estimate` takes them; `lengths[i, j]` in the
    scorer's tokens; how many contexts, hard negatives among them, there are and were read in pieces; and the cost."""

    logprobs: Floats
    copies: Floats
    lengths: Floats
    contexts: int
    cut: int
    cost: Cost


def silent(_what: str, _done: int, _total: int) -> None:
    """The progress of a caller who does not want to know."""


async def summarise(
    compressor: Compressor, cases: Sequence[Case], budget: int, *, count: int = 1, progress: Progress = silent
) -> Summaries:
    """`count` summaries of each case, one at a time, so that their seconds are their own.

    Raises what the compressor raises.
    """
    begin, energy = time.perf_counter(), Meter.start()
    made: list[tuple[Compressed, ...]] = []
    for case in cases:
        progress(f"compress with {compressor.name}", len(made), len(cases))
        texts = [await compressor.compress(case.context, case.question, budget, seed=seed) for seed in range(count)]
        made.append(tuple(texts))
    seconds = time.perf_counter() - begin
    return Summaries(compressor.name, budget, tuple(made), seconds, energy.joules())


def given(cases: Sequence[Case], texts: Sequence[Sequence[str]]) -> Summaries:
    """Summaries that were made elsewhere: their lengths are `count_tokens`, what they cost is not known.

    Raises DataError unless every case has as many, at least one.
    """
    counts = {len(of_case) for of_case in texts}
    if len(texts) != len(cases) or len(counts) != 1 or 0 in counts:
        raise DataError(f"Cases have {sorted(counts)} summaries.", hint="Give each as many, at least one.")
    made = tuple(
        tuple(Compressed(text, count_tokens(case.context), count_tokens(text)) for text in of_case)
        for case, of_case in zip(cases, texts, strict=True)
    )
    return Summaries("given", 0, made, 0.0, None)


async def measure(
    cases: Sequence[Case],
    summaries: Summaries,
    scorer: Scorer,
    *,
    shape: ModelShape | None = None,
    copies: int = 0,
    baseline: bool = True,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    progress: Progress = silent,
) -> Report:
    """The report on `summaries` of `cases`, scored by a started `scorer` against `copies` hard negatives per case too.

    `shape` is that of the compressor's model, for its operations.

    Raises DataError for fewer than two contexts to tell apart, and what the scorer raises.
    """
    texts = [[made.text for made in of_case] for of_case in summaries.made]
    scores = await score(cases, texts, scorer, copies=copies, seed=seed, progress=progress)
    told = estimate(scores.logprobs, scores.copies, level=level, resamples=resamples, seed=seed)
    lengths = scores.lengths.mean(axis=1)
    compared = None
    if baseline:
        compared, extra = await _baseline(cases, summaries, scorer, copies, level, resamples, seed, progress)
        scores = replace(scores, cost=_sum(scores.cost, extra))
    per = _PerContext(summaries, level)
    counted = shape is not None or not any(made.usage.input_tokens for made in chain(*summaries.made))
    cost = partial(_flops, shape or ModelShape(0, 0, 0))
    return Report(
        compressor=summaries.compressor,
        scorer=scorer.name,
        budget=summaries.budget,
        contexts=len(cases),
        summaries=len(texts[0]),
        estimate=told,
        length=stats.mean(lengths, level=level),
        rate=rate(told.bits, lengths, level=level, resamples=resamples, seed=seed),
        prefill_flops=per.figure(lambda made: cost(made)[0]) if counted else None,
        decode_flops=per.figure(lambda made: cost(made)[1]) if counted else None,
        seconds=per.figure(lambda made: made.seconds),
        tokens_read=per.figure(lambda made: made.usage.input_tokens),
        tokens_written=per.figure(lambda made: made.usage.output_tokens),
        joules=summaries.joules,
        baseline=compared,
        cost=scores.cost,
        notes=tuple(_notes(told, scores, texts, copies)),
    )


async def score(
    cases: Sequence[Case],
    texts: Sequence[Sequence[str]],
    scorer: Scorer,
    *,
    copies: int = 0,
    seed: int = 0,
    progress: Progress = silent,
) -> Scores:
    """Every text under every context and its own hard negatives; a context is read once for all that is asked of it.

    Raises DataError for fewer than two contexts, and what the scorer raises.
    """
    pool = [name for case in cases for name in names(case.context)] if copies else []
    negatives = [swapped(c.context, copies, question=c.question, pool=pool, seed=seed) for c in cases]
    contexts = len(cases) + sum(map(len, negatives))
    if contexts < 2:
        raise DataError(
            f"Information needs two contexts to tell apart; there is {contexts}.",
            hint="Give more documents, or hard negatives of the one.",
        )
    asked = [[Ask(case.question, text) for text in of_case] for case, of_case in zip(cases, texts, strict=True)]
    everything = list(dict.fromkeys(chain(*asked)))
    place = {ask: n for n, ask in enumerate(everything)}
    where = np.array([[place[ask] for ask in of_case] for of_case in asked])
    logprobs, lengths = np.empty((*where.shape, len(cases))), np.empty(where.shape)
    of_copies = np.full((*where.shape, max(map(len, negatives))), np.nan)
    scored, begin = list[tuple[int, Scored]](), time.perf_counter()
    for i, (case, own) in enumerate(zip(cases, negatives, strict=True)):
        progress(f"score with {scorer.name}", len(scored), contexts)
        result = await scorer.score(case.context, everything)
        scored.append((len(everything), result))
        logprobs[:, :, i] = np.array(result.logprobs)[where]
        lengths = np.array(result.tokens, dtype=np.float64)[where]
        for c, copy in enumerate(own):
            result = await scorer.score(copy, asked[i])
            scored.append((len(asked[i]), result))
            of_copies[i, :, c] = result.logprobs
    seconds = time.perf_counter() - begin
    cost = Cost(sum(n for n, _ in scored), sum(r.read for _, r in scored), sum(r.flops for _, r in scored), seconds)
    return Scores(logprobs, of_copies, lengths, contexts, sum(r.chunks > 1 for _, r in scored), cost)


async def pointwise(scorer: Scorer, context: str, question: str, summary: str, others: Sequence[str]) -> float:
    """Bits by which one summary tells its context from `others`, at most log2(1 + len(others)); one scoring of the
    summary for each of them.

    Others are contexts of the same task, or `negatives.swapped` copies of this one, which ask whether its names and
    numbers survive. Raises DataError without others.
    """
    if not others:
        raise DataError("Information of one summary needs other contexts.", hint="Give some, or swapped copies.")
    asks = [Ask(question, summary)]
    own, *rest = [(await scorer.score(text, asks)).logprobs[0] for text in (context, *others)]
    return pointwise_bits(own, np.array(rest))


@dataclass(frozen=True, slots=True)
class _PerContext:
    summaries: Summaries
    level: float

    def figure(self, value: Callable[[Compressed], float]) -> Figure:
        """The mean of a value of summaries, by context."""
        return stats.mean(
            [np.mean([value(made) for made in of_case]) for of_case in self.summaries.made], level=self.level
        )


async def _baseline(
    cases: Sequence[Case],
    summaries: Summaries,
    scorer: Scorer,
    copies: int,
    level: float,
    resamples: int,
    seed: int,
    progress: Progress,
) -> tuple[Baseline, Cost]:
    texts = [
        [(await Random().compress(case.context, "", max(made.tokens_out, 1), seed=seed + 1)).text if made.text else ""]
        for case, (made, *_) in zip(cases, summaries.made, strict=True)
    ]
    scores = await score(cases, texts, scorer, copies=copies, seed=seed, progress=progress)
    told = estimate(scores.logprobs, scores.copies, level=level, resamples=resamples, seed=seed)
    lengths = scores.lengths[:, 0]
    per_token = rate(told.bits, lengths, level=level, resamples=resamples, seed=seed)
    return Baseline(told.information, stats.mean(lengths, level=level), per_token), scores.cost


def _flops(shape: ModelShape, made: Compressed) -> tuple[int, int]:
    """(prefill, decode) operations of a summary, as if it was made in one call."""
    read, written = made.usage.input_tokens, made.usage.output_tokens
    return shape.flops(read), shape.flops(written, before=read)


def _sum(one: Cost, other: Cost) -> Cost:
    return Cost(
        one.scores + other.scores, one.tokens + other.tokens, one.flops + other.flops, one.seconds + other.seconds
    )


def _notes(told: Estimate, scores: Scores, texts: Sequence[Sequence[str]], copies: int) -> list[str]:
    count, columns = len(scores.logprobs), scores.contexts
    notes = []
    if told.saturated:
        notes.append(
            f"The estimate is at its bound of {told.bound:.2f} bits: it says that {columns} contexts are told apart, "
            "not how much more there is. Give more contexts, or hard negatives."
        )
    if told.unclipped < 0 and not told.information.high:
        notes.append("Summaries are likelier after other contexts than after their own: are they rightly paired?")
    if scores.cut:
        notes.append(
            f"{scores.cut} of {columns} contexts are longer than the scorer's window and were read in pieces: the "
            "estimate is still a lower bound, and less than it would be with them whole."
        )
    if copies and (fewer := count * (1 + copies) - columns):
        notes.append(f"{fewer} of {count * copies} hard negatives could not be made: too few names and numbers.")
    if empty := sum(not text for of_case in texts for text in of_case):
        notes.append(f"{empty} summaries are empty.")
    if count < _FEW:
        notes.append(f"{count} contexts are too few for intervals that can be trusted.")
    return notes
