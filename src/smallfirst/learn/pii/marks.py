"""What is replaced in the texts of one record, so that what is equal stays equal.

Texts are read as tokens: words, and single Chinese characters. A token is replaced or stays, and its surrogate depends
on nothing but itself, so two places hold the same text afterwards if the same tokens of them are marked. Marks spread:

- what was found once is marked wherever it stands, and so are the parts of a person's name;
- each value of an answer is marked alike where it was asked and where it was answered. Where it stands only as part of
  something longer that was found, that part counts;
- a value that the request's schemas enumerate stays.

Identifiers are replaced whole, so that they keep their form, but for those that a value of an answer is a part of.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import reduce
from itertools import accumulate
from operator import or_

from smallfirst.learn.pii.encodings import Edit
from smallfirst.learn.pii.patterns import STRUCTURED, Finding
from smallfirst.learn.pii.surrogates import TOKEN, Surrogates, identifying, ordinal

_GAP = re.compile(r"[ \n_.+,'’·•-]{0,2}")
"""What may stand between the tokens of a value that was found elsewhere in another writing."""
SMALL = re.compile(r"(?<![\w.@/-])[a-z]{2,}(?![\w@/-]|\.\w)")
"""A word that is written small."""
_PARTS = re.compile(r"[,\n]+")
_LONGEST = 16
"""Tokens of a value that are looked for elsewhere in one piece, which bounds the time."""
_LEAST = 4
"""Letters and digits of an identifier that is looked for elsewhere, and digits of a number."""
_MARKED, _FIXED = 1, 2
"""States of a token, as bits: what is fixed stays though it be marked."""
_PART, _WHOLE = 1, 2
"""How a token is bound to the next: as part of one value, or of an identifier that is replaced whole."""

Tokens = tuple[str, ...]


class Place(Enum):
    """Whose a text of the record is; `SHARED`: the application's, in tools and response formats."""

    ASKED = "asked"
    ANSWERED = "answered"
    SHARED = "shared"


def tokens_of(text: str) -> Tokens:
    """The tokens of `text` without their letter case."""
    return tuple(token.casefold() for token in TOKEN.findall(text))


@dataclass(slots=True)
class _Text:
    """A text by token. `joined` holds the tokens between marks, `offsets` where each begins in it; `whole` the
    identifiers that are replaced whole, as first token, the one behind the last, and surrogate."""

    text: str
    words: list[str]
    keys: Tokens
    starts: list[int]
    ends: list[int]
    joined: str
    offsets: list[int]
    state: bytearray
    bound: bytearray
    whole: list[tuple[int, int, str]] = field(default_factory=list)

    @classmethod
    def of(cls, text: str) -> _Text:
        matches = list(TOKEN.finditer(text))
        starts, ends = [match.start() for match in matches], [match.end() for match in matches]
        words = [match.group() for match in matches]
        keys = tuple(map(str.casefold, words))
        offsets = [0, *accumulate(len(key) + 1 for key in keys)]
        n = len(keys)
        return cls(text, words, keys, starts, ends, _joined(keys), offsets, bytearray(n), bytearray(n))

    def span(self, finding: Finding) -> tuple[int, int]:
        """The first token that the finding touches, and the one behind the last."""
        return bisect_right(self.ends, finding.start), bisect_left(self.starts, finding.end)

    def written(self, first: int, behind: int) -> str:
        """The tokens as they stand in the text, with what is between them."""
        return self.text[self.starts[first] : self.ends[behind - 1]]

    def mark(self, first: int, pattern: bytes, bond: int = _PART) -> None:
        """Marks the tokens of a value from `first` on where `pattern` is 1, and binds them."""
        for at, one in enumerate(pattern, first):
            self.state[at] |= one
        for at in range(first, first + len(pattern) - 1):
            self.bound[at] = max(self.bound[at], bond)

    def near(self, first: int, behind: int) -> bool:
        """Whether the tokens stand as close to each other as those of a value do in any writing."""
        return all(_GAP.fullmatch(self.text, self.ends[at], self.starts[at + 1]) for at in range(first, behind - 1))

    def lay(self, identifiers: Mapping[str, str], lengths: Mapping[str, set[int]]) -> None:
        """Finds the identifiers that are replaced whole, from left to right, the longest at each place. `lengths` are
        those of the identifiers that begin with a token."""
        self.bound = bytearray(min(bond, _PART) for bond in self.bound)
        self.whole = []
        numbers = {end: number for number, end in enumerate(self.ends, 1)}
        at = 0
        while at < len(self.keys):
            for length in sorted(lengths.get(self.keys[at], ()), reverse=True):
                start = self.starts[at]
                made = identifiers.get(self.text[start : start + length])
                behind = numbers.get(start + length)
                if made is not None and behind is not None:
                    self.mark(at, b"\1" * (behind - at), _WHOLE)
                    self.whole.append((at, behind, made))
                    at = behind - 1
                    break
            at += 1

    def places(self, tokens: Tokens) -> Iterator[tuple[int, int]]:
        """Where the tokens stand: the first and the one behind the last."""
        joined = _joined(tokens)
        at = self.joined.find(joined)
        while at >= 0:
            first = bisect_left(self.offsets, at)
            yield first, first + len(tokens)
            at = self.joined.find(joined, at + 1)

    def unlike(self, value: str, first: int) -> int:
        """How what stands from a token on differs from `value`, which has the same tokens: 0 not at all, 1 in letter
        case, 2 in what is between them."""
        before = value.index(TOKEN.findall(value)[0])
        start = max(0, self.starts[first] - before)
        written = self.text[start : start + len(value)]
        return 0 if written == value else 1 if written.casefold() == value.casefold() else 2

    def cut(self, first: int, behind: int) -> int:
        """What lies across an end of the tokens: 0, `_PART` or `_WHOLE`."""
        return max(self.bound[first - 1] if first else 0, self.bound[behind - 1])


