"""Releases: which version answers a task, the candidates beside it, and what the tests have shown of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from smallfirst import stats
from smallfirst.dashboard.queries.base import mean, value
from smallfirst.dashboard.queries.values import LEVEL, Filters, Value
from smallfirst.registry import Release
from smallfirst.rollout import Asks, Evidence, Measure, Rollout, capitals, decide
from smallfirst.store import Store
from smallfirst.store.database import Connection, Row

NEWEST = 5000
"""Calls of each arm since the step began, the newest, that are looked at."""


@dataclass(frozen=True, slots=True)
class Test:
    """One sequential test of a candidate: `capital` is what 1 has become; at `needed` it is decided."""

    measure: Measure
    asks: Asks
    capital: float
    needed: float


@dataclass(frozen=True, slots=True)
class Arm:
    """What one arm's newest calls since the step began came to; right is what feedback calls so."""

    version: str
    calls: int
    success: Value
    valid: Value
    latency_p50: Value
    usd_per_1000: Value


@dataclass(frozen=True, slots=True)
class Candidate:
    """A rollout: where it stands (`step`, `share` of episodes), since when, and what decides about it next."""

    id: str
    task: str
    step: str
    share: float
    since: float
    arms: tuple[Arm, ...]
    tests: tuple[Test, ...]
    says: str


@dataclass(frozen=True, slots=True)
class Change:
    """Something that was done to a release, by whom ("rollout" where the tests decided) and why."""

    at: float
    task: str
    what: str
    who: str
    why: str


@dataclass(frozen=True, slots=True)
class Releases:
    """Rollouts that are under way, then what has changed, newest first."""

    candidates: tuple[Candidate, ...]
    changes: tuple[Change, ...]


async def releases(store: Store, wanted: Filters) -> Releases:
    """The Releases page."""
    candidates = [
        await _candidate(store, each, each.rollout)
        for each in await store.releases()
        if each.rollout is not None and each.rollout.step != "rolled_back" and wanted.task in (None, each.task)
    ]
    changes = [
        Change(move.at, move.task, f"{move.version}: {move.step}, {move.share:.0%} of episodes", move.by, move.reason)
        for move in reversed(await store.moves(wanted.task))
        if (wanted.since or 0.0) <= move.at and (wanted.until is None or move.at < wanted.until)
    ]
    return Releases(tuple(candidates), tuple(changes))


async def _candidate(store: Store, release: Release, rollout: Rollout) -> Candidate:
    evidence = Evidence.from_json(rollout, release.evidence)
    names = {"canary": rollout.candidate, "incumbent": rollout.incumbent}
    rows = await store.read(lambda c: {arm: _calls(c, rollout, arm) for arm in names})
    return Candidate(
        id=rollout.id,
        task=rollout.task,
        step=rollout.step,
        share=rollout.share,
        since=rollout.since,
        arms=_arms(names, rows),
        tests=tuple(Test(*test) for test in capitals(rollout, evidence)),
        says=decide(rollout, evidence).reason,
    )


def _calls(connection: Connection, rollout: Rollout, arm: str) -> list[Row]:
    """Of the arm's newest calls: seconds, cost, whether the answer was valid, and what feedback says of it."""
    own = "a.record_id = r.id AND a.decision NOT IN ('shadow', 'audit')"
    cost = f"(SELECT sum(coalesce(a.cost_usd, 0)) FROM attempts a WHERE {own})"  # noqa: S608
    served = "a.record_id = r.id AND a.n = r.served AND a.answered = 1 AND a.violations = ''"
    valid = f"(SELECT count(*) FROM attempts a WHERE {served})"  # noqa: S608
    said = "f.record_id = r.id AND f.kind = 'correct' ORDER BY f.created_at DESC, f.id DESC LIMIT 1"
    right = f"(SELECT f.number FROM feedback f WHERE {said})"  # noqa: S608
    sql = (
        f"SELECT r.seconds, {cost}, {valid}, {right} FROM records r WHERE r.task = ? AND r.created_at >= ? "  # noqa: S608
        "AND r.rollout = ? AND r.arm = ? ORDER BY r.created_at DESC, r.id DESC LIMIT ?"
    )
    return connection.query(sql, (rollout.task, rollout.since, rollout.id, arm, NEWEST))


def _arms(names: Mapping[str, str], rows: Mapping[str, Sequence[Row]]) -> tuple[Arm, ...]:
    return tuple(_arm(names[arm], own) for arm, own in rows.items() if own)


def _arm(version: str, rows: Sequence[Row]) -> Arm:
    labels = [right for _, _, _, right in rows if right is not None]
    costs = [cost or 0.0 for _, cost, _, _ in rows]
    return Arm(
        version=version,
        calls=len(rows),
        success=value("accuracy", stats.wilson(round(sum(labels)), len(labels), LEVEL)),
        valid=value("valid answers", stats.wilson(sum(valid for _, _, valid, _ in rows), len(rows), LEVEL)),
        latency_p50=value("median time", stats.quantile([seconds for seconds, *_ in rows], 0.5, LEVEL)),
        usd_per_1000=mean("arm cost", sum(costs), sum(cost**2 for cost in costs), len(rows), scale=1000.0),
    )
