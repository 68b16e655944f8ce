"""The table of tasks: what each costs, how it stands and what to do next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from smallfirst.dashboard.queries.values import Filters, Value
from smallfirst.store import Store

Step = Literal["observe", "label", "calibrate", "train", "release", "look", "none"]


@dataclass(frozen=True, slots=True)
class Action:
    """The next best thing to do for a task: `step` and one sentence. `saves_usd` is what it would save in a month by
    estimate, `labels` how many are missing; None where that is not known or not the point."""

    step: Step
    text: str
    saves_usd: float | None = None
    labels: int | None = None


@dataclass(frozen=True, slots=True)
class TaskLine:
    """A task in the table. `mode` and `model` are those of its newest call in the period; `bound` is the promised
    limit of accepted failure, None without a certificate; `last` is when that call came."""

    task: str
    calls: Value
    month_usd: Value
    mode: str
    model: str
    coverage: Value
    accepted_failure: Value
    bound: float | None
    alarm: bool
    cps_ratio: Value
    last: float
    action: Action


async def tasks(store: Store, wanted: Filters, now: float) -> tuple[TaskLine, ...]:
    """A line for each task with calls in the period, the dearest first."""
    raise NotImplementedError
