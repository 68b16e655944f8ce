"""Hard negatives: copies of a document that say the same of other people, places and amounts.

Numbers become other numbers of the same shape, names and quoted titles those of other places in the documents, the same
one everywhere in a copy. Names are found by their capitals, so in scripts without capitals only numbers and quoted
titles change.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence

_NUMBER = re.compile(r"\d+")
_TITLE = re.compile(r"(?<=[《「『“])[^《》「」『』“”\n]{1,40}(?=[》」』”])")
_CAPITAL = r"[A-ZÀ-ÖØ-ÞΑ-ΩА-Я][\w’'-]*"
_NAME = re.compile(rf"(?<![.!?:\n]\s)(?<![\w.!?:\n\"“(])(?<!^){_CAPITAL}(?: {_CAPITAL})*")
"""A run of capitalised words that does not begin a sentence."""


def names(text: str) -> list[str]:
    """The names and quoted titles of `text`, each once, in their order."""
    found = [match.group() for pattern in (_NAME, _TITLE) for match in pattern.finditer(text)]
    return list(dict.fromkeys(found))


def swapped(context: str, copies: int, *, pool: Sequence[str] = (), seed: int = 0) -> list[str]:
    """`copies` copies of `context` with other entities, names drawn from its own and those in `pool`; fewer, or none,
    where it has too few entities to make different ones. The same seed gives the same copies."""
    rng = random.Random(f"{seed} {context}")
    own = names(context)
    choice = list(dict.fromkeys([*own, *pool]))
    made: dict[str, None] = {}
    for _ in range(2 * copies):
        if len(made) == copies:
            break
        copy = _replace(context, _others(own, choice, rng), rng)
        if copy != context:
            made[copy] = None
    return list(made)


def _others(own: Sequence[str], choice: Sequence[str], rng: random.Random) -> dict[str, str]:
    """For each name another one, each drawn once as long as there are enough."""
    left = [*choice]
    rng.shuffle(left)
    others: dict[str, str] = {}
    for name in own:
        at = next((i for i, other in enumerate(left) if other != name), None)
        if at is not None:
            others[name] = left.pop(at)
    return others


def _replace(context: str, others: Mapping[str, str], rng: random.Random) -> str:
    numbers: dict[str, str] = {}

    def number(match: re.Match[str]) -> str:
        return numbers.setdefault(match.group(), _digits(match.group(), rng))

    if not others:
        return _NUMBER.sub(number, context)
    longest_first = sorted(others, key=len, reverse=True)
    pattern = re.compile("|".join(rf"(?<!\w){re.escape(name)}(?!\w)" for name in longest_first))
    pieces, start = [], 0
    for match in pattern.finditer(context):
        pieces += [_NUMBER.sub(number, context[start : match.start()]), others[match.group()]]
        start = match.end()
    return "".join([*pieces, _NUMBER.sub(number, context[start:])])


def _digits(given: str, rng: random.Random) -> str:
    """Another number of as many digits; the first is 0 only where it was."""
    first = "0" if given[0] == "0" and len(given) > 1 else rng.choice("123456789")
    other = first + "".join(rng.choice("0123456789") for _ in given[1:])
    return other if other != given else other[:-1] + str((int(other[-1]) + 1) % 10 or 1)
