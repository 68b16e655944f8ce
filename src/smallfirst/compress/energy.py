"""Joules that the processor's packages used, by their own counters (RAPL); None where they cannot be read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

_ZONES = Path("/sys/class/powercap")


def read_joules(zones: Path = _ZONES) -> dict[str, float]:
    """The counter of each package by its folder; empty where there is none or it is not for this user to read."""
    counters: dict[str, float] = {}
    for file in sorted(zones.glob("intel-rapl:?/energy_uj")):
        try:
            counters[str(file.parent)] = int(file.read_text()) / 1e6
        except (OSError, ValueError):
            return {}
    return counters


def joules_since(before: Mapping[str, float], zones: Path = _ZONES) -> float | None:
    """What all packages used since `before`, of everything that ran on the machine; None where it is not measured."""
    after = read_joules(zones)
    if not before or before.keys() != after.keys():
        return None
    return sum((after[zone] - before[zone]) % _range(zone) for zone in before)


def _range(zone: str) -> float:
    """Where a counter begins again at 0, in joules."""
    try:
        return int((Path(zone) / "max_energy_range_uj").read_text()) / 1e6
    except (OSError, ValueError):
        return float("inf")
