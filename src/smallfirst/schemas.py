"""JSON Schemas as clients send them: refused when unusable, compiled once, applied without I/O and without hanging.

`jsonschema-rs` does the validating: draft 2020-12 unless `$schema` names another; `format` is asserted, in older drafts
also those formats that came later. References that leave the document are never fetched, and a pattern that backtracks
without end counts as not matching. What is not checked is named by `keywords.unchecked`.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any, Generic, NoReturn, TypeVar
from urllib.parse import unquote

import jsonschema_rs
import msgspec

from smallfirst.errors import RequestError, TooLargeError
from smallfirst.types import Json

MAX_SCHEMA_BYTES = 256 * 1024
MAX_SCHEMA_NODES = 5_000
"""Most members and items, at all levels together."""
MAX_SCHEMA_DEPTH = 100
MAX_DEPTH = 128
"""Deepest nesting of a JSON value in an answer."""
MAX_UNFOLDED = 10_000
"""Most subschemas that may apply to one and the same value: validation time is proportional to it."""
PATTERN_OPTIONS = jsonschema_rs.FancyRegexOptions(backtrack_limit=100_000, size_limit=4 * 1024 * 1024)
FORMATS = {
    **dict.fromkeys(("date-time", "email", "hostname", "ipv4", "ipv6", "uri"), 4),
    **dict.fromkeys(("date", "time", "regex", "idn-email"), 4),
    **dict.fromkeys(("json-pointer", "uri-reference", "uri-template"), 6),
    **dict.fromkeys(("relative-json-pointer", "iri", "iri-reference", "idn-hostname"), 7),
    **dict.fromkeys(("uuid", "duration"), 2019),
}
"""The formats that are checked, with the draft from which on jsonschema-rs knows them."""

_IN_PLACE_LISTS = ("allOf", "anyOf", "oneOf")
_IN_PLACE = ("not", "if", "then", "else")
_BRIEF = json.JSONEncoder(ensure_ascii=False, default=repr)
_DRAFTS = {
    jsonschema_rs.Draft4Validator: 4,
    jsonschema_rs.Draft6Validator: 6,
    jsonschema_rs.Draft7Validator: 7,
    jsonschema_rs.Draft201909Validator: 2019,
    jsonschema_rs.Draft202012Validator: 2020,
}
_T = TypeVar("_T")


def canonical_json(value: Any) -> str:
    """`value` as JSON with sorted keys and no white space: equal texts mean equal values and number types."""
    return msgspec.json.encode(value, order="sorted").decode()


class SchemaCache(Generic[_T]):
    """The `size` last used results of `build(schema)`, found by a digest of the schema's canonical JSON."""

    def __init__(self, build: Callable[[Json], _T], size: int = 512) -> None:
        self._build = build
        self._size = size
        self._entries: OrderedDict[bytes, _T] = OrderedDict()

    def __call__(self, schema: Json) -> _T:
        key = hashlib.blake2b(msgspec.json.encode(schema, order="sorted"), digest_size=16).digest()
        entry = self._entries.pop(key, None)
        if entry is None:
            entry = self._build(schema)
        self._entries[key] = entry
        while len(self._entries) > self._size:
            self._entries.popitem(last=False)
        return entry


def draft_of(schema: Json) -> int:
    """The draft that `schema` is written in: 4, 6, 7, 2019 or 2020. Raises ReferencingError for one of its own."""
    return _DRAFTS[jsonschema_rs.validator_cls_for(dict(schema))]


@cache
def _later_formats(draft: int) -> dict[str, Callable[[str], bool]]:
    """Checks of the formats that came after `draft`, as the latest draft defines them."""
    later = (name for name, since in FORMATS.items() if since > draft)
    return {name: jsonschema_rs.validator_for({"format": name}, validate_formats=True).is_valid for name in later}


