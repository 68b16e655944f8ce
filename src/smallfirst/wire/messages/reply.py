"""Messages answers to the client: whole, streamed, errors.

Reasoning of a model of another wire is not shown: a client would send such a thinking block back, and Anthropic
refuses thinking that it did not sign.
"""

from __future__ import annotations

from typing import Any

from smallfirst.errors import SmallfirstError, UpstreamError
from smallfirst.types import Completion, Delta, FinishReason, Request, ToolCallDelta, Usage
from smallfirst.wire import shared
from smallfirst.wire.messages.blocks import arguments

_STOP = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}
_ERRORS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def render(completion: Completion, request: Request, *, id: str, created: float) -> dict[str, Any]:  # noqa: A002, ARG001
    """The answer's JSON object: the upstream's own if it came by this wire, else built under `id`."""
    native = completion.native
    if native and native.wire == "messages":
        return dict(native.payload)
    choice = completion.choices[0]
    text = choice.text + choice.refusal
    content: list[dict[str, Any]] = [{"type": "text", "text": text, "citations": None}] if text else []
    content += [
        {"type": "tool_use", "id": call.id, "name": call.name, "input": arguments(call.arguments)}
        for call in choice.tool_calls
    ]
    return {
        **_head(id, completion.model or request.model),
        "content": content,
        "stop_reason": _stop(choice.finish_reason, bool(choice.refusal), bool(choice.tool_calls)),
        "usage": usage_json(completion.usage),
    }


def _head(id: str, model: str) -> dict[str, Any]:  # noqa: A002
    return {
        "id": id,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage_json(Usage()),
    }


def _stop(finish: FinishReason, refused: bool, called: bool) -> str:
    """OpenAI ends a call that it was made to make with "stop"; clients of this wire look for tool_use."""
    return "refusal" if refused else "tool_use" if called and finish == "stop" else _STOP[finish]


def usage_json(usage: Usage) -> dict[str, Any]:
    """`usage` in Anthropic's words, whose input tokens leave out those read from and written to the cache."""
    return {
        "input_tokens": usage.input_tokens - usage.cached_input_tokens - usage.cache_write_tokens,
        "output_tokens": usage.output_tokens,
        "cache_read_input_tokens": usage.cached_input_tokens,
        "cache_creation_input_tokens": usage.cache_write_tokens,
        "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
    }


class Writer:
    """Streams an answer to the client. Events of an upstream of this wire are forwarded unchanged; other answers become
    a text block and a block for each call."""

    def __init__(self, request: Request, *, id: str, created: float) -> None:  # noqa: A002, ARG002
        self._request = request
        self._id = id
        self._model = request.model
        self._forwards: bool | None = None
        self._started = False
        self._finish: FinishReason = "stop"
        self._refused = False
        self._called = False
        self._blocks = 0
        self._open: int | str | None = None
        self._waiting: dict[int, list[ToolCallDelta]] = {}

    def feed(self, delta: Delta) -> bytes:
        """The events for `delta`; empty if it shows the client nothing."""
        if self._forwards is None:
            self._forwards = shared.is_event_of(delta.native, "messages")
        if self._forwards:
            return shared.event(delta.native.payload, delta.native.event) if delta.native else b""
        if delta.choice:
            return b""
        self._model = delta.model or self._model
        self._finish = delta.finish_reason or self._finish
        self._refused = self._refused or bool(delta.refusal)
        self._called = self._called or bool(delta.tool_calls)
        out = self._start()
        if text := delta.text + delta.refusal:
            out += self._turn_to("text", {"type": "text", "text": ""})
            out += self._piece({"type": "text_delta", "text": text})
        return out + b"".join(self._call(call) for call in delta.tool_calls)

    def finish(self, usage: Usage) -> bytes:
        """The events that end the last block and the message."""
        if self._forwards:
            return b""
        out = self._start() + self._close()
        for pieces in self._waiting.values():
            out += b"".join(self._write_call(piece) for piece in pieces) + self._close()
        ended = {"stop_reason": _stop(self._finish, self._refused, self._called), "stop_sequence": None}
        out += self._event("message_delta", delta=ended, usage=usage_json(usage))
        return out + self._event("message_stop")

    def error(self, err: SmallfirstError) -> bytes:
        """The event for an error in mid-stream; nothing follows it."""
        return shared.event(error(err), "error")

    def _event(self, kind: str, **fields: Any) -> bytes:
        return shared.event({"type": kind, **fields}, kind)

    def _start(self) -> bytes:
        if self._started:
            return b""
        self._started = True
        return self._event("message_start", message=_head(self._id, self._model))

    def _turn_to(self, what: int | str, block: dict[str, Any]) -> bytes:
        """Begin `block`, unless the open one is for `what` already; only one is open at a time."""
        if self._open == what:
            return b""
        out = self._close()
        self._open = what
        return out + self._event("content_block_start", index=self._blocks, content_block=block)

    def _piece(self, piece: dict[str, Any]) -> bytes:
        return self._event("content_block_delta", index=self._blocks, delta=piece)

    def _close(self) -> bytes:
        if self._open is None:
            return b""
        self._open = None
        self._blocks += 1
        return self._event("content_block_stop", index=self._blocks - 1)

    def _call(self, delta: ToolCallDelta) -> bytes:
        """A piece of a call. While another call's block is open it waits, as a closed block cannot be reopened."""
        if delta.index in self._waiting or (isinstance(self._open, int) and self._open != delta.index):
            self._waiting.setdefault(delta.index, []).append(delta)
            return b""
        return self._write_call(delta)

    def _write_call(self, delta: ToolCallDelta) -> bytes:
        call_id = delta.id or f"toolu_{self._id}_{delta.index}"
        block = {"type": "tool_use", "id": call_id, "name": delta.name or "", "input": {}}
        out = self._turn_to(delta.index, block)
        if delta.arguments:
            out += self._piece({"type": "input_json_delta", "partial_json": delta.arguments})
        return out


def error(err: SmallfirstError) -> dict[str, Any]:
    """`err` in Anthropic's shape; an upstream's own error of that shape as it is."""
    body = (err.body if isinstance(err, UpstreamError) else None) or {}
    if body.get("type") == "error" and isinstance(body.get("error"), dict):
        return dict(body)
    return {"type": "error", "error": {"type": _ERRORS.get(err.status, "api_error"), "message": str(err)}}
