"""Targeted distillation: what small models got wrong counts more when the next one is trained.

Wrong answers to training requests are gathered in clusters: those that differ from the right answer in the same places.
A failed request's own example is weighted most; the examples whose requests are most like it (cosine of TF-IDF over
words) and whose right answers are in those places the same are weighted too, as far as they are no failures themselves.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from smallfirst.assignment import words_of
from smallfirst.learn.card import Folder
from smallfirst.learn.packing import Example

FAILED = 3.0
ALIKE = 2.0
_NEIGHBOURS = 3
_CLUSTERS = 10
Words = Mapping[int, float]


@dataclass(frozen=True, slots=True)
class Cluster:
    """Failures of one kind: `places` are paths into the answer, "" for all of it; `examples` the ids that failed."""

    places: tuple[str, ...]
    examples: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Targets:
    """The clusters, the largest first, and by id the weights of training examples, those of weight 1 left out."""

    clusters: tuple[Cluster, ...]
    weights: Mapping[str, float]


def targets(data: Folder) -> Targets:
    """What failed in the train split, and how its examples are to be weighted; at most the 10 largest clusters."""
    examples = {example.id: example for example in data.examples("train")}
    found = defaultdict[tuple[str, ...], list[str]](list)
    for wrong in data.wrong:
        if wrong.id in examples:
            found[_places(wrong.completion, examples[wrong.id].completion)].append(wrong.id)
    largest = sorted(found.items(), key=lambda item: (-len(item[1]), item[0]))[:_CLUSTERS]
    clusters = tuple(Cluster(places, tuple(dict.fromkeys(ids))) for places, ids in largest)
    failed = {name for cluster in clusters for name in cluster.examples}
    near = _Near([example for name, example in examples.items() if name not in failed])
    weights = dict.fromkeys(failed, FAILED)
    for cluster in clusters:
        for name in cluster.examples:
            weights |= dict.fromkeys(near.to(examples[name], cluster.places), ALIKE)
    return Targets(clusters, weights)


def weighted(data: Folder) -> list[Example]:
    """The training examples with their weights."""
    weights = targets(data).weights
    return [replace(example, weight=weights.get(example.id, 1.0)) for example in data.examples("train")]


class _Near:
    """Finds examples by their words."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self._examples = examples
        counted = [words_of(_text(example)) for example in examples]
        self._rarity = Counter(word for words in counted for word in words)
        self._vectors = [self._vector(words) for words in counted]

    def to(self, example: Example, places: Sequence[str]) -> list[str]:
        """The ids of the nearest whose answers are in `places` as the example's."""
        wanted, right = self._vector(words_of(_text(example))), _at(example.completion, places)
        scored = [
            (sum(weight * vector.get(word, 0.0) for word, weight in wanted.items()), other.id)
            for other, vector in zip(self._examples, self._vectors, strict=True)
            if _at(other.completion, places) == right
        ]
        return [name for score, name in sorted(scored, reverse=True)[:_NEIGHBOURS] if score > 0]

    def _vector(self, words: Mapping[int, int]) -> Words:
        """Unit length; a word in every example weighs nothing."""
        total = len(self._examples) + 1
        raw = {word: n * math.log(total / (self._rarity[word] + 1)) for word, n in words.items()}
        length = math.sqrt(sum(value**2 for value in raw.values())) or 1.0
        return {word: value / length for word, value in raw.items() if value > 0}


def _places(wrong: str, right: str) -> tuple[str, ...]:
    """The paths at which two answers differ; ("",) where one is not JSON."""
    one, other = _leaves(wrong), _leaves(right)
    if one is None or other is None:
        return ("",)
    return tuple(sorted(path for path in one.keys() | other.keys() if one.get(path) != other.get(path)))


def _at(completion: str, places: Sequence[str]) -> tuple[Any, ...]:
    leaves = _leaves(completion) or {}
    return tuple(leaves.get(place) for place in places)


def _leaves(text: str) -> dict[str, Any] | None:
    try:
        return dict(_walk(json.loads(text), ""))
    except (ValueError, RecursionError):
        return None


def _walk(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, each in value.items():
            yield from _walk(each, f"{path}.{name}" if path else str(name))
    else:
        yield path, json.dumps(value)


def _text(example: Example) -> str:
    prompt = example.prompt
    return prompt if isinstance(prompt, str) else "\n".join(str(message.get("content")) for message in prompt)
