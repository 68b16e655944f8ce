"""Libraries of extras, imported where they are used."""

from __future__ import annotations

import importlib
from typing import Any

from smallfirst.errors import ConfigError


def need(library: str, extra: str = "learn") -> Any:
    """The module `library`. Raises ConfigError that names the pip command when the extra is not installed."""
    try:
        return importlib.import_module(library)
    except ImportError as error:
        torch = " (torch: a CPU build suffices)" if extra == "learn" else ""
        raise ConfigError(
            f"{library} is not installed.", hint=f"Run `pip install 'smallfirst[{extra}]'`{torch}."
        ) from error
