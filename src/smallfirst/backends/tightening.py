"""A JSON Schema made easier to generate for: what a small model would only get wrong is taken away (pure; no I/O).

Required properties come before optional ones, so that after them ending costs one token (in between, leaving one out
would have to be decided at each). Objects that list their properties hold no others. Both apply only where one
subschema alone describes the object: subschemas that describe it together, as the branches of `allOf` do, stay as they
are, because closing each to its own properties would leave nothing that satisfies all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smallfirst.keywords import children, reached, rebuilt, subschemas
from smallfirst.schemas import in_place
from smallfirst.types import Json

_APPLIED = frozenset({"allOf", "anyOf", "oneOf", "$ref"})
_UNORDERED = frozenset({"not", "if", "then", "else", "dependentSchemas", "dependencies", "contains", "propertyNames"})
_ABOUT_MEMBERS = frozenset(
    ("properties", "patternProperties", "additionalProperties", "unevaluatedProperties", "items", "prefixItems")
)
_ABOUT_VALUE = _ABOUT_MEMBERS | {"required", "minProperties", "enum", "const"}
_NEVER_CLOSED = _APPLIED | _UNORDERED | (_ABOUT_VALUE - {"properties", "required", "minProperties"})


def tightened(schema: Json) -> dict[str, Any]:
    """`schema`, each object of which that one subschema describes alone ordered and closed; it is not changed."""
    joined = _joined(schema)

    def tight(node: Any) -> Any:
        if not isinstance(node, Mapping):
            return node
        made = rebuilt(node, tight)
        return made if id(node) in joined else _closed(made)

    return dict(tight(schema))


def _closed(node: dict[str, Any]) -> dict[str, Any]:
    """`node` ordered and, where it says nothing about other properties, closed; a required one need not be listed."""
    properties, required = node.get("properties"), node.get("required", [])
    if not isinstance(properties, dict) or not isinstance(required, list):
        return node
    closable = _NEVER_CLOSED.isdisjoint(node)
    wanted = frozenset(required)
    first = {name: properties[name] for name in properties if name in wanted}
    if closable:
        first |= {name: {} for name in required if name not in properties}
    made = {**node, "properties": {**first, **properties}}
    if closable and node.get("minProperties", 0) <= len(made["properties"]):
        made["additionalProperties"] = False
    return made


def _joined(root: Json) -> set[int]:
    """The ids of the subschemas that describe a value together with others, and of all within these others."""
    combining: set[int] = set()
    within: set[int] = set()

    def join(resource: Json, tops: list[Any]) -> None:
        for _ in reached(resource, tops, within):
            pass

    for resource, node in subschemas(root):
        branches = list(in_place(resource, node))
        if branches and not _stands_alone(node):
            combining.add(id(node))
            join(resource, branches)
        members = any(isinstance(branch, Mapping) and not _says_little(branch) for branch in branches)
        if (id(node) in combining and members) or "patternProperties" in node:
            join(resource, [child for keyword, child in children(node) if keyword not in ("$defs", "definitions")])
    return combining | within


def _stands_alone(node: Json) -> bool:
    """Whether `node` only passes a value on: to one subschema, or to one of several alternatives."""
    applied = _APPLIED & node.keys()
    alone = len(applied) == 1 and _ABOUT_VALUE.isdisjoint(node) and _UNORDERED.isdisjoint(node)
    return alone and ("allOf" not in node or len(node["allOf"]) == 1)


def _says_little(branch: Json) -> bool:
    """Whether `branch` says nothing about members, as {"required": [...]} does."""
    return (_ABOUT_MEMBERS | _APPLIED | _UNORDERED).isdisjoint(branch)
