"""What has happened to each task since it was last worked on, and whether that calls for a new specialist (pure, but
for the one reading of the records)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import msgspec

from smallfirst.learn.tasks import Figures
from smallfirst.monitor import Monitor
from smallfirst.registry import Release
from smallfirst.store import RecordFilter, RecordSummary, Store


class Seen(msgspec.Struct, frozen=True):
    """What was known of a task when a round of work on it began: its calls, its failures, and when (seconds since the
    epoch)."""

    calls: int
    failures: int
    at: float


@dataclass(frozen=True, slots=True)
class Triggers:
    """What makes work on a task worth it.

    A task is worked on when it has `least_calls` calls and costs `least_usd_month` a month or more (one whose cost a
    month is unknown does), and again when since then came `more_calls` of its calls as a share of those before, or
    `failures` failures of its small model, or an alarm. A version that went live is compared with what it replaced for
    `settled` calls more.
    """

    least_calls: int = 200
    least_usd_month: float = 1.0
    more_calls: float = 0.5
    failures: int = 20
    settled: int = 500


@dataclass(slots=True)
class Watched:
    """What the records show at a glance: all calls, and by task the labels of its calls and the failures of its small
    models."""

    calls: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)

    @property
    def mark(self) -> tuple[int, int]:
        """Changes when there is something new."""
        return self.calls, self.labels.total()


@dataclass(frozen=True, slots=True)
class Due:
    """Whether a task is to be worked on, and why or why not. `drift`: its accepted answers fail too often."""

    now: bool
    why: str
    drift: bool = False


async def watch(store: Store, since: float | None = None) -> Watched:
    """Read the records' summaries. A failure is a small model's answer that was served and then said to be wrong by
    feedback or an audit, or one that broke a rule of its request."""
    seen = Watched()
    async for record in store.summaries(RecordFilter(since=since)):
        seen.calls += 1
        audits = [attempt.reason for attempt in record.attempts if attempt.decision == "audit"]
        seen.labels[record.task] += len(audits) + (record.correct is not None)
        seen.failures[record.task] += _failed(record, audits)
    return seen


def _failed(record: RecordSummary, audits: list[str]) -> bool:
    if record.by_small and (record.correct is False or "different" in audits):
        return True
    return any(a.small and a.answered and a.violations and a.decision != "shadow" for a in record.attempts)


def due(
    figures: Figures,
    failures: int,
    seen: Seen | None,
    release: Release,
    monitor: Monitor | None,
    triggers: Triggers,
) -> Due:
    """Whether the task is to be worked on. `seen` is None where it never was; `monitor` watches its live version."""
    if not figures.schemas:
        return Due(False, "its answers are free text, and nothing tells whether a small model's would be right")
    if figures.calls < triggers.least_calls:
        return Due(False, f"{figures.calls} calls are fewer than {triggers.least_calls}")
    month = figures.cost_month_usd
    if month is not None and month < triggers.least_usd_month:
        return Due(False, f"{month:.2g} USD a month are less than {triggers.least_usd_month:g}")
    if release.trial is not None and release.trial.step in ("shadow", "canary"):
        return Due(False, f"{release.trial.candidate} is on trial ({release.trial.step})")
    if seen is None:
        return Due(True, f"{figures.calls} calls, no specialist was tried yet")
    if monitor is not None and monitor.alarm and monitor.since > seen.at:
        return Due(True, "alarm: accepted answers fail too often", drift=True)
    if (more := failures - seen.failures) >= triggers.failures:
        return Due(True, f"{more} more failures")
    if (more := figures.calls - seen.calls) >= triggers.more_calls * seen.calls:
        return Due(True, f"{more} more calls")
    return Due(False, f"{max(figures.calls - seen.calls, 0)} more calls and {failures - seen.failures} more failures")


def of_task(counted: Counter[str], figures: Figures) -> int:
    """What was counted under a task's id or its name."""
    return sum(counted[name] for name in {figures.task or "", figures.name})
