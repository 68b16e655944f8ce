"""What a schema says and nobody enforces, or not at once, is named."""

from __future__ import annotations

from typing import Any

import pytest

from smallfirst.keywords import late, subschemas, unchecked
from smallfirst.schemas import compiled

DRAFTS = {
    4: "http://json-schema.org/draft-04/schema#",
    6: "http://json-schema.org/draft-06/schema#",
    7: "http://json-schema.org/draft-07/schema#",
    2019: "https://json-schema.org/draft/2019-09/schema",
    2020: "https://json-schema.org/draft/2020-12/schema",
}
BREACHES: dict[str, tuple[dict[str, Any], Any]] = {
    "const": ({"const": 1}, 2),
    "contains": ({"contains": {"type": "null"}}, [1]),
    "propertyNames": ({"propertyNames": {"maxLength": 0}}, {"a": 1}),
    "if": ({"if": {}, "then": {"type": "null"}}, 1),
    "dependencies": ({"dependencies": {"a": ["b"]}}, {"a": 1}),
    "dependentRequired": ({"dependentRequired": {"a": ["b"]}}, {"a": 1}),
    "dependentSchemas": ({"dependentSchemas": {"a": {"type": "null"}}}, {"a": 1}),
    "minContains": ({"contains": {"type": "integer"}, "minContains": 2}, [1]),
    "unevaluatedItems": ({"unevaluatedItems": {"type": "null"}}, [1]),
    "unevaluatedProperties": ({"unevaluatedProperties": {"type": "null"}}, {"a": 1}),
    "prefixItems": ({"prefixItems": [{"type": "null"}]}, [1]),
    "contentEncoding": ({"contentEncoding": "base64"}, "%"),
    "$dynamicRef": ({"properties": {"a": {"$dynamicRef": "#"}}, "maxProperties": 1}, {"a": {"b": 1, "c": 2}}),
    "$recursiveRef": ({"properties": {"a": {"$recursiveRef": "#"}}, "maxProperties": 1}, {"a": {"b": 1, "c": 2}}),
    "format: uuid": ({"format": "uuid"}, "no"),
    "format: iri": ({"format": "iri"}, "no"),
    "format: url": ({"format": "url"}, "no"),
    "nullable": ({"nullable": False, "type": ["null", "string"]}, None),
    "maximum beside $ref": ({"definitions": {"a": {}}, "items": {"$ref": "#/definitions/a", "maximum": 1}}, [2]),
}


@pytest.mark.parametrize("draft", DRAFTS)
@pytest.mark.parametrize("name", BREACHES)
def test_a_keyword_is_named_exactly_where_its_breach_passes(name: str, draft: int) -> None:
    """What the validator lets pass is named as unchecked, what it refuses is not, in every draft."""
    schema, breach = BREACHES[name]
    schema = {"$schema": DRAFTS[draft], **schema}
    assert (name in unchecked(schema)) == compiled(schema).is_valid(breach)


def test_names_are_found_wherever_they_stand() -> None:
    """In properties, behind references and in definitions that an inner resource refers to."""
    inner = {"$id": "https://x.test/in", "$ref": "#/$defs/b", "$defs": {"b": {"pattern": "a", "x-b": 1}}}
    schema = {"properties": {"a": {"$ref": "#/other/0"}, "b": inner}, "other": [{"not": {}, "x-a": 1}]}
    assert unchecked(schema) == ("other", "x-a", "x-b")
    assert late(schema) == ("not", "pattern")
    assert [resource is inner for resource, node in subschemas(schema) if "pattern" in node] == [True]


def test_a_property_may_have_the_name_of_a_keyword() -> None:
    """Names of properties, and what enum, const and default hold, are no keywords."""
    schema = {"properties": {"not": {"type": "null"}, "nullable": {"const": None}}, "default": {"nullable": 1}}
    assert unchecked(schema) == late(schema) == ()


def test_enum_is_late_only_for_numbers_and_containers() -> None:
    """Words are followed letter by letter; the digits of a number and the insides of an array are not."""
    assert late({"enum": ["a", None, True]}) == ()
    assert late({"enum": ["a", 1]}) == late({"enum": [[]]}) == ("enum",)
