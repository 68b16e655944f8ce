"""The first page: what was saved, whether it is still right, and what wants attention."""

from __future__ import annotations

from dataclasses import dataclass

from smallfirst.dashboard.queries.values import Filters, Value
from smallfirst.store import Store


@dataclass(frozen=True, slots=True)
class CostPoint:
    """USD per 1,000 right answers in the span that begins at `start` (seconds since the epoch) and lasts `seconds`:
    as it was with small-first, and as it would have been with the large model alone."""

    start: float
    seconds: float
    small_first: Value
    large_only: Value


@dataclass(frozen=True, slots=True)
class Guarantee:
    """A calibrated task: what was promised (`alpha`, with probability 1 - `delta`) and what its audits say.

    `failure` is the observed rate of wrong answers among those accepted, with the confidence sequence's bounds, which
    hold at any time. `alpha` is None where the calibration was refused, and `refused` says why.
    """

    task: str
    stage: str
    mode: str
    alpha: float | None
    delta: float | None
    threshold: float | None
    failure: Value
    audits: int
    wrong: int
    labels: str
    made_at: float
    alarm: bool
    refused: str


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something that a person has to look at: `task` is "" where it is of no task; `since` in seconds since the epoch,
    None where unknown."""

    task: str
    text: str
    since: float | None


@dataclass(frozen=True, slots=True)
class Overview:
    """The first page. `sentence` says the figures in words; `points` are oldest first. `joules` is measured by nobody
    yet where its value is None. `spent_usd` is all that was paid, shadows and audits (`afterwards_usd`) included."""

    sentence: str
    calls: Value
    saved_usd: Value
    saved_share: Value
    moved_calls: Value
    moved_tokens: Value
    joules: Value
    cps_ratio: Value
    spent_usd: Value
    afterwards_usd: Value
    coverage: Value
    escalation: Value
    accepted_failure: Value
    accuracy: Value
    answered: Value
    cached: Value
    latency_p50: Value
    latency_p95: Value
    points: tuple[CostPoint, ...]
    guarantees: tuple[Guarantee, ...]
    alarms: tuple[Alarm, ...]

    @property
    def figures(self) -> tuple[Value, ...]:
        """Every figure of the page, in the order in which it shows them."""
        raise NotImplementedError


async def overview(store: Store, wanted: Filters, now: float) -> Overview:
    """The first page's figures of the calls wanted."""
    raise NotImplementedError
