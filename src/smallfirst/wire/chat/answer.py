"""Chat completion answers of an upstream, whole or streamed, to Deltas."""

from __future__ import annotations

from operator import itemgetter

from msgspec import Struct

from smallfirst.errors import BackendGarbage
from smallfirst.types import Delta, FinishReason, Json, Native, TokenLogprob, ToolCallDelta, Usage
from smallfirst.wire import shared

_FINISH: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}
_LOGPROB = itemgetter(1)


class _PromptDetails(Struct):
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None


class _OutputDetails(Struct):
    reasoning_tokens: int | None = None


class _Usage(Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _OutputDetails | None = None


class _Top(Struct):
    token: str
    logprob: float


class _Token(Struct):
    token: str
    logprob: float
    top_logprobs: list[_Top] | None = None


class Logprobs(Struct):
    """Log-probabilities of a choice's tokens, as OpenAI gives them."""

    content: list[_Token] | None = None
    refusal: list[_Token] | None = None


class _Function(Struct):
    name: str | None = None
    arguments: str | None = None


class _Custom(Struct):
    name: str | None = None
    input: str | None = None


class _Call(Struct):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None
    custom: _Custom | None = None


class _Message(Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[_Call] | None = None
    function_call: _Function | None = None


class _Choice(Struct):
    index: int = 0
    message: _Message | None = None
    delta: _Message | None = None
    logprobs: Logprobs | None = None
    finish_reason: str | None = None


class _Answer(Struct):
    choices: list[_Choice] | None = None
    model: str | None = None
    usage: _Usage | None = None


def read(payload: Json) -> tuple[Delta, ...]:
    """A whole answer as one Delta per choice, the first with native, usage and model.

    Raises UpstreamError for an error object, BackendGarbage for anything else that is no answer.
    """
    deltas = _read(payload, event=None)
    if deltas[0].finish_reason is None:
        raise BackendGarbage("The upstream's answer has no finished choice.")
    return deltas


class Reader:
    """Reads a stream's events; `done` after [DONE]."""

    def __init__(self) -> None:
        self.done = False

    def feed(self, event: str | None, data: bytes) -> tuple[Delta, ...]:
        """The Deltas of one event, the first with its native payload; none for [DONE]."""
        if data.strip() == b"[DONE]":
            self.done = True
            return ()
        payload = shared.read_event(data)
        return _read(payload, event or "")


def _read(payload: Json, event: str | None) -> tuple[Delta, ...]:
    if payload.get("error"):
        raise shared.upstream_error(payload["error"], payload)
    answer = shared.read_as(payload, _Answer)
    native, usage = Native("chat", payload, event), _usage(answer.usage)
    if not answer.choices:
        return (Delta(usage=usage, model=answer.model, native=native),)
    return tuple(
        _delta(choice, usage, answer.model, native) if i == 0 else _delta(choice)
        for i, choice in enumerate(answer.choices)
    )


def _delta(
    choice: _Choice, usage: Usage | None = None, model: str | None = None, native: Native | None = None
) -> Delta:
    message = choice.message or choice.delta or _Message()
    finish = choice.finish_reason
    return Delta(
        choice=choice.index,
        text=message.content or "",
        reasoning=message.reasoning_content or message.reasoning or "",
        refusal=message.refusal or "",
        tool_calls=_calls(message) if message.tool_calls or message.function_call else (),
        logprobs=token_logprobs(choice.logprobs) if choice.logprobs else (),
        finish_reason=_FINISH.get(finish, "stop") if finish else None,
        usage=usage,
        model=model,
        native=native,
    )


def _calls(message: _Message) -> tuple[ToolCallDelta, ...]:
    out = []
    for position, call in enumerate(message.tool_calls or ()):
        index = position if call.index is None else call.index
        if call.custom:
            out.append(ToolCallDelta(index, call.id, call.custom.name, call.custom.input or ""))
        else:
            function = call.function or _Function()
            out.append(ToolCallDelta(index, call.id, function.name, function.arguments or ""))
    if message.function_call:
        out.append(ToolCallDelta(0, None, message.function_call.name, message.function_call.arguments or ""))
    return tuple(out)


def token_logprobs(given: Logprobs) -> tuple[TokenLogprob, ...]:
    """The tokens, each with its alternatives, best first."""
    return tuple(
        TokenLogprob(
            token.token,
            token.logprob,
            tuple(sorted([(top.token, top.logprob) for top in token.top_logprobs or ()], key=_LOGPROB, reverse=True)),
        )
        for token in given.content or given.refusal or ()
    )


def _usage(given: _Usage | None) -> Usage | None:
    if given is None:
        return None
    prompt, output = given.prompt_tokens_details, given.completion_tokens_details
    return Usage(
        input_tokens=given.prompt_tokens,
        output_tokens=given.completion_tokens,
        cached_input_tokens=(prompt and prompt.cached_tokens) or 0,
        cache_write_tokens=(prompt and prompt.cache_write_tokens) or 0,
        reasoning_tokens=(output and output.reasoning_tokens) or 0,
    )
