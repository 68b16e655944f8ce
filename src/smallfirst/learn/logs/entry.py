"""What every log format is turned into: a request and its answer as a wire knows them, and what helps to get there."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

import msgspec

from smallfirst.errors import RequestError
from smallfirst.types import Json

FINISH_REASONS = {"tool_call": "tool_calls", "tool_use": "tool_calls", "max_tokens": "length", "end_turn": "stop"}
"""OpenAI's words for other words of why an answer ended."""
_ROLES = {"human": "user", "ai": "assistant", "model": "assistant"}
_NUMBERS = frozenset(
    ("temperature", "top_p", "max_tokens", "max_completion_tokens", "seed", "presence_penalty", "frequency_penalty")
)
_SETTINGS = ("tools", "tool_choice", "parallel_tool_calls", "response_format", "functions", "function_call", "stop")


@dataclass(frozen=True, slots=True)
class Entry:
    """An answered call of a log.

    `request` and `response` are bodies of one of `wire.WIRES`, not checked yet. `source` is the call's id in the log,
    "" without one; times are in seconds since the epoch, None when the log has none; `cost_usd` None when unknown.
    """

    source: str
    request: Json
    response: Json
    created_at: float | None = None
    seconds: float = 0.0
    cost_usd: float | None = None
    task: str | None = None
    episode: str | None = None
    user: str | None = None


Found = Entry | RequestError | None
"""A call; what is wrong with something that should be one; None for what is no answered model call (a tool's span, a
failure)."""


class Format(Protocol):
    """A log format. One instance reads all files of an import, in order."""

    def recognises(self, item: Json) -> bool:
        """Whether the JSON object looks like one of this format's."""
        ...

    def entries(self, item: Json) -> Iterator[Found]:
        """What stands in a JSON object. Raises RequestError for one that cannot be read at all."""
        ...

    def rest(self) -> Iterator[Found]:
        """What was held back because more of it might have come."""
        ...


class Plain:
    """A format that holds nothing back."""

    def rest(self) -> Iterator[Found]:
        return iter(())


def parsed(value: Any) -> Any:
    """`value`, or what it says if it is a text that holds a JSON object or list; an empty text is None."""
    if not isinstance(value, str):
        return value
    if not value.lstrip().startswith(("{", "[")):
        return value or None
    try:
        return msgspec.json.decode(value)
    except (msgspec.DecodeError, RecursionError):
        return value


def mapping(value: Any, what: str) -> dict[str, Any]:
    """`value` as a JSON object, read from its text if it is one; {} for None. Raises RequestError for anything else."""
    value = parsed(value)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise RequestError(f"{what} is {type(value).__name__}, not an object.")
    return value


def listed(value: Any, what: str) -> list[Any]:
    """`value` as a list, read from its text if it is one; [] for None. Raises RequestError for anything else."""
    value = parsed(value)
    if value is None:
        return []
    if not isinstance(value, list):
        raise RequestError(f"{what} is {type(value).__name__}, not a list.")
    return value


def text(value: Any) -> str:
    """A text as it is, anything else as JSON, "" for None."""
    if value is None or isinstance(value, str):
        return value or ""
    return msgspec.json.encode(value).decode()


def word(value: Any) -> str | None:
    """A text that is not empty, or a number as one; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    return str(value) or None


def number(value: Any) -> float | None:
    """A finite number, also one written as text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        found = float(value)
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def moment(value: Any) -> float | None:
    """Seconds since the epoch: of ISO 8601 (UTC where no zone is named), or of a count of s, ms, us or ns by its size.

    None for None or an empty text; RequestError for anything else that is no time.
    """
    if value is None or value == "":
        return None
    count = number(value)
    if count is None and isinstance(value, str):
        try:
            read = datetime.fromisoformat(value)
        except ValueError:
            raise RequestError(f"The time {value!r:.60} is not ISO 8601.") from None
        count = (read if read.tzinfo else read.replace(tzinfo=UTC)).timestamp()
    if count is None or not 0 <= count < 1e20:
        raise RequestError(f"The time {value!r:.60} is none.")
    for start, per_second in ((1e17, 1e9), (1e14, 1e6), (1e11, 1e3)):
        if count >= start:
            return count / per_second
    return count


