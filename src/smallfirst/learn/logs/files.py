"""Files of logs, item by item: JSON lines, read one by one, or one JSON document, read whole; each may be gzipped."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import msgspec

from smallfirst.errors import ConfigError, unreadable

MAX_LINE = 64 * 2**20
MAX_DOCUMENT = 256 * 2**20
_GZIP = b"\x1f\x8b"
_BOM = b"\xef\xbb\xbf"
_PAGES = ("data", "inferences")
_PIECE = 2**20


@dataclass(frozen=True, slots=True)
class Item:
    """A JSON value of a file, at a line of it (of a document: its number among the items), or what is `wrong` there.

    `size` is that of its text in bytes; `at` the place in the file, as stored, up to which it was read.
    """

    line: int
    value: Any
    size: int
    at: int
    wrong: str = ""


def items(path: Path) -> Iterator[Item]:
    """The items of a file; a list, and a page of an API with one under "data" or "inferences", is taken apart.

    Raises ConfigError when the file cannot be opened.
    """
    with ExitStack() as stack:
        try:
            raw = stack.enter_context(path.open("rb"))
        except OSError as error:
            raise ConfigError(unreadable(path, error)) from None
        zipped = raw.peek(2)[:2] == _GZIP
        file: Any = stack.enter_context(gzip.open(raw)) if zipped else raw
        number = 0
        try:
            for number, text in _texts(file):
                yield from _taken_apart(number, text, raw.tell())
        except (EOFError, zlib.error, OSError) as error:
            yield Item(number + 1, None, 0, raw.tell(), f"The file breaks off: {error}.")


def _texts(file: BufferedReader) -> Iterator[tuple[int, bytes]]:
    """The lines that are not empty, with their numbers; a document as line 0. What is too long is cut by a byte."""
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        line = line.removeprefix(_BOM) if number == 1 else line
        start = line.strip()
        if number == 1 and (start.startswith(b"[") or start == b"{"):
            yield 0, line + file.read(MAX_DOCUMENT)
            return
        if len(line) > MAX_LINE:
            while not (line.endswith(b"\n") or not (piece := file.readline(_PIECE))):
                line = line[:MAX_LINE] + piece[-1:]
            yield number, line[: MAX_LINE + 1]
        elif start:
            yield number, start


def _taken_apart(line: int, text: bytes, at: int) -> Iterator[Item]:
    limit = MAX_LINE if line else MAX_DOCUMENT
    if len(text) > limit:
        hint = "" if line else "; write it as JSON lines (jq -c '.[]')"
        yield Item(line, None, 0, at, f"It is longer than {limit // 2**20} MiB{hint}.")
        return
    try:
        value = msgspec.json.decode(text)
    except UnicodeDecodeError as error:
        yield Item(line, None, len(text), at, f"It is not UTF-8: {error.reason} at byte {error.start}.")
        return
    except (msgspec.DecodeError, RecursionError) as error:
        wrong = "not UTF-8" if "utf-8" in str(error).lower() else "not JSON"
        yield Item(line, None, len(text), at, f"It is {wrong}: {error}.")
        return
    found = _page(value)
    for n, one in enumerate(found, start=1):
        yield Item(line or n, one, len(text) // len(found), at)


def _page(value: Any) -> list[Any]:
    if isinstance(value, list):
        return value
    pages = (value[name] for name in _PAGES if isinstance(value.get(name), list)) if isinstance(value, dict) else ()
    return next(iter(pages), [value])
