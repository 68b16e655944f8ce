"""What the loop asks of whoever does the work: the stages of a round on one task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

Stage = Literal["dataset", "train", "evaluate", "release"]
STAGES: tuple[Stage, ...] = ("dataset", "train", "evaluate", "release")
Tell = Callable[[float, str], None]
"""Told the share of the stage that is done, and how it goes."""


@dataclass(frozen=True, slots=True)
class Round:
    """One round of work on a task: `calls` are all scrubbed records, `folder` is the round's own."""

    task: str
    folder: Path
    calls: Path


@dataclass(frozen=True, slots=True)
class Done:
    """What a stage found, as JSON. `declined`: why the round ends here, and the large model keeps the task."""

    facts: Mapping[str, Any]
    declined: str = ""


class Workshop(Protocol):
    """Does the stages. Each raises SmallfirstError or OSError when it fails."""

    async def dataset(self, work: Round, tell: Tell) -> Done: ...
    async def train(self, work: Round, tell: Tell) -> Done: ...
    async def evaluate(self, work: Round, tell: Tell) -> Done: ...
    async def release(self, work: Round, tell: Tell) -> Done: ...
