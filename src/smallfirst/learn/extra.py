"""Libraries of the `learn` extra, imported where they are used."""

from __future__ import annotations

import importlib
from typing import Any

from smallfirst.errors import ConfigError


def need(library: str) -> Any:
    """The module `library`. Raises ConfigError that names the pip command when the extra is not installed."""
    try:
        return importlib.import_module(library)
    except ImportError as error:
        raise ConfigError(
            f"{library} is not installed.", hint="Run `pip install 'smallfirst[learn]'` (torch: a CPU build suffices)."
        ) from error
