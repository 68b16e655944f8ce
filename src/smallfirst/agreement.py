"""When two answers to one request are the same answer, and how far they agree where they are not.

Equality is type- and schema-aware (`canonical_call`). It serves twice: as a feature of confidence, where a second small
model or another sample answered too, and as a label, where the large model's answer is what to compare with.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from smallfirst.evidence import Kind, Same
from smallfirst.schemas import JsonTextError, canonical_json, parse_json, resolve
from smallfirst.types import Choice, Json, Request, Tool

FEATURES: Mapping[str, Kind] = {
    "agree": "value",
    "agree_names": "value",
    "agree_count": "value",
    "agree_arguments": "value",
    "other_no_call": "value",
}

_COMBINING = frozenset(("$ref", "allOf", "anyOf", "oneOf"))
_SPACES = re.compile(r"\s+")


def same_answer(request: Request, one: Choice, other: Choice) -> bool | None:
    """Whether two answers are the same; None when that cannot be told.

    Calls are compared as sets of `canonical_call`; JSON text under a response schema likewise. Where one calls a tool
    and the other does not they differ. Two free texts are the same when they are equal up to case and white space, and
    cannot be told otherwise: different words may say the same.
    """
    if one.tool_calls or other.tool_calls:
        return calls_of(request, one) == calls_of(request, other)
    if request.response_format.kind != "text":
        return _canonical_text(request, one.text) == _canonical_text(request, other.text)
    return True if _folded(one.text) == _folded(other.text) else None


def agreement(request: Request, choice: Choice, others: Sequence[Choice]) -> dict[str, float]:
    """Features of how far `others` (a second model's answer, or samples) agree with `choice`, as means over them.

    agree: the same answer; where tools may be called and neither calls one that is the same, whatever they say. With
    tools also agree_names (the same tools as often), agree_count (as many calls), agree_arguments (share of argument
    values that are equal), and other_no_call. Empty without others.
    """
    if not others:
        return {}
    ours = _calls(request, choice)
    found = [_agreement(request, (choice, ours), (other, _calls(request, other))) for other in others]
    return {name: sum(each[name] for each in found) / len(found) for name in found[0]}


def calls_of(request: Request, choice: Choice) -> tuple[str, ...]:
    """The calls of an answer in canonical form, in a fixed order."""
    return tuple(call.text for call in _calls(request, choice))


@dataclass(frozen=True, slots=True)
class _Call:
    """A call in canonical form: its text, the tool's name, and its arguments if they are JSON."""

    text: str
    name: str
    arguments: Any


def _calls(request: Request, choice: Choice) -> tuple[_Call, ...]:
    said = tuple((call.name, call.arguments) for call in choice.tool_calls)
    return _calls_of(Same(request.tools, request.tools), said) if said else ()


@lru_cache(maxsize=8)  # answers are compared with each other both ways, and often are the very same
def _calls_of(tools: Same[Sequence[Tool]], said: tuple[tuple[str, str], ...]) -> tuple[_Call, ...]:
    schemas = {tool.name: tool.parameters for tool in tools.value}
    found = [_canonical_form(name, arguments, schemas.get(name, {})) for name, arguments in said]
    return tuple(sorted(found, key=lambda call: call.text))


def _agreement(
    request: Request, one: tuple[Choice, Sequence[_Call]], other: tuple[Choice, Sequence[_Call]]
) -> dict[str, float]:
    (choice, ours), (second, theirs) = one, other
    if ours or theirs:
        same = len(ours) == len(theirs) and all(a.text == b.text for a, b in zip(ours, theirs, strict=True))
    else:
        told = same_answer(request, choice, second)
        same = bool(request.callable_tools) if told is None else told
    found = {"agree": float(same)}
    if request.callable_tools:
        found |= {
            "agree_names": float(same or sorted(call.name for call in ours) == sorted(call.name for call in theirs)),
            "agree_count": float(len(ours) == len(theirs)),
            "agree_arguments": 1.0 if same else _equal_arguments(ours, theirs),
            "other_no_call": float(not theirs),
        }
    return found


def _equal_arguments(ours: Sequence[_Call], theirs: Sequence[_Call]) -> float:
    """The share of (tool, argument, value) that both have, of all that either has (Jaccard over multisets)."""
    one, other = _values(ours), _values(theirs)
    either = sum((one | other).values())
    return sum((one & other).values()) / either if either else 1.0


def _values(calls: Sequence[_Call]) -> Counter[tuple[str, str, str]]:
    found: Counter[tuple[str, str, str]] = Counter()
    for call in calls:
        found[call.name, "", ""] += 1
        if isinstance(call.arguments, dict):
            found.update((call.name, key, canonical_json(value)) for key, value in call.arguments.items())
    return found


def _canonical_text(request: Request, text: str) -> str:
    try:
        value = parse_json(text)
    except JsonTextError:
        return text
    schema = request.response_format.schema or {}
    return canonical_json(_canonical(value, _applying(schema, schema), schema))


def canonical_call(name: str, arguments: str, schema: Json) -> str:
    """A text that is equal for equal calls: `name` with `arguments` (JSON text) under the tool's `schema`.

    Keys have no order, 1 is 1.0, and an absent member equals the `default` that the schema states for it. Strings are
    equal exactly, but a member of an enum (or a const) may differ from it in case and white space. Arguments that are
    not JSON are equal to the same text only.
    """
    return _canonical_form(name, arguments, schema).text


def _canonical_form(name: str, arguments: str, schema: Json) -> _Call:
    try:
        value = parse_json(arguments)
    except JsonTextError:
        return _Call(json.dumps([name, None, arguments]), name, None)
    form = _canonical(value, _applying(schema, schema), schema)
    return _Call(canonical_json([name, form]), name, form)


def _canonical(value: Any, schemas: list[Json], root: Json) -> Any:
    """`value` in the form in which equal values are equal; `schemas` are those known to apply to it."""
    if isinstance(value, dict):
        members = {}
        properties = [found for one in schemas if isinstance(found := one.get("properties"), dict)]
        for key, member in value.items():
            inner = [s for one in properties if (sub := one.get(key)) for s in _applying(sub, root)]
            form = _canonical(member, inner, root)
            defaults = [_canonical(one["default"], inner, root) for one in inner if "default" in one]
            if not (defaults and canonical_json(form) in map(canonical_json, defaults)):
                members[key] = form
        return members
    if isinstance(value, list):
        items = [s for one in schemas if isinstance(sub := one.get("items"), dict) for s in _applying(sub, root)]
        return [_canonical(item, items, root) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return _spelled(value, schemas) if isinstance(value, str) else value


def _spelled(text: str, schemas: list[Json]) -> str:
    """`text` as the schemas' enum or const spells it, if it is one of those up to case and white space."""
    for schema in schemas:
        if "enum" not in schema and "const" not in schema:
            continue
        allowed = [v for v in (*schema.get("enum", ()), schema.get("const")) if isinstance(v, str)]
        variants = [v for v in allowed if _folded(v) == _folded(text)]
        if text not in allowed and len(variants) == 1:
            return variants[0]
    return text


def _folded(text: str) -> str:
    return _SPACES.sub(" ", text.strip()).casefold()


def _applying(schema: Any, root: Json) -> list[Json]:
    """`schema` and those that certainly apply with it: reference, allOf, and the one branch beside {"type": "null"}."""
    if isinstance(schema, dict) and _COMBINING.isdisjoint(schema):
        return [schema]
    found: list[Json] = []
    stack = [schema]
    while stack:
        one = stack.pop()
        if not isinstance(one, dict) or any(one is known for known in found):
            continue
        found.append(one)
        if isinstance(one.get("$ref"), str):
            try:
                stack.append(resolve(root, one["$ref"]))
            except LookupError:
                continue
        stack.extend(one.get("allOf", ()))
        for keyword in ("anyOf", "oneOf"):
            branches = [b for b in one.get(keyword, ()) if b != {"type": "null"}]
            stack.extend(branches if len(branches) == 1 else ())
    return found
