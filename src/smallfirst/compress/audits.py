"""Audited calls from the records: the answer from a shortened text beside the one from the full text.

They come of themselves where a compressor runs in shadow of a model that reads all (mode "observe", or no calibration
yet). Whether the two answers are the same decides `agreement.same_answer`; two free texts are the same when they are
equal up to case and white space, and count as changed otherwise: a bound on changes may not rest on a guess.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from smallfirst.acceptance import Acceptance, Costs
from smallfirst.agreement import same_answer
from smallfirst.compress import guard
from smallfirst.labels import referred, request_of
from smallfirst.store import RecordFilter, Store, StoredRecord
from smallfirst.types import Attempt


@dataclass(frozen=True, slots=True)
class Audited:
    """A call answered from both texts. Costs in USD, None where unknown."""

    facts: Mapping[str, float]
    same: bool
    short_usd: float | None
    full_usd: float | None


async def audited(
    store: Store, task: str, stage: str, *, since: float | None = None, progress: Callable[[int], None] = lambda _: None
) -> list[Audited]:
    """The task's calls that `stage` shortened in shadow of the full answer, newest first."""
    found = []
    done = 0
    async for record in store.export(RecordFilter(task=task, since=since)):
        shadows = (a for a in record.attempts if a.stage == stage and a.decision == "shadow")
        found += [each for shadow in shadows if (each := _audited(record, shadow)) is not None]
        done += 1
        progress(done)
    return found


def _audited(record: StoredRecord, short: Attempt) -> Audited | None:
    n, request = referred(record), request_of(record)
    full = None if n is None else record.attempts[n]
    if not short.features.get("compressed") or request is None or full is None:
        return None
    answers = [a.completion.choices[0] for a in (short, full) if a.completion and a.completion.choices]
    if len(answers) < 2:
        return None
    same = short.verdict.ok and same_answer(request, *answers) is True
    names = {name: value for name, value in short.features.items() if name.startswith(guard.PREFIX)}
    facts = {name.removeprefix(guard.PREFIX): value for name, value in names.items()}
    return Audited(facts, same, short.cost_usd, full.cost_usd)


def certified(calls: list[Audited], *, task: str, stage: str, alpha: float, delta: float, made_at: float) -> Acceptance:
    """The guard that these calls justify (see `guard.fit`). Raises CalibrationError for too few."""
    return guard.fit(
        [call.facts for call in calls],
        [call.same for call in calls],
        task=task,
        stage=stage,
        alpha=alpha,
        delta=delta,
        made_at=made_at,
        costs=_costs(calls),
    )


def _costs(calls: list[Audited]) -> Costs | None:
    short = [call.short_usd for call in calls if call.short_usd is not None]
    full = [call.full_usd for call in calls if call.full_usd is not None]
    return Costs(float(np.mean(short)), float(np.mean(full))) if short and full else None
