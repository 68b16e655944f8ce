"""Messages answers of an upstream, whole or streamed, to Deltas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec import Struct

from smallfirst.errors import BackendGarbage
from smallfirst.types import Delta, FinishReason, Json, Native, ToolCallDelta, Usage
from smallfirst.wire import shared

_FINISH: dict[str, FinishReason] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
_STATUS = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "timeout_error": 504,
    "overloaded_error": 529,
}


class _OutputDetails(Struct):
    thinking_tokens: int | None = None


class _Usage(Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    output_tokens_details: _OutputDetails | None = None


class _Block(Struct):
    type: str
    text: str = ""
    thinking: str = ""
    id: str | None = None
    name: str | None = None
    input: Any = None


class _Answer(Struct):
    content: list[_Block]
    model: str | None = None
    stop_reason: str | None = None
    usage: _Usage | None = None


class _BlockDelta(Struct):
    type: str | None = None
    text: str = ""
    thinking: str = ""
    partial_json: str = ""
    stop_reason: str | None = None


class _Event(Struct):
    index: int = 0
    message: _Answer | None = None
    content_block: _Block | None = None
    delta: _BlockDelta | None = None
    usage: _Usage | None = None


def read(payload: Json) -> tuple[Delta, ...]:
    """A whole answer as one Delta with native, usage and model.

    Raises UpstreamError for an error object, BackendGarbage for what is no message.
    """
    if payload.get("type") == "error":
        raise _error(payload)
    answer = shared.read_as(payload, _Answer)
    uses = [block for block in answer.content if block.type == "tool_use"]
    delta = Delta(
        text="".join(block.text for block in answer.content if block.type == "text"),
        reasoning="".join(block.thinking for block in answer.content if block.type == "thinking"),
        tool_calls=tuple(
            ToolCallDelta(i, use.id, use.name, shared.json_text(use.input or {})) for i, use in enumerate(uses)
        ),
        finish_reason=_FINISH.get(answer.stop_reason or "", "stop"),
        usage=_usage(answer.usage or _Usage()),
        model=answer.model,
        native=Native("messages", payload),
    )
    return (delta,)


def _error(payload: Json) -> Exception:
    said = payload.get("error")
    kind = said.get("type") if isinstance(said, dict) else None
    return shared.upstream_error(said, payload, _STATUS.get(kind, 500) if isinstance(kind, str) else 500)


class Reader:
    """Reads a stream's events; `done` after message_stop."""

    def __init__(self) -> None:
        self.done = False
        self._calls: dict[int, int] = {}
        self._without_input: set[int] = set()
        self._usage = _Usage()

    def feed(self, event: str | None, data: bytes) -> tuple[Delta, ...]:
        """The one Delta of an event, with its native payload. Raises UpstreamError for an error event."""
        payload = shared.read_event(data)
        kind = shared.kind_of(payload, event)
        if kind == "error":
            raise _error(payload)
        native = Native("messages", payload, event or "")
        if kind == "message_stop":
            self.done = True
        if kind not in _EVENTS:
            return (Delta(native=native),)
        return (_EVENTS[kind](self, shared.read_as(payload, _Event), native),)

    def _start(self, event: _Event, native: Native) -> Delta:
        if event.message is None:
            raise BackendGarbage("The upstream began a message without saying which.")
        return Delta(model=event.message.model, usage=self._count(event.message.usage), native=native)

    def _block(self, event: _Event, native: Native) -> Delta:
        block = event.content_block
        if block is None or block.type != "tool_use":
            text, reasoning = (block.text, block.thinking) if block else ("", "")
            return Delta(text=text, reasoning=reasoning, native=native)
        call = self._calls.setdefault(event.index, len(self._calls))
        given = shared.json_text(block.input) if block.input else ""
        if not given:
            self._without_input.add(event.index)
        return Delta(tool_calls=(ToolCallDelta(call, block.id, block.name, given),), native=native)

    def _piece(self, event: _Event, native: Native) -> Delta:
        piece = event.delta or _BlockDelta()
        if piece.partial_json and event.index in self._calls:
            self._without_input.discard(event.index)
            call = ToolCallDelta(self._calls[event.index], arguments=piece.partial_json)
            return Delta(tool_calls=(call,), native=native)
        return Delta(text=piece.text, reasoning=piece.thinking, native=native)

    def _stop_block(self, event: _Event, native: Native) -> Delta:
        """The end of a block; a call without any input has the arguments {}."""
        if event.index not in self._without_input:
            return Delta(native=native)
        self._without_input.discard(event.index)
        return Delta(tool_calls=(ToolCallDelta(self._calls[event.index], arguments="{}"),), native=native)

    def _end(self, event: _Event, native: Native) -> Delta:
        reason = event.delta and event.delta.stop_reason
        finish = _FINISH.get(reason, "stop") if reason else None
        return Delta(finish_reason=finish, usage=self._count(event.usage), native=native)

    def _count(self, given: _Usage | None) -> Usage:
        """The usage so far: the message's end repeats only some of what its start said."""
        for field in _Usage.__struct_fields__:
            value = getattr(given, field, None)
            if value is not None:
                setattr(self._usage, field, value)
        return _usage(self._usage)


_EVENTS: dict[str, Callable[[Reader, _Event, Native], Delta]] = {
    "message_start": Reader._start,
    "content_block_start": Reader._block,
    "content_block_delta": Reader._piece,
    "content_block_stop": Reader._stop_block,
    "message_delta": Reader._end,
}


def _usage(given: _Usage) -> Usage:
    """Our input tokens are all of them; Anthropic's leave out those read from and written to the cache."""
    cached, written = given.cache_read_input_tokens or 0, given.cache_creation_input_tokens or 0
    details = given.output_tokens_details
    return Usage(
        input_tokens=(given.input_tokens or 0) + cached + written,
        output_tokens=given.output_tokens or 0,
        cached_input_tokens=cached,
        cache_write_tokens=written,
        reasoning_tokens=(details and details.thinking_tokens) or 0,
    )
