"""Chat completion answers to the client: whole, streamed, errors."""

from __future__ import annotations

from typing import Any

from smallfirst.errors import SmallfirstError
from smallfirst.types import Choice, Completion, Delta, Json, Native, Request, ToolCall, ToolCallDelta, Usage
from smallfirst.wire import shared


def render(completion: Completion, request: Request, *, id: str, created: float) -> dict[str, Any]:  # noqa: A002
    """The answer's JSON object: the upstream's own if it came by this wire, else built under `id`."""
    native = completion.native
    if native and native.wire == "chat":
        return _without_logprobs(native.payload, request)
    return {
        "id": id,
        "object": "chat.completion",
        "created": int(created),
        "model": completion.model or request.model,
        "choices": [_choice(i, choice, request) for i, choice in enumerate(completion.choices)],
        "usage": usage_json(completion.usage),
    }


def _choice(index: int, choice: Choice, request: Request) -> dict[str, Any]:
    calls = choice.tool_calls
    message: dict[str, Any] = {
        "role": "assistant",
        "content": choice.text or (None if calls or choice.refusal else ""),
        "refusal": choice.refusal or None,
    }
    if choice.reasoning:
        message["reasoning_content"] = choice.reasoning
    finish: str = choice.finish_reason
    if calls and _legacy(request):
        message["function_call"] = {"name": calls[0].name, "arguments": calls[0].arguments}
        finish = "function_call" if finish == "tool_calls" else finish
    elif calls:
        message["tool_calls"] = [_call(call) for call in calls]
    logprobs = None
    if request.sampling.logprobs and choice.logprobs:
        logprobs = {"content": shared.tokens_json(choice.logprobs, request.sampling.top_logprobs), "refusal": None}
    return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish}


def _call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _legacy(request: Request) -> bool:
    """Whether the client speaks of `functions`, not `tools`."""
    return bool(request.wire == "chat" and request.body.get("functions") and not request.body.get("tools"))


def usage_json(usage: Usage) -> dict[str, Any]:
    """`usage` in the words of chat completions."""
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "prompt_tokens_details": {
            "cached_tokens": usage.cached_input_tokens,
            "cache_write_tokens": usage.cache_write_tokens,
        },
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def _without_logprobs(payload: Json, request: Request) -> dict[str, Any]:
    """`payload` without the log-probabilities, or the alternatives to tokens, that only we asked for."""
    choices = payload.get("choices") or ()
    if request.sampling.top_logprobs or not any(choice.get("logprobs") for choice in choices):
        return dict(payload)
    shown = _without_alternatives if request.sampling.logprobs else lambda _: None
    return {**payload, "choices": [{**choice, "logprobs": shown(choice.get("logprobs"))} for choice in choices]}


def _without_alternatives(logprobs: Json | None) -> Json | None:
    """The log-probabilities of a choice with `top_logprobs` empty, as they are when a client names no number."""
    return logprobs and {
        kind: [{**token, "top_logprobs": []} for token in tokens] if isinstance(tokens, list) else tokens
        for kind, tokens in logprobs.items()
    }


class Writer:
    """Streams an answer to the client. Chunks of an upstream of this wire are forwarded unchanged, except for
    log-probabilities and a usage chunk that the client did not ask for; other answers are put into chunks."""

    def __init__(self, request: Request, *, id: str, created: float) -> None:  # noqa: A002
        self._request = request
        self._head = {"id": id, "object": "chat.completion.chunk", "created": int(created), "model": request.model}
        self._started: set[int] = set()
        self._forwards: bool | None = None
        self._usage_sent = False

    def feed(self, delta: Delta) -> bytes:
        """The events for `delta`; empty if it shows the client nothing."""
        native = delta.native
        if self._forwards is None:
            self._forwards = shared.is_event_of(native, "chat")
        if delta.model:
            self._head["model"] = delta.model
        if self._forwards:
            return self._forward(native) if native else b""
        return self._chunk(delta)

    def finish(self, usage: Usage) -> bytes:
        """The usage chunk, if the client asked for one and the upstream sent none, and [DONE]."""
        done = b"data: [DONE]\n\n"
        if not self._request.include_usage or self._usage_sent:
            return done
        return shared.event({**self._head, "choices": [], "usage": usage_json(usage)}) + done

    def error(self, err: SmallfirstError) -> bytes:
        """The event for an error in mid-stream; nothing follows it."""
        return shared.event(error(err))

    def _forward(self, native: Native) -> bytes:
        payload = native.payload
        if payload.get("usage"):
            if not payload.get("choices") and not self._request.include_usage:
                return b""
            self._usage_sent = True
        return shared.event(_without_logprobs(payload, self._request), native.event)

    def _chunk(self, delta: Delta) -> bytes:
        shown = delta.text or delta.reasoning or delta.refusal or delta.tool_calls
        if not (shown or delta.finish_reason):
            return b""
        piece: dict[str, Any] = {}
        if delta.choice not in self._started:
            self._started.add(delta.choice)
            piece = {"role": "assistant", "content": None if delta.tool_calls else ""}
        if delta.text:
            piece["content"] = delta.text
        if delta.reasoning:
            piece["reasoning_content"] = delta.reasoning
        if delta.refusal:
            piece["refusal"] = delta.refusal
        finish: str | None = delta.finish_reason
        if _legacy(self._request):
            piece |= _legacy_piece(delta.tool_calls)
            finish = "function_call" if finish == "tool_calls" else finish
        elif delta.tool_calls:
            piece["tool_calls"] = [_call_piece(call) for call in delta.tool_calls]
        logprobs = None
        if delta.logprobs and self._request.sampling.logprobs:
            logprobs = {
                "content": shared.tokens_json(delta.logprobs, self._request.sampling.top_logprobs),
                "refusal": None,
            }
        choice = {"index": delta.choice, "delta": piece, "logprobs": logprobs, "finish_reason": finish}
        return shared.event({**self._head, "choices": [choice]})


def _call_piece(call: ToolCallDelta) -> dict[str, Any]:
    function: dict[str, Any] = {"arguments": call.arguments}
    if call.name is None:
        return {"index": call.index, "function": function}
    return {"index": call.index, "id": call.id, "type": "function", "function": {"name": call.name, **function}}


def _legacy_piece(calls: tuple[ToolCallDelta, ...]) -> dict[str, Any]:
    """The first call only: the legacy form has room for one."""
    for call in calls:
        if call.index == 0:
            named = {"name": call.name} if call.name else {}
            return {"function_call": {**named, "arguments": call.arguments}}
    return {}


def error(err: SmallfirstError) -> dict[str, Any]:
    """`err` in OpenAI's shape; an upstream's own error of that shape as it is."""
    return shared.openai_error(err)
