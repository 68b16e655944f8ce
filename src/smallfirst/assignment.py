"""Which known task a call belongs to, from its prompt alone: pure, and well under a millisecond.

A prompt is reduced to three sets of hashes. `slots` is what it offers and asks for: tool names, their parameters, the
fields and enum values of the response schema. `shingles` are the runs of three words of its instructions (system text,
else the opening of the user's): of many calls, those that stay are the prompt template, those that vary are values.
`words` is what the user said. A task is a set of cells; a cell matches by slots, then template, then words. `tasks
find` (learn/tasks.py) makes the cells with these same functions.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import chain, islice, pairwise
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from smallfirst.types import Json, Request

Floats = NDArray[np.float32]

LEAD_CHARACTERS = 3000
SAID_CHARACTERS = 4000
WORD_BITS = 20
SAME_SLOTS = 0.5
SAME_TEMPLATE = 0.7
_SAME_VALUES = 0.3
_FIELD = (1 << 31) - 1
_MAX_SLOTS = 2000
_REMEMBERED = 1024
_REMEMBERED_TEXTS = 64
_DEPTH = 3
_WORD_MASK = (1 << WORD_BITS) - 1
_TOKENS = re.compile(r"[a-z]+|[\u3400-\u9fff\u3040-\u30ff\uac00-\ud7af]|[^\W\d_]+")


@dataclass(frozen=True)
class Prompt:
    """A call's prompt as tasks see it. `led` tells whether it has a system text; `said` is what the user said last."""

    slots: frozenset[int]
    shingles: frozenset[int]
    said: str
    led: bool

    @cached_property
    def words(self) -> Mapping[int, int]:
        """How often the user said each hashed word; counted when a centroid has to be compared."""
        return words_of(self.said)


@dataclass(frozen=True, slots=True)
class Cell:
    """One way in which a task's calls look; what it leaves empty does not matter.

    `slots` as offered most often; `template`, the shingles that its calls share; `centroid`, the mean direction of its
    calls' words (unit length), from which they are at a cosine of at least `least`.
    """

    id: str
    slots: frozenset[int]
    template: frozenset[int] = frozenset()
    centroid: Mapping[int, float] | None = None
    least: float = 0.0


def prompt_of(messages: Iterable[Json], tools: Iterable[tuple[str, Any]], schema: Any) -> Prompt:
    """The prompt of OpenAI chat `messages`, `tools` as (name, JSON Schema), and a response schema or None.

    Reads at most the first 3,000 characters of the instructions and the last 4,000 of what the user said, so that the
    longest prompt takes no longer.
    """
    system, user = _texts(messages)
    lead = system or (user[0][:LEAD_CHARACTERS] if user else "")
    return Prompt(frozenset(_slots(tools, schema)), shingles_of(lead), _tail(user), bool(system))


def prompt_of_request(request: Request) -> Prompt:
    """The prompt of a call that came in."""
    tools = ((tool.name, tool.parameters) for tool in request.tools)
    return prompt_of(request.messages, tools, request.response_format.schema)


@lru_cache(_REMEMBERED_TEXTS)
def shingles_of(text: str) -> frozenset[int]:
    """The runs of three words, each as 60 bits, 20 a word; digits are no words, so dates and numbers leave no trace."""
    hashes = [_hash(word) & _WORD_MASK for word in _TOKENS.findall(text.lower())]
    runs = zip(hashes, hashes[1:], hashes[2:], strict=False)
    return frozenset((a << 2 * WORD_BITS) | (b << WORD_BITS) | c for a, b, c in runs)


def in_template(word: str, template: frozenset[int]) -> bool:
    """Whether one of the shingles has `word`."""
    bits = _hash(word) & _WORD_MASK
    return any(bits in (s & _WORD_MASK, s >> WORD_BITS & _WORD_MASK, s >> 2 * WORD_BITS) for s in template)


def words_of(text: str) -> Mapping[int, int]:
    """How often each hashed word occurs; of Chinese, Japanese and Korean, each character and each pair of them."""
    tokens = _TOKENS.findall(text.lower())
    pairs = (a + b for a, b in pairwise(tokens) if a >= "\u3040" and b >= "\u3040")
    counted = Counter(chain(tokens, pairs))
    hashed: Counter[int] = Counter()
    for word, count in counted.items():
        hashed[_hash(word) & _WORD_MASK] += count
    return hashed


def _hash(text: str) -> int:
    return crc32(text.encode("utf-8", "replace"))


def overlap(one: frozenset[int], other: frozenset[int]) -> float:
    """Jaccard's index; 1 for two empty sets."""
    return len(one & other) / len(one | other) if one or other else 1.0


