"""What a command leaves for the next one, written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec

from smallfirst.errors import DataError


def write_json(value: Any, path: Path) -> Path:
    """Writes `value` as JSON to `path`, its folder made first. Raises DataError when that cannot be (disk full)."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            draft.write_bytes(msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n")
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(
            f"{path} cannot be written: {error.strerror or error}.", hint="Make room there, or name another place."
        ) from error
    return path
