"""What of a JSON Schema is not enforced, or not at once: named, so that nothing is ignored in silence.

`unchecked` names what no part of smallfirst checks; `late` names what the incremental validator sees only where a value
closes. What a decoding grammar leaves to the validators is named by `backends.toolprompt.unheld`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from smallfirst.schemas import FORMATS, draft_of, resolve
from smallfirst.types import Json

_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_SINGLE = (
    *("items", "additionalItems", "unevaluatedItems", "contains", "not", "if", "then", "else"),
    *("additionalProperties", "unevaluatedProperties", "propertyNames"),
)
_ALWAYS = (
    *("type", "enum", "properties", "patternProperties", "additionalProperties", "required", "dependencies", "items"),
    *("minProperties", "maxProperties", "minItems", "maxItems", "uniqueItems", "minLength", "maxLength", "pattern"),
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "allOf", "anyOf", "oneOf", "not"),
    *("$ref", "format"),
)
_DRAFTS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(_ALWAYS, (4, 6, 7, 2019, 2020)),
    **dict.fromkeys(("const", "contains", "propertyNames"), (6, 7, 2019, 2020)),
    **dict.fromkeys(("if", "then", "else"), (7, 2019, 2020)),
    **dict.fromkeys(("dependentRequired", "dependentSchemas", "minContains", "maxContains"), (2019, 2020)),
    **dict.fromkeys(("unevaluatedItems", "unevaluatedProperties"), (2019, 2020)),
    **dict.fromkeys(("contentEncoding", "contentMediaType"), (6, 7)),
    "additionalItems": (4, 6, 7, 2019),
    "$recursiveRef": (2019,),
    "prefixItems": (2020,),
    "$dynamicRef": (2020,),
}
"""The drafts in which jsonschema-rs enforces a keyword."""
_NOTES = frozenset(
    (
        *("$schema", "$id", "id", "$anchor", "$dynamicAnchor", "$recursiveAnchor", "$defs", "definitions", "$comment"),
        *("$vocabulary", "title", "description", "default", "example", "examples", "deprecated"),
        *("readOnly", "writeOnly"),
    )
)
"""Keywords that constrain nothing."""
_AT_ONCE = frozenset(
    (
        *("type", "enum", "const", "properties", "additionalProperties", "required", "minProperties", "maxProperties"),
        *("items", "prefixItems", "additionalItems", "minItems", "maxItems", "minLength", "maxLength"),
        *("allOf", "anyOf", "$ref"),
    )
)
"""Keywords that `incremental.JsonPrefix` enforces at the first character after which no valid value is left."""


def unchecked(schema: Json) -> tuple[str, ...]:
    """The keywords of `schema` that say something and that no validator here enforces, sorted.

    They are unknown ones, those of another draft than the schema's, formats without a definition (as "format: NAME"),
    and in draft 7 and older whatever stands beside a $ref (as "NAME beside $ref").
    """
    draft = draft_of(schema)
    found: set[str] = set()
    for _, one in subschemas(schema):
        known = {name for name in one if draft in _DRAFTS.get(name, ())}
        found.update(name for name in one if name not in known and name not in _NOTES)
        if draft <= 7 and "$ref" in one:
            found.update(f"{name} beside $ref" for name in known - {"$ref"})
        elif "format" in one and one["format"] not in FORMATS:
            found.add(f"format: {one['format']}")
    return tuple(sorted(found))


def late(schema: Json) -> tuple[str, ...]:
    """The keywords of `schema` whose breach `incremental.JsonPrefix` may see only where the value closes, sorted.

    enum and const are among them where they list arrays, objects or numbers.
    """
    draft = draft_of(schema)
    found: set[str] = set()
    for _, one in subschemas(schema):
        named = [name for name in one if draft in _DRAFTS.get(name, ())]
        found.update(name for name in named if name not in _AT_ONCE)
        found.update(name for name in named if name in ("enum", "const") and not _is_simple(one[name]))
    return tuple(sorted(found))


def _is_simple(literals: Any) -> bool:
    values = literals if isinstance(literals, list) else [literals]
    return all(value is None or isinstance(value, (str, bool)) for value in values)


def subschemas(root: Json) -> Iterator[tuple[Json, Json]]:
    """`root` and every object schema in it or referred to by "#/...", each once, each after the resource it is in: the
    nearest schema around it that has an `$id`, or `root`."""
    return reached(root, [root], set())


def reached(root: Json, tops: Iterable[Any], seen: set[int]) -> Iterator[tuple[Json, Json]]:
    """As `subschemas`, but only what is in the subschemas `tops` of `root` or referred to from there, without those
    whose ids are in `seen`, to which the others are added."""
    stack = [(root, top) for top in tops]
    while stack:
        resource, node = stack.pop()
        if isinstance(node, Mapping) and id(node) not in seen:
            seen.add(id(node))
            resource = node if _is_resource(node) else resource
            yield resource, node
            stack.extend((resource, child) for _, child in children(node))
            stack.extend((resource, target) for target in _referred(resource, node))


def _is_resource(node: Json) -> bool:
    return any(isinstance(node.get(key), str) and not node[key].startswith("#") for key in ("$id", "id"))


def _referred(resource: Json, node: Json) -> list[Any]:
    try:
        return [resolve(resource, node["$ref"])] if isinstance(node.get("$ref"), str) else []
    except LookupError:
        return []


def children(node: Json) -> Iterator[tuple[str, Any]]:
    """The direct subschemas of `node`, each with the keyword that holds it."""
    for keyword, value in node.items():
        if keyword in _MAPS and isinstance(value, Mapping):
            yield from ((keyword, child) for child in value.values())
        elif keyword in _LISTS and isinstance(value, list):
            yield from ((keyword, child) for child in value)
        elif keyword in _SINGLE:
            yield keyword, value


def rebuilt(node: Json, change: Callable[[Any], Any]) -> dict[str, Any]:
    """`node` with `change` of each direct subschema in its place."""
    made = dict(node)
    for keyword, value in node.items():
        if keyword in _MAPS and isinstance(value, Mapping):
            made[keyword] = {name: change(child) for name, child in value.items()}
        elif keyword in _LISTS and isinstance(value, list):
            made[keyword] = [change(child) for child in value]
        elif keyword in _SINGLE:
            made[keyword] = change(value)
    return made
