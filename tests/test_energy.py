"""Joules by the processor's own counters."""

from __future__ import annotations

from pathlib import Path

import pytest

from smallfirst.energy import Meter


def test_joules_are_told_where_the_machine_tells(tmp_path: Path) -> None:
    """Counters of whole packages add up, may wrap around once, and are None where there are none."""
    assert Meter.start(tmp_path).joules() is None
    for package, began in (("intel-rapl:0", 1_000_000), ("intel-rapl:1", 9_000_000), ("intel-rapl:0:0", 5)):
        (tmp_path / package).mkdir()
        (tmp_path / package / "energy_uj").write_text(f"{began}\n")
        (tmp_path / package / "max_energy_range_uj").write_text("10000000\n")
    meter = Meter.start(tmp_path)
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("3000000\n")
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("500000\n")
    assert meter.joules() == pytest.approx(2 + 1.5)
