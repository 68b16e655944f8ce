"""Files of JSON Lines, read with what is wrong named by its line."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec

from smallfirst.errors import DataError, unreadable

T = TypeVar("T", bound=msgspec.Struct)


def read_lines(path: Path, kind: type[T], hint: str) -> list[tuple[int, T]]:
    """The lines of `path` that are not blank, with their numbers from 1.

    Other line separators that Unicode knows may stand inside a JSON string. Raises DataError for a file that cannot be
    read and for a line that is no `kind`; `hint` tells what a line is.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise DataError(unreadable(path, error), hint=f"Give a JSON Lines file. {hint}") from error
    found = list[tuple[int, T]]()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found.append((number, msgspec.json.decode(line, type=kind)))
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise DataError(f"{path}, line {number}: {error}.", hint=hint) from error
    return found
