"""Calibrations and monitors, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
from functools import partial

from store_samples import make_record

from smallfirst.store import RecordFilter, Versions


async def test_the_newest_calibration_of_a_task_and_stage_is_in_force(store):
    """An older one is kept and no longer given; other tasks and stages are not touched."""
    old = await store.save_calibration("trips", "small", "{}")
    new = await store.save_calibration("trips", "small", '{"a":1}')
    tiny = await store.save_calibration("trips", "tiny", "{}")
    other = await store.save_calibration("cars", "small", "{}")
    assert old.id != new.id
    assert await store.calibrations() == [other, new, tiny]
    assert await store.calibration_versions() == Versions(4, {})


async def test_a_monitor_s_changes_are_all_counted(opener):
    """Changes made at once by two processes' stores follow each other: none is lost, and each is noticed."""
    stores = [await opener(), await opener()]

    def grown(by: str, state: str) -> str:
        return state + by

    await asyncio.gather(*(stores[n % 2].change_monitor("trips", partial(grown, "x")) for n in range(20)))
    assert await stores[0].change_monitor("cars", partial(grown, "y")) == "y"
    assert await stores[1].monitors() == {"trips": "x" * 20, "cars": "y"}
    assert await stores[1].monitors(["cars"]) == {"cars": "y"}
    assert (await stores[1].calibration_versions()).monitors == {"trips": 20, "cars": 1}


async def test_records_are_counted(store):
    """A count follows the filter."""
    for task in ("a", "b", "b"):
        await store.append(make_record(task=task))
    assert (await store.count(), await store.count(RecordFilter(task="b"))) == (3, 2)