def alike(one: frozenset[int], other: frozenset[int]) -> float:
    """How far two sets of slots are versions of each other: Jaccard's index of the names, 0 when a field that both have
    offers other values in each."""
    fields = {slot for slot in one & other if slot <= _FIELD}
    ours, theirs = _values(one, fields), _values(other, fields)
    for field in ours.keys() & theirs.keys():
        if overlap(frozenset(ours[field]), frozenset(theirs[field])) < _SAME_VALUES:
            return 0.0
    names = sum(1 for slot in one | other if slot <= _FIELD)
    return len(fields) / names if names else 1.0


def _values(slots: frozenset[int], fields: set[int]) -> dict[int, set[int]]:
    """The values that `slots` offer for each of `fields` that is an enum."""
    offered: dict[int, set[int]] = {}
    for slot in slots:
        if slot > _FIELD and slot >> 32 in fields:
            offered.setdefault(slot >> 32, set()).add(slot & 0xFFFFFFFF)
    return offered


def _texts(messages: Iterable[Json]) -> tuple[str, list[str]]:
    """The start of the system text, and the texts of the user's messages."""
    system, user, length = [], [], 0
    for message in messages:
        role = message.get("role")
        if role == "user":
            user.append(_text(message.get("content")))
        elif role in {"system", "developer"} and length < LEAD_CHARACTERS:
            system.append(_text(message.get("content"))[:LEAD_CHARACTERS])
            length += len(system[-1])
    return "\n".join(system)[:LEAD_CHARACTERS], user


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list | tuple) else ()
    texts = (part.get("text") for part in parts if isinstance(part, Mapping))
    return "\n".join(text for text in texts if isinstance(text, str))


def _tail(texts: Sequence[str]) -> str:
    """The last characters of the texts, read from the end."""
    taken: list[str] = []
    left = SAID_CHARACTERS
    for text in reversed(texts):
        taken.append(text[-left:])
        left -= len(taken[-1])
        if left <= 0:
            break
    return "\n".join(reversed(taken))


def _slots(tools: Iterable[tuple[str, Any]], schema: Any) -> Iterator[int]:
    """31 bits for the name of each tool, parameter and field of the schema; for a value of an enum, those of its field
    and 32 of its own."""
    named = chain.from_iterable(((f"tool {name}", None), *_fields(f"tool {name}", p)) for name, p in tools)
    for path, value in islice(chain(named, _fields("schema", schema)), _MAX_SLOTS):
        field = _hash(path) & _FIELD
        yield field if value is None else field << 32 | _hash(value)


def _fields(path: str, schema: Any, depth: int = 0) -> Iterator[tuple[str, str | None]]:
    """Each field in the schema as (path, None), and each value of an enum as (path, value)."""
    if depth > _DEPTH or not isinstance(schema, Mapping):
        return
    if isinstance(values := schema.get("enum"), list | tuple):
        yield from ((path, str(value)) for value in values)
    if isinstance(properties := schema.get("properties"), Mapping):
        for name, inner in properties.items():
            yield f"{path}.{name}", None
            yield from _fields(f"{path}.{name}", inner, depth + 1)
    yield from _fields(f"{path}[]", schema.get("items"), depth + 1)


def cells_to_json(cells: Iterable[Cell]) -> Json:
    """The model of a task as it is kept: a JSON object."""
    return {"cells": [_cell_to_json(cell) for cell in cells]}


def cells_from_json(model: Json) -> tuple[Cell, ...]:
    """The cells that `cells_to_json` wrote."""
    return tuple(
        Cell(
            id=cell["id"],
            slots=frozenset(cell["slots"]),
            template=frozenset(cell["template"]),
            centroid=None if cell["centroid"] is None else {int(w): x for w, x in cell["centroid"].items()},
            least=cell["least"],
        )
        for cell in model["cells"]
    )


def _cell_to_json(cell: Cell) -> Json:
    centroid = None if cell.centroid is None else {str(word): weight for word, weight in cell.centroid.items()}
    sets = {"slots": sorted(cell.slots), "template": sorted(cell.template)}
    return {"id": cell.id, **sets, "centroid": centroid, "least": cell.least}


