"""The JSON Schema that answers suggest: fields always there are required, strings of few values are enums."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from smallfirst.types import Json

_KEPT = 1000
_FEW = 12
_EACH = 5
_DEPTH = 5
_JSON_SHARE = 0.9
_TYPES = {
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    type(None): "null",
    list: "array",
    dict: "object",
}


class Answers:
    """Collects the answers of a task, at most 1,000 of each form."""

    def __init__(self) -> None:
        self._values: dict[str, list[dict[str, Any]]] = {}
        self._texts = 0

    def add(self, answer: Json | None) -> None:
        """Count an assistant's message: the arguments of its tool calls, or its text if that is a JSON object."""
        if answer is None:
            return
        called = list(tool_calls(answer))
        for tool, arguments in called:
            self._keep(tool, _object(arguments))
        if not called and isinstance(text := answer.get("content"), str):
            self._texts += 1
            self._keep("", _object(text))

    def schemas(self) -> dict[str, Json]:
        """By tool name a schema of its arguments; under "" one of the text, where nearly all texts are JSON objects."""
        kept = {form: values for form, values in sorted(self._values.items()) if values}
        if len(kept.get("", ())) < _JSON_SHARE * min(self._texts, _KEPT):
            kept.pop("", None)
        return {form: _schema(values, 0) for form, values in kept.items()}

    def _keep(self, form: str, value: dict[str, Any] | None) -> None:
        values = self._values.setdefault(form, [])
        if value is not None and len(values) < _KEPT:
            values.append(value)


def tool_calls(answer: Json) -> Iterator[tuple[str, Any]]:
    """Name and arguments of each tool call of an assistant's message."""
    calls = answer.get("tool_calls")
    for call in calls if isinstance(calls, list | tuple) else ():
        function = call.get("function") if isinstance(call, Mapping) else None
        if isinstance(function, Mapping):
            yield str(function.get("name")), function.get("arguments")


def _object(value: Any) -> dict[str, Any] | None:
    """`value` as a JSON object, read from its text if it is one; None when it is none."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, dict) else None


def _schema(values: Sequence[Any], depth: int) -> dict[str, Any]:
    """A schema that all of `values` satisfy, but for enums where values of each kind are few and common."""
    kinds = {_TYPES.get(type(value), "string") for value in values}
    if "number" in kinds:
        kinds.discard("integer")
    schema: dict[str, Any] = {"type": kinds.pop() if len(kinds) == 1 else sorted(kinds)} if kinds else {}
    if depth >= _DEPTH:
        return schema
    if objects := [value for value in values if isinstance(value, dict)]:
        schema |= _object_schema(objects, depth)
    if lists := [value for value in values if isinstance(value, list)]:
        schema["items"] = _schema([item for items in lists for item in items], depth + 1)
    if schema.get("type") == "string" and (few := _few(values)):
        schema["enum"] = few
    return schema


def _object_schema(objects: Sequence[dict[str, Any]], depth: int) -> dict[str, Any]:
    having = Counter(name for value in objects for name in value)
    properties = {name: _schema([v[name] for v in objects if name in v], depth + 1) for name in having}
    required = [name for name, count in having.items() if count == len(objects)]
    return {"properties": properties, "required": required, "additionalProperties": False}


def _few(values: Sequence[str]) -> list[str]:
    """The distinct values, most common first, if they are few and each comes often enough to be one of a set."""
    counted = Counter(values)
    return (
        [value for value, _ in counted.most_common()]
        if _EACH * len(counted) <= len(values) and len(counted) <= _FEW
        else []
    )
