"""Dynamic in-context examples: the training calls nearest to a call, shown to the model before it.

Nearest is by the cosine of TF-IDF vectors over the words by which calls are assigned to tasks (`assignment.words_of`).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smallfirst.assignment import words_of
from smallfirst.learn.dataset import Row
from smallfirst.types import Json

MOST_BYTES = 2048
"""Of all examples of a call together (UTF-8): so many that a small model's context holds them beside the call."""

_TRIED = 4  # rows looked at for each example wanted, when the nearest are too long


class Examples:
    """The rows of a train split, to be found by what their calls say."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows
        counted = [words_of(_said(row)) for row in rows]
        having = Counter(word for words in counted for word in words)
        self._rarity = {word: 1 + math.log(len(rows) / n) for word, n in having.items()}
        found: dict[int, list[tuple[int, float]]] = defaultdict(list)
        for n, words in enumerate(counted):
            for word, weight in self._vector(words).items():
                found[word].append((n, weight))
        self._holders = {
            word: (np.array([n for n, _ in at]), np.array([w for _, w in at])) for word, at in found.items()
        }

    def nearest(self, row: Row, count: int) -> list[Row]:
        """At most `count` of the rows, the nearest last, as many as fit into `MOST_BYTES`."""
        cosines = self._cosines(_said(row))
        found: list[Row] = []
        left = MOST_BYTES
        for n in np.argsort(-cosines, kind="stable")[: _TRIED * count].tolist():
            size = len(_said(self._rows[n]).encode()) + len(self._rows[n].completion.encode())
            if size <= left and len(found) < count:
                left -= size
                found.append(self._rows[n])
        return found[::-1]

    def _cosines(self, text: str) -> NDArray[np.float64]:
        cosines = np.zeros(len(self._rows))
        for word, weight in self._vector(words_of(text)).items():
            rows, weights = self._holders[word]
            cosines[rows] += weight * weights
        return cosines

    def _vector(self, words: Mapping[int, int]) -> dict[int, float]:
        """TF-IDF weights of the known words, of unit length."""
        weights = {w: (1 + math.log(n)) * self._rarity[w] for w, n in words.items() if w in self._rarity}
        length = math.sqrt(sum(weight**2 for weight in weights.values())) or 1.0
        return {word: weight / length for word, weight in weights.items()}


def with_examples(body: Json, examples: Sequence[Row]) -> dict[str, Any]:
    """The chat `body` with the examples as turns of their own after the system prompt: what was said, as one message
    of the user, and the right answer; a tool that it calls says that it is done."""
    messages = list(body["messages"])
    head = 0
    while head < len(messages) and messages[head].get("role") in ("system", "developer"):
        head += 1
    shown = [turn for number, row in enumerate(examples) for turn in _turns(row, number)]
    return {**body, "messages": [*messages[:head], *shown, *messages[head:]]}


def _turns(row: Row, number: int) -> list[dict[str, Any]]:
    answer = dict(row.answer)
    calls = [{**call, "id": f"example_{number}_{n}"} for n, call in enumerate(answer.get("tool_calls") or ())]
    if calls:
        answer["tool_calls"] = calls
    done = [{"role": "tool", "tool_call_id": call["id"], "content": "done"} for call in calls]
    return [{"role": "user", "content": _shown(row)}, answer, *done]


def _shown(row: Row) -> str:
    """What is said in the call, as one text."""
    said = [m for m in row.request["messages"] if m.get("role") not in ("system", "developer")]
    alone = said[0].get("content") if len(said) == 1 else None
    return alone if isinstance(alone, str) else _said(row).strip()


def _said(row: Row) -> str:
    """What varies from call to call: the specialist's prompt, or else the messages that are no system prompt."""
    if isinstance(row.prompt, str):
        return row.prompt
    return "".join(f"{m['role']}: {m['content']}\n" for m in row.prompt if m["role"] != "system")
