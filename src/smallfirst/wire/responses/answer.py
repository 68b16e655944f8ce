"""Responses answers of an upstream, whole or streamed, to Deltas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec import Struct

from smallfirst.errors import BackendGarbage
from smallfirst.types import Delta, FinishReason, Json, Native, TokenLogprob, ToolCallDelta, Usage
from smallfirst.wire import shared

_CALL_ITEMS = {"function_call": "arguments", "custom_tool_call": "input"}


class _CachedDetails(Struct):
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None


class _OutputDetails(Struct):
    reasoning_tokens: int | None = None


class _Usage(Struct):
    input_tokens: int = 0
    output_tokens: int = 0
    input_tokens_details: _CachedDetails | None = None
    output_tokens_details: _OutputDetails | None = None


class _Top(Struct):
    token: str | None = None
    logprob: float | None = None


class _Token(Struct):
    token: str
    logprob: float
    top_logprobs: list[_Top] | None = None


class _Part(Struct):
    type: str
    text: str | None = None
    refusal: str | None = None
    logprobs: list[_Token] | None = None


class _Incomplete(Struct):
    reason: str | None = None


class _Answer(Struct):
    output: list[dict[str, Any]]
    status: str | None = None
    model: str | None = None
    usage: _Usage | None = None
    error: Any = None
    incomplete_details: _Incomplete | None = None


class _Message(Struct):
    content: list[_Part]


class _Reasoning(Struct):
    summary: list[_Part] | None = None
    content: list[_Part] | None = None


class _Call(Struct):
    call_id: str
    name: str
    arguments: str = ""
    input: str = ""


class _Event(Struct):
    type: str
    delta: str = ""
    output_index: int = 0
    arguments: str = ""
    input: str = ""
    logprobs: list[_Token] | None = None
    item: dict[str, Any] | None = None
    response: dict[str, Any] | None = None


def read(payload: Json) -> tuple[Delta, ...]:
    """A whole answer as one Delta with native, usage and model.

    Raises UpstreamError for a failed response, BackendGarbage for what is no response.
    """
    if payload.get("error"):
        raise shared.upstream_error(payload["error"], payload)
    answer = shared.read_as(payload, _Answer)
    text, refusal, reasoning = "", "", ""
    calls: list[ToolCallDelta] = []
    tokens: list[TokenLogprob] = []
    for item in answer.output:
        kind = shared.kind_of(item)
        if kind == "message":
            for part in shared.read_as(item, _Message).content:
                text += part.text or ""
                refusal += part.refusal or ""
                tokens += _tokens(part.logprobs)
        elif kind == "reasoning":
            thought = shared.read_as(item, _Reasoning)
            reasoning += "".join(part.text or "" for part in (thought.content or thought.summary or ()))
        elif kind in _CALL_ITEMS:
            call = shared.read_as(item, _Call)
            calls.append(ToolCallDelta(len(calls), call.call_id, call.name, call.arguments or call.input))
    delta = Delta(
        text=text,
        reasoning=reasoning,
        refusal=refusal,
        tool_calls=tuple(calls),
        logprobs=tuple(tokens),
        finish_reason=_finish(answer, bool(calls)),
        usage=_usage(answer.usage),
        model=answer.model,
        native=Native("responses", payload),
    )
    return (delta,)


class Reader:
    """Reads a stream's events; `done` after response.completed or response.incomplete."""

    def __init__(self) -> None:
        self.done = False
        self._calls: dict[int, int] = {}
        self._with_arguments: set[int] = set()

    def feed(self, event: str | None, data: bytes) -> tuple[Delta, ...]:
        """The one Delta of an event, with its native payload; none for a closing [DONE].

        Raises UpstreamError for an error event and a failed response.
        """
        if data.strip() == b"[DONE]":
            return ()
        payload = shared.read_event(data)
        kind = shared.kind_of(payload, event)
        native = Native("responses", payload, event or "")
        if kind == "error":
            raise shared.upstream_error(payload.get("error") or payload, payload)
        if kind not in _EVENTS:
            return (Delta(native=native),)
        read_event = shared.read_as({**payload, "type": kind}, _Event)
        return (_EVENTS[kind](self, read_event, native),)

    def _text(self, event: _Event, native: Native) -> Delta:
        return Delta(text=event.delta, logprobs=tuple(_tokens(event.logprobs)), native=native)

    def _refusal(self, event: _Event, native: Native) -> Delta:
        return Delta(refusal=event.delta, native=native)

    def _reasoning(self, event: _Event, native: Native) -> Delta:
        return Delta(reasoning=event.delta, native=native)

    def _item(self, event: _Event, native: Native) -> Delta:
        if event.item is None or shared.kind_of(event.item) not in _CALL_ITEMS:
            return Delta(native=native)
        call = shared.read_as(event.item, _Call)
        index = self._calls.setdefault(event.output_index, len(self._calls))
        return Delta(tool_calls=(ToolCallDelta(index, call.call_id, call.name),), native=native)

    def _arguments(self, event: _Event, native: Native) -> Delta:
        """A piece of a call's arguments, or all of them where the upstream sent no pieces."""
        piece = event.delta
        if event.type.endswith(".done"):
            piece = "" if event.output_index in self._with_arguments else event.arguments or event.input
        if event.output_index not in self._calls:
            raise BackendGarbage(f"The upstream sent arguments of no known call (output {event.output_index}).")
        if not piece:
            return Delta(native=native)
        self._with_arguments.add(event.output_index)
        return Delta(tool_calls=(ToolCallDelta(self._calls[event.output_index], arguments=piece),), native=native)

    def _response(self, event: _Event, native: Native) -> Delta:
        """A response's beginning or end."""
        response = event.response or {}
        if response.get("error") or event.type == "response.failed":
            raise shared.upstream_error(response.get("error"), native.payload)
        answer = shared.read_as({"output": [], **response}, _Answer)
        if event.type == "response.created":
            return Delta(model=answer.model, native=native)
        self.done = True
        finish = _finish(answer, bool(self._calls))
        return Delta(finish_reason=finish, usage=_usage(answer.usage), model=answer.model, native=native)


