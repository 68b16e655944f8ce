"""Documents with questions, as files hold them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from smallfirst.compress.lines import read_lines
from smallfirst.errors import DataError

_BINARY = 0.1
_FORMAT = 'A line is {"context": "..."}, and may have "question": "...", "answers": ["..."], "summaries": ["..."].'


@dataclass(frozen=True, slots=True)
class Case:
    """A context with the question asked of it, "" for none, and the right answers where they are known."""

    context: str
    question: str = ""
    answers: tuple[str, ...] = ()


class _Row(msgspec.Struct, frozen=True):
    context: str | list[str]
    question: str = ""
    answers: list[str] = []
    summaries: list[str] = []


@dataclass(frozen=True, slots=True)
class Material:
    """What a file holds: its cases, summaries of each that were made elsewhere, and notes on what is wrong with it."""

    cases: tuple[Case, ...]
    summaries: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]


def read(path: Path) -> Material:
    """The cases of a JSON Lines file; a context may be a list of documents. Raises DataError that names the line."""
    cases, summaries = [], []
    for _, row in read_lines(path, _Row, _FORMAT):
        text = row.context if isinstance(row.context, str) else "\n\n".join(row.context)
        cases.append(Case(text, row.question, tuple(row.answers)))
        summaries.append(tuple(row.summaries))
    if not cases:
        raise DataError(f"{path} holds no document.", hint=_FORMAT)
    kept = [i for i, case in enumerate(cases) if case.context.strip()]
    found = tuple(cases[i] for i in kept)
    return Material(found, tuple(summaries[i] for i in kept), notes(found, len(cases) - len(kept)))


def notes(cases: Sequence[Case], empty: int = 0) -> tuple[str, ...]:
    """What is wrong with documents, in sentences; `empty` were left out."""
    said = []
    if empty:
        said.append(f"{empty} empty documents were left out.")
    if repeated := len(cases) - len({case.context for case in cases}):
        said.append(f"{repeated} documents are copies of others: no summary can tell them apart.")
    if binary := sum(_junk(case.context) > _BINARY for case in cases):
        said.append(f"{binary} documents look binary: more than a tenth of them are control characters.")
    return tuple(said)


def _junk(text: str) -> float:
    """The share of characters that are no text: control characters but white space, and undecodable bytes."""
    return sum((ord(c) < 32 and not c.isspace()) or c == "\ufffd" for c in text) / len(text)
