"""Text within text: JSON escapes, percent-encoding and base64 are decoded, edited and encoded again the same way.

`rewrite` hands its caller only plain text, whatever it was wrapped in, and puts the edits back where they belong: what
is not edited keeps its exact spelling, white space and escapes included.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import quote

MAX_LAYERS = 8
"""Encodings within encodings that are followed; what lies deeper is left as it is."""
_ESCAPE = re.compile(
    r'\\(?:(["\\/bfnrt])|u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})|u([0-9a-fA-F]{4}))'
)
_PERCENT = re.compile(r"(?:%[0-9A-Fa-f]{2})+")
_BASE64 = re.compile(
    r"(?<![\w+/=-])(?:(?:[A-Za-z0-9+/]{76}\r?\n)+|(?:[A-Za-z0-9+/]{64}\r?\n)+)?[A-Za-z0-9+/_-]{12,}={0,2}(?![\w+/=-])",
    re.ASCII,
)
_SHORT = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_SURROGATES = range(0xD800, 0xE000)


@dataclass(frozen=True, slots=True)
class Edit:
    """Replace text[start:end] by `text`."""

    start: int
    end: int
    text: str


Editor = Callable[[str], list[Edit]]
"""Plain text -> its edits, in order and apart from each other."""


def rewrite(text: str, editor: Editor) -> str:
    """`text` after the editor's edits, at every layer of encoding. Linear in the text for a linear editor."""
    return apply(text, edits(text, editor))


def plain(text: str) -> str:
    """`text` without its escapes, as an editor gets it."""
    read: list[str] = []

    def look(decoded: str) -> list[Edit]:
        read.append(decoded)
        return []

    edits(text, look)
    return read[0]


def apply(text: str, changes: list[Edit]) -> str:
    """`text` with the edits made."""
    parts, last = [], 0
    for edit in changes:
        parts += [text[last : edit.start], edit.text]
        last = edit.end
    return "".join([*parts, text[last:]])


def edits(text: str, editor: Editor, layers: int = MAX_LAYERS) -> list[Edit]:
    """The editor's edits in the coordinates of `text`."""
    for view in _VIEWS if layers else ():
        if view.mark in text and (decoded := _View.of(text, view)):
            return [decoded.outward(edit) for edit in edits(decoded.text, editor, layers - 1)]
    found = editor(text)
    return sorted([*found, *_within_base64(text, found, editor, layers)], key=lambda edit: edit.start)


class _Encoding(Protocol):
    @property
    def mark(self) -> str: ...
    def units(self, text: str) -> Iterator[tuple[int, int, str]]: ...
    def encode(self, text: str, source: str) -> str: ...


class _JsonEscapes:
    """Backslash escapes of JSON string literals (RFC 8259, section 7)."""

    mark = "\\"

    def units(self, text: str) -> Iterator[tuple[int, int, str]]:
        """(start, end, character) of each escape."""
        for match in _ESCAPE.finditer(text):
            short, high, low, code = match.groups()
            if short:
                yield match.start(), match.end(), _SHORT[short]
            elif high:
                point = 0x10000 + ((int(high, 16) - 0xD800) << 10) + int(low, 16) - 0xDC00
                yield match.start(), match.end(), chr(point)
            elif int(code, 16) not in _SURROGATES:
                yield match.start(), match.end(), chr(int(code, 16))

    def encode(self, text: str, source: str) -> str:
        return json.dumps(text, ensure_ascii=source.isascii())[1:-1]


class _PercentEncoding:
    """Percent-encoded UTF-8 (RFC 3986, section 2.1); what does not decode stays."""

    mark = "%"

    def units(self, text: str) -> Iterator[tuple[int, int, str]]:
        """(start, end, character) of each encoded character."""
        for match in _PERCENT.finditer(text):
            try:
                decoded = bytes.fromhex(match.group().replace("%", "")).decode()
            except UnicodeDecodeError:
                continue
            start = match.start()
            for character in decoded:
                end = start + 3 * len(character.encode())
                yield start, end, character
                start = end

    def encode(self, text: str, source: str) -> str:  # noqa: ARG002
        return quote(text, safe="")


_VIEWS: tuple[_Encoding, ...] = (_JsonEscapes(), _PercentEncoding())


@dataclass(frozen=True, slots=True)
class _View:
    """Decoded text and the way back: `plain[i]` is where the i-th decoded character stands in `text`, `shift[i]` how
    many characters longer the source is up to and without it."""

    source: str
    text: str
    encoding: _Encoding
    plain: list[int]
    shift: list[int]

    @classmethod
    def of(cls, source: str, encoding: _Encoding) -> _View | None:
        """The view of `source`; None when nothing in it is encoded."""
        parts: list[str] = []
        plain: list[int] = []
        shift = [0]
        last = 0
        for start, end, character in encoding.units(source):
            parts += [source[last:start], character]
            plain.append(start - shift[-1])
            shift.append(shift[-1] + end - start - 1)
            last = end
        return cls(source, "".join([*parts, source[last:]]), encoding, plain, shift) if plain else None

    def outward(self, edit: Edit) -> Edit:
        """The edit in the coordinates and the encoding of the source."""
        first, behind = bisect_left(self.plain, edit.start), bisect_right(self.plain, edit.end - 1)
        start, end = edit.start + self.shift[first], edit.end + self.shift[behind]
        if first == behind:
            return Edit(start, end, edit.text)
        return Edit(start, end, self.encoding.encode(edit.text, self.source[start:end]))


def _within_base64(text: str, taken: list[Edit], editor: Editor, layers: int) -> Iterator[Edit]:
    """Edits that replace the base64 of texts in which the editor changes something; `taken` parts are left alone."""
    starts = [edit.start for edit in taken]
    for match in _BASE64.finditer(text) if layers else ():
        before = bisect_left(starts, match.end()) - 1
        if before >= 0 and taken[before].end > match.start():
            continue
        blob = _Base64.of(match.group())
        if blob and (changes := edits(blob.text, editor, layers - 1)):
            yield Edit(match.start(), match.end(), blob.encode(apply(blob.text, changes)))


@dataclass(frozen=True, slots=True)
class _Base64:
    """Text found in base64 and how it was written: alphabet, padding, line width (0: one line) and line end."""

    text: str
    urlsafe: bool
    padded: bool
    width: int
    newline: str

    @classmethod
    def of(cls, blob: str) -> _Base64 | None:
        """None unless `blob` decodes to printable UTF-8."""
        body = "".join(blob.split()).rstrip("=")
        urlsafe = "-" in body or "_" in body
        if len(body) % 4 == 1 or (urlsafe and ("+" in body or "/" in body)):
            return None
        try:
            padding = "=" * (-len(body) % 4)
            data = base64.b64decode(body + padding, altchars=b"-_" if urlsafe else None, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            return None
        if not all(character.isprintable() or character.isspace() for character in data):
            return None
        lines = blob.splitlines()
        newline = "\r\n" if "\r\n" in blob else "\n"
        return cls(data, urlsafe, blob.endswith("=") or not padding, len(lines[0]) if len(lines) > 1 else 0, newline)

    def encode(self, text: str) -> str:
        coder = base64.urlsafe_b64encode if self.urlsafe else base64.b64encode
        blob = coder(text.encode()).decode()
        blob = blob if self.padded else blob.rstrip("=")
        if not self.width:
            return blob
        return self.newline.join(blob[at : at + self.width] for at in range(0, len(blob), self.width))
