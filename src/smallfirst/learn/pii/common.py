"""Which values and words say nothing of a person, because many episodes share them.

A city or a cuisine that the answers of several episodes name, for an argument that takes few values, singles nobody
out. With an invented word in its place nothing could be learned of it ("sushi is the best" asks for "Japanese"), so it
stays. A customer comes back too: the values of an argument that the tagger often takes for people or addresses are
never common, nor is what identifies by its form.

What is asked has such words as well. A word that is often written small is no name where it stands alone ("I'd like
Ramen"), unless the tagger mostly takes it for a person, and a name that many episodes write, and that it seldom takes
for one, stays ("SFO").
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from smallfirst.learn.pii.marks import SMALL, Tokens, tokens_of
from smallfirst.learn.pii.patterns import Finding, structured
from smallfirst.types import Choice

EPISODES = 5
"""That must share a value, or a word that is written small."""
SMALL_SHARE = 0.2
"""Times that a word is written small, to those with a capital, from which on it is no name: names are seldom so."""
ASKING = 20
"""Episodes that must share a name in what they ask."""
LEAST_ANSWERS = 50
"""With a value for an argument, before any is called common."""
SHARED = 0.7
"""Share of an argument's values that must be common, for it to be one that takes few."""
PEOPLE_SMALL = 0.5
"""Share of the places of a word that is often written small in which the tagger may take it for a person or address."""
PEOPLE_ASKED, PEOPLE_ANSWERED = 0.35, 0.6
"""Share of people and addresses, as the tagger sees them in what was asked and in answers, from which on an argument is
about these. It sees most people, and in answers, which are no sentences, some where there are none."""
_MOST_VALUES = 2_000  # of an argument that may take few
_LOOKED_AT = 5  # places of each kind at which the tagger looks at a value
_LEAST_LOOKED_AT = 3  # for a name
_BESIDE = 100  # characters on both sides of such a place
_MOST_WORDS = 50_000  # of a tenant, and names
_PERSONAL = frozenset({"PERSON", "ADDRESS"})
_CAPITALS = re.compile(r"(?<![\w.@/-])[A-Z][\w'’&-]*(?: [A-Z][\w'’&-]*)*(?![\w@/-])")
"""Words with capitals in a row, which may be a name."""


@dataclass(slots=True)
class _Value:
    """How often a value was given, by which episodes (the first few), and some places where it stands, in context."""

    count: int = 0
    episodes: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    answered: list[str] = field(default_factory=list)

    @property
    def shared(self) -> bool:
        return len(self.episodes) >= EPISODES

    def add(self, count: int, episodes: Iterable[str], asked: Iterable[str]) -> None:
        """More of the same, and places where it was asked."""
        self.count += count
        if len(self.episodes) < ASKING:
            self.episodes.update(episodes)
        self.asked += [*asked][: _LOOKED_AT - len(self.asked)]


@dataclass(slots=True)
class _Asked:
    """What the texts of a tenant have: `small` words, and `rows` of words with capitals. A text counts once."""

    texts: set[int] = field(default_factory=set)
    small: dict[str, _Value] = field(default_factory=dict)
    rows: dict[str, _Value] = field(default_factory=dict)

    def add(self, episode: str, text: str) -> None:
        if (digest := hash(text)) in self.texts:
            return
        self.texts.add(digest)
        for word in set(SMALL.findall(text)):
            if word in self.small or len(self.small) < _MOST_WORDS:
                self.small.setdefault(word, _Value()).add(1, [episode], ())
        for row in {match.group(): match for match in _CAPITALS.finditer(text)}.values():
            if row.group() in self.rows or len(self.rows) < _MOST_WORDS:
                self.rows.setdefault(row.group(), _Value()).add(1, [episode], [_place(text, *row.span())])

    def ordinary(self) -> Mapping[str, _Value]:
        """Words that stand with a capital, but that several episodes write small, and often."""
        capital: dict[str, _Value] = defaultdict(_Value)
        for row, value in self.rows.items():
            for word in row.casefold().split(" "):
                capital[word].add(value.count, (), value.asked)
        small = {word: value.count for word, value in self.small.items() if value.shared}
        return {word: value for word, value in capital.items() if small.get(word, 0) >= SMALL_SHARE * value.count}

    def names(self, ordinary: Collection[str]) -> Mapping[str, _Value]:
        """The rows without ordinary words at their ends ("To Rome")."""
        found: dict[str, _Value] = defaultdict(_Value)
        for row, value in self.rows.items():
            words = row.split(" ")
            for end in (0, -1):
                while words and words[end].casefold() in ordinary:
                    words.pop(end)
            if words:
                found[" ".join(words)].add(value.count, value.episodes, value.asked)
        return found


