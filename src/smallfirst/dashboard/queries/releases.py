"""Releases: which version answers a task, the candidates beside it, and what the tests have shown of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from smallfirst.dashboard.queries.values import Filters, Value
from smallfirst.store import Store


@dataclass(frozen=True, slots=True)
class Test:
    """One sequential test of a candidate: `capital` is what 1 has become; at `needed` it is decided."""

    measure: str
    asks: Literal["worse", "not worse", "better"]
    capital: float
    needed: float


@dataclass(frozen=True, slots=True)
class Arm:
    """What one arm's calls since the step began came to."""

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
    """Something that was done to a release, by whom ("" where the tests decided) and why."""

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
    raise NotImplementedError
