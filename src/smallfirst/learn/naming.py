"""A first name for a task that was found: its tool, its response schema, or the words that set it apart."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Protocol

from smallfirst.assignment import in_template
from smallfirst.learn.answers import tool_calls
from smallfirst.types import Json

_PLAIN = re.compile(r"[^\W\d_]{3,}|[\u3400-\u9fff]{2}")
_READ = 2000
_NAMED_BY = 3


class Named(Protocol):
    """What a name is made from."""

    @property
    def messages(self) -> Sequence[Json]: ...
    @property
    def response_format(self) -> Json | None: ...
    @property
    def answer(self) -> Json | None: ...


def suggest_names(members: Sequence[Named], others: Sequence[Named], template: frozenset[int]) -> list[str]:
    """Names in lower case with hyphens for the calls `members` among `others`, the best first.

    The tool that most of the answers call, else the name of the response schema, alone and with a word; else three
    words. Words are those of the instructions' constant part (`template`, shingles), else of what the user said, that
    many of these calls and few of the others have.
    """
    words = _telling(members, others, {"system", "developer"}, template) or _telling(members, others, {"user"})
    called = Counter(tool for call in members if call.answer for tool, _ in tool_calls(call.answer))
    asked = Counter(_schema_name(call.response_format) for call in members)
    for names in (called, asked):
        likeliest = max(names, key=lambda name: names[name], default="")
        if likeliest and names[likeliest] * 2 > len(members):
            base = _hyphened(likeliest)
            return [base, *(f"{base}-{word}" for word in words)]
    return ["-".join(words) or "task"]


def _telling(
    members: Sequence[Named], others: Sequence[Named], roles: set[str], template: frozenset[int] | None = None
) -> list[str]:
    """The three words that tell `members` from `others` best; none that most of the others have."""
    inside = Counter(word for call in members for word in _words(call, roles))
    outside = Counter(word for call in others for word in _words(call, roles))
    if template is not None:
        inside = Counter({word: n for word, n in inside.items() if in_template(word, template)})
    rare = (word for word in inside if 2 * outside[word] < len(others) or len(members) == len(others))
    weight = {w: inside[w] / len(members) * math.log((2 + len(others)) / outside[w]) for w in rare}
    return sorted(weight, key=lambda word: (-weight[word], word))[:_NAMED_BY]


def _words(call: Named, roles: set[str]) -> set[str]:
    texts = (message.get("content") for message in call.messages if message.get("role") in roles)
    return {word for text in texts if isinstance(text, str) for word in _PLAIN.findall(text[:_READ].lower())}


def _schema_name(response_format: Json | None) -> str:
    asked = (response_format or {}).get("json_schema")
    return str(asked.get("name") or "") if isinstance(asked, Mapping) else ""


def _hyphened(text: str) -> str:
    """ "FindBus" and "find_bus" as "find-bus"."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", text)
    return re.sub(r"[\W_]+", "-", apart).strip("-").lower() or "task"
