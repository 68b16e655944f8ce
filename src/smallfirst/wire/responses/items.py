"""Input items of Responses to chat messages, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from msgspec import Struct

from smallfirst.errors import RequestError
from smallfirst.types import Json
from smallfirst.wire import shared

_HOSTED_STATE = "native:responses"


class _Part(Struct):
    type: str
    text: str | None = None
    image_url: str | None = None
    detail: str | None = None
    file_id: str | None = None
    file_url: str | None = None
    filename: str | None = None
    file_data: str | None = None
    input_audio: dict[str, Any] | None = None
    refusal: str | None = None


class _Message(Struct):
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[_Part]


class _Call(Struct):
    call_id: str
    name: str
    arguments: str


class _CustomCall(Struct):
    call_id: str
    name: str
    input: str


class _Output(Struct):
    call_id: str
    output: str | list[_Part]


def to_chat(items: list[dict[str, Any]], needs: set[str]) -> list[Json]:
    """The chat messages that `items` say; calls of one turn become one message. Adds to `needs`.

    Reasoning is left out, as chat has no place for it. Raises RequestError for what is wrong in an item.
    """
    out: list[dict[str, Any]] = []
    calls: set[str] = set()
    for i, item in enumerate(items):
        at = f"input[{i}]"
        kind = item.get("type") or ("message" if "role" in item else "item_reference")
        if kind == "message":
            message = shared.convert(item, _Message, at)
            role = "system" if message.role == "developer" else message.role
            out.append({"role": role, "content": _content(message.content, f"{at}.content", needs)})
        elif kind in ("function_call", "custom_tool_call"):
            call = _call(item, kind, at)
            calls.add(call["id"])
            _append_call(out, call)
            if kind == "custom_tool_call":
                needs.add(_HOSTED_STATE)
        elif kind in ("function_call_output", "custom_tool_call_output"):
            result = shared.convert(item, _Output, at)
            if result.call_id not in calls and _HOSTED_STATE not in needs:
                raise shared.unanswered(result.call_id, f"{at}.call_id")
            content = _content(result.output, f"{at}.output", needs)
            out.append({"role": "tool", "tool_call_id": result.call_id, "content": content})
        elif kind != "reasoning":
            needs.add(_HOSTED_STATE)
    if not out and _HOSTED_STATE not in needs:
        raise RequestError("input: has no message.", hint="Give at least one message item.", param="input")
    return list(out)


def _call(item: dict[str, Any], kind: str, at: str) -> dict[str, Any]:
    if kind == "custom_tool_call":
        custom = shared.convert(item, _CustomCall, at)
        return {"id": custom.call_id, "type": "custom", "custom": {"name": custom.name, "input": custom.input}}
    call = shared.convert(item, _Call, at)
    return {"id": call.call_id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _append_call(out: list[dict[str, Any]], call: dict[str, Any]) -> None:
    if not out or out[-1]["role"] != "assistant":
        out.append({"role": "assistant", "content": None})
    out[-1].setdefault("tool_calls", []).append(call)


def _content(content: str | list[_Part], at: str, needs: set[str]) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return content
    parts: list[dict[str, Any]] = []
    for i, part in enumerate(content):
        if part.type in ("input_text", "output_text", "text") and part.text is not None:
            parts.append({"type": "text", "text": part.text})
        elif part.type == "refusal" and part.refusal is not None:
            parts.append({"type": "text", "text": part.refusal})
        elif part.type == "input_image" and part.image_url is not None:
            needs.add("image")
            detail = {"detail": part.detail} if part.detail else {}
            parts.append({"type": "image_url", "image_url": {"url": part.image_url, **detail}})
        elif part.type == "input_audio" and part.input_audio is not None:
            needs.add("audio")
            parts.append({"type": "input_audio", "input_audio": part.input_audio})
        elif part.type == "input_file" and part.file_data is not None:
            needs.add("file")
            name = {"filename": part.filename} if part.filename else {}
            parts.append({"type": "file", "file": {"file_data": part.file_data, **name}})
        elif part.type in ("input_text", "output_text", "text", "refusal"):
            raise RequestError(f"{at}[{i}].text: is missing.", param=f"{at}[{i}].text")
        else:
            needs.add(_HOSTED_STATE)
    return parts


def from_chat(messages: Sequence[Json]) -> list[dict[str, Any]]:
    """The input items that say what the chat `messages` say."""
    out: list[dict[str, Any]] = []
    for message in messages:
        role, content = message["role"], message.get("content")
        if role == "tool":
            output = _parts(content, "user") if isinstance(content, list) else content or ""
            out.append({"type": "function_call_output", "call_id": message["tool_call_id"], "output": output})
            continue
        if content:
            said = _parts(content, role) if isinstance(content, list) else content
            out.append({"type": "message", "role": role, "content": said})
        for call in message.get("tool_calls") or ():
            function = call["function"]
            out.append(
                {
                    "type": "function_call",
                    "call_id": call["id"],
                    "name": function["name"],
                    "arguments": function["arguments"],
                }
            )
    return out


def _parts(content: list[Any], role: str) -> list[dict[str, Any]]:
    out = []
    for part in content:
        kind = part["type"]
        if kind == "text":
            out.append({"type": "output_text" if role == "assistant" else "input_text", "text": part["text"]})
        elif kind == "image_url":
            image = part["image_url"]
            out.append({"type": "input_image", "image_url": image["url"], "detail": image.get("detail") or "auto"})
        elif kind == "file":
            out.append({"type": "input_file", **part["file"]})
        else:
            out.append(part)
    return out
