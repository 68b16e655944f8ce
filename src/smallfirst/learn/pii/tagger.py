"""Names, addresses, organisations and places: a linear-chain CRF over hashed features, numpy only.

Tokens are words, numbers, single Chinese characters and single signs. A token is described by its word, shape, prefixes
and suffixes, those of its neighbours, conjunctions of these, and the label that it stands under ("name" in
`"customer_name": "..."`, in `Name: ...` and in `<name>...`). The weights are made by `pii.train` from generated text
and shipped beside this file.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from smallfirst.learn.pii.patterns import Finding
from smallfirst.learn.pii.surrogates import CJK

KINDS = ("PERSON", "ADDRESS", "ORG", "LOCATION")
LABELS = ("O", *(f"{place}-{kind}" for kind in KINDS for place in "BI"))
BITS = 18
"""Logarithm of the number of feature buckets."""
CAUTION = 1.0
"""Taken from the log-score of "nothing personal": a name that stays costs more than a word that goes."""
ARTIFACT = Path(__file__).with_name("tagger.npz")
_MASK = np.uint64((1 << BITS) - 1)
_TOKEN = re.compile(rf"[{CJK}]|[^\W\d_{CJK}]+|\d+|\n|[^\s]")
_BREAKS = frozenset("\n{}[]")
_LABEL_ENDS = frozenset(":：=>")
_UNLABELLING = frozenset("\"'`“”‘’*_-")
_BLOCK = 8192
_UNSPANNED = re.compile(r"[\"{}\[\]<>\\|`]|\n\s*\n")
"""What a finding never covers, so that replacing it breaks no JSON, markup or table."""

Ids = NDArray[np.uint64]
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token texts with their spans; `glued`: no white space before it; `near`, `far`: the last word, and the last two,
    of the label that the token stands under, "" for none."""

    texts: list[str]
    starts: list[int]
    ends: list[int]
    glued: list[bool]
    near: list[str]
    far: list[str]


def tokenise(text: str) -> Tokens:
    """The tokens of `text`, in one pass."""
    tokens = Tokens([], [], [], [], [], [])
    near = far = ""
    previous = before = ""
    end = -1
    for match in _TOKEN.finditer(text):
        read = match.group()
        if read in _BREAKS:
            near = far = ""
        tokens.texts.append(read)
        tokens.starts.append(match.start())
        tokens.ends.append(match.end())
        tokens.glued.append(match.start() == end)
        tokens.near.append(near)
        tokens.far.append(far)
        end = match.end()
        if read in _LABEL_ENDS:
            near, far = previous, f"{before} {previous}"
        elif read not in _UNLABELLING:
            before, previous = previous, read.lower()
    return tokens


def features(tokens: Tokens) -> NDArray[np.int64]:
    """Bucket numbers, shape (tokens, features)."""
    words = np.array([_word(text) for text in tokens.texts], dtype=np.uint64).reshape(-1, 8)
    word, shape, prefix2, prefix3, suffix2, suffix3, suffix4, whole = words.T
    glued = np.array(tokens.glued, dtype=np.uint64)
    near, far = (np.array([_hash("f", label) for label in side], dtype=np.uint64) for side in (tokens.near, tokens.far))
    spaced = _mix(shape, glued)
    w1, w2, v1, v2 = (_shifted(word, by) for by in (-1, -2, 1, 2))
    s1, s2, s3, t1, t2, t3 = (_shifted(spaced, by) for by in (-1, -2, -3, 1, 2, 3))
    x1, y1 = _shifted(suffix3, -1), _shifted(suffix3, 1)
    columns = [
        (word,), (whole,), (shape,), (spaced, t1), (prefix2,), (prefix3,), (suffix2,), (suffix3,), (suffix4,),
        (w1,), (w2,), (v1,), (v2,), (s1,), (s2,), (s3,), (t1,), (t2,), (t3,), (x1,), (y1,),
        (w1, word), (word, v1), (w1, spaced), (spaced, v1), (w2, w1), (w2, w1, spaced), (spaced, v1, v2), (w1, v1),
        (w1, word, v1), (s1, spaced, t1), (s2, s1, spaced, t1), (s1, spaced, t1, t2), (s2, s1, spaced, t1, t2),
        (suffix3, s1, t1), (suffix3, w1), (near,), (near, spaced), (near, word), (near, w1), (far,), (far, spaced, s1),
    ]  # fmt: skip
    return np.stack([_bucket(number, parts) for number, parts in enumerate(columns)], axis=1)


@lru_cache(200_000)
def _word(text: str) -> tuple[int, ...]:
    """Hashes of what one token is made of: word, shape, prefixes of 2 and 3, suffixes of 2 to 4, word in its case."""
    plain = re.sub(r"\d", "0", text)
    lower = plain.lower()
    shape = _shape(text)
    cut = (lower[:2], lower[:3], lower[-2:], lower[-3:], lower[-4:])
    parts = [_hash(f"{at}", part) for at, part in enumerate(cut)]
    return (_hash("w", lower), _hash("s", shape), *parts, _hash("c", plain))


