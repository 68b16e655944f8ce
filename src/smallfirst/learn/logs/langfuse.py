"""Langfuse: observations of type GENERATION, as its API (/api/public/observations, v1 and v2), its exports from the
user interface and its exports to blob storage (`observations/`, `observations_v2/`) write them. Read against the API's
reference and the "Blob storage export field reference" of October 2026.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from smallfirst.errors import RequestError
from smallfirst.learn.logs.entry import (
    Entry,
    Found,
    Plain,
    between,
    chat_answer,
    chat_message,
    counted,
    linked,
    mapping,
    moment,
    number,
    parsed,
    said,
    settings,
    text,
    tool,
    word,
)
from smallfirst.types import Json

_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


class Langfuse(Plain):
    def recognises(self, item: Json) -> bool:
        return "type" in item and ("traceId" in item or "trace_id" in item)

    def entries(self, item: Json) -> Iterator[Found]:
        seen = {_HUMP.sub("_", name).lower(): value for name, value in item.items()}
        if str(seen["type"]).upper() != "GENERATION" or seen.get("level") == "ERROR" or seen.get("output") is None:
            yield None
            return
        start, end = moment(seen.get("start_time")), moment(seen.get("end_time"))
        model = word(seen.get("provided_model_name")) or word(seen.get("model")) or "unknown"
        yield Entry(
            source=word(seen.get("id")) or "",
            request=_request(seen, model),
            response=chat_answer(model, [_answer(seen["output"])], usage=_usage(seen)),
            created_at=start,
            seconds=between(start, end),
            cost_usd=_cost(seen),
            episode=word(seen.get("session_id")) or word(seen.get("trace_id")),
            user=word(seen.get("user_id")),
        )


def _request(seen: Mapping[str, Any], model: str) -> dict[str, Any]:
    """The prompt: a list of messages, an object with messages and tools, or one user's text."""
    asked = parsed(seen.get("input"))
    given: dict[str, Any] = asked if isinstance(asked, dict) else {}
    messages = given.get("messages", given.get("input")) if given else asked
    if isinstance(messages, str):
        messages = [messages]
    if not isinstance(messages, list) or not messages:
        raise RequestError("The observation's input holds no messages.")
    offered = mapping(seen.get("tool_definitions"), "tool_definitions")
    tools = {"tools": [_tool(name, made) for name, made in offered.items()]} if offered else {}
    chosen = settings(mapping(seen.get("model_parameters"), "model_parameters"))
    found = linked(chat_message(message) for message in messages)
    return {**chosen, **tools, **settings(given), "model": model, "messages": found}


def _tool(name: str, made: Any) -> dict[str, Any]:
    fields = mapping(made, "A tool definition")
    function = mapping(fields.get("function"), "function") or fields
    return tool(function.get("name") or name, function.get("description"), function.get("parameters"))


def _answer(output: Any) -> dict[str, Any]:
    """The assistant's message: a message, a list or an object that holds one, or a text."""
    given = parsed(output)
    if isinstance(given, list) and given:
        given = given[0]
    if isinstance(given, dict) and isinstance(given.get("choices"), list) and given["choices"]:
        given = mapping(given["choices"][0], "choices[0]").get("message")
    if isinstance(given, dict) and not given.keys() & {"content", "tool_calls", "role"}:
        return said("assistant", text(output))  # an answer in JSON
    return {**chat_message(given, "assistant"), "role": "assistant"}


def _usage(seen: Mapping[str, Any]) -> dict[str, Any]:
    """Tokens: kinds that begin with "input" or "output" add up, as Langfuse counts them."""
    details = mapping(seen.get("usage_details"), "usage_details")
    if not details:
        old = mapping(seen.get("usage"), "usage")
        given = (old.get("input", seen.get("prompt_tokens")), old.get("output", seen.get("completion_tokens")))
        return counted(*given)
    sums = {
        side: sum(number(n) or 0.0 for kind, n in details.items() if kind.startswith(side))
        for side in ("input", "output")
    }
    cached = sum(number(n) or 0.0 for kind, n in details.items() if kind.startswith("input") and "cache" in kind)
    return counted(sums["input"], sums["output"], cached)


def _cost(seen: Mapping[str, Any]) -> float | None:
    details = mapping(seen.get("cost_details"), "cost_details")
    given = (seen.get("total_cost"), seen.get("calculated_total_cost"), details.get("total"))
    return next((cost for cost in map(number, given) if cost is not None), None)
