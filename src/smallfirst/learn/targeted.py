"""Targeted distillation: what small models got wrong counts more when the next one is trained.

Wrong answers to training requests are gathered in clusters: those that differ from the right answer in the same places.
A failed request's own example is weighted most; the examples whose requests are most like it (`nearest`) and whose
right answers are in those places the same are weighted too, as far as they are no failures themselves.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np

from smallfirst.learn.card import Folder
from smallfirst.learn.nearest import Texts
from smallfirst.learn.packing import Example

FAILED = 3.0
ALIKE = 2.0
_NEIGHBOURS = 3
_CLUSTERS = 10


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
    """Finds examples by their words and right answers."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self._names, self._texts = [example.id for example in examples], Texts([_text(e) for e in examples])
        self._leaves = [_leaves(example.completion) for example in examples]

    def to(self, example: Example, places: Sequence[str]) -> list[str]:
        """The ids of the nearest whose answers are in `places` as the example's."""
        cosines, right = self._texts.cosines(_text(example)), _at(_leaves(example.completion), places)
        order = (n for n in np.argsort(-cosines, kind="stable") if cosines[n] > 0)
        alike = (n for n in order if _at(self._leaves[n], places) == right)
        return [self._names[n] for n in islice(alike, _NEIGHBOURS)]


def _places(wrong: str, right: str) -> tuple[str, ...]:
    """The paths at which two answers differ; ("",) where one is not JSON."""
    one, other = _leaves(wrong), _leaves(right)
    if one is None or other is None:
        return ("",)
    return tuple(sorted(path for path in one.keys() | other.keys() if one.get(path) != other.get(path)))


def _at(leaves: Mapping[str, Any] | None, places: Sequence[str]) -> tuple[Any, ...]:
    return tuple((leaves or {}).get(place) for place in places)


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