def _joined(tokens: Tokens) -> str:
    return "\0" + "".join(f"{token}\0" for token in tokens)


Places = list[tuple[_Text, int, int]]
"""Stretches of tokens: the text, the first and the one behind the last."""


class _Values:
    """Values to be found: of several tokens in any letter case, as they were written or with any of the usual joints
    ("Mia Li", mia_li, MIA-LI); single words as they were written."""

    def __init__(self) -> None:
        self._patterns: dict[Tokens, bytes] = {}
        self._lengths: dict[str, set[int]] = defaultdict(set)
        self._written: set[str] = set()
        self.words: set[str] = set()

    def add(self, value: str, pattern: bytes) -> None:
        """A value and which of its tokens to mark; a long one in pieces."""
        matches = list(TOKEN.finditer(value))
        for at in range(0, len(matches), _LONGEST):
            piece, ones = matches[at : at + _LONGEST], pattern[at : at + _LONGEST]
            tokens = tuple(match.group().casefold() for match in piece)
            if len(tokens) > 1:
                known = self._patterns.get(tokens, bytes(len(tokens)))
                self._patterns[tokens] = bytes(a | b for a, b in zip(known, ones, strict=True))
                self._lengths[tokens[0]].add(len(tokens))
                self._written.add(value[piece[0].start() : piece[-1].end()].casefold())

    def mark(self, text: _Text) -> None:
        """Marks the values that stand in `text`."""
        for at, key in enumerate(text.keys):
            if text.words[at] in self.words:
                text.mark(at, b"\1")
            for length in self._lengths.get(key, ()):
                tokens, behind = text.keys[at : at + length], at + length
                if len(tokens) == length and tokens in self._patterns and self._stands(text, at, behind):
                    text.mark(at, self._patterns[tokens])

    def _stands(self, text: _Text, first: int, behind: int) -> bool:
        return text.near(first, behind) or text.written(first, behind).casefold() in self._written


