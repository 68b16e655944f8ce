"""Shortening by selection: the sentences that a question needs, verbatim, in their order, under their headings.

A context is cut into pieces (sentences, lines, code blocks), which belong to parts (what stands under one heading, else
a paragraph). Pieces are ranked by BM25 with the question, helped by what evidence is spread over:

- a piece is read with the heading of its part, and shares a little of its part's best score;
- bridge: names and numbers in the best pieces that the question does not have are looked up in a second round, so
  that a question of two steps finds the second one;
- a part whose heading is named by the question or by one of the best pieces of other parts comes forward;
- pieces with an identifier of the question (`order-17`, `max_tokens`) or with words that it quotes come first.

Code blocks are kept whole. What is left out between kept pieces of a part is marked `[…]`. No model, no grammar of any
language: words are compared by `evidence.terms`, which pairs the characters of Chinese and Japanese.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np

from smallfirst.compress.base import Compressed, Count, count_tokens, selected, sentences, within
from smallfirst.compress.bm25 import Floats, Index
from smallfirst.evidence import terms

GAP = "[…]"
LONGEST = 120
"""Tokens of a piece beyond which it is cut at commas, else anywhere: no sentence is that long."""

_BEST = 3
_BRIDGES = 8
_PART, _LEAD, _BRIDGE, _NAMED, _ASKED = 0.3, 0.4, 0.5, 0.8, 1.0
_HEADING = 25
_TAIL = 12
"""Characters at a sentence's end in which an abbreviation is looked for."""

_FENCE = r"(?:^|(?<=\n))[ \t]*(?:```|~~~)[^\n]*\n(?:.*?\n[ \t]*(?:```|~~~)[ \t]*(?=\n|$)|.*$)\n*"
_LABEL = r"(?:^|(?<=\n))(?:document|passage|doc|source)[ \t]*\[?\d+\]?(?:[ \t]*\(title:[^\n]{0,150}?\)(?=\s)|:)\s*"
_SPECIAL = re.compile(f"({_FENCE})|({_LABEL})", re.IGNORECASE | re.DOTALL)
_MARKED = re.compile(r"\s*(?:#{1,6}\s|\[\d+\]|(?:title|source|document|section|file|url)\b[^\n]{0,40}:)", re.IGNORECASE)
_LISTED = re.compile(r"\s*(?:[-*•|>{\[\"']|\d+[.)]\s)")
_ENDED = re.compile(r"[.!?;:,。！？；：，][\"')\]”’」』）]*\s*$")
_ABBREVIATED = re.compile(r"(?:\b(?:[A-Z]|Mr|Mrs|Ms|Dr|St|Prof|vs|No|Fig|cf|al|e\.g|i\.e|U\.S)\.)\s*$")
_COMMA = re.compile(r"(?<=[,;，、；}\]])\s*|\s+")
_NAME = re.compile(r"\b[A-Z][\w-]*|\d[\d.,]*\d|\d|[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")
_ASIDE = re.compile(r"\([^)]*\)")
_ASKED_FOR = re.compile(
    r'"([^"\n]{2,80})"|“([^”\n]{2,80})”|`([^`\n]{2,80})`'
    r"|((?=[\w./:@#-]*[A-Za-z_])(?=[\w./:@#-]*\d)\w+(?:[-_./:@#]\w+)*|\w+(?:[_/@#]\w+)+)"
)

