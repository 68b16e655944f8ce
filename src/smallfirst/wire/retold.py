"""A request with texts of its messages told otherwise: on every wire, in canonical messages and body alike."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from msgspec.structs import replace

from smallfirst.types import Request

_PLACES = ("messages", "input")
_TEXTS = ("text", "content", "output")
_OTHERS = frozenset({"system", "developer", "assistant"})
Tell = Callable[[str], str]


def retold(request: Request, texts: Sequence[tuple[str, str]]) -> Request:
    """`request` with texts of users and tools replaced: pairs of (text, its replacement) in the order in which they
    stand in the messages, those that stay among them. A text is replaced where it is the whole of a message's content,
    of one part of it or of a tool's output; system prompts, the model's own messages, calls and tools stay as they are.
    """
    messages = _told(list(request.messages), _teller(texts))
    body = dict(request.body)
    tell = _teller(texts)
    for place in _PLACES:
        if place in body:
            said = body[place]
            body[place] = tell(said) if isinstance(said, str) else _told(said, tell)
    return replace(request, messages=tuple(messages), body=body)


def marked(request: Request) -> frozenset[str]:
    """The texts that the client marks for the provider to cache (Anthropic's `cache_control`)."""
    return frozenset(_marked([request.body.get(place) for place in _PLACES]))


def _teller(texts: Sequence[tuple[str, str]]) -> Tell:
    """Gives the replacements of equal texts one after the other, and any other text back."""
    waiting: dict[str, deque[str]] = defaultdict(deque)
    for old, new in texts:
        waiting[old].append(new)
    return lambda text: waiting[text].popleft() if waiting.get(text) else text


def _told(value: Any, tell: Tell) -> Any:
    if isinstance(value, list):
        return [_told(each, tell) for each in value]
    if not isinstance(value, dict) or value.get("role") in _OTHERS:
        return value
    return {key: _told_member(each, tell) if key in _TEXTS else each for key, each in value.items()}


def _told_member(value: Any, tell: Tell) -> Any:
    return tell(value) if isinstance(value, str) else _told(value, tell)


def _marked(value: Any) -> Iterator[str]:
    if isinstance(value, list):
        for each in value:
            yield from _marked(each)
    elif isinstance(value, dict):
        if value.get("cache_control") and isinstance(value.get("text"), str):
            yield value["text"]
        yield from _marked(value.get("content"))
