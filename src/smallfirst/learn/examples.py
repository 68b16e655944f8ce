"""Dynamic in-context examples: the training calls nearest to a call (`nearest`), shown to the model before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from smallfirst.learn.dataset import Row
from smallfirst.learn.nearest import Texts
from smallfirst.types import Json

MOST_BYTES = 2048
"""Of all examples of a call together (UTF-8): so many that a small model's context holds them beside the call."""

_TRIED = 4  # rows looked at for each example wanted, when the nearest are too long


class Examples:
    """The rows of a train split, to be found by what their calls say."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows, self._texts = rows, Texts([_said(row) for row in rows])

    def nearest(self, row: Row, count: int) -> list[Row]:
        """At most `count` of the rows, the nearest last, as many as fit into `MOST_BYTES`."""
        cosines = self._texts.cosines(_said(row))
        found: list[Row] = []
        left = MOST_BYTES
        for n in np.argsort(-cosines, kind="stable")[: _TRIED * count].tolist():
            size = len(_said(self._rows[n]).encode()) + len(self._rows[n].completion.encode())
            if size <= left and len(found) < count:
                left -= size
                found.append(self._rows[n])
        return found[::-1]


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
