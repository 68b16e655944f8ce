"""The texts most like another: the cosine of TF-IDF vectors over words (`assignment.words_of`)."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from smallfirst.assignment import words_of


class Texts:
    """Texts to be compared with."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._count = len(texts)
        counted = [words_of(text) for text in texts]
        having = Counter(word for words in counted for word in words)
        self._rarity = {word: 1 + math.log(len(texts) / n) for word, n in having.items()}
        found: dict[int, list[tuple[int, float]]] = defaultdict(list)
        for n, words in enumerate(counted):
            for word, weight in self._vector(words).items():
                found[word].append((n, weight))
        self._holders = {
            word: (np.array([n for n, _ in at]), np.array([w for _, w in at])) for word, at in found.items()
        }

    def cosines(self, text: str) -> NDArray[np.float64]:
        """How like `text` each of them is, shape (texts,); 0 without a word in common."""
        cosines = np.zeros(self._count)
        for word, weight in self._vector(words_of(text)).items():
            holders, weights = self._holders[word]
            cosines[holders] += weight * weights
        return cosines

    def _vector(self, words: Mapping[int, int]) -> dict[int, float]:
        """TF-IDF weights of the known words, of unit length."""
        weights = {w: (1 + math.log(n)) * self._rarity[w] for w, n in words.items() if w in self._rarity}
        length = math.sqrt(sum(weight**2 for weight in weights.values())) or 1.0
        return {word: weight / length for word, weight in weights.items()}
