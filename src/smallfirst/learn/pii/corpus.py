"""Labelled text to train and measure the tagger on: templates filled with generated names, places and organisations.

Templates and names are divided once into a part for training and a part that is held out: every fifth template line,
and each name by its digest. `Faker` generates most values; in training half of the names and places are coined
letter by letter after its lists, so that the tagger learns how names look rather than which there are.
"""

from __future__ import annotations

import random
import re
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pydoc_data.topics import topics
from typing import TypeVar

from smallfirst.learn.pii import prose
from smallfirst.learn.pii.values import SLOTS, lexicon

LOCALES = (
    "en_US en_GB en_IN de_DE fr_FR es_ES it_IT nl_NL pl_PL sv_SE pt_BR da_DK fi_FI cs_CZ tr_TR hu_HU no_NO".split()
)
POOL = 350
_CLOSED = """country state abbreviation zcountry zprovince zlast zroad job street_kind street_kind_before street_ending
civic zroad_kind zorg_kind""".split()
"""Pools whose members can all be known, so that none is held out."""
HELD_OUT_TEMPLATES = 5
_SLOT = re.compile(r"\{(\w+)\}")
_CHOICE = re.compile(r"\[([^\[\]]*\|[^\[\]]*)\]")
_SMALL = re.compile(r"\b[a-z]{3,}\b")
T = TypeVar("T")
Spans = tuple[tuple[int, int, str], ...]


@dataclass(frozen=True, slots=True)
class Example:
    """A text and what is personal in it: (start, end, kind)."""

    text: str
    spans: Spans


