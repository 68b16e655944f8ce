"""What a JSON Schema says about a value before the value is complete: the static half of `incremental`.

A schema is unfolded into alternatives (its anyOf, oneOf and if-then-else branches, through references), each a
conjunction of plain subschemas, and each conjunction is summed up in a `Shape`. Shapes only ever claim what is certain:
a keyword that is not understood, or a schema with too many alternatives, claims nothing. A complete value is judged by
`jsonschema-rs` against the subschemas themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any
from urllib.parse import quote, unquote

import jsonschema_rs

from smallfirst.schemas import PATTERN_OPTIONS, SchemaCache, compiled, draft_of, resolve, validator_for
from smallfirst.types import Json

Parts = frozenset[str]
"""Subschemas that must all hold, as pointers into the schema ("#/properties/a")."""

MAX_ALTERNATIVES = 64
MAX_STEPS = 4_000
"""Most subschemas that are visited to find the alternatives of one value; the rest claims nothing."""
MAX_CHAIN = 64
"""Longest chain of references, allOf, anyOf and so on that is followed."""
MAX_LOOK = 16
"""How many levels of required members and items are looked through for one that no value satisfies."""
ANY_START = frozenset('{["-0tfn')
"""First characters of JSON values; "0" stands for every digit."""

_URI = "https://smallfirst.invalid/schema"
_MAX_MEMO = 4096
_STARTS = {
    "object": "{",
    "array": "[",
    "string": '"',
    "number": "-0",
    "integer": "-0",
    "boolean": "tf",
    "null": "n",
}
_PLAIN = frozenset({"type", "enum", "const", "title", "description", "default"})
_FREE: list[Parts] = [frozenset()]


@dataclass(frozen=True, slots=True, eq=False)
class Shape:
    """What is certain of a value in which all of `parts` hold.

    starts: possible first characters; strings: the possible strings, sorted; names: the keys that an object may have by
    their names alone, sorted; None where anything may be. required: keys that an object must have. max_*: upper limits,
    None without one.
    """

    parts: Parts = frozenset()
    starts: frozenset[str] = ANY_START
    strings: tuple[str, ...] | None = None
    max_length: int | None = None
    names: tuple[str, ...] | None = None
    required: frozenset[str] = frozenset()
    max_properties: int | None = None
    max_items: int | None = None


class Shapes:
    """All that `JsonPrefix` asks of one schema; built once per schema (`shapes_of`), shared by all streams."""

    def __init__(self, schema: Json) -> None:
        self.root: Parts = frozenset({"#"})
        self._schema = dict(schema)
        self._draft = draft_of(self._schema)
        self._registry = _registered(self._schema)
        self._validators: dict[str, jsonschema_rs.Validator | None] = {"#": compiled(schema)}
        self._shapes: dict[Parts, tuple[Shape, ...]] = {}
        self._keys: dict[Shape, tuple[str, ...]] = {}
        self._steps = 0
        self._pending: set[Parts] = set()
        self._nodes: dict[str, Any] = {}
        self._patterns: dict[str, jsonschema_rs.Validator] = {}

    def at(self, parts: Parts) -> tuple[Shape, ...]:
        """The alternatives of a value in which `parts` hold; empty when no value is possible."""
        known = self._shapes.get(parts)
        if known is None:
            if len(self._shapes) >= _MAX_MEMO:
                self._shapes.clear()
            self._steps = MAX_STEPS
            alternatives = _product([self._alternatives(pointer, ()) for pointer in sorted(parts)])
            self._pending.add(parts)
            shapes = [self._shape(alternative) for alternative in alternatives]
            self._pending.discard(parts)
            known = self._shapes[parts] = tuple(shape for shape in shapes if shape.starts)
        return known

    def holds(self, parts: Parts, value: Any) -> bool:
        """Whether the complete `value` satisfies all of `parts`, by jsonschema-rs."""
        return all(self._valid(pointer, value) for pointer in parts)

    def member(self, shape: Shape, key: str) -> Parts | None:
        """What must hold of the member `key` of an object of `shape`; None when it may not be there."""
        found: set[str] = set()
        for pointer in shape.parts:
            schema = self._plain(pointer)
            if "propertyNames" in schema and self._draft >= 6 and not self._valid(f"{pointer}/propertyNames", key):
                return None
            named = [f"{pointer}/properties/{_escape(key)}"] if key in schema.get("properties", ()) else []
            patterns = schema.get("patternProperties", ())
            named += [f"{pointer}/patternProperties/{_escape(p)}" for p in patterns if self._matches(p, key)]
            if not named and "additionalProperties" in schema:
                named = [f"{pointer}/additionalProperties"]
            found.update(named)
        return self._possible(frozenset(found))

    def keys(self, shape: Shape) -> tuple[str, ...] | None:
        """The keys that an object of `shape` may have, sorted; None where any may be."""
        if shape.names is None:
            return None
        if shape not in self._keys:
            if len(self._keys) >= _MAX_MEMO:
                self._keys.clear()
            self._keys[shape] = tuple(name for name in shape.names if self.member(shape, name) is not None)
        return self._keys[shape]

    def item(self, shape: Shape, index: int) -> Parts | None:
        """What must hold of the item at `index` of an array of `shape`; None when it may not be there."""
        if shape.max_items is not None and index >= shape.max_items:
            return None
        found: set[str] = set()
        first, rest = ("prefixItems", "items") if self._draft >= 2020 else ("items", "additionalItems")
        for pointer in shape.parts:
            schema = self._plain(pointer)
            head = schema.get(first)
            if isinstance(head, list) and index < len(head):
                found.add(f"{pointer}/{first}/{index}")
            elif isinstance(head, (Mapping, bool)):
                found.add(f"{pointer}/{first}")
            elif rest in schema and (isinstance(head, list) or rest == "items"):
                found.add(f"{pointer}/{rest}")
        return self._possible(frozenset(found))

    def why(self, parts: Iterable[str], value: Any) -> str:
        """The first complaint of jsonschema-rs about `value`."""
        for validator in filter(None, map(self._validator, sorted(parts))):
            for error in validator.iter_errors(value):
                return error.message
        return "it does not satisfy its schema"

    def _possible(self, parts: Parts) -> Parts | None:
        """`parts`, or None when no value satisfies them; a value that is being looked at deeper down counts as
        possible, and so does what lies deeper than MAX_LOOK."""
        unknown = parts in self._pending or (len(self._pending) >= MAX_LOOK and parts not in self._shapes)
        return parts if unknown or self.at(parts) else None

    def _valid(self, pointer: str, value: Any) -> bool:
        validator = self._validator(pointer)
        return validator is None or validator.is_valid(value)

    def _validator(self, pointer: str) -> jsonschema_rs.Validator | None:
        """The compiled subschema, made when it is first needed: all of them at once take quadratic time.

        None for one that cannot be judged alone, because its references depend on where it stands.
        """
        if pointer not in self._validators:
            self._validators[pointer] = self._compiled(pointer, self._registry)
        return self._validators[pointer]

    def _compiled(self, pointer: str, registry: jsonschema_rs.Registry | None) -> jsonschema_rs.Validator | None:
        if registry is None:
            return None
        draft = {"$schema": self._schema["$schema"]} if "$schema" in self._schema else {}
        try:
            return validator_for({**draft, "$ref": _URI + quote(pointer, safe="#/~")}, registry)
        except ValueError:
            return None

    def _matches(self, pattern: str, key: str) -> bool:
        if pattern not in self._patterns:
            self._patterns[pattern] = jsonschema_rs.validator_for({"pattern": pattern}, pattern_options=PATTERN_OPTIONS)
        return self._patterns[pattern].is_valid(key)

    def _plain(self, pointer: str) -> Json:
        """The schema at `pointer`; {} for a boolean one, which `_alternatives` has dealt with."""
        found = self._node(pointer)
        return found if isinstance(found, Mapping) else {}

    def _node(self, pointer: str) -> Any:
        if pointer not in self._nodes:
            self._nodes[pointer] = _at(self._schema, pointer)
        return self._nodes[pointer]

    def _alternatives(self, pointer: str, above: tuple[str, ...]) -> list[Parts]:
        """The subschema at `pointer` as a disjunction of conjunctions of plain subschemas."""
        schema = self._node(pointer)
        if schema is False:
            return []
        self._steps -= 1
        followed = pointer not in above and len(above) < MAX_CHAIN and self._steps > 0
        if not followed or not isinstance(schema, Mapping):
            return _FREE
        within = (*above, pointer)
        reference = [self._reference(schema["$ref"], within)] if "$ref" in schema else []
        if reference and self._draft <= 7:
            return reference[0]
        groups = [[frozenset({pointer})], *reference]
        groups += [self._alternatives(f"{pointer}/allOf/{i}", within) for i in _indices(schema, "allOf")]
        for keyword in ("anyOf", "oneOf"):
            branches = [self._alternatives(f"{pointer}/{keyword}/{i}", within) for i in _indices(schema, keyword)]
            if branches:
                groups.append(_distinct(alternative for branch in branches for alternative in branch))
        if self._draft >= 7 and "if" in schema and ("then" in schema or "else" in schema):
            then = [self._alternatives(f"{pointer}/{k}", within) for k in ("if", "then") if k in schema]
            otherwise = self._alternatives(f"{pointer}/else", within) if "else" in schema else _FREE
            groups.append(_distinct([*_product(then), *otherwise]))
        return _product(groups)

    def _reference(self, reference: Any, within: tuple[str, ...]) -> list[Parts]:
        try:
            if self._registry is None:
                return _FREE
            pointer = _pointer(reference)
            resolve(self._schema, reference)
        except LookupError:
            return _FREE
        return self._alternatives(pointer, within)

    def _shape(self, parts: Parts) -> Shape:
        schemas = [self._plain(pointer) for pointer in parts]
        values = self._values(parts, schemas)
        known = ANY_START if values is None else _literal_starts(values)
        shape = Shape(
            parts=parts,
            starts=reduce(frozenset.__and__, (self._starts(schema) for schema in schemas), known),
            strings=None if values is None else tuple(sorted({v for v in values if isinstance(v, str)})),
            max_length=_least(schemas, "maxLength"),
            names=_closed_names(schemas),
            required=frozenset(name for schema in schemas for name in _names(schema.get("required"))),
            max_properties=_least(schemas, "maxProperties"),
            max_items=_least(schemas, "maxItems"),
        )
        possible = {'"': self._some_string, "{": self._some_object, "[": self._some_array}
        empty = {start for start, some in possible.items() if start in shape.starts and not some(shape, schemas)}
        return replace(shape, starts=shape.starts - empty) if empty else shape

    def _values(self, parts: Parts, schemas: list[Json]) -> list[Any] | None:
        """The possible values where enum or const lists them, else None."""
        literals = [values for schema in schemas for values in self._literals(schema)]
        if not literals:
            return None
        fewest = min(literals, key=len)
        alone = len(literals) == 1 and all(schema.keys() <= _PLAIN for schema in schemas)
        return fewest if alone else [value for value in fewest if self.holds(parts, value)]

    def _some_string(self, shape: Shape, schemas: list[Json]) -> bool:
        """Whether there is a string of this shape; the two functions below ask the same of objects and arrays."""
        return _fits(_most(schemas, "minLength"), shape.max_length)

    def _some_object(self, shape: Shape, schemas: list[Json]) -> bool:
        least = max(_most(schemas, "minProperties"), len(shape.required))
        if not _fits(least, shape.max_properties):
            return False
        if shape.names is None or not least:
            return all(self.member(shape, name) is not None for name in shape.required)
        possible = {name for name in shape.names if self.member(shape, name) is not None}
        return len(possible) >= least and shape.required <= possible

    def _some_array(self, shape: Shape, schemas: list[Json]) -> bool:
        least = _most(schemas, "minItems")
        told = max(
            (len(head) for s in schemas if isinstance(head := s.get("prefixItems", s.get("items")), list)), default=0
        )
        return _fits(least, shape.max_items) and all(
            self.item(shape, index) is not None for index in range(min(least, told + 1))
        )

    def _literals(self, schema: Json) -> Iterator[list[Any]]:
        if isinstance(schema.get("enum"), list):
            yield schema["enum"]
        if "const" in schema and self._draft >= 6:
            yield [schema["const"]]

    def _starts(self, schema: Json) -> frozenset[str]:
        """First characters that type and bounds allow. A number below 0 starts with "-", and so may 0 itself."""
        types = schema.get("type", list(_STARTS))
        starts = set("".join(_STARTS[name] for name in ([types] if isinstance(types, str) else types)))
        strict = self._draft >= 6
        low, above = _number(schema, "minimum"), _number(schema, "exclusiveMinimum") if strict else None
        high, below = _number(schema, "maximum"), _number(schema, "exclusiveMaximum") if strict else None
        if (low is not None and low > 0) or (above is not None and above >= 0):
            starts.discard("-")
        if (high is not None and high < 0) or (below is not None and below <= 0):
            starts.discard("0")
        return frozenset(starts)


shapes_of = SchemaCache(Shapes, size=256)
"""The `Shapes` of a schema, cached; it is one that `schemas.check_schema` lets pass."""


def _at(root: Json, pointer: str) -> Any:
    """The subschema at a JSON pointer "#/a~1b" (not percent-encoded), or True where there is none."""
    node: Any = root
    for part in pointer.split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        node = (
            node[int(name)] if isinstance(node, list) else node.get(name, True) if isinstance(node, Mapping) else True
        )
    return node


def _pointer(reference: Any) -> str:
    if not isinstance(reference, str):
        raise LookupError(reference)
    return unquote(reference)


def _escape(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _registered(schema: dict[str, Any]) -> jsonschema_rs.Registry | None:
    """The schema under _URI, so that its parts can be referred to; None where they mean nothing alone."""
    try:
        return None if _rescopes(schema) else jsonschema_rs.Registry([(_URI, schema)])
    except ValueError:
        return None


def _rescopes(node: Any) -> bool:
    """Whether references may mean different things in different places: an `$id` inside, or dynamic references."""
    stack = [(node, True)]
    while stack:
        item, top = stack.pop()
        if isinstance(item, Mapping):
            if any(key in item for key in ("$dynamicRef", "$recursiveRef", "$dynamicAnchor", "$recursiveAnchor")):
                return True
            if not top and any(isinstance(item.get(key), str) for key in ("$id", "id", "$schema")):
                return True
            stack.extend((child, False) for child in item.values())
        elif isinstance(item, list):
            stack.extend((child, False) for child in item)
    return False


def _indices(schema: Json, keyword: str) -> range:
    branches = schema.get(keyword)
    return range(len(branches) if isinstance(branches, list) else 0)


def _distinct(alternatives: Iterable[Parts]) -> list[Parts]:
    """Each once; nothing is claimed when there are too many to follow."""
    unique = list(dict.fromkeys(alternatives))
    return unique if len(unique) <= MAX_ALTERNATIVES else _FREE


def _product(groups: list[list[Parts]]) -> list[Parts]:
    """The conjunction of disjunctions, as a disjunction; a group that would make too many is left out."""
    result = _FREE
    for group in groups:
        if len(result) * len(group) <= MAX_ALTERNATIVES:
            result = list(dict.fromkeys(left | right for left in result for right in group))
    return result


def _literal_starts(values: list[Any]) -> frozenset[str]:
    starts: set[str] = set()
    for value in values:
        if isinstance(value, bool):
            starts.add("t" if value else "f")
        elif isinstance(value, (int, float)):
            starts.update(*(("-",) if value <= 0 else ()), *(("0",) if value >= 0 else ()))
        else:
            starts.add(
                '"' if isinstance(value, str) else "n" if value is None else "[" if isinstance(value, list) else "{"
            )
    return frozenset(starts)


def _number(schema: Json, keyword: str) -> float | None:
    value = schema.get(keyword)
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _least(schemas: list[Json], keyword: str) -> int | None:
    limits = [limit for schema in schemas if (limit := _number(schema, keyword)) is not None]
    return int(min(limits)) if limits else None


def _most(schemas: list[Json], keyword: str) -> int:
    return int(max((limit for schema in schemas if (limit := _number(schema, keyword)) is not None), default=0))


def _fits(least: int, most: int | None) -> bool:
    return most is None or least <= most


def _names(required: Any) -> list[str]:
    return required if isinstance(required, list) else []


def _closed_names(schemas: list[Json]) -> tuple[str, ...] | None:
    """The keys that every subschema which lists all its keys allows; None when none does."""
    closed = [
        {name for name, schema in one.get("properties", {}).items() if schema is not False}
        for one in schemas
        if one.get("additionalProperties") is False and not one.get("patternProperties")
    ]
    return tuple(sorted(set.intersection(*closed))) if closed else None
