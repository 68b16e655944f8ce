"""Joules that the processors took, where the system tells (RAPL, Linux: /sys/class/powercap)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
_PACKAGES = "intel-rapl:?"  # whole packages, of AMD too; what is behind a second colon is a part of one


@dataclass(frozen=True, slots=True)
class Meter:
    """The counters of all packages, in microjoules, as they were when the meter was made."""

    began: dict[Path, int]

    @classmethod
    def start(cls, folder: Path = POWERCAP) -> Meter:
        """A meter that counts from now on; of nothing where the counters cannot be read."""
        found = {package: _read(package / "energy_uj") for package in sorted(folder.glob(_PACKAGES))}
        return cls({package: value for package, value in found.items() if value is not None})

    def joules(self) -> float | None:
        """What the whole machine took since the start; None where that is not told. Counters may wrap around once."""
        total = 0
        for package, began in self.began.items():
            ended = _read(package / "energy_uj")
            if ended is None:
                return None
            total += ended - began if ended >= began else ended - began + (_read(package / "max_energy_range_uj") or 0)
        return total / 1e6 if self.began else None


def _read(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
