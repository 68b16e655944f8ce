"""What a specialist is asked with and what it must answer: the same text in training and in service (pure; no I/O
but reading a manifest).

A specialist has learned its task, so the caller's system prompt and the schemas of its tools say nothing to it: only
what varies from call to call is kept. The adapter carries how it was asked in a manifest beside it
(`<name>.gguf`, `<name>.json`), and the backend asks it in the same way. The form of the answer is that of every other
model (`toolprompt`), so constraint and parser are the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from smallfirst.backends.tightening import tightened
from smallfirst.backends.toolprompt import conversation
from smallfirst.backends.values import Values, held
from smallfirst.errors import ModelFileError
from smallfirst.types import Json, Request, ResponseFormat, ToolCall


class PromptTemplate(msgspec.Struct, frozen=True):
    """How an adapter is asked.

    kind "full": as any model is, in the model's chat template, with the caller's system prompt and the tools.
    kind "pruned": the last `turns` messages as lines `role: text`; 0 keeps them all. `system` keeps the caller's own
    system prompt (for callers that put into it what varies).
    """

    kind: Literal["full", "pruned"] = "full"
    turns: int = 0
    system: bool = False

    def pruned(self, request: Request) -> str | None:
        """The prompt of `request`, exactly as the model reads it; None when it is the chat template's to make."""
        if self.kind == "full":
            return None
        messages = conversation(replace(request, tools=(), response_format=ResponseFormat()))
        head = [m for m in messages if m["role"] == "system"] if self.system else []
        turns = [m for m in messages if m["role"] != "system"]
        return "".join(f"{m['role']}: {m['content']}\n" for m in [*head, *turns[-self.turns :]])


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What is beside an adapter: how it is asked, what it belongs to and how it was made.

    `base_sha256` is that of the base model's file, `sha256` the adapter's. `recipe` is the full training
    configuration; `parents` are sha256 of what it was made from (the material first). `values` are what decoding is
    held to, by tool ("" for an answer that is JSON) and argument.
    """

    sha256: str
    base_sha256: str
    prompt: PromptTemplate = PromptTemplate()
    recipe: Mapping[str, Any] = {}
    parents: tuple[str, ...] = ()
    values: Mapping[str, Mapping[str, Values]] = {}

    def held(self, request: Request) -> Request:
        """`request` with its constraint held to the values that its prompt allows."""
        prompt = self.prompt.pruned(request) if self.values else None
        return request if prompt is None else held(request, self.values, prompt)


def read_manifest(adapter: Path) -> Manifest | None:
    """The manifest beside an adapter; None when there is none. Raises ModelFileError when it cannot be read."""
    path = adapter.with_suffix(".json")
    try:
        return msgspec.json.decode(path.read_bytes(), type=Manifest)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise ModelFileError(
            f"{path} is not an adapter's manifest: {error}.", hint="Export the adapter again."
        ) from error


def answer_text(request: Request, calls: Sequence[ToolCall], text: str = "") -> str:
    """The right answer to `request` as the model must generate it: its calls, one alone or in a list, else `text`,
    written like a call's arguments where `request` asks for JSON.

    Members stand in the order in which the constraint allows them: required ones first, then as the schema lists them.
    Those that equal the schema's default stay: leaving them out would mean the same and cost fewer tokens, but when to
    be silent is what a small model learns last. Raises ValueError when arguments, or a text that must be, are not JSON.
    """
    tools = request.callable_tools
    parts = []
    for call in calls:
        arguments = json.loads(call.arguments or "{}")
        schema = tools[call.name].parameters if call.name in tools else {}
        parts.append({"name": call.name, "arguments": _ordered(arguments, tightened(schema))})
    form = request.response_format
    if not parts and form.kind == "text":
        return text
    answer: Any = parts[0] if len(parts) == 1 else parts or _ordered(json.loads(text), tightened(form.schema or {}))
    return json.dumps(answer, ensure_ascii=False)


def _ordered(value: Any, schema: Json) -> Any:
    if isinstance(value, list):
        items = schema.get("items")
        return [_ordered(item, items if isinstance(items, Mapping) else {}) for item in value]
    if not isinstance(value, dict):
        return value
    properties = schema.get("properties")
    known = {n: s if isinstance(s, Mapping) else {} for n, s in (properties or {}).items()}
    order = [*(n for n in known if n in value), *(n for n in value if n not in known)]
    return {name: _ordered(value[name], known.get(name, {})) for name in order}
