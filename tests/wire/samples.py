"""Requests and answers that the wire tests share."""

from __future__ import annotations

import json
from typing import Any

from smallfirst.types import Choice, Completion, Origin, Request, TokenLogprob, ToolCall, Usage, Wire
from smallfirst.wire import WIRES

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
CALL = ToolCall("call_1", "weather", '{"city":"Oslo"}')
USAGE = Usage(input_tokens=12, output_tokens=5, cached_input_tokens=4, cache_write_tokens=2, reasoning_tokens=1)

CHAT: dict[str, Any] = {
    "model": "m",
    "messages": [{"role": "user", "content": "Weather?"}],
    "tools": [{"type": "function", "function": {"name": "weather", "description": "d", "parameters": SCHEMA}}],
}
RESPONSES: dict[str, Any] = {
    "model": "m",
    "input": "Weather?",
    "tools": [{"type": "function", "name": "weather", "description": "d", "parameters": SCHEMA, "strict": False}],
}
MESSAGES: dict[str, Any] = {
    "model": "m",
    "max_tokens": 99,
    "messages": [{"role": "user", "content": "Weather?"}],
    "tools": [{"name": "weather", "description": "d", "input_schema": SCHEMA}],
}
BODIES: dict[Wire, dict[str, Any]] = {"chat": CHAT, "responses": RESPONSES, "messages": MESSAGES}

TEXT = Completion((Choice("Hello, wörld."),), USAGE, "small")
CALLS = Completion(
    (Choice("Let me see.", (CALL, ToolCall("call_2", "weather", '{"city":"Rome"}')), "tool_calls"),), USAGE, "small"
)
CUT = Completion((Choice("Hello", finish_reason="length"),), USAGE, "small")
LOGPROBS = (TokenLogprob("Hel", -0.5, (("Hel", -0.5), ("Hi", -1.5))), TokenLogprob("lo", -0.25))


def ask(wire: Wire, origin: Origin | None = None, **fields: Any) -> Request:
    """The sample request of `wire` with `fields` set; a field that is ... is left out."""
    body = {key: value for key, value in {**BODIES[wire], **fields}.items() if value is not ...}
    return WIRES[wire].parse(json.dumps(body).encode(), origin or Origin())