def validator_for(schema: Json, registry: jsonschema_rs.Registry | None = None) -> jsonschema_rs.Validator:
    """`schema` compiled; what it refers to is in it or in `registry`. Raises ValueError and ReferencingError."""
    return jsonschema_rs.validator_for(
        dict(schema),
        registry=registry,
        validate_formats=True,
        formats=_later_formats(draft_of(schema)),
        pattern_options=PATTERN_OPTIONS,
        offline=True,
    )


class _Absurd(Exception):
    """A schema over a limit; the message completes "The schema ..."."""


def _compile(schema: Json) -> jsonschema_rs.Validator:
    if depth(schema, MAX_SCHEMA_DEPTH) > MAX_SCHEMA_DEPTH:
        raise _Absurd(f"nests deeper than {MAX_SCHEMA_DEPTH} levels")
    if excess := _excess(schema):
        raise _Absurd(excess)
    validator = validator_for(schema)
    if _unfolded(schema) > MAX_UNFOLDED:
        raise _Absurd(f"applies more than {MAX_UNFOLDED} subschemas to one value")
    return validator


def _excess(schema: Json) -> str | None:
    """By what `schema` is over the limits of size, as the end of a sentence."""
    if (size := len(msgspec.json.encode(schema))) > MAX_SCHEMA_BYTES:
        return f"has {size} bytes; {MAX_SCHEMA_BYTES} are allowed"
    nodes = 0
    stack: list[Any] = [schema]
    while stack:
        found = stack.pop()
        nodes += len(found)
        children = found.values() if isinstance(found, Mapping) else found
        stack.extend(child for child in children if isinstance(child, (Mapping, list)))
    return f"has {nodes} nodes; {MAX_SCHEMA_NODES} are allowed" if nodes > MAX_SCHEMA_NODES else None


compiled = SchemaCache(_compile)
"""The compiled validator of a schema that `check_schema` let pass."""


def check_schema(schema: Any, *, param: str) -> None:
    """Refuse a schema that cannot be used; `param` names its place in the request.

    Raises RequestError for one that is not a valid JSON Schema or that refers outside itself, and TooLargeError for
    one over MAX_SCHEMA_BYTES, MAX_SCHEMA_NODES, MAX_SCHEMA_DEPTH or MAX_UNFOLDED. Recursion through local references
    is fine.
    """
    if not isinstance(schema, Mapping):
        _refuse(f"The schema at {param} is {elide(schema)}; a JSON Schema is an object.", param)
    try:
        compiled(schema)
    except (_Absurd, RecursionError) as error:
        _too_large(str(error) if isinstance(error, _Absurd) else "nests too deep, or its references do", param)
    except (ValueError, jsonschema_rs.ReferencingError) as error:
        _refuse(f"The schema at {param} is not usable: {_reason(error)}.", param)


def check_size(schema: Json, *, param: str) -> None:
    """The part of `check_schema` that asks nothing but how large `schema` is. Raises TooLargeError."""
    if excess := _excess(schema):
        _too_large(excess, param)


def _too_large(reason: str, param: str) -> NoReturn:
    hint = "Simplify it; what allOf, anyOf and oneOf refer to multiplies, so list each definition once."
    raise TooLargeError(f"The schema at {param} {reason}.", hint=hint, param=param) from None


def _refuse(message: str, param: str) -> NoReturn:
    hint = "Write draft 2020-12 (or name another draft in $schema) and refer to definitions inside it, '#/$defs/NAME'."
    raise RequestError(message, hint=hint, param=param)


def _reason(error: ValueError | jsonschema_rs.ReferencingError) -> str:
    message = error.message if hasattr(error, "message") else str(error)
    where = "/".join(map(str, getattr(error, "instance_path", ())))
    return elide_text(f"{message} at #/{where}" if where else message, 240).rstrip(".")


def depth(value: Any, limit: int) -> int:
    """How many arrays and objects are nested in `value`; stops counting just above `limit`."""
    level, reached = [value], 0
    while level := [item for item in level if isinstance(item, (Mapping, list))]:
        reached += 1
        if reached > limit:
            break
        level = [child for item in level for child in (item.values() if isinstance(item, Mapping) else item)]
    return reached


