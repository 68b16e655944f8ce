"""Responses answers to the client: whole, streamed, errors.

Reasoning of a model of another wire is not shown: a client would send such an item back, and OpenAI refuses reasoning
items that it did not make.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from smallfirst.errors import SmallfirstError
from smallfirst.types import Choice, Completion, Delta, FinishReason, Request, TokenLogprob, ToolCallDelta, Usage
from smallfirst.wire import shared


def render(completion: Completion, request: Request, *, id: str, created: float) -> dict[str, Any]:  # noqa: A002
    """The answer's JSON object: the upstream's own if it came by this wire, else built under `id`."""
    native = completion.native
    if native and native.wire == "responses":
        return dict(native.payload)
    choice = completion.choices[0]
    return _response(
        request,
        id,
        created,
        completion.model or request.model,
        finish=choice.finish_reason,
        output=_output(choice, request, id),
        usage=completion.usage,
    )


def _output(choice: Choice, request: Request, id: str) -> list[dict[str, Any]]:  # noqa: A002
    content = []
    if choice.text or not (choice.refusal or choice.tool_calls):
        content.append(_text_part(choice.text, _tokens(choice.logprobs, request)))
    if choice.refusal:
        content.append({"type": "refusal", "refusal": choice.refusal})
    items: list[dict[str, Any]] = []
    if content:
        items.append(_message_item(f"msg_{id}_0", "completed", content))
    for call in choice.tool_calls:
        items.append(_call_item(f"fc_{id}_{len(items)}", call.id, call.name, "completed", call.arguments))
    return items


def _message_item(id: str, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:  # noqa: A002
    return {"id": id, "type": "message", "role": "assistant", "status": status, "content": content}


def _call_item(id: str, call_id: str, name: str, status: str, arguments: str) -> dict[str, Any]:  # noqa: A002
    named = {"call_id": call_id, "name": name, "arguments": arguments}
    return {"id": id, "type": "function_call", "status": status, **named}


def _text_part(text: str, tokens: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": tokens}


def _tokens(logprobs: tuple[TokenLogprob, ...], request: Request) -> list[dict[str, Any]]:
    return shared.tokens_json(logprobs, request.sampling.top_logprobs) if request.sampling.logprobs else []


def _response(
    request: Request,
    id: str,  # noqa: A002
    created: float,
    model: str,
    *,
    finish: FinishReason | None,
    output: list[dict[str, Any]],
    usage: Usage | None,
) -> dict[str, Any]:
    """A response object; `finish` None while it is in progress."""
    asked = request.body
    reason = {"length": "max_output_tokens", "content_filter": "content_filter"}.get(finish or "")
    return {
        "id": id,
        "object": "response",
        "created_at": int(created),
        "status": "in_progress" if finish is None else "incomplete" if reason else "completed",
        "error": None,
        "incomplete_details": {"reason": reason} if reason else None,
        "instructions": asked.get("instructions"),
        "max_output_tokens": asked.get("max_output_tokens"),
        "metadata": asked.get("metadata") or {},
        "model": model,
        "output": output,
        "parallel_tool_calls": request.parallel_tool_calls,
        "previous_response_id": None,
        "reasoning": asked.get("reasoning"),
        "store": False,
        "temperature": asked.get("temperature"),
        "text": asked.get("text") or {"format": {"type": "text"}},
        "tool_choice": asked.get("tool_choice") or "auto",
        "tools": [{"parameters": None, "strict": None, **tool} for tool in asked.get("tools") or ()],
        "top_p": asked.get("top_p"),
        "truncation": asked.get("truncation") or "disabled",
        "usage": usage and usage_json(usage),
    }


def usage_json(usage: Usage) -> dict[str, Any]:
    """`usage` in the words of Responses."""
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_input_tokens,
            "cache_write_tokens": usage.cache_write_tokens,
        },
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }


@dataclass(slots=True)
class _Part:
    """A content part that is being written."""

    kind: str
    where: dict[str, Any]
    pieces: list[str] = field(default_factory=list)
    tokens: list[dict[str, Any]] = field(default_factory=list)

    def value(self) -> dict[str, Any]:
        text = "".join(self.pieces)
        return {"type": "refusal", "refusal": text} if self.kind == "refusal" else _text_part(text, self.tokens)


@dataclass(slots=True)
class _Call:
    """A function call that is being written."""

    where: dict[str, Any]
    call_id: str
    name: str
    pieces: list[str] = field(default_factory=list)


class Writer:
    """Streams an answer to the client. Events of an upstream of this wire are forwarded unchanged; other answers become
    one message item and an item for each call, all closed by finish()."""

    def __init__(self, request: Request, *, id: str, created: float) -> None:  # noqa: A002
        self._request = request
        self._id = id
        self._created = created
        self._model = request.model
        self._forwards: bool | None = None
        self._sequence = 0
        self._started = False
        self._finish: FinishReason = "stop"
        self._items = 0
        self._message: dict[str, Any] | None = None
        self._parts: dict[str, _Part] = {}
        self._calls: dict[int, _Call] = {}

    def feed(self, delta: Delta) -> bytes:
        """The events for `delta`; empty if it shows the client nothing."""
        if self._forwards is None:
            self._forwards = shared.is_event_of(delta.native, "responses")
        if self._forwards:
            return shared.event(delta.native.payload, delta.native.event) if delta.native else b""
        if delta.choice:
            return b""
        self._model = delta.model or self._model
        self._finish = delta.finish_reason or self._finish
        out = self._start()
        if delta.text:
            out += self._say("output_text", delta.text, _tokens(delta.logprobs, self._request))
        if delta.refusal:
            out += self._say("refusal", delta.refusal, [])
        return out + b"".join(self._call(call) for call in delta.tool_calls)

    def finish(self, usage: Usage) -> bytes:
        """The events that close every item, and response.completed (or response.incomplete)."""
        if self._forwards:
            return b""
        out = self._start()
        if not self._parts and not self._calls:
            out += self._say("output_text", "", [])
        items: dict[int, dict[str, Any]] = {}
        if self._message:
            out += b"".join(self._close_part(part) for part in self._parts.values())
            index, item_id = self._message["output_index"], self._message["item_id"]
            items[index] = _message_item(item_id, "completed", [part.value() for part in self._parts.values()])
            out += self._event("response.output_item.done", output_index=index, item=items[index])
        for call in self._calls.values():
            index, arguments = call.where["output_index"], "".join(call.pieces)
            items[index] = _call_item(call.where["item_id"], call.call_id, call.name, "completed", arguments)
            out += self._event("response.function_call_arguments.done", **call.where, arguments=arguments)
            out += self._event("response.output_item.done", output_index=index, item=items[index])
        response = self._response([items[index] for index in sorted(items)], self._finish, usage)
        return out + self._event(f"response.{response['status']}", response=response)

    def error(self, err: SmallfirstError) -> bytes:
        """The event for an error in mid-stream; nothing follows it."""
        said = error(err)["error"]
        fields = {name: said.get(name) for name in ("code", "message", "param")}
        return self._event("error", **fields)

    def _event(self, kind: str, **fields: Any) -> bytes:
        payload = {"type": kind, "sequence_number": self._sequence, **fields}
        self._sequence += 1
        return shared.event(payload, kind)

    def _response(
        self, output: list[dict[str, Any]], finish: FinishReason | None, usage: Usage | None
    ) -> dict[str, Any]:
        return _response(self._request, self._id, self._created, self._model, finish=finish, output=output, usage=usage)

    def _start(self) -> bytes:
        if self._started:
            return b""
        self._started = True
        response = self._response([], None, None)
        return self._event("response.created", response=response) + self._event(
            "response.in_progress", response=response
        )

    def _place(self, prefix: str) -> dict[str, Any]:
        """Where a new output item is: its id and index, as its events name them."""
        where = {"item_id": f"{prefix}_{self._id}_{self._items}", "output_index": self._items}
        self._items += 1
        return where

    def _say(self, kind: str, text: str, tokens: list[dict[str, Any]]) -> bytes:
        out = b""
        if self._message is None:
            self._message = self._place("msg")
            item = _message_item(self._message["item_id"], "in_progress", [])
            out += self._event("response.output_item.added", output_index=self._message["output_index"], item=item)
        if kind not in self._parts:
            part = _Part(kind, {**self._message, "content_index": len(self._parts)})
            self._parts[kind] = part
            out += self._event("response.content_part.added", **part.where, part=part.value())
        part = self._parts[kind]
        part.pieces.append(text)
        part.tokens += tokens
        logprobs = {"logprobs": tokens} if kind == "output_text" else {}
        return out + self._event(f"response.{kind}.delta", **part.where, delta=text, **logprobs)

    def _close_part(self, part: _Part) -> bytes:
        value = part.value()
        said = {"refusal": value["refusal"]} if part.kind == "refusal" else {k: value[k] for k in ("text", "logprobs")}
        return self._event(f"response.{part.kind}.done", **part.where, **said) + self._event(
            "response.content_part.done", **part.where, part=value
        )

    def _call(self, delta: ToolCallDelta) -> bytes:
        out = b""
        call = self._calls.get(delta.index)
        if call is None:
            call = _Call(self._place("fc"), delta.id or f"call_{self._id}_{delta.index}", delta.name or "")
            self._calls[delta.index] = call
            item = _call_item(call.where["item_id"], call.call_id, call.name, "in_progress", "")
            out += self._event("response.output_item.added", output_index=call.where["output_index"], item=item)
        if delta.arguments:
            call.pieces.append(delta.arguments)
            out += self._event("response.function_call_arguments.delta", **call.where, delta=delta.arguments)
        return out


def error(err: SmallfirstError) -> dict[str, Any]:
    """`err` in OpenAI's shape; an upstream's own error of that shape as it is."""
    return shared.openai_error(err)
