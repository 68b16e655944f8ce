"""BM25 over texts that are at hand (Robertson and Zaragoza 2009): of sentences in a context, of sources for a query.

An index of a few hundred texts is made for one question and thrown away, and a second round weighs terms that the first
one found: for that the library `bm25s`, made for fixed corpora of millions, has no place.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_K1, _B = 1.2, 0.75


class Index:
    """Texts as lists of terms, in which terms are looked up."""

    def __init__(self, texts: Sequence[Sequence[str]]) -> None:
        counts = [Counter(text) for text in texts]
        lengths = np.array([len(text) for text in texts], dtype=np.float64)
        self._norm = _K1 * (1 - _B + _B * lengths / max(float(lengths.mean()) if len(texts) else 0.0, 1.0))
        postings: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for n, count in enumerate(counts):
            for term, times in count.items():
                postings[term].append((n, times))
        self._postings: Mapping[str, list[tuple[int, int]]] = dict(postings)
        self._size = len(texts)

    def rarity(self, term: str) -> float:
        """The inverse document frequency of `term`, above 0; greatest for one that no text has."""
        found = len(self._postings.get(term, ()))
        return math.log(1 + (self._size - found + 0.5) / (found + 0.5))

    def having(self, term: str) -> list[int]:
        """The texts that have `term`."""
        return [n for n, _ in self._postings.get(term, ())]

    def scores(self, wanted: Sequence[str]) -> Floats:
        """BM25 of each text for the terms, each counted once; shape (texts,)."""
        found = np.zeros(self._size)
        for term in sorted(set(wanted) & self._postings.keys()):
            at, times = map(np.array, zip(*self._postings[term], strict=True))
            found[at] += self.rarity(term) * times * (_K1 + 1) / (times + self._norm[at])
        return found