def resolve(root: Json, reference: str) -> Any:
    """What the local reference "#/..." points at; LookupError when it is not local or points at nothing."""
    if reference != "#" and not reference.startswith("#/"):
        raise LookupError(reference)
    node: Any = root
    for part in unquote(reference).split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(node, list):
            node = node[int(name)] if name.isdigit() and int(name) < len(node) else None
        else:
            node = node.get(name) if isinstance(node, Mapping) else None
        if node is None:
            raise LookupError(reference)
    return node


def in_place(root: Json, schema: Json) -> Iterator[Any]:
    """The subschemas that apply to the same value as `schema` does."""
    for keyword in _IN_PLACE_LISTS:
        branches = schema.get(keyword)
        yield from branches if isinstance(branches, list) else ()
    yield from (schema[keyword] for keyword in _IN_PLACE if keyword in schema)
    for keyword in ("dependentSchemas", "dependencies"):
        dependent = schema.get(keyword)
        yield from dependent.values() if isinstance(dependent, Mapping) else ()
    reference = schema.get("$ref")
    if isinstance(reference, str):
        try:
            yield resolve(root, reference)
        except LookupError:
            return


def _unfolded(root: Json) -> int:
    """The most subschemas that apply to one value, references followed and cycles cut."""
    counts: dict[int, int] = {}

    def count(schema: Any) -> int:
        if not isinstance(schema, Mapping):
            return 1
        if id(schema) not in counts:
            counts[id(schema)] = 1
            counts[id(schema)] = min(1 + sum(map(count, in_place(root, schema))), MAX_UNFOLDED + 1)
        return counts[id(schema)]

    most = 0
    stack: list[Any] = [root]
    while stack:
        node = stack.pop()
        if isinstance(node, Mapping):
            most = max(most, count(node))
            stack.extend(node.values())
        elif isinstance(node, list):
            stack.extend(node)
    return most


class JsonTextError(ValueError):
    """A text that is not one JSON value; the message says why and where."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        seen: set[str] = set()
        key = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise JsonTextError(f"the key {elide(key)} is repeated")
    return members


def _constant(name: str) -> NoReturn:
    raise JsonTextError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_constant)


def parse_json(text: str) -> Any:
    """The one JSON value that `text` is, strictly: no repeated keys, NaN, lone surrogates or nesting over MAX_DEPTH.

    Raises JsonTextError.
    """
    try:
        value = _DECODER.decode(text)
        if "\\u" in text or not text.isascii():
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise JsonTextError(f"{error.msg} at character {error.pos}") from None
    except UnicodeEncodeError:
        raise JsonTextError("it holds half of a surrogate pair") from None
    except RecursionError:
        raise JsonTextError(f"it nests deeper than {MAX_DEPTH} levels") from None
    except JsonTextError:
        raise
    except ValueError as error:
        raise JsonTextError(elide_text(str(error), 120)) from None
    if text.count("[") + text.count("{") > MAX_DEPTH and depth(value, MAX_DEPTH) > MAX_DEPTH:
        raise JsonTextError(f"it nests deeper than {MAX_DEPTH} levels")
    return value


def elide_text(text: str, limit: int) -> str:
    """`text`, its middle left out when it is longer than `limit` characters."""
    if len(text) <= limit:
        return text
    half = (limit - 3) // 2
    return f"{text[:half]}...{text[-half:]}"


def elide(value: Any, limit: int = 60) -> str:
    """`value` as JSON for a message, its middle left out when it is longer than `limit` characters.

    Half of a surrogate pair, which no UTF-8 text can hold, is written as its escape.
    """
    return elide_text(_BRIEF.encode(value).encode("utf-8", "backslashreplace").decode(), limit)


def json_path(parts: list[str | int]) -> str:
    """["a", 0, "b c"] as $.a[0]["b c"]."""
    steps = (
        f"[{part}]" if isinstance(part, int) else f".{part}" if part.isidentifier() else f"[{elide(part)}]"
        for part in parts
    )
    return "$" + "".join(steps)
