"""Libraries of extras, imported where they are used."""

from __future__ import annotations

import importlib
import os
from typing import Any

from smallfirst.errors import ConfigError


def patient_threads() -> None:
    """Has OpenMP's threads sleep while they wait for each other, unless the environment says otherwise; to be called
    before a library that brings OpenMP is imported.

    Threads that spin while they wait take the core from those that they wait for: two of them on two cores of which
    one has other work train at a fifth of the speed of two that sleep.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def need(library: str, extra: str = "learn") -> Any:
    """The module `library`. Raises ConfigError that names the pip command when the extra is not installed."""
    patient_threads()
    try:
        return importlib.import_module(library)
    except ImportError as error:
        torch = " (torch: a CPU build suffices)" if extra == "learn" else ""
        raise ConfigError(
            f"{library} is not installed.", hint=f"Run `pip install 'smallfirst[{extra}]'`{torch}."
        ) from error
