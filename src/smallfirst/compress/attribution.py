"""Whose fault wrong answers are: the compressor's, who lost what was needed, or the predictor's, who had it.

The same cases are answered after several compressors by one or more predictors. Two compressors bound the others:
`oracle` keeps exactly what the answer needs, `empty` keeps nothing. A wrong answer after a compressor is the
compressor's loss if the same predictor is right after the oracle, and the predictor's if it is wrong even then; in the
sum, acc(oracle) - acc(Z) is the compressor's and the rest, 1 - acc(oracle), the predictor's. Some of the compressor's
losses are made good by luck elsewhere: right answers after Z where the oracle's were wrong.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from smallfirst import stats
from smallfirst.compress.lines import read_lines
from smallfirst.errors import DataError
from smallfirst.stats import Figure

_FORMAT = 'A line is {"id": ..., "compressor": ..., "predictor": ..., "correct": true or false}.'
ORACLE, EMPTY = "oracle", "empty"
EXAMPLES = 3
Whose = Literal["compressor", "predictor"]


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the file: the case `id` answered by `predictor` after `compressor`; the texts are for examples."""

    id: str
    compressor: str
    predictor: str = "predictor"
    correct: bool
    question: str = ""
    summary: str = ""
    answer: str = ""
    expected: str = ""


@dataclass(frozen=True, slots=True)
class Example:
    """A wrong answer and whose it is."""

    whose: Whose
    answer: Answer


@dataclass(frozen=True, slots=True)
class Attribution:
    """One compressor with one predictor, on the cases that the oracle and `empty` answered too.

    Of all cases: `accuracy`, `oracle` and `empty`; `loss` = oracle - accuracy, the compressor's, and `rest` = 1 -
    oracle, the predictor's. Of the wrong answers: `lost` by the compressor, `missed` by the predictor, and those that
    another predictor, or another compressor, has right (`by_predictor`, `by_compressor`; None without another).
    `lucky`: right though wrong after the oracle, of all. `guessed`: right without any context, of the right ones.
    """

    compressor: str
    predictor: str
    cases: int
    accuracy: Figure
    oracle: Figure
    empty: Figure
    loss: Figure
    rest: Figure
    lost: Figure
    missed: Figure
    lucky: Figure
    guessed: Figure
    by_predictor: Figure | None
    by_compressor: Figure | None
    examples: tuple[Example, ...]


def read(path: Path) -> list[Answer]:
    """The answers in a JSONL file. Raises DataError that names the line."""
    return [answer for _, answer in read_lines(path, Answer, _FORMAT)]


def attribute(answers: Sequence[Answer], *, level: float = 0.95) -> list[Attribution]:
    """The attribution of every compressor with every predictor, in the order of the answers.

    Raises DataError when a case is answered twice, when a predictor has no answers after the oracle or `empty`, and
    when there is no other compressor.
    """
    table: dict[tuple[str, str], dict[str, Answer]] = defaultdict(dict)
    for answer in answers:
        cell = table[answer.compressor, answer.predictor]
        if answer.id in cell:
            raise DataError(
                f"Case {answer.id!r} is answered twice by {answer.predictor!r} after {answer.compressor!r}."
            )
        cell[answer.id] = answer
    found = [_one(c, p, table, level) for c, p in table if c not in (ORACLE, EMPTY)]
    if not found:
        raise DataError(
            "There are no answers after a compressor.",
            hint=f"Compressors other than {ORACLE!r} and {EMPTY!r} are judged.",
        )
    return found


def _one(
    compressor: str, predictor: str, table: Mapping[tuple[str, str], Mapping[str, Answer]], level: float
) -> Attribution:
    for bound in (ORACLE, EMPTY):
        if (bound, predictor) not in table:
            raise DataError(
                f"{predictor!r} has no answers after {bound!r}.",
                hint="Answer the cases with exactly the passages that matter, and with no context at all.",
            )
    own, best, none = (table[c, predictor] for c in (compressor, ORACLE, EMPTY))
    ids = [i for i in own if i in best and i in none]
    if not ids:
        raise DataError(f"No case after {compressor!r} has answers after {ORACLE!r} and {EMPTY!r} too.")
    right, able, knew = (np.array([cell[i].correct for i in ids]) for cell in (own, best, none))
    wrong = ~right
    n, errors = len(ids), int(wrong.sum())
    examples = [Example("compressor" if able[k] else "predictor", own[i]) for k, i in enumerate(ids) if wrong[k]]
    return Attribution(
        compressor=compressor,
        predictor=predictor,
        cases=n,
        accuracy=stats.wilson(int(right.sum()), n, level),
        oracle=stats.wilson(int(able.sum()), n, level),
        empty=stats.wilson(int(knew.sum()), n, level),
        loss=stats.mean(able.astype(float) - right, level=level),
        rest=stats.wilson(int((~able).sum()), n, level),
        lost=stats.wilson(int((wrong & able).sum()), errors, level),
        missed=stats.wilson(int((wrong & ~able).sum()), errors, level),
        lucky=stats.wilson(int((right & ~able).sum()), n, level),
        guessed=stats.wilson(int((right & knew).sum()), n - errors, level),
        by_predictor=_mended(own, [c for (z, p), c in table.items() if z == compressor and p != predictor], level),
        by_compressor=_mended(
            own, [c for (z, p), c in table.items() if p == predictor and z not in (compressor, ORACLE, EMPTY)], level
        ),
        examples=tuple(e for whose in ("compressor", "predictor") for e in _first(examples, whose)),
    )


def _mended(own: Mapping[str, Answer], others: Sequence[Mapping[str, Answer]], level: float) -> Figure | None:
    """The share of own wrong answers that at least one of the others has right, of those that all answered."""
    wrong = [i for i, answer in own.items() if not answer.correct and all(i in other for other in others)]
    if not others:
        return None
    return stats.wilson(sum(any(other[i].correct for other in others) for i in wrong), len(wrong), level)


def _first(examples: Sequence[Example], whose: str) -> list[Example]:
    return [example for example in examples if example.whose == whose][:EXAMPLES]
