"""Groups of prompts that look alike, as the cells that `assignment` matches: slots first, then templates, then words.

Where tools, a response schema or a shared instruction tell what a call is for, what the user said does not split it.
Prompts without any of these are grouped by their words: TF-IDF, reduced by latent semantic analysis (Deerwester et al.
1990), a graph of nearest neighbours, and communities in it (Blondel et al. 2008). How many there are is found: of
several resolutions, the one whose partition has the largest silhouette (Rousseeuw 1987) times modularity (Newman 2006).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smallfirst.assignment import SAME_SLOTS, WORD_BITS, Assigner, Cell, Prompt, alike, overlap
from smallfirst.extra import need

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]

_TEMPLATE = 12
_SUPPORT = 8
_CONSTANT = 0.9
_SAME_INSTRUCTIONS = 0.6
_SAME_SLOTS_INSTRUCTED = 0.25
_VERSIONS = 3
_WORDS = 400
_WORDS_BUT_ONE = tuple((1 << 3 * WORD_BITS) - 1 - (((1 << WORD_BITS) - 1) << place * WORD_BITS) for place in range(3))
_COMMON = 0.5
_DIMENSIONS = 150
_NEIGHBOURS = 15
_RESOLUTIONS = (0.7, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_LEAST_QUANTILE = 0.02
_SLACK = 0.8


@dataclass(frozen=True, slots=True)
class Group:
    """The cells of prompts that look alike, and the places of these prompts among those that were given."""

    cells: tuple[Cell, ...]
    members: tuple[int, ...]


def find_groups(prompts: Sequence[Prompt], *, least_calls: int, seed: int = 0) -> list[Group]:
    """The groups of at least `least_calls` prompts; a prompt in none of them is an outlier.

    Raises ConfigError when scikit-learn or networkx is missing.
    """
    structured: list[Group] = []
    bare: list[int] = []
    for slots, offered in _by_slots(prompts):
        for template, members in _by_template(prompts, offered):
            if slots or template:
                cell = Cell(_id(slots, template, {}), slots, template)
                structured.append(Group((cell,), tuple(sorted(members))))
            else:
                bare.extend(members)
    found = [group for group in _versions_joined(structured) if len(group.members) >= least_calls]
    return found + split_by_words(prompts, bare, least_calls=least_calls, seed=seed)


def _versions_joined(groups: Sequence[Group]) -> list[Group]:
    """Groups of the same instructions and partly the same tools made one, where the instructions are not general: given
    with few sets of tools."""
    joined: list[Group] = []
    for group in groups:
        [cell] = group.cells
        alike_told = [other for other in groups if _same_instructions(cell, other.cells[0])]
        known = [n for n, other in enumerate(joined) if _same_instructions(cell, other.cells[0])]
        versions = [n for n in known if alike(cell.slots, joined[n].cells[0].slots) >= _SAME_SLOTS_INSTRUCTED]
        if versions and len(alike_told) <= _VERSIONS:
            old = joined[versions[0]]
            joined[versions[0]] = Group(old.cells + group.cells, tuple(sorted(old.members + group.members)))
        else:
            joined.append(group)
    return joined


def _same_instructions(one: Cell, other: Cell) -> bool:
    return bool(one.template) and overlap(one.template, other.template) >= _CONSTANT


def split_by_words(
    prompts: Sequence[Prompt], members: Sequence[int], *, least_calls: int, like: Cell | None = None, seed: int = 0
) -> list[Group]:
    """Groups of `members` by what the user said, as cells with the slots and the template of `like`."""
    places = defaultdict(list)
    for place in members:
        if prompts[place].words:
            places[frozenset(prompts[place].words.items())].append(place)
    said = list(places.values())
    if sum(map(len, said)) < least_calls:
        return []
    labels = _communities([prompts[same[0]].words for same in said], seed)
    together = defaultdict(list)
    for label, same in zip(labels.tolist(), said, strict=True):
        together[label].extend(same)
    kept = [sorted(group) for group in together.values() if len(group) >= least_calls]
    centroids = [_centroid([prompts[place].words for place in group]) for group in kept]
    slots, template = (like.slots, like.template) if like else (frozenset[int](), frozenset[int]())
    cells = [Cell(_id(slots, template, centroid), slots, template, centroid) for centroid in centroids]
    return [Group((cell,), tuple(members)) for cell, members in zip(cells, kept, strict=True)]


def _by_slots(prompts: Sequence[Prompt]) -> list[tuple[frozenset[int], list[int]]]:
    """Prompts whose tools and schemas are the same or versions of each other, with the slots offered most often."""
    places = defaultdict(list)
    for place, prompt in enumerate(prompts):
        places[prompt.slots].append(place)
    groups: list[tuple[frozenset[int], list[int]]] = []
    for slots, members in sorted(places.items(), key=lambda group: (-len(group[1]), group[1])):
        scored = [(alike(slots, other), n) for n, (other, _) in enumerate(groups)] if slots else []
        best, n = max(scored, default=(0.0, 0))
        if best >= SAME_SLOTS:
            groups[n][1].extend(members)
        else:
            groups.append((slots, members))
    return groups


def _by_template(prompts: Sequence[Prompt], members: Sequence[int]) -> list[tuple[frozenset[int], list[int]]]:
    """`members` by the instructions that they share; an empty template stands for those that share none.

    A value (a name, a weekday, a retrieved text) says nothing about the template, so shingles that few different
    prompts have, and those where one of the three words varies while the other two stay, are not compared.
    """
    places = defaultdict(list)
    for place in members:
        places[prompts[place].shingles, prompts[place].led].append(place)
    having: Counter[int] = Counter()
    for (shingles, led), same in places.items():
        having.update(dict.fromkeys(shingles, len(same) if led else 1))  # an opening again is one conversation
    support = max(2, min(_SUPPORT, len(members) // 4))
    constant = _constant(having, support)
    lasting = defaultdict(list)
    for (shingles, _), same in places.items():
        lasting[shingles & constant].extend(same)
    groups: list[tuple[frozenset[int], list[int]]] = []
    for shingles, same in sorted(lasting.items(), key=lambda group: (-len(group[1]) * len(group[0]), group[1])):
        scored = [(overlap(shingles, other), n) for n, (other, _) in enumerate(groups)]
        best, n = max(scored, default=(0.0, 0))
        if best >= _SAME_INSTRUCTIONS:
            groups[n][1].extend(same)
        else:
            groups.append((shingles, list(same)))
    return _named_templates(prompts, groups, support)


def _constant(having: Mapping[int, int], support: int) -> frozenset[int]:
    """The shingles with `support` in which each word is the likeliest between, before or after the other two."""
    around: Counter[int] = Counter()
    for shingle, count in having.items():
        for mask in _WORDS_BUT_ONE:
            around[shingle & mask] += count
    lasting = [shingle for shingle, count in having.items() if count >= support]
    return frozenset(s for s in lasting if all(2 * having[s] >= around[s & mask] for mask in _WORDS_BUT_ONE))


def _named_templates(
    prompts: Sequence[Prompt], groups: Iterable[tuple[frozenset[int], list[int]]], support: int
) -> list[tuple[frozenset[int], list[int]]]:
    """The shingles that nearly all of a group have; groups too small or too short for a template become one."""
    named, rest = [], []
    for _, members in groups:
        having = Counter(shingle for place in members for shingle in prompts[place].shingles)
        template = frozenset(s for s, n in having.items() if n >= _CONSTANT * len(members))
        if len(template) >= _TEMPLATE and len(members) >= support:
            named.append((template, members))
        else:
            rest.extend(members)
    return [*named, (frozenset(), sorted(rest))] if rest else named


def _id(*parts: Iterable[int]) -> str:
    return sha256(repr([sorted(part) for part in parts]).encode()).hexdigest()[:12]


def _centroid(said: Sequence[Mapping[int, int]]) -> dict[int, float]:
    """The mean of unit vectors of 1 + log count, its largest coordinates only."""
    total: Counter[int] = Counter()
    for words in said:
        weights = {word: 1 + math.log(count) for word, count in words.items()}
        length = math.sqrt(sum(weight * weight for weight in weights.values()))
        for word, weight in weights.items():
            total[word] += weight / length  # type: ignore[assignment]
    largest = sorted(total.items(), key=lambda item: (-item[1], item[0]))[:_WORDS]
    return {word: round(weight / len(said), 6) for word, weight in largest}


def bounded(tasks: Mapping[str, Sequence[Cell]], prompts: Iterable[Prompt]) -> dict[str, tuple[Cell, ...]]:
    """The cells of each task, each with a centroid bounded by the cosine that nearly all of its prompts exceed.

    `prompts` are those that belong to a task. A cell that is the nearest of none of them keeps its bound.
    """
    unbounded = {task: [replace(cell, least=-1.0) for cell in cells] for task, cells in tasks.items()}
    assigner = Assigner(unbounded)
    cosines = defaultdict(list)
    for prompt in prompts:
        cell = assigner.cell(prompt)
        if cell is not None and cell.centroid is not None:
            cosines[cell.id].append(assigner.cosine(prompt, cell))
    least = {cell: _SLACK * float(np.quantile(own, _LEAST_QUANTILE)) for cell, own in cosines.items()}
    return {
        task: tuple(replace(cell, least=round(least.get(cell.id, cell.least), 6)) for cell in cells)
        for task, cells in tasks.items()
    }


def _communities(said: Sequence[Mapping[int, int]], seed: int) -> Labels:
    """A label for each of the distinct texts `said`."""
    networkx, metrics = need("networkx"), need("sklearn.metrics")
    none = np.zeros(len(said), dtype=np.int64)
    if len(said) < 4:
        return none
    points = _reduced(said, seed)
    graph = _neighbours(points, networkx.Graph())
    best, chosen = 0.0, none
    for resolution in _RESOLUTIONS:
        parts = networkx.community.louvain_communities(graph, resolution=resolution, seed=seed)
        labels = none.copy()
        for label, part in enumerate(parts):
            labels[list(part)] = label
        if 1 < len(parts) < len(said):
            quality = float(metrics.silhouette_score(points, labels, metric="cosine"))
            quality *= float(networkx.community.modularity(graph, parts))
            best, chosen = max((best, chosen), (quality, labels), key=lambda scored: scored[0])
    return chosen


def _reduced(said: Sequence[Mapping[int, int]], seed: int) -> Floats:
    """Unit vectors of the texts in the space of their latent semantic analysis."""
    from scipy.sparse import csr_matrix
    from sklearn.decomposition import TruncatedSVD
    from sklearn.preprocessing import normalize

    having = Counter(word for words in said for word in words)
    kept = sorted(w for w, n in having.items() if 1 < n <= max(_COMMON * len(said), 3)) or sorted(having)
    column = {word: n for n, word in enumerate(kept)}
    rarity = {word: math.log((1 + len(said)) / (1 + having[word])) + 1 for word in kept}
    entries = [
        (row, column[word], (1 + math.log(count)) * rarity[word])
        for row, words in enumerate(said)
        for word, count in words.items()
        if word in column
    ]
    rows, columns, weights = (np.array(values) for values in zip(*entries, strict=True))
    weighted = normalize(csr_matrix((weights, (rows, columns)), shape=(len(said), len(kept))))
    dimensions = min(_DIMENSIONS, len(said) // 3, len(kept) - 1)
    if dimensions < 2:
        return np.asarray(weighted.toarray())
    reduced = TruncatedSVD(dimensions, n_iter=3, random_state=seed).fit_transform(weighted)
    return np.asarray(normalize(reduced), dtype=np.float64)


def _neighbours(points: Floats, graph: Any) -> Any:
    """`graph` with an edge from each point to its nearest, weighted by cosine."""
    cosines = points @ points.T
    np.fill_diagonal(cosines, -1.0)
    count = min(_NEIGHBOURS, len(points) - 1)
    nearest = np.argpartition(-cosines, count - 1, axis=1)[:, :count]
    graph.add_nodes_from(range(len(points)))
    for here, others in enumerate(nearest.tolist()):
        graph.add_weighted_edges_from(
            (here, there, float(cosines[here, there])) for there in others if cosines[here, there] > 0
        )
    return graph
