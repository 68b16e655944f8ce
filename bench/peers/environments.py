"""Virtual environments for packages that are compared with, one each under `.bench/`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HOME = Path(__file__).resolve().parents[2] / ".bench"


class NotInstalled(Exception):
    """A package that could not be installed, and why."""


def install(name: str, requirement: str) -> Path:
    """The folder of the programs of the environment `name`, made with pip unless it holds `requirement` already.

    Raises NotInstalled when pip fails.
    """
    home, done = HOME / name, HOME / f"{name}.installed"
    if not (done.exists() and done.read_text() == requirement and home.exists()):
        HOME.mkdir(exist_ok=True)
        _run(requirement, [sys.executable, "-m", "venv", "--clear", str(home)])
        pip = [str(home / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        _run(requirement, [*pip, requirement])
        done.write_text(requirement)
    return home / "bin"


def _run(requirement: str, step: list[str]) -> None:
    result = subprocess.run(step, capture_output=True, text=True, check=False)
    if result.returncode:
        raise NotInstalled(f"cannot install {requirement!r}: {result.stderr.strip()[-300:]}")
