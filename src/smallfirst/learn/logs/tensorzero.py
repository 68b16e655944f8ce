"""TensorZero: inferences as `list_inferences` and `get_inferences` return them (StoredInference), and rows of its
tables ChatInference and JsonInference, whose objects are JSON texts. Read against the sources of TensorZero of 2026.

An inference tells the function and the variant, not the model, its tokens or its cost; the variant stands for the
model. The prompt is what the caller gave: arguments of a template, not the text that it rendered.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from smallfirst.errors import RequestError
from smallfirst.learn.logs.entry import (
    Entry,
    Found,
    Plain,
    call,
    chat_answer,
    linked,
    listed,
    mapping,
    moment,
    number,
    parsed,
    said,
    settings,
    text,
    tool,
    word,
)
from smallfirst.types import Json

_DEFAULT = "tensorzero::default"


class TensorZero(Plain):
    def recognises(self, item: Json) -> bool:
        return "function_name" in item and "variant_name" in item

    def entries(self, item: Json) -> Iterator[Found]:
        output = parsed(item.get("output"))
        if not output or item.get("error"):
            yield None
            return
        model, function = word(item["variant_name"]) or "unknown", word(item["function_name"])
        tags = mapping(item.get("tags"), "tags")
        source = word(item.get("inference_id")) or word(item.get("id")) or ""
        yield Entry(
            source=source,
            request=_request(item, model),
            response=chat_answer(model, [_answer(output)]),
            created_at=moment(item.get("timestamp")),
            seconds=(number(item.get("processing_time_ms")) or 0.0) / 1000,
            task=None if function == _DEFAULT else function,
            episode=word(item.get("episode_id")),
            user=word(tags.get("user_id")),
        )


def _request(item: Json, model: str) -> dict[str, Any]:
    asked = mapping(item.get("input"), "input")
    system = [said("system", text(asked["system"]))] if asked.get("system") else []
    rounds = (_messages(mapping(m, "A message")) for m in listed(asked.get("messages"), "input.messages"))
    messages = linked([*system, *(message for found in rounds for message in found)])
    if not messages:
        raise RequestError("The inference's input holds no messages.")
    request: dict[str, Any] = {**_parameters(item), **_tools(item), "model": model, "messages": messages}
    if schema := mapping(item.get("output_schema"), "output_schema"):
        form = {"name": "output", "schema": schema}
        request["response_format"] = {"type": "json_schema", "json_schema": form}
    return request


def _parameters(item: Json) -> dict[str, Any]:
    given = mapping(item.get("inference_params"), "inference_params")
    return settings(mapping(given.get("chat_completion"), "chat_completion"))


def _tools(item: Json) -> dict[str, Any]:
    """The tools as stored beside an inference: at its top, or within tool_params."""
    given = {**mapping(item.get("tool_params"), "tool_params"), **item}
    stored = listed(given.get("additional_tools") or given.get("tools_available"), "tools")
    offered = [mapping(one, "A tool") for one in stored]
    if not offered:
        return {}
    tools = [tool(one.get("name"), one.get("description"), one.get("parameters")) for one in offered]
    choice = parsed(given.get("tool_choice"))
    if isinstance(choice, dict):
        choice = {"type": "function", "function": {"name": text(choice.get("specific"))}}
    return {"tools": tools, **({"tool_choice": choice} if choice else {})}


def _messages(given: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A message and, each as one of its own, the tool results in it."""
    content = parsed(given.get("content"))
    blocks = [mapping(block, "A block") for block in content] if isinstance(content, list) else [_plain(content)]
    for block in blocks:
        if block.get("type") == "tool_result":
            yield {"role": "tool", "tool_call_id": text(block.get("id")), "content": text(block.get("result"))}
    message = _said(text(given.get("role")), [block for block in blocks if block.get("type") != "tool_result"])
    if message["content"] or message.get("tool_calls"):
        yield message


def _plain(content: Any) -> dict[str, Any]:
    return {"type": "text", "text": content}


def _said(role: str, blocks: list[Any]) -> dict[str, Any]:
    texts = [shown for block in blocks if (shown := _text(block))]
    calls = [
        call(b.get("id"), b.get("name") or b.get("raw_name"), b.get("raw_arguments") or b.get("arguments"))
        for b in blocks
        if b.get("type") == "tool_call"
    ]
    return said(role, "\n".join(texts), calls)


def _text(block: Mapping[str, Any]) -> str:
    """What a content block says; a template its arguments, a file a mark."""
    kind = text(block.get("type"))
    if kind in {"tool_call", "thought"}:
        return ""
    shown = next((block[name] for name in ("text", "value", "arguments") if block.get(name) is not None), None)
    return f"[{kind}]" if shown is None else text(shown)


def _answer(output: Any) -> dict[str, Any]:
    """The assistant's message: content blocks of a chat function, raw text of a JSON function."""
    if isinstance(output, dict):
        return said("assistant", text(output.get("raw") or output.get("parsed")))
    return _said("assistant", [mapping(block, "output") for block in listed(output, "output")])
