"""Rate against distortion of context compression, as `smallfirst compress` measured it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from smallfirst.dashboard.queries.values import Value


@dataclass(frozen=True, slots=True)
class Compressor:
    """A compressor measured on a task: `rate` is the share of tokens kept, `distortion` how much worse the answers
    became (parts of 1), both with intervals. `front`: no other has less of both."""

    task: str
    name: str
    rate: Value
    distortion: Value
    usd_per_1000: Value
    front: bool


def compression(folder: Path) -> tuple[Compressor, ...]:
    """What was measured, by task and rate; empty when nothing was."""
    raise NotImplementedError
