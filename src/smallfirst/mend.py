"""Putting a small model's calls right where no model is needed to see what they mean.

Small models write `f(3, 4)` where arguments have names, wrap them as {"params": {...}}, or write "5" for 5. Each mend
changes the form of a call and no value of it, and is used only when the call then satisfies its tool's schema and
names no argument that the schema lacks. What a mend makes is validated like any answer.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from msgspec.structs import replace

from smallfirst.schemas import JsonTextError, compiled, parse_json
from smallfirst.types import Completion, Json, Request, Tool, ToolCall

_POSITIONAL = re.compile(r"_?(?:positional_|arg|args_|param)?([0-9]{1,3})")


def mend(request: Request, completion: Completion) -> Completion | None:
    """`completion` with the calls mended that can be; None when no call needs it or none can be."""
    tools = request.callable_tools
    choices = []
    for choice in completion.choices:
        calls = tuple(_mended(call, tools.get(call.name)) for call in choice.tool_calls)
        choices.append(replace(choice, tool_calls=calls))
    made = tuple(choices)
    return None if made == completion.choices else replace(completion, choices=made, native=None)


def _mended(call: ToolCall, tool: Tool | None) -> ToolCall:
    if tool is None:
        return call
    try:
        arguments = parse_json(call.arguments)
    except JsonTextError:
        return call
    if not isinstance(arguments, dict) or _fits(arguments, tool):
        return call
    for first in (_named, _unwrapped):
        renamed = first(arguments, tool)
        for second in (renamed, None if renamed is None else _typed(renamed, tool)):
            if second is not None and _fits(second, tool):
                return replace(call, arguments=json.dumps(second, ensure_ascii=False))
    typed = _typed(arguments, tool)
    return replace(call, arguments=json.dumps(typed, ensure_ascii=False)) if _fits(typed, tool) else call


def _fits(arguments: Mapping[str, Any], tool: Tool) -> bool:
    """Whether the schema allows the arguments and, where it lists properties, names them all."""
    properties = _properties(tool)
    open_ended = tool.parameters.get("additionalProperties", False) is not False
    closed = properties and not open_ended and "patternProperties" not in tool.parameters
    if closed and not arguments.keys() <= properties.keys():
        return False
    return bool(compiled(tool.parameters).is_valid(arguments))


def _named(arguments: Json, tool: Tool) -> dict[str, Any] | None:
    """Positional arguments under the names that the schema lists, in its order; a lone object is the arguments."""
    places = {name: _POSITIONAL.fullmatch(name) for name in arguments if name not in _properties(tool)}
    if not places or not all(places.values()):
        return None
    if len(arguments) == 1:
        (value,) = arguments.values()
        if isinstance(value, dict) and value.keys() <= _properties(tool).keys():
            return value
    names = [name for name in _properties(tool) if name not in arguments]
    given = {int(place.group(1)): arguments[name] for name, place in places.items() if place}
    first = min(given)
    ordered = [given[at] for at in sorted(given)]
    if len(ordered) > len(names) or sorted(given) != list(range(first, first + len(places))):
        return None
    kept = {name: value for name, value in arguments.items() if name not in places}
    return dict(zip(names, ordered, strict=False)) | kept


def _unwrapped(arguments: Json, tool: Tool) -> dict[str, Any] | None:
    """The object inside, where the arguments are wrapped in one object that the schema does not know."""
    if len(arguments) != 1:
        return None
    ((name, value),) = arguments.items()
    return value if name not in _properties(tool) and isinstance(value, dict) else None


def _typed(arguments: Json, tool: Tool) -> dict[str, Any]:
    """Values written as text in the type that the schema wants, and numbers as text where it wants that."""
    found = {}
    for name, value in arguments.items():
        schema = _properties(tool).get(name)
        convert = _CONVERSIONS.get(str(schema.get("type"))) if isinstance(schema, dict) else None
        found[name] = convert(value) if convert else value
    return found


def _parsed(value: Any) -> Any:
    """What a text says as JSON, where that is a number that floats can hold, a list or an object."""
    if not isinstance(value, str):
        return value
    try:
        said = parse_json(value)
    except JsonTextError:
        return value
    finite = not isinstance(said, float) or math.isfinite(said)
    return said if finite and isinstance(said, int | float | list | dict) and not isinstance(said, bool) else value


def _boolean(value: Any) -> Any:
    return {"true": True, "false": False}.get(value.strip().lower(), value) if isinstance(value, str) else value


def _text(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


_CONVERSIONS: Mapping[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("integer", "number", "array", "object"), _parsed),
    "boolean": _boolean,
    "string": _text,
}


def _properties(tool: Tool) -> Mapping[str, Any]:
    found = tool.parameters.get("properties", {})
    return found if isinstance(found, dict) else {}
