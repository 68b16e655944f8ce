"""Structured output checked while it streams: stop at the first character after which no valid answer can follow.

`JsonPrefix` reads a JSON text in pieces, keeps every alternative of its schema that is still possible, and reports a
Violation as soon as there is none. It never rejects a prefix of a text that `schemas.parse_json` reads and that
jsonschema-rs accepts; a fault that it sees later than one could is seen at the latest where its value closes, and the
validators run in any case. Order of keys and white space are free. Work is linear in the text, times its depth of
nesting, which is bounded.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from smallfirst.schemas import MAX_DEPTH, JsonTextError, elide, elide_text, json_path, parse_json
from smallfirst.shapes import ANY_START, Parts, Shape, Shapes, shapes_of
from smallfirst.types import Delta, Request, ToolCallDelta, Violation

_SPACE = re.compile(r"[ \t\n\r]*")
_RUN = re.compile(r'[^"\\\x00-\x1f\ud800-\udfff]+')
_NUMERIC = re.compile(r"[-+.0-9eE]+")
_WORDS = {"t": "true", "f": "false", "n": "null"}
_ESCAPES = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_NUMBER: dict[str, dict[str, str]] = {
    "start": {"-": "minus", "0": "zero", "1": "int"},
    "minus": {"0": "zero", "1": "int"},
    "zero": {".": "point", "e": "e"},
    "int": {"0": "int", "1": "int", ".": "point", "e": "e"},
    "point": {"0": "fraction", "1": "fraction"},
    "fraction": {"0": "fraction", "1": "fraction", "e": "e"},
    "e": {"-": "sign", "+": "sign", "0": "exponent", "1": "exponent"},
    "sign": {"0": "exponent", "1": "exponent"},
    "exponent": {"0": "exponent", "1": "exponent"},
}
"""The number grammar as an automaton; "1" stands for 1 to 9, "e" for e and E."""
_COMPLETE = frozenset({"zero", "int", "fraction", "exponent"})


class _Dead(Exception):
    """No valid completion exists once the character at `at` of the current piece is there."""

    def __init__(self, at: int, code: str, message: str) -> None:
        super().__init__(message)
        self.at, self.code, self.message = at, code, message


@dataclass(slots=True)
class _Slot:
    """A place for a value: for every live shape of the container, what must hold of the value there."""

    owners: list[tuple[Shape, Parts]]
    shapes: list[Shape]


@dataclass(slots=True)
class _Frame:
    """An open array or object: its own slot, the shapes it may still have, and what it holds so far."""

    slot: _Slot
    shapes: list[Shape]
    value: Any
    key: str | None = None


@dataclass(slots=True)
class _Text:
    """An open string: for each shape that may still hold, its possible texts (sorted) and greatest length."""

    options: list[tuple[Shape, Sequence[str] | None, int | None]]
    is_key: bool
    pieces: list[str] = field(default_factory=list)
    length: int = 0

    def grow(self, run: str, at: int) -> None:
        """Append decoded characters that start at `at`; _Dead at the first one that no option allows."""
        bound = any(texts is not None for _, texts, _ in self.options)
        whole = "".join(self.pieces) + run if bound else run
        reach = [self._reach(whole, len(run), texts, most) for _, texts, most in self.options]
        if max(reach) < len(run):
            raise _Dead(at + max(reach), "schema", self._complaint(whole if bound else run))
        self.options = [option for option, k in zip(self.options, reach, strict=True) if k == len(run)]
        self.pieces.append(run)
        self.length += len(run)

    def _reach(self, whole: str, new: int, texts: Sequence[str] | None, most: int | None) -> int:
        """How many of the `new` last characters of `whole` are possible."""
        reach = new if most is None else min(new, most - self.length)
        if texts is not None:
            near = bisect_left(texts, whole)
            common = max((_common(whole, text) for text in texts[max(near - 1, 0) : near + 1]), default=0)
            reach = min(reach, common - self.length)
        return max(reach, 0)

    def _complaint(self, given: str) -> str:
        texts = sorted({text for _, options, _ in self.options for text in options or ()})
        what = "key" if self.is_key else "string"
        if not texts:
            return f"a {what} longer than {max(most or 0 for _, _, most in self.options)} characters is not allowed"
        return f"no allowed {what} begins with {elide(given)}; allowed: {elide_text(', '.join(map(elide, texts)), 160)}"


def _common(left: str, right: str) -> int:
    """Length of the common prefix."""
    if right.startswith(left):
        return len(left)
    return next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))


class JsonPrefix:
    """A growing JSON text, checked against the grammar and `schema` (None: grammar only).

    `root` "object" allows only an object at the top. After a violation the reader is done: `violation` is set, and
    `position` is the index of the offending character, counted over all pieces (at the end of the text for one that
    `finish` found). `schema` is one that `schemas.check_schema` lets pass.
    """

    def __init__(self, schema: Any = None, *, root: Literal["any", "object"] = "any") -> None:
        self.violation: Violation | None = None
        self.position = 0
        self._grammar: Shapes = shapes_of(schema or {})
        start = ANY_START if root == "any" else frozenset("{")
        shapes = [shape for shape in self._grammar.at(self._grammar.root) if shape.starts & start]
        self._top = start
        self._slot = _Slot([(Shape(), self._grammar.root)], shapes)
        self._frames: list[_Frame] = []
        self._text = _Text([], is_key=False)
        self._token = ""
        self._number = "start"
        self._escape = ""
        self._high = ""
        self._state: Callable[[str, int], int] = self._value

    def feed(self, piece: str) -> Violation | None:
        """Read on; the violation, if the text cannot become valid any more."""
        if self.violation is None:
            try:
                at = 0
                while at < len(piece):
                    at = self._state(piece, at)
            except _Dead as dead:
                self._stop(dead)
            else:
                self.position += len(piece)
        return self.violation

    def finish(self) -> Violation | None:
        """The text is complete: the violation, if it is not a valid instance (as far as this reader sees)."""
        if self.violation is None:
            try:
                if self._state == self._in_number and not self._frames:
                    self._end_number(0)
                if self._state != self._end:
                    raise _Dead(0, "json", "the text ends before the JSON value does")
            except _Dead as dead:
                self._stop(dead)
        return self.violation

    def _stop(self, dead: _Dead) -> None:
        self.position += dead.at
        steps = (frame.key if isinstance(frame.value, dict) else len(frame.value) for frame in self._frames)
        path = json_path([step for step in steps if step is not None])
        message = f"At character {self.position} ({path}): {dead.message}."
        self.violation = Violation(dead.code, elide_text(message, 300), path)

    # Each state reads at least one character, or enters another state; it returns where to go on.

    def _value(self, piece: str, at: int) -> int:
        at = _skip(piece, at)
        if at == len(piece):
            return at
        char = piece[at]
        start = "0" if char in "123456789" else char
        if start not in ANY_START:
            raise _Dead(at, "json", f"a JSON value cannot begin with {elide(char)}")
        if not self._frames and start not in self._top:
            raise _Dead(at, "schema", "the value must be an object")
        shapes = [shape for shape in self._slot.shapes if start in shape.starts]
        if not shapes:
            raise _Dead(at, "schema", f"no allowed value begins with {elide(char)}")
        if start in "{[":
            return self._open(start, shapes, at)
        self._token = ""
        if start == '"':
            self._text = _Text([(shape, shape.strings, shape.max_length) for shape in shapes], is_key=False)
            self._state = self._in_string
            return at + 1
        self._number, self._state = ("start", self._in_number) if start in "-0" else ("", self._in_word)
        return at

    def _open(self, bracket: str, shapes: list[Shape], at: int) -> int:
        if len(self._frames) >= MAX_DEPTH:
            raise _Dead(at, "json", f"more than {MAX_DEPTH} levels of nesting")
        is_object = bracket == "{"
        self._frames.append(_Frame(self._slot, shapes, {} if is_object else []))
        self._state = self._first_key if is_object else self._first_item
        return at + 1

    def _in_word(self, piece: str, at: int) -> int:
        self._token += piece[at]
        word = _WORDS[self._token[0]]
        if not word.startswith(self._token):
            raise _Dead(at, "json", f"expected {word}")
        if self._token == word:
            self._close({"true": True, "false": False, "null": None}[word], at)
        return at + 1

    def _in_number(self, piece: str, at: int) -> int:
        match = _NUMERIC.match(piece, at)
        for index, char in enumerate(match.group() if match else "", at):
            kind = "1" if char in "123456789" else char.lower()
            step = _NUMBER[self._number].get(kind)
            if step is None:
                raise _Dead(index, "json", f"a number cannot go on with {elide(char)}")
            self._number = step
        if match is None:
            self._end_number(at)
            return at
        self._token += match.group()
        return match.end()

    def _end_number(self, at: int) -> None:
        if self._number not in _COMPLETE:
            raise _Dead(at, "json", f"the number {elide(self._token)} is not complete")
        try:
            value = parse_json(self._token)
        except JsonTextError as error:
            raise _Dead(at, "json", str(error)) from None
        self._close(value, at)

    def _in_string(self, piece: str, at: int) -> int:
        match = _RUN.match(piece, at)
        if match and not self._high:
            self._text.grow(match.group(), at)
            return match.end()
        char = piece[at]
        if char == "\\":
            self._escape, self._state = "", self._in_escape
        elif self._high:
            raise _Dead(at, "json", "half of a surrogate pair")
        elif char == '"':
            self._end_string(at)
        else:
            raise _Dead(at, "json", f"{elide(ascii(char))} must be escaped in a string")
        return at + 1

    def _in_escape(self, piece: str, at: int) -> int:
        char = piece[at]
        self._escape += char
        if self._escape == "u":
            return at + 1
        if self._escape[0] != "u":
            decoded = None if self._high else _ESCAPES.get(char)
        elif char not in "0123456789abcdefABCDEF":
            decoded = None
        elif len(self._escape) < 5:
            return at + 1
        else:
            decoded = self._unit(chr(int(self._escape[1:], 16)))
        if decoded is None:
            raise _Dead(at, "json", f"\\{self._escape} is not a valid escape here")
        if decoded:
            self._grow_decoded(decoded, at)
        self._state = self._in_string
        return at + 1

    def _unit(self, unit: str) -> str | None:
        """The character that a UTF-16 unit completes; "" after the first half of a pair, None if it fits nothing."""
        if self._high:
            pair, self._high = self._high + unit, ""
            return pair.encode("utf-16", "surrogatepass").decode("utf-16") if "\udc00" <= unit <= "\udfff" else None
        if "\ud800" <= unit <= "\udbff":
            self._high = unit
            return ""
        return None if "\udc00" <= unit <= "\udfff" else unit

    def _grow_decoded(self, char: str, at: int) -> None:
        try:
            self._text.grow(char, at)
        except _Dead as dead:
            raise _Dead(at, dead.code, dead.message) from None

    def _end_string(self, at: int) -> None:
        text = "".join(self._text.pieces)
        if self._text.is_key:
            self._end_key(text, at)
        else:
            self._close(text, at)

    def _first_key(self, piece: str, at: int) -> int:
        at = _skip(piece, at)
        if at < len(piece) and piece[at] == "}":
            self._close_frame(at)
            return at + 1
        if at < len(piece) and piece[at] == '"' and not self._key_options():
            raise _Dead(at, "schema", "no key is allowed here")
        return self._key(piece, at)

    def _key(self, piece: str, at: int) -> int:
        at = _skip(piece, at)
        if at == len(piece):
            return at
        if piece[at] != '"':
            raise _Dead(at, "json", f"expected a key in quotes, not {elide(piece[at])}")
        self._text = _Text(self._key_options(), is_key=True)
        self._state = self._in_string
        return at + 1

    def _key_options(self) -> list[tuple[Shape, Sequence[str] | None, int | None]]:
        """The shapes of the innermost object that allow another key, with the keys that they still allow."""
        frame = self._frames[-1]
        options: list[tuple[Shape, Sequence[str] | None, int | None]] = []
        for shape in frame.shapes:
            names = self._grammar.keys(shape)
            left = None if names is None else [name for name in names if name not in frame.value]
            if shape.max_properties is not None:
                room = shape.max_properties - len(frame.value)
                missing = shape.required - frame.value.keys()
                left = left if room > len(missing) else sorted(missing) if room == len(missing) else []
            if left is None or left:
                options.append((shape, left, None))
        return options

    def _end_key(self, key: str, at: int) -> None:
        frame = self._frames[-1]
        if key in frame.value:
            raise _Dead(at, "json", f"the key {elide(key)} is repeated")
        shapes = [shape for shape, names, _ in self._text.options if names is None or key in names]
        owners = [(shape, parts) for shape in shapes if (parts := self._grammar.member(shape, key)) is not None]
        if not owners:
            raise _Dead(at, "schema", f"the key {elide(key)} is not allowed")
        frame.key = key
        self._slot = self._slot_of(owners)
        self._state = self._colon

    def _colon(self, piece: str, at: int) -> int:
        at = _skip(piece, at)
        if at == len(piece):
            return at
        if piece[at] != ":":
            raise _Dead(at, "json", f'expected ":" after a key, not {elide(piece[at])}')
        self._state = self._value
        return at + 1

    def _first_item(self, piece: str, at: int) -> int:
        at = _skip(piece, at)
        if at == len(piece):
            return at
        if piece[at] == "]":
            self._close_frame(at)
            return at + 1
        self._next_item(at)
        return at

    def _next_item(self, at: int) -> None:
        frame = self._frames[-1]
        index = len(frame.value)
        owners = [(shape, parts) for shape in frame.shapes if (parts := self._grammar.item(shape, index)) is not None]
        if not owners:
            raise _Dead(at, "schema", f"no item is allowed after the first {index}")
        self._slot = self._slot_of(owners)
        self._state = self._value

    def _slot_of(self, owners: list[tuple[Shape, Parts]]) -> _Slot:
        shapes = dict.fromkeys(
            shape for parts in dict.fromkeys(p for _, p in owners) for shape in self._grammar.at(parts)
        )
        return _Slot(owners, list(shapes))

    def _after(self, piece: str, at: int) -> int:
        at = _skip(piece, at)
        if at == len(piece):
            return at
        char, is_object = piece[at], isinstance(self._frames[-1].value, dict)
        if char == ("}" if is_object else "]"):
            self._close_frame(at)
        elif char != ",":
            raise _Dead(at, "json", f'expected "," or the end of the {"object" if is_object else "array"}')
        elif not is_object:
            self._next_item(at)
        elif self._key_options():
            self._frames[-1].key, self._state = None, self._key
        else:
            raise _Dead(at, "schema", "no other key is allowed")
        return at + 1

    def _close_frame(self, at: int) -> None:
        frame = self._frames.pop()
        self._slot = frame.slot
        self._close(frame.value, at)

    def _close(self, value: Any, at: int) -> None:
        """A value is complete: keep the shapes around it that it satisfies, by jsonschema-rs."""
        verdicts: dict[Parts, bool] = {}
        for _, parts in self._slot.owners:
            if parts not in verdicts:
                verdicts[parts] = self._grammar.holds(parts, value)
        alive = [shape for shape, parts in self._slot.owners if verdicts[parts]]
        if not alive:
            raise _Dead(at, "schema", self._grammar.why(self._slot.owners[0][1], value))
        if not self._frames:
            self._state = self._end
            return
        frame = self._frames[-1]
        frame.shapes = alive
        if frame.key is not None:
            frame.value[frame.key] = value
        else:
            frame.value.append(value)
        self._state = self._after

    def _end(self, piece: str, at: int) -> int:
        at = _skip(piece, at)
        if at < len(piece):
            raise _Dead(at, "json", f"nothing may follow the JSON value, but {elide(piece[at])} does")
        return at


def _skip(piece: str, at: int) -> int:
    match = _SPACE.match(piece, at)
    return match.end() if match else at


class StreamGuard:
    """The structured parts of one streamed answer: arguments of every tool call, and the text under response_format.

    Text is guarded only where no tool may be called: beside a call it may be anything. An answer that the model's
    limit or filter cuts off is not judged at its end.
    """

    def __init__(self, request: Request) -> None:
        self._request = request
        self._tools = request.callable_tools
        self._readers: dict[tuple[int, int | None], JsonPrefix] = {}

    def feed(self, delta: Delta) -> Violation | None:
        """Read on; the violation, if the answer cannot become valid any more. Raises nothing for bad answers."""
        found = [self._call(delta.choice, piece) for piece in delta.tool_calls]
        found.append(self._text(delta.choice, delta.text) if delta.text else None)
        if delta.finish_reason in ("stop", "tool_calls"):
            found += [self._named(key, reader.finish()) for key, reader in self._of(delta.choice)]
        return next((violation for violation in found if violation), None)

    def _of(self, choice: int) -> Iterable[tuple[tuple[int, int | None], JsonPrefix]]:
        return [(key, reader) for key, reader in self._readers.items() if key[0] == choice]

    def _text(self, choice: int, text: str) -> Violation | None:
        wanted = self._request.response_format
        if wanted.kind == "text" or self._tools:
            return None
        key = (choice, None)
        if key not in self._readers:
            root: Literal["any", "object"] = "object" if wanted.kind == "json_object" else "any"
            self._readers[key] = JsonPrefix(wanted.schema, root=root)
        return self._named(key, self._readers[key].feed(text))

    def _call(self, choice: int, piece: ToolCallDelta) -> Violation | None:
        key = (choice, piece.index)
        if key not in self._readers and piece.name is not None:
            path = f"$.tool_calls[{piece.index}]"
            if piece.index and not self._request.parallel_tool_calls:
                return Violation("too_many_calls", "Only one tool may be called at a time.", path)
            tool = self._tools.get(piece.name)
            if tool is None:
                named = f"{elide(piece.name)} may not be called here."
                return Violation("unknown_tool", named, f"{path}.name") if self._request.closed else None
            self._readers[key] = JsonPrefix(tool.parameters, root="object")
        reader = self._readers.get(key)
        return self._named(key, reader.feed(piece.arguments)) if reader else None

    @staticmethod
    def _named(key: tuple[int, int | None], violation: Violation | None) -> Violation | None:
        """The same violation with its code and path as `validators` give them."""
        if violation is None:
            return None
        index = key[1]
        code, root = (
            ("response_format", "$.text") if index is None else ("arguments", f"$.tool_calls[{index}].arguments")
        )
        return Violation(code, violation.message, root + violation.path[1:])