def _shape(text: str) -> str:
    """Letter cases, runs of one case shortened to two; digits by number; a sign is its own shape."""
    if text.isdigit():
        return "0" * min(len(text), 6)
    if re.match(f"[{CJK}]", text):
        return "C"
    if not text.isalpha():
        return text
    cases = "".join("X" if c.isupper() else "x" for c in text)
    return re.sub(r"(.)\1+", r"\1\1", cases) + ("" if len(text) > 3 else str(len(text)))


@lru_cache(200_000)
def _hash(kind: str, text: str) -> int:
    return zlib.crc32(f"{kind}\0{text}".encode("utf-8", "surrogatepass"))


def _shifted(ids: Ids, by: int) -> Ids:
    """The ids of the neighbours `by` places on; 1 beyond the ends."""
    moved = np.ones_like(ids)
    if abs(by) < len(ids):
        if by < 0:
            moved[-by:] = ids[:by]
        else:
            moved[:-by] = ids[by:]
    return moved


def _mix(left: Ids, right: Ids) -> Ids:
    mixed: Ids = (left * np.uint64(0x9E3779B1) + right) * np.uint64(0x85EBCA77C2B2AE63)
    return mixed ^ (mixed >> np.uint64(29))


def _bucket(number: int, parts: tuple[Ids, ...]) -> NDArray[np.int64]:
    ids = np.full_like(parts[0], number + 1)
    for part in parts:
        ids = _mix(ids, part)
    return ((ids >> np.uint64(20)) & _MASK).astype(np.int64)


class Tagger:
    """Finds names, addresses, organisations and places in a text, in time linear in it.

    `weights` (2**BITS, labels), `transitions` (label before, label), both log-linear scores.
    """

    def __init__(self, weights: Floats, transitions: Floats) -> None:
        self.weights = weights
        self.transitions = transitions

    @classmethod
    def load(cls, path: Path = ARTIFACT) -> Tagger:
        """The tagger of an artifact that `pii.train` wrote."""
        with np.load(path) as stored:
            return cls(stored["weights"].astype(np.float32) * stored["scale"], stored["transitions"])

    def __call__(self, text: str) -> list[Finding]:
        """The findings of `text`, in order and apart from each other."""
        tokens = tokenise(text)
        labels = self.labels(tokens) if tokens.texts else []
        return [
            finding
            for first, last, kind in spans(labels)
            for finding in _pieces(text, tokens.starts[first], tokens.ends[last], kind)
        ]

    def labels(self, tokens: Tokens) -> list[int]:
        """The likeliest label of each token."""
        ids = features(tokens)
        blocks = range(0, len(ids), _BLOCK)
        scores = np.concatenate([self.weights[ids[at : at + _BLOCK]].sum(1) for at in blocks])
        scores[:, 0] -= CAUTION
        return viterbi(scores, self.transitions)


def viterbi(scores: Floats, transitions: Floats) -> list[int]:
    """The best path through `scores` (tokens, labels) by the Viterbi algorithm."""
    best = scores[0]
    back = np.empty(scores.shape, dtype=np.int8)
    rows = np.arange(scores.shape[1])
    incoming = np.ascontiguousarray(transitions.T)
    for at in range(1, len(scores)):
        candidates = incoming + best
        back[at] = choice = candidates.argmax(1)
        best = candidates[rows, choice] + scores[at]
    path = [int(best.argmax())]
    for at in range(len(scores) - 1, 0, -1):
        path.append(int(back[at, path[-1]]))
    return path[::-1]


def spans(labels: list[int]) -> list[tuple[int, int, str]]:
    """(first token, last token, kind) of each entity."""
    found: list[tuple[int, int, str]] = []
    for at, label in enumerate(labels):
        place, _, kind = LABELS[label].partition("-")
        if place == "I" and found and found[-1][1] == at - 1 and found[-1][2] == kind:
            found[-1] = (found[-1][0], at, kind)
        elif place != "O":
            found.append((at, at, kind))
    return found


def _pieces(text: str, start: int, end: int, kind: str) -> list[Finding]:
    """The finding, cut at the signs that none may cover; parts of identifiers and parts without words are dropped."""
    cuts = [start, *(at for m in _UNSPANNED.finditer(text, start, end) for at in m.span()), end]
    pieces = []
    for first, last in zip(cuts[::2], cuts[1::2], strict=True):
        value = text[first:last]
        first += len(value) - len(value.lstrip(" \n\t,.;:"))
        value = text[first:last].rstrip(" \n\t,;:")
        last = first + len(value)
        inside = text[max(0, first - 1) : first] == "_" or text[last : last + 1] == "_" or "_" in value
        if not inside and any(c.isalnum() for c in value) and (kind == "ADDRESS" or not value.isdigit()):
            pieces.append(Finding(first, last, kind, value))
    return pieces
