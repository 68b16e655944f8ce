"""Recorded calls for pages: a search through them, and one call with all that happened to it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

from smallfirst.confidence import margin, value_tokens
from smallfirst.evidence import message_texts
from smallfirst.schemas import JsonTextError, parse_json
from smallfirst.store import RecordFilter, RecordSummary, Store, StoredRecord
from smallfirst.types import AFTERWARDS, Attempt, Choice, Json

PAGE = 50
_SCANNED = 200
_PATIENCE_S = 0.6

Sure = Literal["low", "middling", "high", "unknown"]


@dataclass(frozen=True, slots=True)
class Search:
    """What is looked for. `wanted` is answered by the store's indexes, the rest by looking at call after call: `usd`
    (it cost so much or more), `text` (stands in a message or answer, whatever the case)."""

    wanted: RecordFilter
    usd: float | None = None
    text: str = ""
    after: str | None = None

    @property
    def looks(self) -> bool:
        """Whether calls have to be looked at one by one."""
        return self.usd is not None or bool(self.text)


@dataclass(frozen=True, slots=True)
class Found:
    """A page of calls, newest first; `after` is where the next page begins, None at the end. `looked` counts the calls
    looked at, of which the oldest was made at `back_to`."""

    calls: tuple[RecordSummary, ...]
    after: str | None
    looked: int
    back_to: float | None


async def find(store: Store, search: Search) -> Found:
    """The first calls that match, as many as a page holds, or as 0.6 s of looking find."""
    if not search.looks:
        page = await store.list_records(search.wanted, limit=PAGE + 1, after=search.after)
        shown = tuple(page[:PAGE])
        after = shown[-1].id if len(page) > PAGE else None
        return Found(shown, after, len(shown), shown[-1].created_at if shown else None)
    calls: list[RecordSummary] = []
    looked, last, until = 0, None, time.monotonic() + _PATIENCE_S
    after = search.after
    while page := await store.list_records(search.wanted, limit=_SCANNED, after=after):
        for call in page:
            looked, last, after = looked + 1, call, call.id
            if await _matches(store, search, call):
                calls.append(call)
            if len(calls) == PAGE or time.monotonic() > until:
                return Found(tuple(calls), after, looked, call.created_at)
    return Found(tuple(calls), None, looked, last.created_at if last else None)


async def _matches(store: Store, search: Search, call: RecordSummary) -> bool:
    if search.usd is not None and not (call.cost_usd is not None and call.cost_usd >= search.usd):
        return False
    return not search.text or search.text.casefold() in "\n".join(_texts(await store.get(call.id))).casefold()


def _texts(record: StoredRecord) -> Iterator[str]:
    """All text of a call."""
    for message in record.messages:
        yield from message_texts(message)
        for made in message.get("tool_calls") or ():
            yield json.dumps(made.get("function", {}), ensure_ascii=False)
    for attempt in record.attempts:
        for choice in attempt.completion.choices if attempt.completion else ():
            yield answer_text(choice)


@dataclass(frozen=True, slots=True)
class Token:
    """A generated token and how sure the model was of it: its margin over the likeliest other one. `value`: it carries
    a value of the answer, not its form."""

    text: str
    value: bool
    sure: Sure
    margin: float | None


@dataclass(frozen=True, slots=True)
class Try:
    """An attempt as its page shows it, with its place on the call's time line (seconds from its start)."""

    n: int
    attempt: Attempt
    answer: str
    tokens: tuple[Token, ...]
    served: bool
    afterwards: bool
    begins: float
    ends: float


def tries(record: StoredRecord) -> tuple[Try, ...]:
    """The attempts in order; evidence is asked at the same time as what it speaks for, all others one after another."""
    afterwards: Iterator[bool] = accumulate((a.decision in AFTERWARDS for a in record.attempts), lambda a, b: a or b)
    found, begins, ends = [], 0.0, 0.0
    for n, (attempt, after) in enumerate(zip(record.attempts, afterwards, strict=True)):
        begins = begins if attempt.decision == "evidence" and n else ends
        ends = max(ends, begins + attempt.seconds)
        choice = attempt.completion.choices[0] if attempt.completion and attempt.completion.choices else None
        answer, marked = (answer_text(choice), tokens(choice)) if choice else ("", ())
        served = n == record.served
        found.append(Try(n, attempt, answer, marked, served, after, begins, begins + attempt.seconds))
    return tuple(found)


def tokens(choice: Choice) -> tuple[Token, ...]:
    """The generated tokens of an answer; empty where no log-probabilities were kept."""
    values = {id(token) for token in value_tokens(choice)}
    found = []
    for token in choice.logprobs:
        by = margin(token)
        found.append(Token(token.token, id(token) in values, _sure(by), by))
    return tuple(found)


def _sure(by: float | None) -> Sure:
    if by is None:
        return "unknown"
    return "high" if by >= 0.8 else "middling" if by >= 0.3 else "low"


def answer_text(choice: Choice) -> str:
    """An answer as text: what it says, then its calls with their arguments laid out."""
    calls = [f"{call.name}({laid_out(call.arguments)})" for call in choice.tool_calls]
    return "\n".join(part for part in (choice.text, choice.refusal, *calls) if part)


def laid_out(text: str) -> str:
    """JSON text with its keys on lines of their own; anything else as it is."""
    try:
        value = parse_json(text)
    except JsonTextError:
        return text
    return json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True) if isinstance(value, dict | list) else text


@dataclass(frozen=True, slots=True)
class Said:
    """A message of the request: who said it, its text, its calls as (name, arguments), and kinds of content that are
    no text."""

    role: str
    text: str
    calls: tuple[tuple[str, str], ...]
    attached: tuple[str, ...]


def conversation(messages: Sequence[Json]) -> tuple[Said, ...]:
    """The request's messages."""
    return tuple(
        Said(
            str(message.get("role", "")),
            "\n".join(message_texts(message)),
            tuple(_call(made) for made in message.get("tool_calls") or ()),
            tuple(_attached(message.get("content"))),
        )
        for message in messages
    )


def _call(made: Json) -> tuple[str, str]:
    function = made.get("function") or made.get("custom") or {}
    return str(function.get("name", "")), laid_out(str(function.get("arguments", function.get("input", ""))))


def _attached(content: Any) -> Iterator[str]:
    for part in content if isinstance(content, list) else ():
        kind = part.get("type", "") if isinstance(part, dict) else ""
        if kind not in {"text", "input_text", "output_text", "refusal"}:
            yield str(kind)
