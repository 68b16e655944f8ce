"""What was found once in a record is found everywhere in it: other spellings, and the parts of a name."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise

from smallfirst.learn.pii.patterns import Finding
from smallfirst.learn.pii.surrogates import CJK, KEPT

_TOKEN = re.compile(rf"[{CJK}]|[^\W_{CJK}]+")
_GAP = re.compile(r"[ \n_.+,'’·•-]{0,2}")
_LOWER = re.compile(r"(?<![\w.@/-])[a-z]{2,}(?![\w@/-]|\.\w)")
_PARTS = re.compile(r"[,\n]+")


class Names:
    """The names, places, organisations and addresses of one record, matched token by token in linear time.

    A value of several tokens is found in any letter case and with any of the usual joints ("Mia Li", mia_li, MIA-LI). A
    single word is found as it was written, unless the record also uses it as a small word ("will", "may"). `protected`
    are texts in lower case that stay: the names and enumerations of the caller's tools and schemas.
    """

    def __init__(self, protected: frozenset[str]) -> None:
        self._protected = protected
        self._sequences: dict[str, set[tuple[str, ...]]] = defaultdict(set)
        self._words: set[str] = set()
        self._small: set[str] = set()

    def read(self, text: str) -> None:
        """Takes note of the small words of a text of the record."""
        self._small.update(_LOWER.findall(text))

    def learn(self, finding: Finding) -> None:
        """Takes note of a found value."""
        for value in {finding.text, *_PARTS.split(finding.text)}:
            tokens = tuple(_TOKEN.findall(value))
            lower = tuple(token.casefold() for token in tokens)
            if len(tokens) > 1:
                self._sequences[lower[0]].add(lower)
            if len(tokens) == 1 or finding.kind == "PERSON":
                self._words.update(t for t in tokens if len(t) > 1 and t.isalpha() and t.casefold() not in KEPT)

    def protects(self, finding: Finding) -> bool:
        return finding.text.casefold() in self._protected

    def spans(self, text: str) -> Iterator[tuple[int, int]]:
        """Where values stand in `text`, in order and apart from each other, the longest at each place."""
        tokens = list(_TOKEN.finditer(text))
        at = 0
        while at < len(tokens):
            length = self._length(text, tokens, at)
            if length:
                yield tokens[at].start(), tokens[at + length - 1].end()
            at += length or 1

    def _length(self, text: str, tokens: list[re.Match[str]], at: int) -> int:
        """How many tokens the value that begins at token `at` has; 0 for none."""
        first = tokens[at].group()
        for sequence in sorted(self._sequences.get(first.casefold(), ()), key=len, reverse=True):
            stretch = tokens[at : at + len(sequence)]
            if tuple(token.group().casefold() for token in stretch) == sequence and _joined(text, stretch):
                whole = text[stretch[0].start() : stretch[-1].end()].casefold()
                return 0 if whole in self._protected else len(sequence)
        lower = first.casefold()
        return int(first in self._words and lower not in self._small and lower not in self._protected)


def _joined(text: str, stretch: list[re.Match[str]]) -> bool:
    return all(_GAP.fullmatch(text, a.end(), b.start()) for a, b in pairwise(stretch))
