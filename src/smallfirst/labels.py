"""Whether a recorded answer was right, by the best evidence that the records hold, and of which kind that is.

In this order: what feedback says of it; a tool that failed on its calls; the large model's answer to the same request;
and, weakest, that its calls ran without an error. Whether there is a label must not depend on which one it would be,
or rates among labelled answers would say nothing of the others: so two free texts are never compared, since equal words
would show that they agree, and other words would show nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from smallfirst.agreement import canonical_call, same_answer
from smallfirst.errors import RequestError
from smallfirst.evidence import message_texts
from smallfirst.schemas import JsonTextError, parse_json
from smallfirst.store import StoredRecord
from smallfirst.types import Attempt, Choice, Json, Origin, Request, ToolCall
from smallfirst.wire import WIRES

Kind = Literal["feedback", "execution", "agreement"]

_MOST_OUTCOMES = 100_000
_UNIQUE_ID = 16
_ERROR_TEXT = re.compile(r"(?:[\w.]*(?:Error|Exception)\s*:|Error executing |Traceback \(most recent call last\))")
_ERROR_KEYS = ("error", "exception", "is_error", "isError")
_STATUS_KEYS = ("status", "status_code", "statusCode")


@dataclass(frozen=True, slots=True)
class Label:
    """Whether an answer was right, and by what."""

    correct: bool
    kind: Kind


def agrees(request: Request, answer: Choice, reference: Choice) -> bool | None:
    """`same_answer`, or None for two free texts."""
    free = request.response_format.kind == "text" and not answer.tool_calls and not reference.tool_calls
    return None if free else same_answer(request, answer, reference)


def request_of(record: StoredRecord) -> Request | None:
    """The recorded request as it was parsed; None when it was not captured or cannot be read any more."""
    if not record.captured:
        return None
    try:
        return WIRES[record.wire].parse(msgspec.json.encode(record.body), Origin())
    except RequestError:
        return None


def label_of(record: StoredRecord, request: Request | None, n: int, outcomes: Outcomes) -> Label | None:
    """The label of the record's n-th attempt, None when nothing tells whether its answer was right.

    `request` is `request_of(record)`; without one only feedback tells. `outcomes` has learned from the later records.
    """
    said = next((bool(f.value) for f in reversed(record.feedback) if f.kind == "correct"), None)
    served = n == record.served
    if served and said is not None:
        return Label(said, "feedback")
    answer = _answer(record.attempts[n])
    if answer is None or request is None:
        return None
    given = next((as_choice(f.value) for f in reversed(record.feedback) if f.kind == "answer"), None)
    if given is not None and (right := agrees(request, answer, given)) is not None:
        return Label(right, "feedback")
    failed = outcomes.failed(record.episode, answer) if served else None
    if failed:
        return Label(False, "execution")
    found = _by_reference(record, request, answer, said)
    return found or (Label(True, "execution") if failed is False else None)


def referred(record: StoredRecord) -> int | None:
    """Which attempt is the large model's valid answer that others are compared with: the last one; None without."""
    found = (n for n, a in enumerate(record.attempts) if not a.small and a.decision != "evidence" and _answer(a))
    return max((n for n in found if record.attempts[n].verdict.ok), default=None)


class Outcomes:
    """What became of tool calls, learned from the tool messages of later records; records are given newest first.

    A call is known by its episode, id, name and arguments; without an episode only by an id of at least 16 characters,
    which is not given twice. Of more than 100,000 calls those learned first are forgotten: they are the latest ones,
    furthest from the records still to come.
    """

    def __init__(self) -> None:
        self._failed: dict[tuple[str, ...], bool] = {}

    def learn(self, record: StoredRecord) -> None:
        """Take in the tool messages of `record`."""
        flagged = _flagged(record.body) if record.wire == "messages" else ()
        self.learn_messages(record.episode, record.messages, frozenset(flagged))

    def learn_messages(
        self, episode: str | None, messages: Sequence[Json], flagged: frozenset[str] = frozenset()
    ) -> None:
        """Take in the tool messages of a call; `flagged` are the ids of tool calls that its wire marks as failed."""
        for call, failed in _results(messages, flagged):
            if (key := _key(episode, call)) is not None:
                self._failed.setdefault(key, failed)
        while len(self._failed) > _MOST_OUTCOMES:
            del self._failed[next(iter(self._failed))]

    def failed(self, episode: str | None, answer: Choice) -> bool | None:
        """Whether a tool reported an error on a call of the answer served; None when not all are known to have run."""
        keys = [_key(episode, call) for call in answer.tool_calls]
        known = [self._failed.get(key) if key is not None else None for key in keys]
        if any(known):
            return True
        return None if not known or None in known else False