class Assigner:
    """Finds the cell, and so the task, of a prompt. `tasks` gives the cells of each task id; built once."""

    def __init__(self, tasks: Mapping[str, Sequence[Cell]]) -> None:
        self._task_of = {cell.id: task for task, cells in tasks.items() for cell in cells}
        self._cells = [cell for cells in tasks.values() for cell in cells]
        self._by_slots: dict[frozenset[int], list[Cell]] = {}
        self._versions: dict[frozenset[int], list[Cell]] = {}
        for cell in self._cells:
            self._by_slots.setdefault(cell.slots, []).append(cell)
        self._spoken = _Centroids([cell for cell in self._cells if cell.centroid is not None])

    def assign(self, request: Request) -> str | None:
        """The id of the task that the call belongs to; None when it looks like none of them."""
        return self.task(prompt_of_request(request))

    def cosine(self, prompt: Prompt, cell: Cell) -> float:
        """The cosine of the prompt's words to the centroid of `cell`, which must be one of its cells and have one."""
        return self._spoken.cosine(prompt.words, cell)

    def task(self, prompt: Prompt) -> str | None:
        """The id of the task of the prompt's cell; None when it fits none."""
        cell = self.cell(prompt)
        return None if cell is None else self._task_of[cell.id]

    def cell(self, prompt: Prompt) -> Cell | None:
        """The cell whose slots, template and words the prompt fits best; None when none fits."""
        near = self._offering(prompt)
        following = _following(prompt, near)
        spoken = [cell for cell in following if cell.centroid is not None]
        if spoken:
            return self._spoken.nearest(prompt.words, spoken)
        if following:
            return following[0]
        tasks = {self._task_of[cell.id] for cell in near}
        changed = bool(prompt.slots) and len(tasks) == 1  # the same tools under a rewritten prompt
        return near[0] if changed else None

    def decided_by_form(self, prompt: Prompt) -> bool:
        """Whether what the user said has no part in the task of `prompt`: every call with the same tools, response
        schema and system text belongs to the same one."""
        near = self._offering(prompt)
        led = prompt.led or not any(cell.template for cell in near)
        return led and all(cell.centroid is None for cell in _following(prompt, near))

    def _offering(self, prompt: Prompt) -> list[Cell]:
        """The cells with the prompt's slots, else those of which they are a version; kept for the calls that follow."""
        near = self._by_slots.get(prompt.slots) or self._versions.get(prompt.slots)
        if near is None:
            near = self._versions_of(prompt.slots) if prompt.slots else []
            if len(self._versions) >= _REMEMBERED:
                self._versions.clear()
            self._versions[prompt.slots] = near
        return near

    def _versions_of(self, offered: frozenset[int]) -> list[Cell]:
        scored = [(alike(offered, slots), cells) for slots, cells in self._by_slots.items() if slots]
        return [c for score, cells in sorted(scored, key=lambda s: -s[0]) if score >= SAME_SLOTS for c in cells]


def _following(prompt: Prompt, cells: Sequence[Cell]) -> list[Cell]:
    """The cells of the template that the prompt follows best; without one, the cells that ask for none."""
    followed = [(len(cell.template & prompt.shingles) / len(cell.template), cell) for cell in cells if cell.template]
    fitting = [(share * len(cell.template), cell) for share, cell in followed if share >= SAME_TEMPLATE]
    if not fitting:
        return [cell for cell in cells if not cell.template]
    best = max(fit for fit, _ in fitting)
    return [cell for fit, cell in fitting if fit == best]


class _Centroids:
    """Cosines to the centroids. A word weighs by how few of the centroids have it (inverse cluster frequency)."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        self._cells = {cell.id: n for n, cell in enumerate(cells)}
        centroids = [cell.centroid or {} for cell in cells]
        having = Counter(chain.from_iterable(centroids))
        self._rare = 1 + math.log(1 + len(cells))
        self._weight = {word: self._rare - math.log(1 + n) for word, n in having.items()}
        self._row = {word: n for n, word in enumerate(having)}
        self._matrix = np.zeros((len(having), len(cells)), dtype=np.float32)
        for column, centroid in enumerate(centroids):
            for word, weight in centroid.items():
                self._matrix[self._row[word], column] = weight * self._weight[word]
        self._matrix /= np.maximum(np.linalg.norm(self._matrix, axis=0), 1e-9)

    def cosines(self, words: Mapping[int, int]) -> Floats:
        """The cosine of `words` to each centroid, in the order of the cells; all 0 when no word is known."""
        values = {word: (1 + math.log(n)) * self._weight.get(word, self._rare) for word, n in words.items()}
        known = [word for word in values if word in self._row]
        if not known:
            return np.zeros(len(self._cells), dtype=np.float32)
        weights = np.array([values[word] for word in known], dtype=np.float32)
        length = math.sqrt(sum(value * value for value in values.values()))
        return np.asarray(weights @ self._matrix[[self._row[word] for word in known]] / length)

    def cosine(self, words: Mapping[int, int], cell: Cell) -> float:
        return float(self.cosines(words)[self._cells[cell.id]])

    def nearest(self, words: Mapping[int, int], cells: Sequence[Cell]) -> Cell | None:
        """The one of `cells` at the largest cosine to `words`, if that is no less than the cell's own least."""
        cosines = self.cosines(words)
        best = max(cells, key=lambda cell: cosines[self._cells[cell.id]])
        return best if cosines[self._cells[best.id]] >= best.least else None