def templates(name: str, held_out: bool) -> list[str]:
    """The templates of a file ("en", "zh", "clean"), of one part."""
    lines = (files("smallfirst.learn.pii") / "templates" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    lines = [line for line in lines if line and not line.startswith("#")]
    return [line for at, line in enumerate(lines) if (at % HELD_OUT_TEMPLATES == 2) == held_out]


class Corpus:
    """An endless source of examples of one part, the same for the same seed and version of Faker.

    `pool` values of each kind and locale are drawn from Faker.
    """

    def __init__(self, seed: int, held_out: bool, pool: int = POOL) -> None:
        self._rng = random.Random(seed)
        self._held_out = held_out
        self._pools = pools(held_out, pool)
        self._templates = {name: templates(name, held_out) for name in ("en", "zh", "clean")}
        self._markov = {name: Letters(self._pools[name]) for name in ("first", "last", "city", "brand")}

    def examples(self, count: int, shares: tuple[float, float, float] = (0.5, 0.2, 0.3)) -> Iterator[Example]:
        """`count` examples, by the shares of English, Chinese and clean templates."""
        for _ in range(count):
            name = self._rng.choices(("en", "zh", "clean"), shares)[0]
            example = self._cased(self._joined(name))
            yield self.noised(example) if not self._held_out and self.chance(0.4) else example

    def _joined(self, name: str) -> Example:
        """One example; a third have a clean sentence or another example before or behind."""
        example = self.fill(self._template(name))
        if self._rng.random() < 0.35:
            other = self.fill(self._template(self._rng.choice((name, "clean"))))
            example, other = (example, other) if self._rng.random() < 0.5 else (other, example)
            glue = self._rng.choice((" ", "\n", "\n\n"))
            shift = len(example.text) + len(glue)
            moved = tuple((start + shift, end + shift, kind) for start, end, kind in other.spans)
            example = Example(example.text + glue + other.text, example.spans + moved)
        return example

    def _template(self, name: str) -> str:
        """A template of a file; in training of names also a form or loose prose."""
        drawn = self._rng.random()
        if name != "clean" and not self._held_out and drawn < 0.6:
            if drawn < 0.2:
                return prose.form(self, False, name == "zh")
            return prose.chinese(self) if name == "zh" else prose.english(self)
        return self._rng.choice(self._templates[name])

    def forms(self, count: int) -> Iterator[Example]:
        """`count` examples of labelled values, two thirds in English, with the labels of this part."""
        for number in range(count):
            yield self.fill(prose.form(self, self._held_out, number % 3 == 0))

    def noised(self, example: Example) -> Example:
        """The example with some of its small words exchanged, so that no wording is learnt by heart."""
        parts: list[str] = []
        spans = []
        length = last = 0
        for start, end, kind in (*example.spans, (len(example.text),) * 2 + ("",)):
            between = _SMALL.sub(self._exchanged, example.text[last:start])
            parts += [between, example.text[start:end]]
            spans.append((length + len(between), length + len(between) + end - start, kind))
            length, last = spans[-1][1], end
        return Example("".join(parts), tuple(spans[:-1]))

    def _exchanged(self, match: re.Match[str]) -> str:
        return self.pick("lorem").lower() if self.chance(0.15) else match.group()

    def _cased(self, example: Example) -> Example:
        """Some texts are typed without capitals, a few in capitals only."""
        drawn = self._rng.random()
        text = example.text.lower() if drawn < 0.06 else example.text.upper() if drawn < 0.1 else example.text
        return Example(text, example.spans) if len(text) == len(example.text) else example

    def fill(self, template: str) -> Example:
        """An example of the template."""
        while _CHOICE.search(template):
            template = _CHOICE.sub(lambda match: self._rng.choice(match[1].split("|")), template)
        template = template.replace("\\n", "\n")
        parts: list[str] = []
        spans: list[tuple[int, int, str]] = []
        length = last = 0
        for slot in _SLOT.finditer(template):
            if slot[1] not in SLOTS:
                continue
            kind, make = SLOTS[slot[1]]
            value = make(self)
            before = template[last : slot.start()]
            start = length + len(before)
            parts += [before, value]
            length, last = start + len(value), slot.end()
            if kind:
                spans.append((start, length, kind))
        return Example("".join([*parts, template[last:]]), tuple(spans))

    def pick(self, name: str) -> str:
        """One of a pool of values or words."""
        return self._rng.choice(self._pools[name])

    def choose(self, *choices: T) -> T:
        return self._rng.choice(choices)

    def number(self, low: int, high: int) -> int:
        return self._rng.randint(low, high)

    def chance(self, probability: float) -> bool:
        return self._rng.random() < probability

    def invented(self, name: str) -> str:
        """A value of a pool; in training half of them are made of the letter sequences of the others."""
        coined = not self._held_out and self.chance(0.5)
        return self._markov[name].word(self._rng).title() if coined else self.pick(name)


class Letters:
    """An order-3 letter chain over words."""

    def __init__(self, words: Sequence[str]) -> None:
        self._next: dict[str, list[str]] = defaultdict(list)
        for word in words:
            padded = f"^^^{word.lower()}$"
            for at in range(3, len(padded)):
                self._next[padded[at - 3 : at]].append(padded[at])

    def word(self, rng: random.Random) -> str:
        """An invented word of 3 to 14 letters."""
        while True:
            made = "^^^"
            while made[-1] != "$" and len(made) < 18:
                made += rng.choice(self._next[made[-3:]])
            if 6 <= len(made) - 1 <= 17 and made[-1] == "$":
                return made[3:-1]


def held_out_value(value: str) -> bool:
    """Whether a name is kept from training: one in five, by digest."""
    return zlib.crc32(value.encode()) % 5 == 0


@cache
def pools(held_out: bool, size: int) -> dict[str, tuple[str, ...]]:
    """Values by kind, of one part. Words that are no names are the same in both parts."""
    from faker import Faker

    raw: dict[str, list[str]] = {name: list(values) for name, values in lexicon()["places"].items()}
    for locale in LOCALES:
        fake = Faker(locale)
        fake.seed_instance(0)
        makers: dict[str, Callable[[], str]] = {"first": fake.first_name, "last": fake.last_name, "city": fake.city}
        makers |= {"street_address": fake.street_address, "org": fake.company, "full_address": fake.address}
        for name, make in makers.items():
            raw.setdefault(name, []).extend(make() for _ in range(size))
    chinese = Faker("zh_CN")
    chinese.seed_instance(0)
    zh: dict[str, Callable[[], str]] = {
        "zlast": chinese.last_name,
        "zfirst": chinese.first_name,
        "zorg": chinese.company,
    }
    zh |= {"zprovince": chinese.province, "zdistrict": chinese.district, "zcity": chinese.city_name}
    for name, make in zh.items():
        raw.setdefault(name, []).extend(make() for _ in range(4 * size))
    english = Faker("en_US")
    english.seed_instance(0)
    raw["job"] = [english.job().split(",")[0].lower() for _ in range(size)]
    kept = {
        name: sorted({v for v in values if name in _CLOSED or held_out_value(v) == held_out})
        for name, values in raw.items()
    }
    return {name: tuple(values) for name, values in (kept | lexicon()["words"] | _plain_text(held_out)).items()}


def _plain_text(held_out: bool) -> dict[str, list[str]]:
    """Passages of Python's own manual, and the small words of all of it."""
    texts = list(topics.values())
    lorem = sorted({word for text in texts for word in _SMALL.findall(text)})
    passages = [" ".join(part.split()) for text in texts for part in text.split("\n\n") if 40 < len(part) < 500]
    passages += [part.strip("\n") for text in texts for part in text.split("\n\n") if 40 < len(part) < 300]
    passages = [part for part in passages if held_out_value(part) == held_out]
    return {"lorem": lorem, "title_word": [word.title() for word in lorem[::9]], "passage": passages}