def reports_error(content: Any) -> bool:
    """Whether a tool's result says that the call failed. Only what hardly says anything else is taken for it:

    text that begins with "Error:", "Error executing ", "Traceback (most recent call last)" or the name of an exception
    ("ValueError: ..."); a JSON object with a true or non-empty "error", "exception", "is_error" or "isError", or with a
    "status", "status_code" or "statusCode" from 400 to 599.
    """
    text = "".join(message_texts({"content": content}))
    if _ERROR_TEXT.match(text.lstrip()):
        return True
    try:
        value = parse_json(text)
    except JsonTextError:
        return False
    if not isinstance(value, dict):
        return False
    return any(value.get(key) for key in _ERROR_KEYS) or any(_is_error_status(value.get(key)) for key in _STATUS_KEYS)


def _by_reference(record: StoredRecord, request: Request, answer: Choice, said: bool | None) -> Label | None:
    """By the large model's answer; where that was served and feedback speaks of it, agreeing shares its label."""
    n = referred(record)
    reference = None if n is None else _answer(record.attempts[n])
    same = None if reference is None else agrees(request, answer, reference)
    if same is None:
        return None
    if n == record.served and said is not None:
        if same:
            return Label(said, "feedback")
        if not said:
            return None
    return Label(same, "agreement")


def _answer(attempt: Attempt) -> Choice | None:
    return attempt.completion.choices[0] if attempt.completion and attempt.completion.choices else None


def _results(messages: Sequence[Json], flagged: frozenset[str]) -> Iterator[tuple[ToolCall, bool]]:
    """Each call of the messages that has a result, and whether that reports an error."""
    calls: dict[str, ToolCall] = {}
    for message in messages:
        for made in message.get("tool_calls") or ():
            function = made.get("function")
            if function is not None:
                calls[made["id"]] = ToolCall(made["id"], function["name"], function["arguments"])
        if message.get("role") == "tool" and (call := calls.get(message.get("tool_call_id", ""))) is not None:
            yield call, call.id in flagged or reports_error(message.get("content"))


def _flagged(body: Json) -> Iterator[str]:
    """The ids of calls whose result Anthropic's `is_error` marks."""
    for message in body.get("messages", ()):
        content = message.get("content")
        for block in content if isinstance(content, list) else ():
            if block.get("type") == "tool_result" and block.get("is_error"):
                yield block.get("tool_use_id", "")


def _key(episode: str | None, call: ToolCall) -> tuple[str, ...] | None:
    if episode is None and len(call.id) < _UNIQUE_ID:
        return None
    return (episode or "", call.id, canonical_call(call.name, call.arguments, {}))


def _is_error_status(status: Any) -> bool:
    number = int(status) if isinstance(status, str) and status.isdecimal() else status
    return isinstance(number, int) and 400 <= number < 600


def as_choice(value: Any) -> Choice | None:
    """The right answer as feedback gives it: text, an assistant's message, one call or a list of calls ({"name",
    "arguments"}, or as in a message), or else a JSON value that the text is to hold."""
    if isinstance(value, str):
        return Choice(value)
    if isinstance(value, Mapping) and isinstance(value.get("tool_calls"), list):
        return as_choice(value["tool_calls"])
    if isinstance(value, Mapping) and isinstance(value.get("content"), str):
        return Choice(value["content"])
    calls = [_as_call(each) for each in (value if isinstance(value, list) else [value])]
    if all(calls):
        return Choice(tool_calls=tuple(call for call in calls if call is not None))
    return Choice(json.dumps(value))


def _as_call(value: Any) -> ToolCall | None:
    call = value.get("function", value) if isinstance(value, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(call.get("name"), str) or "arguments" not in call:
        return None
    arguments = call["arguments"]
    return ToolCall("", call["name"], arguments if isinstance(arguments, str) else json.dumps(arguments))
