"""Hard negatives: copies of a document that differ in the names and numbers of a few sentences.

Copy by copy another sentence changes, the ones that bear on the question first: so a summary can tell the document from
a copy only if it kept what that sentence says. Numbers become other numbers of the same shape, names and quoted titles
those of other places in the documents, the same one wherever they stand in a copy. Names are found by their capitals,
so in scripts without capitals only numbers and quoted titles change.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from itertools import cycle

import numpy as np

from smallfirst.compress.base import sentences
from smallfirst.compress.bm25 import Index
from smallfirst.evidence import terms

_NUMBER = re.compile(r"(?<!\w)\d+(?!\w)|\d+(?=[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af])")
_TITLE = re.compile(r"(?<=[《「『“])[^《》「」『』“”\n]{1,40}(?=[》」』”])")
_CAPITAL = r"[A-ZÀ-ÖØ-ÞΑ-ΩА-Я][\w’'-]*"
_NAME = re.compile(rf"(?<![.!?:\n]\s)(?<![\w.!?:\n\"“(])(?<!^){_CAPITAL}(?: {_CAPITAL})*")
"""A run of capitalised words that does not begin a sentence."""


def names(text: str) -> list[str]:
    """The names and quoted titles of `text`, each once, in their order."""
    found = [match.group() for pattern in (_NAME, _TITLE) for match in pattern.finditer(text)]
    return list(dict.fromkeys(found))


def swapped(context: str, copies: int, *, question: str = "", pool: Sequence[str] = (), seed: int = 0) -> list[str]:
    """`copies` different copies of `context`, names drawn from its own and those in `pool`; fewer, or none, where it
    has too few names and numbers. Without a question sentences change in a random order. The same seed gives the same
    copies."""
    rng = random.Random(f"{seed} {context}")
    known = names(context)
    choice = list(dict.fromkeys([*known, *pool]))
    made: dict[str, None] = {}
    for tries, entities in enumerate(_by_relevance(context, question, known, rng)):
        if len(made) == copies or tries == 4 * copies:
            break
        copy = _replace(context, {entity: _other(entity, choice, rng) for entity in entities})
        if copy != context:
            made[copy] = None
    return list(made)


def _by_relevance(context: str, question: str, known: Sequence[str], rng: random.Random) -> Iterator[list[str]]:
    """The names and numbers of one sentence after the other, over and over; those of the question stay."""
    pieces = sentences(context)
    rng.shuffle(pieces)
    scores = Index([terms(piece) for piece in pieces]).scores(terms(question))
    ranked = [pieces[n] for n in np.argsort(-scores, kind="stable")]
    asked = set(terms(question))
    found = [[name for name in known if name in piece] + _NUMBER.findall(piece) for piece in ranked]
    told = [[entity for entity in entities if not asked.issuperset(terms(entity))] for entities in found]
    return cycle([entities for entities in told if entities])


def _other(entity: str, choice: Sequence[str], rng: random.Random) -> str:
    """Another number as long, or another name; the same where there is none."""
    if entity.isdigit():
        return _digits(entity, rng)
    others = [name for name in choice if name != entity]
    return rng.choice(others) if others else entity


def _replace(context: str, others: dict[str, str]) -> str:
    longest_first = sorted(others, key=len, reverse=True)
    pattern = "|".join(
        _NUMBER.pattern.replace(r"\d+", re.escape(entity)) if entity.isdigit() else rf"(?<!\w){re.escape(entity)}(?!\w)"
        for entity in longest_first
    )
    return re.sub(pattern, lambda match: others[match.group()], context)


def _digits(given: str, rng: random.Random) -> str:
    """Another number of as many digits; the first is 0 only where it was."""
    while True:
        first = "0" if given[0] == "0" and len(given) > 1 else rng.choice("123456789")
        other = first + "".join(rng.choice("0123456789") for _ in given[1:])
        if other != given:
            return other
