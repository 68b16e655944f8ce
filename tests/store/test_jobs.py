"""Jobs: one owner at a time, a state that outlives it, and dead owners that lose them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from smallfirst.store import jobs


def alive(_: str) -> bool:
    return False


async def test_a_job_has_one_owner(store: Any) -> None:
    """The first that claims a job has it until it leaves; others are told so, and its state stays."""
    assert await store.claim_job("t", "one", alive) == ""
    assert await store.claim_job("t", "two", alive) is None
    assert await store.claim_job("other", "two", alive) == ""
    assert await store.beat_job("t", "one", "half done")
    assert await store.claim_job("t", "one", alive) == "half done"
    await store.leave_job("t", "one")
    assert await store.claim_job("t", "two", alive) == "half done"
    assert not await store.beat_job("t", "one", "late")
    assert await store.jobs() == {"other": "", "t": "half done"}


async def test_of_many_at_once_one_gets_the_job(store: Any) -> None:
    """A job is claimed once, however many ask at the same moment."""
    got = await asyncio.gather(*(store.claim_job("t", f"owner {n}", alive) for n in range(8)))
    assert sorted(state is None for state in got) == [False] + 7 * [True]


async def test_the_dead_lose_their_jobs(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An owner that is known to be gone, or shows no life for long, is followed by the next; a beat alone keeps it."""
    await store.claim_job("t", "one", alive)
    assert await store.beat_job("t", "one")
    assert await store.claim_job("t", "two", lambda owner: owner == "one") == ""
    assert await store.claim_job("t", "three", alive) is None
    monkeypatch.setattr(jobs, "STALE_S", 0.0)
    assert await store.claim_job("t", "three", alive) == ""