class Marks:
    """The marks of one record: give it all texts and the answers' values, `settle`, and take the edits.

    `vocabulary`: the names and enumerated values of the record's schemas, in tokens. `ordinary`: words, in small
    letters, that are no names where they were found alone.
    """

    def __init__(
        self, surrogates: Surrogates, vocabulary: frozenset[Tokens], ordinary: frozenset[str] = frozenset()
    ) -> None:
        self._surrogates = surrogates
        self._vocabulary = vocabulary
        self._ordinary = ordinary
        self._texts: dict[tuple[Place, str], _Text] = {}
        self._small: set[str] = set()
        self._names: set[str] = set()
        self._all, self._people = _Values(), _Values()
        self._identifiers: dict[str, str] = {}
        self._answers: dict[str, Tokens] = {}

    def add(self, text: str, findings: Iterable[Finding], place: Place) -> None:
        """A text of the record and what was found in it."""
        if (place, text) in self._texts:
            return
        own = self._texts[place, text] = _Text.of(text)
        if place is not Place.SHARED:
            self._small.update(SMALL.findall(text))
        for finding in findings:
            if finding.kind in STRUCTURED:
                self._identifier(own, finding)
            elif finding.text.casefold() not in self._ordinary and tokens_of(finding.text) not in self._vocabulary:
                own.mark(own.span(finding)[0], self._identifying(finding.text, finding.kind))
                self._name(finding)

    def answer(self, value: str) -> None:
        """A string of an answer: where it stands in what was asked, it is to stand afterwards."""
        if tokens := tokens_of(value):
            self._answers[value] = tokens

    def settle(self) -> None:
        """Spreads the marks. To be called once, after the last text and answer."""
        common = self._small.union(*(word for word in self._vocabulary if len(word) == 1))
        names = {name for name in self._names if name.casefold() not in common}
        self._all.words |= names
        self._people.words |= names
        for (place, _), text in self._texts.items():
            (self._people if place is Place.SHARED else self._all).mark(text)
        while True:
            self._lay()
            places = {value: self._places(value, tokens) for value, tokens in self._answers.items()}
            cut = {identifier for found in places.values() for place in found for identifier in _cut(*place)}
            if not cut:
                break
            for identifier in cut:
                del self._identifiers[identifier]
        for value, tokens in self._answers.items():
            for text, first, behind in places[value] if tokens in self._vocabulary else ():
                text.state[first:behind] = bytes(state | _FIXED for state in text.state[first:behind])
        _unite(list(places.values()))

    def edits(self, text: str, place: Place) -> list[Edit]:
        """Surrogates for what is marked in a text that was added, in order."""
        own = self._texts[place, text]
        edits = [Edit(own.starts[first], own.ends[behind - 1], made) for first, behind, made in own.whole]
        if place is Place.SHARED and own.keys in self._vocabulary:
            return edits
        within = {at for first, behind, _ in own.whole for at in range(first, behind)}
        for at, state in enumerate(own.state):
            if state == _MARKED and at not in within:
                edits.append(Edit(own.starts[at], own.ends[at], self._surrogates.token(own.words[at])))
        return sorted(edits, key=lambda edit: edit.start)

    def _name(self, finding: Finding) -> None:
        """Takes note of a name, address, organisation or place and its parts."""
        person = finding.kind == "PERSON"
        for value in {finding.text, *_PARTS.split(finding.text)}:
            pattern, words = self._identifying(value, finding.kind), TOKEN.findall(value)
            if tokens_of(value) in self._vocabulary:
                continue
            telling = {word for word, one in zip(words, pattern, strict=True) if one and _telling(word)}
            self._names |= telling if person else set()
            for values in (self._all, self._people) if person else (self._all,):
                values.add(value, pattern)
                values.words |= telling if len(words) == 1 else set()

    def _identifying(self, value: str, kind: str) -> bytes:
        """Which tokens of a value identify: but for people, none that is a word of the vocabulary ("Thai" in the name
        of a restaurant)."""
        pattern = identifying(value)
        if kind == "PERSON":
            return pattern
        return bytes(one and (key,) not in self._vocabulary for one, key in zip(pattern, tokens_of(value), strict=True))

    def _identifier(self, own: _Text, finding: Finding) -> None:
        """Takes note of an identifier or secret; signs around its letters and digits are no part of it."""
        first, behind = own.span(finding)
        if first >= behind:
            return
        own.mark(first, b"\1" * (behind - first))
        value = own.written(first, behind)
        if sum(map(str.isalnum, value)) < _LEAST:
            return
        for values in (self._all, self._people):
            values.add(value, b"\1" * (behind - first))
        before, found, after = finding.text.partition(value)
        made = self._surrogates(finding.kind, finding.text)
        if found and made.startswith(before) and made.endswith(after):
            self._identifiers.setdefault(value, made[len(before) : len(made) - len(after)])

    def _lay(self) -> None:
        """Finds the identifiers that are replaced whole, in all texts."""
        lengths: dict[str, set[int]] = defaultdict(set)
        for identifier in self._identifiers:
            lengths[tokens_of(identifier)[0]].add(len(identifier))
        for text in self._texts.values():
            text.lay(self._identifiers, lengths)

    def _places(self, value: str, tokens: Tokens) -> Places:
        """Where a value counts: among the texts that were asked, and among the answers, those places where it is
        written most alike, and of these those that cut least."""
        found: Places = []
        for place in (Place.ASKED, Place.ANSWERED):
            texts = (text for (where, _), text in self._texts.items() if where is place)
            places = [(text, *span) for text in texts for span in text.places(tokens)]
            ranks = [(t.unlike(value, first), t.cut(first, behind)) for t, first, behind in places]
            best = min(ranks, default=None)
            found += [one for one, rank in zip(places, ranks, strict=True) if rank == best]
        return found


def _telling(word: str) -> bool:
    """Whether a word is looked for elsewhere on its own: no single letter, no short number, no day of a month."""
    return len(word) >= (_LEAST if word.isdecimal() else 2) and not ordinal(word)


def _cut(text: _Text, first: int, behind: int) -> Iterator[str]:
    """The identifiers that lie across an end of the tokens."""
    for start, stop, _ in text.whole if text.cut(first, behind) == _WHOLE else ():
        if start < first < stop or start < behind < stop:
            yield text.written(start, stop)


def _unite(groups: list[Places]) -> None:
    """Gives the places of each group the same states, until nothing changes: a value may overlap another."""
    changed = True
    while changed:
        changed = False
        for places in groups:
            states = {bytes(text.state[first:behind]) for text, first, behind in places}
            if len(states) > 1:
                changed = True
                united = bytes(reduce(or_, each) for each in zip(*states, strict=True))
                for text, first, behind in places:
                    text.state[first:behind] = bytes(map(or_, text.state[first:behind], united))