def between(start: float | None, end: float | None) -> float:
    """Seconds from `start` to `end`, 0 where they are not known."""
    return max(end - start, 0.0) if start is not None and end is not None else 0.0


def settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """What of `given` a chat request takes beside model and messages; a number that is none ("inf") is left out."""
    found: dict[str, Any] = {name: given[name] for name in _SETTINGS if given.get(name) is not None}
    for name in _NUMBERS:
        value = number(given.get(name))
        if value is not None:
            found[name] = int(value) if name.startswith("max_") or name == "seed" else value
    return found


def tool(name: Any, description: Any, parameters: Any) -> dict[str, Any]:
    """A function tool of a chat request."""
    function = {"name": text(name), "description": text(description), "parameters": mapping(parameters, "parameters")}
    return {"type": "function", "function": function}


def call(call_id: Any, name: Any, arguments: Any) -> dict[str, Any]:
    """A tool call of a chat message; an id that is missing is left for `linked` to make."""
    function = {"name": text(name), "arguments": text(arguments) or "{}"}
    return {"id": text(call_id).strip(), "type": "function", "function": function}


def said(role: str, content: Any, calls: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """A chat message; an assistant that only calls has no content."""
    message: dict[str, Any] = {"role": role, "content": content}
    if calls:
        message |= {"content": content or None, "tool_calls": list(calls)}
    return message


def chat_message(given: Any, role: str = "") -> dict[str, Any]:
    """A message in words near to OpenAI's (LangChain's, say) as a chat message; a text is what `role` said."""
    if not isinstance(given, dict):
        return said(role or "user", text(given))
    who = text(given.get("role")) or role or text(given.get("type"))
    who = _ROLES.get(who, who)
    content = given.get("content")
    if isinstance(content, dict):
        content = text(content)
    extra = given.get("additional_kwargs")
    calls = given.get("tool_calls") or (extra.get("tool_calls") if isinstance(extra, dict) else None)
    message = said(who, content, [_call(one) for one in listed(calls, "tool_calls")])
    if who == "tool":
        message |= {"content": text(content), "tool_call_id": text(given.get("tool_call_id") or given.get("id"))}
    return message


def _call(given: Any) -> dict[str, Any]:
    fields = mapping(given, "A tool call")
    function = mapping(fields.get("function"), "function") or fields
    arguments = function.get("arguments", function.get("args"))
    return call(fields.get("id"), function.get("name"), arguments)


def linked(messages: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with an id for each tool call, and each result without one linked to the earliest open call."""
    found, waiting = list(messages), deque[str]()
    for at, message in enumerate(found):
        for n, one in enumerate(message.get("tool_calls") or ()):
            one["id"] = one["id"] or f"call_{at}_{n}"
            waiting.append(one["id"])
        if message["role"] == "tool":
            answered = message.get("tool_call_id") or (waiting[0] if waiting else "")
            message["tool_call_id"] = answered
            if answered in waiting:
                waiting.remove(answered)
    return found


def chat_answer(
    model: str, messages: Sequence[dict[str, Any]], reasons: Sequence[Any] = (), usage: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """A chat completion whose choices are `messages`; reasons that are missing follow from what was said."""
    choices = []
    for index, message in enumerate(linked([dict(one)])[0] for one in messages):
        given = text(reasons[index]) if index < len(reasons) else ""
        reason = FINISH_REASONS.get(given, given) or ("tool_calls" if message.get("tool_calls") else "stop")
        choices.append({"index": index, "message": message, "finish_reason": reason})
    return {"model": model, "choices": choices, "usage": dict(usage or {})}


def counted(tokens_in: Any, tokens_out: Any, cached: Any = None) -> dict[str, Any]:
    """The usage of a chat completion."""
    details = {"cached_tokens": int(number(cached) or 0)}
    usage = {"prompt_tokens": int(number(tokens_in) or 0), "completion_tokens": int(number(tokens_out) or 0)}
    return {**usage, "prompt_tokens_details": details}
