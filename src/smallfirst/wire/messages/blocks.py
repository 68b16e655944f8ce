"""Anthropic's messages of content blocks to chat messages, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from msgspec import Struct

from smallfirst.errors import RequestError
from smallfirst.types import Json
from smallfirst.wire import shared

_HOSTED = "native:messages"
_NOT_IN_CHAT = ("thinking", "redacted_thinking")


class System(Struct):
    """A block of the system prompt."""

    text: str
    type: Literal["text"] = "text"


class Message(Struct):
    """A turn; its blocks are checked one by one, as their forms differ."""

    role: Literal["user", "assistant", "system"]
    content: str | list[dict[str, Any]]


class _Text(Struct):
    text: str


class _Source(Struct):
    type: str
    media_type: str = "application/octet-stream"
    data: str | None = None
    url: str | None = None


class _Sourced(Struct):
    source: _Source
    title: str | None = None


class _ToolUse(Struct):
    id: str
    name: str
    input: dict[str, Any]


class _ToolResult(Struct):
    tool_use_id: str
    content: str | list[dict[str, Any]] | None = None


def to_chat(system: str | list[System] | None, given: list[Message], needs: set[str]) -> tuple[Json, ...]:
    """The chat messages that the turns say; adds to `needs`. Thinking is left out, as chat has no place for it.

    Raises RequestError for what is wrong in a block.
    """
    out: list[dict[str, Any]] = []
    if system:
        text = system if isinstance(system, str) else "\n\n".join(block.text for block in system)
        out.append({"role": "system", "content": text})
    calls: set[str] = set()
    for i, message in enumerate(given):
        if isinstance(message.content, str):
            out.append({"role": message.role, "content": message.content})
        elif message.role == "assistant":
            out.append(_assistant(message.content, f"messages[{i}].content", calls, needs))
        else:
            out += _user(message.role, message.content, f"messages[{i}].content", calls, needs)
    return tuple(out)


def _assistant(blocks: list[dict[str, Any]], at: str, calls: set[str], needs: set[str]) -> dict[str, Any]:
    parts, tool_calls = [], []
    for j, block in enumerate(blocks):
        if block.get("type") == "tool_use":
            use = shared.convert(block, _ToolUse, f"{at}[{j}]")
            calls.add(use.id)
            function = {"name": use.name, "arguments": shared.json_text(use.input)}
            tool_calls.append({"id": use.id, "type": "function", "function": function})
        elif part := _part(block, f"{at}[{j}]", needs):
            parts.append(part)
    message: dict[str, Any] = {"role": "assistant", "content": _joined(parts) if parts else None}
    if tool_calls:
        message["tool_calls"] = tool_calls
    return message


def _user(role: str, blocks: list[dict[str, Any]], at: str, calls: set[str], needs: set[str]) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    parts = []
    for j, block in enumerate(blocks):
        if block.get("type") == "tool_result":
            result = shared.convert(block, _ToolResult, f"{at}[{j}]")
            if result.tool_use_id not in calls and _HOSTED not in needs:
                raise shared.unanswered(result.tool_use_id, f"{at}[{j}].tool_use_id")
            content = _result(result.content, f"{at}[{j}].content", needs)
            out.append({"role": "tool", "tool_call_id": result.tool_use_id, "content": content})
        elif part := _part(block, f"{at}[{j}]", needs):
            parts.append(part)
    if parts or not out:
        out.append({"role": role, "content": _joined(parts)})
    return out


def _result(content: str | list[dict[str, Any]] | None, at: str, needs: set[str]) -> str | list[dict[str, Any]]:
    if not isinstance(content, list):
        return content or ""
    parts = (_part(block, f"{at}[{j}]", needs) for j, block in enumerate(content))
    return _joined([part for part in parts if part])


def _joined(parts: list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """One text alone as a string, anything else as parts."""
    if not parts:
        return ""
    return parts[0]["text"] if len(parts) == 1 and parts[0]["type"] == "text" else parts


def _part(block: dict[str, Any], at: str, needs: set[str]) -> dict[str, Any] | None:
    """The chat content part for a block; None if chat has none, which only Anthropic's own blocks may need."""
    kind = block.get("type")
    if kind == "text":
        return {"type": "text", "text": shared.convert(block, _Text, at).text}
    if kind in ("image", "document"):
        sourced = shared.convert(block, _Sourced, at)
        if part := _media(kind, sourced):
            if part["type"] != "text":
                needs.add("image" if kind == "image" else "file")
            return part
    elif not isinstance(kind, str):
        raise RequestError(f"{at}.type: is missing.", param=f"{at}.type")
    if kind not in _NOT_IN_CHAT:
        needs.add(_HOSTED)
    return None


def _media(kind: str, sourced: _Sourced) -> dict[str, Any] | None:
    source = sourced.source
    if source.type == "text" and source.data is not None:
        return {"type": "text", "text": source.data}
    data = source.url if source.type == "url" else None
    if source.type == "base64" and source.data is not None:
        data = f"data:{source.media_type};base64,{source.data}"
    if data and kind == "image":
        return {"type": "image_url", "image_url": {"url": data}}
    if data and source.type == "base64":
        return {"type": "file", "file": {"file_data": data, "filename": sourced.title or "document"}}
    return None


def from_chat(messages: Sequence[Json]) -> tuple[str, list[dict[str, Any]]]:
    """The system prompt and the turns that say what the chat `messages` say; neighbours of one role become one turn,
    so that the results of parallel calls stand together, as Anthropic demands."""
    system: list[str] = []
    turns: list[dict[str, Any]] = []
    for message in messages:
        role, content = message["role"], message.get("content")
        if role == "system":
            system += [block["text"] for block in _blocks(content) if block["type"] == "text"]
            continue
        if role == "tool":
            blocks = [{"type": "tool_result", "tool_use_id": message["tool_call_id"], "content": _blocks(content)}]
        else:
            blocks = _blocks(content) + [_use(call) for call in message.get("tool_calls") or ()]
        turn = "assistant" if role == "assistant" else "user"
        if turns and turns[-1]["role"] == turn:
            turns[-1]["content"] += blocks
        elif blocks:
            turns.append({"role": turn, "content": blocks})
    return "\n\n".join(system), turns


def _blocks(content: Any) -> list[dict[str, Any]]:
    if not content:
        return []
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [_block(part) for part in content]


def _block(part: dict[str, Any]) -> dict[str, Any]:
    if part["type"] == "image_url":
        return {"type": "image", "source": _source(part["image_url"]["url"])}
    if part["type"] == "file":
        return {"type": "document", "source": _source(part["file"].get("file_data", ""))}
    return {"type": "text", "text": part.get("text") or part.get("refusal") or ""}


def _source(url: str) -> dict[str, Any]:
    head, _, data = url.partition(";base64,")
    if head.startswith("data:"):
        return {"type": "base64", "media_type": head.removeprefix("data:"), "data": data}
    return {"type": "url", "url": url}


def _use(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    name, text = function["name"], function["arguments"]
    return {"type": "tool_use", "id": call["id"], "name": name, "input": arguments(text)}


def arguments(text: str) -> dict[str, Any]:
    """A call's arguments as the object that Anthropic wants; text that is no JSON object goes in as it stands, under
    the key "arguments"."""
    try:
        value = msgspec.json.decode(text or "{}")
    except (msgspec.DecodeError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {"arguments": text}
