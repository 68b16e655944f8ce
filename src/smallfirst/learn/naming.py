"""A first name for a task that was found: its tool, its response schema, or the words that set it apart."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Traits:
    """What of a call a name is made from: words of its instructions and of its user, the tools that its answer calls,
    and the name of its response schema."""

    told: frozenset[str]
    said: frozenset[str]
    called: tuple[str, ...]
    schema: str


def traits_of(call: Named) -> Traits:
    """The traits of a call; of each message, the first 2,000 characters."""
    asked = (call.response_format or {}).get("json_schema")
    schema = str(asked.get("name") or "") if isinstance(asked, Mapping) else ""
    called = tuple(tool for tool, _ in tool_calls(call.answer)) if call.answer else ()
    return Traits(_words(call, {"system", "developer"}), _words(call, {"user"}), called, schema)


def suggest_names(members: Sequence[Traits], others: Sequence[Traits], template: frozenset[int]) -> list[str]:
    """Names in lower case with hyphens for the calls `members` among `others`, the best first.

    The tool that most of the answers call, else the name of the response schema, alone and with a word; else three
    words. Words are those of the instructions' constant part (`template`, shingles), else of what the user said, that
    many of these calls and few of the others have.
    """
    told = Counter(word for call in members for word in call.told)
    constant = Counter({word: n for word, n in told.items() if in_template(word, template)})
    words = _telling(constant, Counter(word for call in others for word in call.told), len(members), len(others))
    if not words:
        said = Counter(word for call in members for word in call.said)
        words = _telling(said, Counter(word for call in others for word in call.said), len(members), len(others))
    called = Counter(tool for call in members for tool in call.called)
    asked = Counter(call.schema for call in members)
    for names in (called, asked):
        likeliest = max(names, key=lambda name: names[name], default="")
        if likeliest and names[likeliest] * 2 > len(members):
            base = _hyphened(likeliest)
            return [base, *(f"{base}-{word}" for word in words)]
    return ["-".join(words) or "task"]


def _telling(inside: Counter[str], outside: Counter[str], members: int, others: int) -> list[str]:
    """The three words that tell the members from the others best; none that half of the others have."""
    rare = (word for word in inside if 2 * outside[word] < others or members == others)
    weight = {word: inside[word] / members * math.log((2 + others) / outside[word]) for word in rare}
    return sorted(weight, key=lambda word: (-weight[word], word))[:_NAMED_BY]


def _words(call: Named, roles: set[str]) -> frozenset[str]:
    texts = (message.get("content") for message in call.messages if message.get("role") in roles)
    return frozenset(word for text in texts if isinstance(text, str) for word in _PLAIN.findall(text[:_READ].lower()))


def _hyphened(text: str) -> str:
    """ "FindBus" and "find_bus" as "find-bus"."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", text)
    return re.sub(r"[\W_]+", "-", apart).strip("-").lower() or "task"