Kind = Literal["text", "heading", "kept"]


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a context with the white space behind it. `part` numbers what it belongs to; a "heading" goes with
    the kept pieces of its part, what is "kept" always stays."""

    text: str
    part: int
    kind: Kind = "text"


@dataclass(frozen=True, slots=True)
class Selection:
    """What was kept of each context, "" for nothing, and what says how much that may be trusted (see `select`)."""

    texts: tuple[str, ...]
    facts: Mapping[str, float]


def cut(context: str) -> list[Piece]:
    """`context` in pieces; their texts joined are `context` again."""
    raw = [piece for block in _blocks(context) for piece in _cut_block(*block)]
    kinds = [_kind_of(raw, n) for n in range(len(raw))]
    headed = "heading" in kinds
    pieces, part = list[Piece](), 0
    for n, (text, _) in enumerate(raw):
        opens = kinds[n] == "heading" if headed else n > 0 and "\n\n" in _space_behind(raw[n - 1][0])
        part += opens
        pieces.append(Piece(text, part, kinds[n]))
    return pieces


def _blocks(context: str) -> Iterator[tuple[str, Kind]]:
    """Code blocks and labels such as "Document [3](Title: ...)", and the text between them."""
    at = 0
    for match in _SPECIAL.finditer(context):
        if context[at : match.start()]:
            yield context[at : match.start()], "text"
        yield match[0], "kept" if match[1] else "heading"
        at = match.end()
    if context[at:]:
        yield context[at:], "text"


def _cut_block(text: str, kind: Kind) -> list[tuple[str, Kind]]:
    """Text in sentences and lines, abbreviations mended, none much longer than LONGEST tokens."""
    if kind != "text":
        return [(text, kind)]
    pieces: list[list[str]] = []
    for sentence in sentences(text) or [text]:
        before = pieces[-1][-1] if pieces else ""
        if _ABBREVIATED.search(before[-_TAIL:]) and "\n" not in _space_behind(before):
            pieces[-1].append(sentence)
        else:
            pieces.append([sentence])
    return [(short, kind) for piece in pieces for short in _shortened("".join(piece))]


def _shortened(piece: str) -> Iterator[str]:
    if len(piece) <= LONGEST or count_tokens(piece) <= LONGEST:
        yield piece
        return
    ends = [match.end() for match in _COMMA.finditer(piece)]
    start = end = 0
    for at in [*ends, len(piece)]:
        if at - start > 3 * LONGEST and end > start:
            yield piece[start:end]
            start = end
        while at - start > 6 * LONGEST:
            yield piece[start : start + 3 * LONGEST]
            start += 3 * LONGEST
        end = at
    yield piece[start:]


def _kind_of(raw: Sequence[tuple[str, Kind]], n: int) -> Kind:
    """A line alone that is marked as a heading, or opens a paragraph and ends like none of its sentences."""
    text, kind = raw[n]
    if kind != "text" or n + 1 == len(raw) or "\n" not in _space_behind(text) or not text.strip():
        return kind
    before = _space_behind(raw[n - 1][0]) if n else "\n\n"
    if "\n" not in before or len(text) > 8 * _HEADING or count_tokens(text) > _HEADING:
        return kind
    opens = "\n\n" in before and "\n\n" not in _space_behind(text)
    plain = opens and not _ENDED.search(text) and not _LISTED.match(text)
    return "heading" if plain or _MARKED.match(text) else kind


def _space_behind(text: str) -> str:
    return text[len(text.rstrip()) :].replace("\r", "")


def select(contexts: Sequence[str], question: str, budget: int, count: Count = count_tokens) -> Selection:
    """Keep of all `contexts` together about `budget` tokens (code blocks whatever they take) for `question`.

    Facts: found, the share of the question's words that the contexts have, and coverage, the share of those that were
    kept, both weighted by rarity; mass, the share of all relevance that was kept; margin, by how much the least kept
    piece outdoes the best dropped one, relative to the best of all.
    """
    pieces, owned = list[Piece](), list[range]()
    for context in contexts:
        offset, start = pieces[-1].part + 1 if pieces else 0, len(pieces)
        pieces += [Piece(p.text, p.part + offset, p.kind) for p in cut(context)]
        owned.append(range(start, len(pieces)))
    ranking = _Ranking(pieces, question)
    chosen = _chosen(pieces, ranking.scores, budget, count)
    return Selection(tuple(_rendered(own, chosen, pieces) for own in owned), ranking.facts(chosen))


class _Ranking:
    """The pieces' relevance: `scores`, shape (pieces,)."""

    def __init__(self, pieces: Sequence[Piece], question: str) -> None:
        self._wanted = sorted(set(terms(question)))
        self._own = [set(terms(piece.text)) for piece in pieces]
        self._pieces = pieces
        self._parts: dict[int, list[int]] = defaultdict(list)
        for n, piece in enumerate(pieces):
            self._parts[piece.part].append(n)
        self._titles = {pieces[n].part: n for n in range(len(pieces)) if pieces[n].kind == "heading"}
        title = {part: sorted(self._own[n]) for part, n in self._titles.items()}
        self._index = Index([[*terms(p.text), *(title.get(p.part, ()) if p.kind == "text" else ())] for p in pieces])
        self.scores = self._ranked(question)

    def _ranked(self, question: str) -> Floats:
        scores = self._index.scores(self._wanted)
        most = float(scores.max(initial=0.0))
        if most == 0:
            return self._by_place()
        for members in self._parts.values():
            scores[members] += _PART * scores[members].max()
            lead = next((n for n in members if self._pieces[n].kind == "text"), members[0])
            scores[lead] *= 1 + _LEAD
        most = float(scores.max())
        found = self._index.scores(self._bridges(scores))
        if found.max(initial=0.0) > 0:
            scores += _BRIDGE * found * most / found.max()
        for part in self._named(scores):
            scores[self._parts[part]] += _NAMED * most
        asked = [next(filter(None, groups)) for groups in _ASKED_FOR.findall(question)]
        scores += [_ASKED * most * sum(word in piece.text for word in asked) for piece in self._pieces]
        return scores

    def _by_place(self) -> Floats:
        """Without any word in common: the beginnings of all parts."""
        places = np.zeros(len(self._pieces))
        for members in self._parts.values():
            places[members] = 1 / (1 + np.arange(len(members)))
        return places

    def _best(self, scores: Floats, count: int) -> list[int]:
        return [int(n) for n in np.argsort(-scores, kind="stable")[:count] if scores[n] > 0]

    def _bridges(self, scores: Floats) -> list[str]:
        """The rarest of the names and numbers in the best pieces that the question lacks."""
        weights: dict[str, float] = {}
        best = self._best(scores, _BEST)
        for n in best:
            part = self._pieces[n].part
            text = self._pieces[n].text
            if part in self._titles:
                text = f"{self._pieces[self._titles[part]].text} {text}"
            for term in {t for name in _NAME.findall(text) for t in terms(name)}.difference(self._wanted):
                worth = scores[n] / scores[best[0]] * self._index.rarity(term)
                weights[term] = max(weights.get(term, 0.0), worth)
        return sorted(weights, key=lambda term: (-weights[term], term))[:_BRIDGES]

    def _named(self, scores: Floats) -> list[int]:
        """The parts whose heading the question names, or one of the best pieces of other parts."""
        best = self._best(scores, _BEST + 1)
        named = []
        for part, n in self._titles.items():
            title = set(terms(_ASIDE.sub("", self._pieces[n].text)))
            elsewhere = any(title <= self._own[m] for m in best if self._pieces[m].part != part)
            if title and (elsewhere or title <= set(self._wanted)):
                named.append(part)
        return named

    def facts(self, chosen: Collection[int]) -> dict[str, float]:
        kept: set[str] = set().union(*(self._own[n] for n in chosen))
        there: set[str] = set().union(*self._own)
        weight = {term: self._index.rarity(term) for term in self._wanted}
        present = sum(w for term, w in weight.items() if term in there)
        covered = sum(w for term, w in weight.items() if term in kept)
        texts = [n for n, piece in enumerate(self._pieces) if piece.kind == "text"]
        most, mass = float(self.scores.max(initial=0.0)), float(self.scores[texts].sum())
        inside = [float(self.scores[n]) for n in texts if n in chosen]
        outside = [float(self.scores[n]) for n in texts if n not in chosen]
        return {
            "found": present / sum(weight.values()) if weight else 0.0,
            "coverage": covered / present if present else 0.0,
            "mass": sum(inside) / mass if mass else 1.0,
            "margin": (min(inside, default=0.0) - max(outside, default=0.0)) / most if most else 0.0,
        }


