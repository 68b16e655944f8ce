"""What of a conversation can be shortened, and for which question: turns, their long texts, and what was asked.

A turn is what stands between two answers of the model: a user's messages, or the results of its tools. What is asked
in a turn is known when it is sent, and never changes; so a text shortened for what its own turn asks is the same text
in every later call, and the provider's prompt cache goes on working.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from smallfirst.compress.base import Count
from smallfirst.evidence import message_texts
from smallfirst.types import Json

EDGE = 160
"""Tokens of a paragraph at an end of a long text up to which it may be what the text is for; it then stays."""

ASKED = 2000
"""Characters of a question that are looked at."""

_FIXED = frozenset({"system", "developer", "assistant"})
_ASKS = re.compile(r"\?\s*$|？\s*$|(?:^|\n)\s*(?:question|query|task|instruction|问题|任务)s?\s*[:：]", re.IGNORECASE)
_PARAGRAPH = re.compile(r"\n[ \t]*\n\s*")
_LINE = re.compile(r"\n\s*")


@dataclass(frozen=True, slots=True)
class Long:
    """A long text: `head` and `tail` stay as they are, `body` may be shortened; together they are the text."""

    head: str
    body: str
    tail: str

    @property
    def text(self) -> str:
        return self.head + self.body + self.tail


@dataclass(frozen=True, slots=True)
class Turn:
    """Messages [start, end) of a conversation, the long texts in them, and what they are to be shortened for."""

    start: int
    end: int
    longs: tuple[Long, ...]
    question: str


def turns(messages: Sequence[Json], least: int, count: Count) -> list[Turn]:
    """The turns that have texts of at least `least` tokens, with the question of each."""
    found, asked = list[Turn](), ""
    for start, end in _bounds(messages):
        texts = [(text, m.get("role") == "user") for m in messages[start:end] for text in message_texts(m)]
        sizes = [len(text) >= least and count(text) >= least for text, _ in texts]
        said = [text for (text, by_user), is_long in zip(texts, sizes, strict=True) if by_user and not is_long]
        alone = sum(is_long for (_, by_user), is_long in zip(texts, sizes, strict=True) if by_user) == 1
        longs, edges = list[Long](), list[str]()
        for (text, by_user), is_long in zip(texts, sizes, strict=True):
            if is_long:
                long, asking = _edges(text, count, alone=alone) if by_user else (Long("", text, ""), "")
                longs.append(long)
                said += [asking] if asking else []
                edges += [long.head.strip(), long.tail.strip()]
        asked = "\n".join(filter(None, said)) or "\n".join(filter(None, [*edges, asked]))
        if longs:
            called = _calls(messages[start - 1]) if start else ""
            found.append(Turn(start, end, tuple(longs), f"{asked}\n{called}".strip()[:ASKED]))
    return found


def _bounds(messages: Sequence[Json]) -> Iterator[tuple[int, int]]:
    start = None
    for n, message in enumerate(messages):
        if message.get("role") in _FIXED:
            if start is not None:
                yield start, n
            start = None
        elif start is None:
            start = n
    if start is not None:
        yield start, len(messages)


def _edges(text: str, count: Count, *, alone: bool) -> tuple[Long, str]:
    """A user's long text, short paragraphs at its ends apart, and the last one of these that asks by its look.

    Where none does, they stay apart all the same if the text is `alone`: one may say what to do. Beside other long
    texts it is a document.
    """
    between = _PARAGRAPH if _PARAGRAPH.search(text.strip()) else _LINE
    gaps = list(between.finditer(text, 0, len(text.rstrip())))
    first = gaps[0].end() if gaps and count(text[: gaps[0].start()]) <= EDGE else 0
    last = gaps[-1].start() if gaps and count(text[gaps[-1].end() :]) <= EDGE else len(text)
    asking = [edge for edge in (text[:first].strip(), text[last:].strip()) if _ASKS.search(edge)]
    if last < first or not (asking or alone):
        return Long("", text, ""), ""
    return Long(text[:first], text[first:last], text[last:]), "".join(asking[-1:])


def _calls(message: Json) -> str:
    """What the model's tool calls asked for: their arguments' values."""
    texts = []
    for call in message.get("tool_calls") or ():
        arguments = (call.get("function") or {}).get("arguments") or ""
        try:
            given = json.loads(arguments)
        except ValueError:
            given = arguments
        texts += [str(value) for value in (given.values() if isinstance(given, dict) else [given])]
    return "\n".join(texts)
