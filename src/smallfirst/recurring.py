"""Parts of calls that recur word for word (tools, earlier turns of a conversation), and what was computed from them.

Equal JSON texts are decoded once and give the very same object, so that whoever computes something from it can keep
the result with it (`derived`). What is kept is bounded; the oldest goes first. All of it belongs to the event loop's
thread, and no kept object is ever changed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

MAX_BYTES = 8 * 2**20
MAX_PART_BYTES = 2**18
_PART_BYTES = 1024  # about what a part takes beside its text
_WHOLE = frozenset({"tools", "system", "instructions"})
_BY_ITEM = frozenset({"messages", "input"})

T = TypeVar("T")
R = TypeVar("R")
_split = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_items = msgspec.json.Decoder(list[msgspec.Raw]).decode


class Parts:
    """JSON values by their text, and by the identity of each value what was derived from it."""

    def __init__(self) -> None:
        self._values: OrderedDict[bytes, Any] = OrderedDict()  # a dict searches ever longer for its oldest
        self._derived: dict[int, dict[object, Any]] = {}
        self._size = 0

    def __len__(self) -> int:
        return len(self._values)

    def body(self, raw: bytes) -> dict[str, Any]:
        """The body of a call: a JSON object whose tools, system text and messages are kept.

        Raises msgspec.DecodeError, UnicodeDecodeError or RecursionError for anything else.
        """
        body: dict[str, Any] = {}
        for name, part in _split(raw).items():
            if name in _WHOLE:
                body[name] = self.decode(bytes(part))
            elif name in _BY_ITEM and bytes(part).startswith(b"["):
                body[name] = [self.decode(bytes(item)) for item in _items(part)]
            else:
                body[name] = msgspec.json.decode(part)
        return body

    def decode(self, text: bytes) -> Any:
        """The value that the JSON `text` says, the same object again while it is kept."""
        value = self._values.get(text)
        if value is None:
            value = msgspec.json.decode(text)
            if len(text) <= MAX_PART_BYTES and isinstance(value, (dict, list)):
                self._keep(text, value)
        return value

    def derived(self, value: T, build: Callable[[T], R]) -> R:
        """`build(value)`; computed once for a value that is kept, and for a tuple that was derived from one.

        `build` is a pure function that lives as long as the process.
        """
        known = self._derived.get(id(value))
        if known is None:
            return build(value)
        if build not in known:
            made = known[build] = build(value)
            if made and isinstance(made, tuple):
                self._derived[id(made)] = {}
        result: R = known[build]
        return result

    def _keep(self, text: bytes, value: object) -> None:
        self._values[text], self._derived[id(value)] = value, {}
        self._size += len(text) + _PART_BYTES
        while self._size > MAX_BYTES:
            text, value = self._values.popitem(last=False)
            self._size -= len(text) + _PART_BYTES
            self._forget(value)

    def _forget(self, value: object) -> None:
        for result in self._derived.pop(id(value), {}).values():
            self._forget(result)


_parts = Parts()
decode = _parts.body
derived = _parts.derived
