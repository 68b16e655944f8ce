"""Texts that are nearly the same: which repeat others, and which belong together.

Two texts are near when the sets of their shingles (runs of 5 characters, in small letters, white space as one blank)
have a Jaccard similarity of at least a threshold. What most texts share, such as a form that the application fills in,
says nothing about two of them, so shingles that stand in too large a share of the texts are left out first.

The join is exact: of two sets as alike as t, each has one of its |x| - ceil(t |x|) + 1 rarest members in common with
the other's (Chaudhuri, Ganti and Kaushik 2006, prefix filter), so only texts that share such a one are compared.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_WIDTH = 5
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_SPACES = re.compile(r"\s+")
_COMMON = (0.8, 0.4, 0.2, 0.1, 0.05)
_LARGEST = 0.5
_FEW = 10

Ranks = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Near:
    """What was found among texts, by their places.

    `repeats` are near to an earlier text that has the same answer. `cluster` gives each text the first one that it
    hangs together with over near ones. `common` is the share of texts above which a shingle was left out.
    """

    repeats: frozenset[int]
    cluster: tuple[int, ...]
    common: float


def near(texts: Sequence[str], answers: Sequence[str], least: float) -> Near:
    """Which of `texts` are near, that is, alike by at least `least` in (0, 1]; `answers` are what each was answered.

    A shingle is left out when more than 80 % of the texts have it; where more than half of the texts would then hang
    together, so that nothing could be told apart, already at 40, 20, 10 or 5 %. Of fewer than 10 texts all are kept.
    """
    sets = [shingles(text) for text in texts]
    for common in _COMMON:
        found = _join(_ranked(sets, common), answers, least)
        sizes = Counter(found.root(n) for n in range(len(texts)))
        if len(texts) < _FEW or max(sizes.values()) <= _LARGEST * len(texts):
            break
    clusters = tuple(found.root(n) for n in range(len(texts)))
    return Near(frozenset(found.repeats), clusters, common)


def crossings(texts: Sequence[str], sides: Sequence[str | None], least: float, common: float) -> int:
    """How many pairs of near texts have two different `sides` (None: left out); `common` is that of their `Near`."""
    sets, index, crossing = _ranked([shingles(text) for text in texts], common), _Index(least), 0
    for n, ranks in enumerate(sets):
        if sides[n] is not None:
            crossing += sum(sides[m] != sides[n] and index.alike(m, ranks) for m in index.candidates(ranks))
            index.add(n, ranks)
    return crossing


def shingles(text: str) -> NDArray[np.uint64]:
    """Hashes of the text's shingles, sorted, each once."""
    plain = _SPACES.sub(" ", text.strip().casefold()).ljust(_WIDTH)
    codes = np.frombuffer(plain.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    hashes = np.zeros(len(codes) - _WIDTH + 1, np.uint64)
    for place in range(_WIDTH):
        hashes = (hashes + codes[place : place + len(hashes)]) * _FACTOR  # wraps, as a hash may
        hashes ^= hashes >> np.uint64(29)
    return np.unique(hashes)


class Clusters:
    """Things that hang together, known by numbers from 0 (disjoint sets)."""

    def __init__(self, count: int) -> None:
        self._above = list(range(count))

    def root(self, n: int) -> int:
        """The first one of those that `n` hangs together with."""
        while self._above[n] != n:
            self._above[n] = self._above[self._above[n]]
            n = self._above[n]
        return n

    def join(self, one: int, other: int) -> None:
        low, high = sorted((self.root(one), self.root(other)))
        self._above[high] = low


class _Found(Clusters):
    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.repeats: set[int] = set()


class _Index:
    """Sets of ranks that were added, found again by their rarest members."""

    def __init__(self, least: float) -> None:
        self._least = least
        self._sets: dict[int, Ranks] = {}
        self._holders: dict[int, list[int]] = defaultdict(list)

    def candidates(self, ranks: Ranks) -> list[int]:
        """Those added that may be alike, in their order."""
        return sorted({m for rank in self._rarest(ranks) for m in self._holders.get(rank, ())})

    def alike(self, m: int, ranks: Ranks) -> bool:
        other = self._sets[m]
        least = self._least * max(len(other), len(ranks))
        if min(len(other), len(ranks)) < least:
            return False
        shared = len(np.intersect1d(other, ranks, assume_unique=True))
        return shared >= self._least * (len(other) + len(ranks) - shared) - 1e-9

    def add(self, n: int, ranks: Ranks) -> None:
        self._sets[n] = ranks
        for rank in self._rarest(ranks):
            self._holders[rank].append(n)

    def _rarest(self, ranks: Ranks) -> list[int]:
        """The prefix; texts of which nothing is left are alike, and share the rank -1."""
        if not len(ranks):
            return [-1]
        rarest: list[int] = ranks[: len(ranks) - math.ceil(self._least * len(ranks) - 1e-9) + 1].tolist()
        return rarest


def _ranked(sets: Sequence[NDArray[np.uint64]], common: float) -> list[Ranks]:
    """The sets without what is common, as numbers that rise with how many sets have the member."""
    if not sets:
        return []
    members, counts = np.unique(np.concatenate(sets), return_counts=True)
    rank = np.empty(len(members), np.int64)
    rank[np.argsort(counts, kind="stable")] = np.arange(len(members))
    if len(sets) >= _FEW:
        rank[counts > common * len(sets)] = -1
    ranked = (np.sort(rank[np.searchsorted(members, one)]) for one in sets)
    return [one[one >= 0] for one in ranked]


def _join(sets: Sequence[Ranks], answers: Sequence[str], least: float) -> _Found:
    """Repeats are not compared with later texts: what is near to them is, up to the threshold, near to the first."""
    found, index = _Found(len(sets)), _Index(least)
    for n, ranks in enumerate(sets):
        for m in index.candidates(ranks):
            same = answers[m] == answers[n]
            if (same or found.root(m) != found.root(n)) and index.alike(m, ranks):
                found.join(m, n)
                if same:
                    found.repeats.add(n)
                    break
        if n not in found.repeats:
            index.add(n, ranks)
    return found
