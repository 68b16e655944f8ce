"""The one call of the measurement: a request with five tools, and the tool call that every server here answers with.

`PLACE` stands where each request carries a number of its own, so that nothing can be answered or kept from memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

PLACE = b"000000000000"
LARGE, SMALL = "large-model", "small-model"

_ARGUMENTS = {"city": "Lisbon", "nights": 2, "guests": 2, "quiet": True}
_PIECES = ("book_hotel", '{"city":', '"Lisbon",', '"nights":2,', '"guests":2,', '"quiet":true}')
_USAGE = {"prompt_tokens": 612, "completion_tokens": 27, "total_tokens": 639}
EXPECTED = "book_hotel"


def _tool(name: str, description: str, required: list[str], **properties: dict[str, Any]) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


_CITY = {"type": "string", "description": "The city's name in English, without its country.", "minLength": 1}
_DAY = {"type": "string", "format": "date", "description": "A day as YYYY-MM-DD."}
_COUNT = {"type": "integer", "minimum": 1, "maximum": 30}
TOOLS = [
    _tool(
        "book_hotel",
        "Book a room.",
        ["city", "nights"],
        city=_CITY,
        nights=_COUNT,
        guests=_COUNT,
        quiet={"type": "boolean"},
    ),
    _tool("find_train", "Find trains between two cities.", ["start", "end"], start=_CITY, end=_CITY, day=_DAY),
    _tool("weather", "The weather of a day.", ["city"], city=_CITY, day=_DAY, unit={"enum": ["celsius", "fahrenheit"]}),
    _tool("cancel", "Cancel a booking.", ["booking"], booking={"type": "string", "pattern": "^[A-Z0-9]{6}$"}),
    _tool("notes", "Keep notes.", ["lines"], lines={"type": "array", "items": {"type": "string"}, "maxItems": 20}),
]
_SYSTEM = (
    "You are the travel desk of a small company. Use the tools; never invent a booking, a price or a train. "
    "Ask when a city or a number of nights is missing. Prefer trains to planes and quiet rooms to cheap ones. "
)


def request(model: str, *, stream: bool) -> bytes:
    """The body of the call, with `PLACE` in its last message."""
    said = f"Travel request {PLACE.decode()}: two nights in Lisbon for two, somewhere quiet please."
    messages = [{"role": "system", "content": _SYSTEM * 3}, {"role": "user", "content": said}]
    body: dict[str, Any] = {"model": model, "messages": messages, "tools": TOOLS, "temperature": 0, "max_tokens": 256}
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return json.dumps(body).encode()


def answer(model: str, *, logprobs: bool) -> bytes:
    """The whole answer, with log-probabilities of 27 tokens (top 5) when they were asked for."""
    function = {"name": "book_hotel", "arguments": json.dumps(_ARGUMENTS)}
    call = {"id": "call_0123456789", "type": "function", "function": function}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    choice: dict[str, Any] = {"index": 0, "message": message, "logprobs": None, "finish_reason": "tool_calls"}
    if logprobs:
        choice["logprobs"] = {"content": list(_tokens()), "refusal": None}
    return json.dumps({**_head(model, "chat.completion"), "choices": [choice], "usage": _USAGE}).encode()


def chunks(model: str) -> list[bytes]:
    """The same answer as the events of a stream."""
    name, *arguments = _PIECES
    first = {"index": 0, "id": "call_0123456789", "type": "function", "function": {"name": name, "arguments": ""}}
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": None, "tool_calls": [first]}]
    deltas += [{"tool_calls": [{"index": 0, "function": {"arguments": piece}}]} for piece in arguments]
    head = _head(model, "chat.completion.chunk")
    events = [{**head, "choices": [{"index": 0, "delta": d, "finish_reason": None}]} for d in deltas]
    events.append({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]})
    events.append({**head, "choices": [], "usage": _USAGE})
    return [b"data: " + json.dumps(event).encode() + b"\n\n" for event in events] + [b"data: [DONE]\n\n"]


def _head(model: str, kind: str) -> dict[str, Any]:
    return {"id": "chatcmpl-0123456789", "object": kind, "created": 1767225600, "model": model}


def _tokens() -> Iterator[dict[str, Any]]:
    text = json.dumps({"name": "book_hotel", "arguments": _ARGUMENTS})
    for start in range(0, len(text), 4):
        top = [{"token": f"{text[start : start + 4]}{i or ''}", "logprob": -0.01 - i, "bytes": None} for i in range(5)]
        yield {**top[0], "top_logprobs": top}