class CommonValues:
    """Counts the values of answers by tenant and argument, and what is asked by tenant, then tells what is common.
    Memory is bounded by the number of arguments, tenants and texts."""

    def __init__(self, tagger: Callable[[str], Iterable[Finding]]) -> None:
        self._tagger = tagger
        self._seen: dict[tuple[str, str, str], dict[str, _Value]] = defaultdict(dict)
        self._asked: dict[str, _Asked] = defaultdict(_Asked)

    def add(self, tenant: str, episode: str, asked: Sequence[str], choice: Choice) -> None:
        """A call: the texts that were asked, and of the answer those among its arguments, or among its members where it
        is JSON."""
        for text in asked:
            self._asked[tenant].add(episode, text)
        for tool, text in [*((call.name, call.arguments) for call in choice.tool_calls), ("", choice.text)]:
            for name, value in _members(text):
                values = self._seen[tenant, tool, name]
                if value not in values and len(values) > _MOST_VALUES:
                    continue
                known = values.setdefault(value, _Value())
                known.add(1, [episode], ())
                _keep(known.answered, [text], value)
                _keep(known.asked, reversed(asked), value)

    def ordinary(self) -> Mapping[str, frozenset[str]]:
        """Of each tenant, the words that are no names where they stand alone, in small letters."""
        return {
            tenant: frozenset(
                word for word, value in asked.ordinary().items() if self._seldom(word, value, PEOPLE_SMALL)
            )
            for tenant, asked in self._asked.items()
        }

    def found(self) -> Mapping[str, frozenset[Tokens]]:
        """The common values and names of each tenant, in tokens."""
        common: dict[str, set[Tokens]] = defaultdict(set)
        for tenant, asked in self._asked.items():
            for name, value in asked.names(asked.ordinary()).items():
                many = len(value.episodes) >= ASKING and not structured(name)
                if many and self._seldom(name, value, PEOPLE_ASKED):
                    common[tenant].add(tokens_of(name))
        for (tenant, _, _), values in self._seen.items():
            answers = sum(value.count for value in values.values())
            shared = {text: value for text, value in values.items() if value.shared}
            few = sum(value.count for value in shared.values()) >= SHARED * answers
            if few and answers >= LEAST_ANSWERS and len(values) <= _MOST_VALUES and not self._people(shared):
                common[tenant] |= {tokens_of(text) for text in shared if not structured(text)}
        return {tenant: frozenset(tokens - {()}) for tenant, tokens in common.items() if tokens}

    def _seldom(self, name: str, value: _Value, most: float) -> bool:
        """Whether the tagger takes a name for a person or an address in at most that share of enough places."""
        return len(value.asked) >= _LEAST_LOOKED_AT and self._share((name, place) for place in value.asked) <= most

    def _people(self, values: Mapping[str, _Value]) -> bool:
        """Whether many of the values are people or addresses."""
        asked = self._share((text, one) for text, value in values.items() for one in value.asked)
        answered = self._share((text, one) for text, value in values.items() for one in value.answered)
        return asked > PEOPLE_ASKED or answered > PEOPLE_ANSWERED

    def _share(self, stands: Iterable[tuple[str, str]]) -> float:
        """The share of values that the tagger takes for people or addresses where they stand: (value, text)."""
        seen = [
            any(f.kind in _PERSONAL and _within(f.text, value) for f in self._tagger(text)) for value, text in stands
        ]
        return sum(seen) / max(len(seen), 1)


def _within(one: str, other: str) -> bool:
    """Whether one is a part of the other, in any letter case."""
    one, other = one.casefold(), other.casefold()
    return one in other or other in one


def _place(text: str, start: int, end: int) -> str:
    """What stands there, with what is beside it."""
    return text[max(0, start - _BESIDE) : end + _BESIDE]


def _keep(places: list[str], texts: Iterable[str], value: str) -> None:
    """Keeps the first place of `value` in `texts`, as long as there are few."""
    if len(places) < _LOOKED_AT:
        found = ((text, text.find(value)) for text in texts)
        places += [_place(text, at, at + len(value)) for text, at in found if at >= 0][:1]


def _members(text: str) -> Iterator[tuple[str, str]]:
    """The members of a JSON object that are texts; nothing of what is none."""
    try:
        value: Any = msgspec.json.decode(text) if text.startswith("{") else None
    except (msgspec.DecodeError, UnicodeEncodeError):
        return
    if isinstance(value, dict):
        yield from ((name, member) for name, member in value.items() if isinstance(member, str) and member)
