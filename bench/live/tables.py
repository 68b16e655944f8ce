"""What models do in each constraint mode, and which features tell their right answers from wrong ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from live.asking import MODES, Answer, Bench, right
from smallfirst import calibration
from smallfirst.calibration import Labelled
from smallfirst.errors import CalibrationError
from smallfirst.quality import auroc
from smallfirst.stats import Figure, mean, quantile, ratio, wilson
from smallfirst.types import Attempt, Stage

Row = dict[str, Any]
Floats = NDArray[np.float64]

EVIDENCE = ("alone", "second", "samples")
"""What a small answer is judged by beside itself: nothing, the other small model's answer, its own further ones."""
PER = 1000
"""CPS is told for so many right answers."""
FEATURES: Mapping[str, int] = {
    "margin_mean": 1,
    "margin_min": 1,
    "margin_p10": 1,
    "logprob_mean": 1,
    "form_margin_min": 1,
    "form_logprob_sum": 1,
    "pressure_sum": -1,
    "decision_entropy": -1,
}
"""Features of an answer alone, and whether more of them speaks for it (1) or against it (-1)."""
AGREEMENT = {"agree": 1, "agree_arguments": 1}
RESAMPLES = 1000


def others(bench: Bench, small: str, evidence: str) -> tuple[Stage, ...]:
    """The stages that give a small model's answer this evidence; none where there is no second model."""
    second = bench.settings.second(small)
    if evidence == "second" and second is not None:
        return (bench.stage(second, bench.settings.mode),)
    return bench.samples(small) if evidence == "samples" else ()


def kinds(bench: Bench, small: str) -> list[str]:
    """The kinds of evidence there is for a small model's answers."""
    return [evidence for evidence in EVIDENCE if evidence == "alone" or others(bench, small, evidence)]


def usd(bench: Bench, attempt: Attempt) -> float:
    """What an attempt cost; a broken-off one, of which no usage came, the machine's time."""
    spent = attempt.seconds * bench.settings.usd_per_hour / 3600
    return spent if attempt.cost_usd is None else attempt.cost_usd


async def by_mode(bench: Bench) -> list[Row]:
    """A row for each model and mode: its first answer to every question, mended where no model is needed for that.

    ExecRate is of the answer that the stage ends with, repairs included: BFCL's functions cannot be run.
    """
    rows = []
    for model in bench.settings.models:
        known = {mode: await bench.known(bench.stage(model, mode)) for mode in MODES}
        rows += [_mode_row(bench, model, mode, known) for mode in MODES if known[mode]]
    return rows


def _mode_row(bench: Bench, model: str, mode: str, known: Mapping[Any, Mapping[str, Answer]]) -> Row:
    firsts = {question: answer.first for question, answer in known[mode].items()}
    made, n = list(firsts.values()), len(firsts)
    correct = _correct(bench, firsts)
    good = np.array(list(correct.values()))
    fits = np.array([valid(attempt) for attempt in made])
    usages = [attempt.completion.usage for attempt in made if attempt.completion is not None]
    return {
        "model": model,
        "mode": mode,
        "accuracy": wilson(int(good.sum()), n),
        "valid@1": wilson(int(fits.sum()), n),
        "ExecRate": wilson(sum(valid(answer.last) for answer in known[mode].values()), n),
        "wrong-but-valid": wilson(int((fits & ~good).sum()), n),
        "errors": wilson(sum(attempt.error is not None for attempt in made), n),
        "p50 s": quantile([attempt.seconds for attempt in made], 0.5),
        "p95 s": quantile([attempt.seconds for attempt in made], 0.95),
        "tokens in": mean([usage.input_tokens for usage in usages]),
        "tokens out": mean([usage.output_tokens for usage in usages]),
        "CPS": ratio([PER * usd(bench, attempt) for attempt in made], good),
        "tax": _tax(bench, correct, known["free"]) if mode != "free" else None,
    }


def _tax(bench: Bench, correct: Mapping[str, bool], free: Mapping[str, Answer]) -> Figure:
    """accuracy(free) - accuracy of the mode whose answers are `correct`, over the questions that both answered."""
    freely = _correct(bench, {question: answer.first for question, answer in free.items()})
    return mean([float(freely[question]) - correct[question] for question in correct if question in freely])


def _correct(bench: Bench, made: Mapping[str, Attempt]) -> dict[str, bool]:
    return {question.id: right(question, made[question.id]) for question in bench.questions if question.id in made}


async def features(bench: Bench) -> list[Row]:
    """A row for each small model and feature of the answer that its stage ends with: AUROC for right against wrong."""
    rows: list[Row] = []
    for small in bench.settings.smalls:
        for evidence in kinds(bench, small):
            found = await labelled(bench, small, evidence)
            for name, sign in (FEATURES if evidence == "alone" else AGREEMENT).items():
                values = [sign * row.get(name, math.nan) for row in found.rows]
                rows.append({"model": small, "evidence": evidence, "feature": name, **_ranking(values, found.correct)})
            second = bench.settings.second(small) if evidence == "second" else None
            more = await labelled(bench, second, evidence) if second else None
            ranking = _ranking(crossfitted(found, more), found.correct)
            rows.append({"model": small, "evidence": evidence, "feature": "calibrator", **ranking})
    return rows


async def labelled(bench: Bench, small: str, evidence: str) -> Labelled:
    """The features of a small model's answers in the main mode, and whether they are right, by question."""
    known = await bench.known(bench.stage(small, bench.settings.mode), others(bench, small, evidence))
    answered = {question: answer.last for question, answer in known.items() if answer.last.features}
    correct = _correct(bench, answered)
    return Labelled([answered[question].features for question in correct], list(correct.values()), list(correct))


def crossfitted(found: Labelled, more: Labelled | None) -> ArrayLike:
    """Confidences by calibrators that the question did not teach; not a number with too few labels."""
    try:
        return calibration.fit(found.rows, found.correct, groups=found.groups, more=more).crossfitted
    except CalibrationError:
        return np.full(len(found.rows), np.nan)


def _ranking(values: ArrayLike, correct: ArrayLike) -> Row:
    score, label = np.asarray(values, dtype=np.float64), np.asarray(correct, dtype=bool)
    known = np.isfinite(score)
    score, label = score[known], label[known]
    return {"AUROC": auroc_figure(score, label), "right": wilson(int(label.sum()), len(label))}


def auroc_figure(score: Floats, label: NDArray[np.bool_], seed: int = 0) -> Figure:
    """`quality.auroc` with the percentile interval of a bootstrap over answers."""
    value = auroc(score, label)
    if value is None:
        return Figure(None, None, None, len(score), "bootstrap")
    rng = np.random.default_rng(seed)
    drawn = (rng.integers(0, len(score), len(score)) for _ in range(RESAMPLES))
    replicates = [found for index in drawn if (found := auroc(score[index], label[index])) is not None]
    low, high = np.quantile(replicates, (0.025, 0.975)).tolist()
    return Figure(value, low, high, len(score), "bootstrap")


def valid(attempt: Attempt) -> bool:
    """Whether there is an answer that breaks no rule of the request."""
    return attempt.completion is not None and attempt.verdict.ok
