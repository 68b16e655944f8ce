"""Which texts a specialist may give as values: those that they have been, and what its prompt says word for word (pure;
no I/O).

A small model that has learned where a value stands may still misspell it. In most narrow tasks a value is one of few
that recur, or a passage of the prompt; `learn.values` finds out for which arguments that holds, and decoding is held to
it. An answer that the model meant otherwise shows in the log-probabilities, which are the model's own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from smallfirst.backends.toolprompt import constraint_schema
from smallfirst.types import Constraint, Json, Request

MOST_PASSAGES = 4_000
"""Of a prompt; where there are more, an argument that may quote it stays free."""

_WIDE = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"  # written without spaces: a character is a word
_WORD = re.compile(rf"[{_WIDE}]|(?:(?![{_WIDE}])\w)+|[^\w\s]")
_WRITTEN = re.compile(r"\S+")
_SAYS_NOTHING = frozenset({"type", "title", "description", "default", "examples", "deprecated", "$comment"})

Capitals = Literal["never", "also", "always"]


class Values(msgspec.Struct, frozen=True):
    """What an argument may be: one of `known`, or a passage of the prompt of at most `words` words (0: no passage).

    A mark of punctuation is a word too, and so is each character where words are not set apart. `capitals` tells
    whether a passage is written as it stands, or also or always as `capitalised` does.
    """

    known: tuple[str, ...] = ()
    words: int = 0
    capitals: Capitals = "never"


class Passages:
    """The passages of a text, each from the beginning of a word to the end of one."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._spans = [match.span() for match in _WORD.finditer(text)]
        self._starts = {start: n for n, (start, _) in enumerate(self._spans)}
        self._ends = {end: n for n, (_, end) in enumerate(self._spans)}

    def up_to(self, words: int) -> list[str]:
        """Those of at most so many words, in order and each once."""
        found = {
            self.text[start:end]: None
            for n, (start, _) in enumerate(self._spans)
            for _, end in self._spans[n : n + words]
        }
        return list(found)

    def count(self, words: int) -> int:
        """At most how many `up_to` gives."""
        return words * len(self._spans)

    def length(self, passage: str) -> int:
        """The words of `passage`, if it is one; else 0."""
        at = self.text.find(passage) if passage else -1
        while at >= 0:
            first, last = self._starts.get(at), self._ends.get(at + len(passage))
            if first is not None and last is not None:
                return 1 + last - first
            at = self.text.find(passage, at + 1)
        return 0


_Sources = Mapping[Capitals, tuple[Passages, ...]]
"""What a value may be quoted from, by how it is written."""


def held(request: Request, values: Mapping[str, Mapping[str, Values]], prompt: str) -> Request:
    """`request` with its constraint held to `values`, by tool ("" for an answer that is JSON) and argument.

    Only arguments whose schema says no more than that they are texts are held; a request without a constraint stays as
    it is. `prompt` is what the model reads.
    """
    if request.constraint is None or not values:
        return request
    as_it_is, capitals = Passages(prompt), Passages(capitalised(prompt))
    passages: _Sources = {"never": (as_it_is,), "also": (as_it_is, capitals), "always": (capitals,)}
    tools = tuple(
        replace(tool, parameters=_held(tool.parameters, values[tool.name], passages)) if tool.name in values else tool
        for tool in request.tools
    )
    form = request.response_format
    if form.schema is not None and "" in values:
        form = replace(form, schema=_held(form.schema, values[""], passages))
    schema = constraint_schema(replace(request, tools=tools, response_format=form))
    return request if schema is None else replace(request, constraint=Constraint(schema, request.constraint.mode))


def capitalised(text: str) -> str:
    """`text` with a capital at the beginning of each word and small letters else, as names are often written down."""
    return _WRITTEN.sub(lambda word: word[0][:1].upper() + word[0][1:].lower(), text)


def _held(schema: Json, values: Mapping[str, Values], passages: _Sources) -> Json:
    properties = schema.get("properties")
    if not isinstance(properties, Mapping):
        return schema
    made: dict[str, Any] = dict(properties)
    for name, allowed in values.items():
        found = properties.get(name)
        plain = isinstance(found, Mapping) and found.get("type") == "string" and found.keys() <= _SAYS_NOTHING
        sources = passages[allowed.capitals]
        if plain and sum(each.count(allowed.words) for each in sources) <= MOST_PASSAGES:
            quoted = (passage for each in sources for passage in each.up_to(allowed.words))
            if options := list(dict.fromkeys([*allowed.known, *quoted])):
                made[name] = {"enum": options}
    return {**schema, "properties": made}