_EVENTS: dict[str, Callable[[Reader, _Event, Native], Delta]] = {
    "response.output_text.delta": Reader._text,
    "response.refusal.delta": Reader._refusal,
    "response.reasoning_text.delta": Reader._reasoning,
    "response.reasoning_summary_text.delta": Reader._reasoning,
    "response.output_item.added": Reader._item,
    "response.function_call_arguments.delta": Reader._arguments,
    "response.function_call_arguments.done": Reader._arguments,
    "response.custom_tool_call_input.delta": Reader._arguments,
    "response.custom_tool_call_input.done": Reader._arguments,
    "response.created": Reader._response,
    "response.completed": Reader._response,
    "response.incomplete": Reader._response,
    "response.failed": Reader._response,
}


def _finish(answer: _Answer, called: bool) -> FinishReason:
    if answer.incomplete_details and answer.incomplete_details.reason == "content_filter":
        return "content_filter"
    if answer.status == "incomplete":
        return "length"
    return "tool_calls" if called else "stop"


def _tokens(given: list[_Token] | None) -> list[TokenLogprob]:
    return [
        TokenLogprob(
            token.token,
            token.logprob,
            tuple(
                sorted(
                    ((top.token or "", top.logprob or 0.0) for top in token.top_logprobs or ()),
                    key=lambda top: -top[1],
                )
            ),
        )
        for token in given or ()
    ]


def _usage(given: _Usage | None) -> Usage | None:
    if given is None:
        return None
    cached, output = given.input_tokens_details, given.output_tokens_details
    return Usage(
        input_tokens=given.input_tokens,
        output_tokens=given.output_tokens,
        cached_input_tokens=(cached and cached.cached_tokens) or 0,
        cache_write_tokens=(cached and cached.cache_write_tokens) or 0,
        reasoning_tokens=(output and output.reasoning_tokens) or 0,
    )
