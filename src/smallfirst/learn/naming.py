"""A first name for a task that was found: its tool, its response schema, or the words that set it apart."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Protocol

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


def suggest_name(members: Sequence[Named], others: Sequence[Named], *, instructed: bool) -> str:
    """A name in lower case with hyphens for the calls `members` among `others`.

    The tool that most of the answers call, else the name of the response schema, else three words of the instructions
    (if the calls are `instructed`) or of what the user said, which many of these calls and few of the others have.
    """
    called = Counter(tool for call in members if call.answer for tool, _ in tool_calls(call.answer))
    asked = Counter(_schema_name(call.response_format) for call in members)
    for names in (called, asked):
        if (likeliest := max(names, key=lambda name: names[name], default="")) and names[likeliest] * 2 > len(members):
            return _hyphened(likeliest)
    roles = {"system", "developer"} if instructed else {"user"}
    inside = Counter(word for call in members for word in _words(call, roles))
    outside = Counter(word for call in others for word in _words(call, roles))
    weight = {w: n / len(members) * math.log((1 + len(others)) / outside[w]) for w, n in inside.items()}
    best = sorted(weight, key=lambda word: (-weight[word], word))[:_NAMED_BY]
    return "-".join(best) or (_hyphened(max(called, key=lambda tool: called[tool])) if called else "task")


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
