"""One task's page: how its calls flow, how far its confidence can be trusted, what audits and labels say, what costs.

Figures over a period come from the hourly sums; `stages` and `tools` look at the newest calls of the period only, and
say how many.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from smallfirst.dashboard.queries.overview import CostPoint
from smallfirst.dashboard.queries.standing import Guarantee
from smallfirst.dashboard.queries.tasks import TaskLine
from smallfirst.dashboard.queries.values import Filters, Value
from smallfirst.store import Store
from smallfirst.types import Json

NEWEST_STAGES = 5000
"""Calls of a task, the newest, whose attempts are summed by stage."""
NEWEST_TOOLS = 1000
"""Calls of a task, the newest, whose answers are opened to compare tools."""


@dataclass(frozen=True, slots=True)
class Flow:
    """`calls` that went from one state to the next: "calls", "small first", "large at once", "cache", "valid at once",
    "repaired", "accepted", "escalated", "abstained"."""

    source: str
    target: str
    calls: int


@dataclass(frozen=True, slots=True)
class Bin:
    """Labelled answers of like confidence: how confident on average, and how many of them were right."""

    confidence: float
    right: Value


@dataclass(frozen=True, slots=True)
class RiskPoint:
    """Were answers accepted from `threshold` on: the share accepted, and how many of those were wrong."""

    threshold: float
    coverage: float
    failure: Value


@dataclass(frozen=True, slots=True)
class Curves:
    """What the calibration in force was certified from: `bins` by confidence, `risk` by falling threshold, and the
    threshold that was chosen (None where it was refused) for a promise of `alpha`. `ece`, `brier` and `auroc` are of
    the cross-fitted confidences."""

    stage: str
    labels: str
    n: int
    bins: tuple[Bin, ...]
    risk: tuple[RiskPoint, ...]
    threshold: float | None
    alpha: float
    ece: float | None
    brier: float | None
    auroc: float | None


@dataclass(frozen=True, slots=True)
class Audited:
    """An audit of an accepted answer, drawn with `probability`, and the running state after it: the confidence
    sequence's bounds on the failure rate (the window's, see `monitor.WINDOW`)."""

    record: str
    at: float
    confidence: float | None
    probability: float
    wrong: bool
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class AuditStream:
    """The newest audits, oldest first, for a promise of `alpha` (None without a certificate)."""

    alpha: float | None
    audits: tuple[Audited, ...]


@dataclass(frozen=True, slots=True)
class StageCost:
    """What one stage's model did in the newest calls: attempts, their cost for 1,000 calls of the task, tokens, time.

    `part` tells what the attempts were for: "answer", "repair", "evidence", "shadow", "audit" or "cache"."""

    stage: str
    model: str
    part: str
    small: bool
    attempts: int
    usd: float
    usd_per_1000: Value
    input_tokens: int
    output_tokens: int
    seconds: Value
    valid: Value


@dataclass(frozen=True, slots=True)
class Confusion:
    """Which tool the small model chose where the large one chose which; "" stands for an answer in words. `counts` has
    a row for each of `names` as the large model's choice, a column for each as the small one's."""

    names: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    agree: Value
    calls: int


@dataclass(frozen=True, slots=True)
class Event:
    """A moment in the life of a task: a calibration put in force or refused, an alarm, a release's step."""

    at: float
    kind: Literal["calibrated", "refused", "alarm", "shadow", "canary", "live", "rolled_back"]
    text: str


@dataclass(frozen=True, slots=True)
class TaskPage:
    """All of a task's page. `guarantees` has one entry for each calibrated stage; `curves` likewise. `schema` is the
    answer's JSON Schema that was suggested when tasks were found, by tool name, {} where there is none."""

    line: TaskLine
    figures: tuple[Value, ...]
    points: tuple[CostPoint, ...]
    flow: tuple[Flow, ...]
    guarantees: tuple[Guarantee, ...]
    curves: tuple[Curves, ...]
    audits: AuditStream
    stages: tuple[StageCost, ...]
    tools: Confusion
    events: tuple[Event, ...]
    schemas: Mapping[str, Json]


async def task_page(store: Store, wanted: Filters, now: float) -> TaskPage | None:
    """The page of `wanted.task`; None when it has no call in the period. Raises ValueError without a task."""
    raise NotImplementedError
