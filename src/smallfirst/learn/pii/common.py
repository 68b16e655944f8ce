"""Which values and words say nothing of a person, because many episodes share them.

A city or a cuisine that the answers of several episodes name, for an argument that takes few values, singles nobody
out. With an invented word in its place nothing could be learned of it ("sushi is the best" asks for "Japanese"), so it
stays. A customer comes back too: the values of an argument that the tagger often takes for people or addresses are
never common, nor is what identifies by its form.

What is asked has such words as well. A word that is often written small is no name where it stands alone ("I'd like
Ramen"), and a name that many episodes write, and that the tagger seldom takes for a person or an address, stays
("SFO").
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
PEOPLE_ASKED, PEOPLE_ANSWERED = 0.35, 0.6
"""Share of people and addresses, as the tagger sees them in what was asked and in answers, from which on an argument is
about these. It sees most people, and in answers, which are no sentences, some where there are none."""
_MOST_VALUES = 2_000  # of an argument that may take few
_LOOKED_AT = 5  # texts of each kind in which the tagger looks at a value
_MOST_CHARACTERS = 2_000  # of such a text
_MOST_WORDS = 50_000  # of a tenant, and names
_PERSONAL = frozenset({"PERSON", "ADDRESS"})
_CAPITALS = re.compile(r"(?<![\w.@/-])[A-Z][\w'’&-]*(?: [A-Z][\w'’&-]*)*(?![\w@/-])")
"""Words with capitals in a row, which may be a name."""


@dataclass(slots=True)
class _Value:
    """How often a value was given, by which episodes (the first few), and some of the texts that it stands in."""

    count: int = 0
    episodes: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    answered: list[str] = field(default_factory=list)

    @property
    def shared(self) -> bool:
        return len(self.episodes) >= EPISODES

    def add(self, count: int, episodes: Iterable[str], asked: Iterable[str]) -> None:
        """More of the same; texts are kept once several episodes share the value."""
        self.count += count
        if len(self.episodes) < ASKING:
            self.episodes.update(episodes)
        if self.shared:
            for text in asked:
                _keep(self.asked, [text])


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
        for known, found in ((self.small, SMALL), (self.rows, _CAPITALS)):
            for word in set(found.findall(text)):
                if word in known or len(known) < _MOST_WORDS:
                    known.setdefault(word, _Value()).add(1, [episode], [text])

    def ordinary(self) -> frozenset[str]:
        """Words that stand with a capital, but that several episodes write small, and often."""
        capital = Counter[str]()
        for row, value in self.rows.items():
            for word in row.casefold().split(" "):
                capital[word] += value.count
        small = {word: value.count for word, value in self.small.items() if value.shared}
        return frozenset(word for word, count in capital.items() if small.get(word, 0) >= SMALL_SHARE * count)

    def names(self, ordinary: frozenset[str]) -> Mapping[str, _Value]:
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
                known.count += 1
                if not known.shared:
                    known.episodes.add(episode)
                _keep(known.answered, [text])
                _keep(known.asked, (one for one in reversed(asked) if value in one))

    def found(self) -> Mapping[str, frozenset[Tokens]]:
        """The common values and words of each tenant, in tokens."""
        common: dict[str, set[Tokens]] = defaultdict(set)
        for tenant, asked in self._asked.items():
            ordinary = asked.ordinary()
            common[tenant] |= {(word,) for word in ordinary}
            for name, value in asked.names(ordinary).items():
                many = len(value.episodes) >= ASKING and not structured(name)
                if many and self._share((name, text) for text in value.asked) <= PEOPLE_ASKED:
                    common[tenant].add(tokens_of(name))
        for (tenant, _, _), values in self._seen.items():
            answers = sum(value.count for value in values.values())
            shared = {text: value for text, value in values.items() if value.shared}
            few = sum(value.count for value in shared.values()) >= SHARED * answers
            if few and answers >= LEAST_ANSWERS and len(values) <= _MOST_VALUES and not self._people(shared):
                common[tenant] |= {tokens_of(text) for text in shared if not structured(text)}
        return {tenant: frozenset(tokens - {()}) for tenant, tokens in common.items() if tokens}

    def _people(self, values: Mapping[str, _Value]) -> bool:
        """Whether many of the values are people or addresses."""
        asked = self._share((text, one) for text, value in values.items() for one in value.asked)
        answered = self._share((text, one) for text, value in values.items() for one in value.answered)
        return asked > PEOPLE_ASKED or answered > PEOPLE_ANSWERED

    def _share(self, stands: Iterable[tuple[str, str]]) -> float:
        """The share of values that the tagger takes for people or addresses where they stand: (value, text)."""
        seen = [
            any(f.kind in _PERSONAL and (f.text in value or value in f.text) for f in self._tagger(text))
            for value, text in stands
        ]
        return sum(seen) / max(len(seen), 1)


def _keep(texts: list[str], more: Iterable[str]) -> None:
    """Keeps the first of `more`, as long as there are few and it is not too long."""
    text = next(iter(more), None) if len(texts) < _LOOKED_AT else None
    if text is not None and len(text) <= _MOST_CHARACTERS:
        texts.append(text)


def _members(text: str) -> Iterator[tuple[str, str]]:
    """The members of a JSON object that are texts; nothing of what is none."""
    try:
        value: Any = msgspec.json.decode(text) if text.startswith("{") else None
    except (msgspec.DecodeError, UnicodeEncodeError):
        return
    if isinstance(value, dict):
        yield from ((name, member) for name, member in value.items() if isinstance(member, str) and member)