def _chosen(pieces: Sequence[Piece], scores: Floats, budget: int, count: Count) -> set[int]:
    """The most relevant pieces that fit, each with the heading of its part, and what is always kept."""
    headings = {piece.part: n for n, piece in enumerate(pieces) if piece.kind == "heading"}
    chosen = {n for n, piece in enumerate(pieces) if piece.kind == "kept"}
    room, gap = budget - sum(count(pieces[n].text) for n in chosen), count(GAP)
    order = np.argsort(-scores, kind="stable")
    for n in (int(n) for n in order if pieces[n].kind == "text" and scores[n] > 0 and pieces[n].text.strip()):
        heading = headings.get(pieces[n].part, n)
        takes = {n, heading} - chosen
        price = sum(count(pieces[m].text) for m in takes) + gap * (n > 0 and n - 1 not in takes and n - 1 not in chosen)
        if price <= room:
            chosen |= takes
            room -= price
    return chosen


def _rendered(own: Sequence[int], chosen: Collection[int], pieces: Sequence[Piece]) -> str:
    """The chosen pieces of one context, gaps between those of one part marked."""
    kept = [n for n in own if n in chosen]
    if not kept:
        return ""
    out = [pieces[kept[0]].text]
    for before, n in pairwise(kept):
        if n > before + 1:
            inside = pieces[n].part == pieces[before].part
            out.append(f" {GAP} " if inside and pieces[n].kind != "kept" else "\n\n")
            out[-2] = out[-2].rstrip()
        out.append(pieces[n].text)
    return "".join(out).strip()


@dataclass(frozen=True, slots=True)
class Extract:
    """Keeps the sentences that the question needs (see the module's docstring)."""

    count: Count = count_tokens
    name: str = "extract"

    async def compress(self, context: str, question: str, budget: int, *, seed: int = 0) -> Compressed:
        del seed
        return self.together([context], question, budget)[0]

    def together(self, contexts: Sequence[str], question: str, budget: int) -> list[Compressed]:
        """All contexts shortened to `budget` tokens together, as the question needs them; each has the facts of all."""
        begin = time.perf_counter()
        sizes = [self.count(context) for context in contexts]
        if sum(sizes) <= budget:
            return [Compressed(context, size, size) for context, size in zip(contexts, sizes, strict=True)]
        found = select(contexts, question, budget, self.count)
        made = []
        for context, size, text in zip(contexts, sizes, found.texts, strict=True):
            left = self.count(text)
            kept = (text, left) if left < size else (context, size)
            made.append(Compressed(kept[0], size, kept[1], facts=found.facts))
        seconds = (time.perf_counter() - begin) / len(contexts)
        return [replace(each, seconds=seconds) for each in made]


@dataclass(frozen=True, slots=True)
class Bm25:
    """Keeps the sentences of greatest BM25 with the question, and nothing else is looked at: the baseline."""

    count: Count = count_tokens
    name: str = "bm25"

    async def compress(self, context: str, question: str, budget: int, *, seed: int = 0) -> Compressed:
        del seed
        pieces = sentences(context)
        scores = Index([terms(piece) for piece in pieces]).scores(terms(question))
        order = np.argsort(-scores, kind="stable").tolist()
        return selected(within(order, pieces, budget, self.count), pieces, context, self.count)
