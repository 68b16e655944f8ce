"""The time limit of the hot path."""

from __future__ import annotations

import asyncio

import pytest

from smallfirst.deadline import Deadline


async def test_a_block_that_takes_longer_times_out() -> None:
    """A block over its limit ends with TimeoutError, and its task is not left cancelled."""
    with pytest.raises(TimeoutError), Deadline(0.01):
        await asyncio.Event().wait()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_block_in_time_is_untouched() -> None:
    """A block within its limit keeps its own result and errors, and is not cancelled afterwards."""
    with pytest.raises(KeyError), Deadline(0.005):
        raise KeyError
    with Deadline(0.005):
        pass
    await asyncio.sleep(0.02)


async def test_a_cancellation_from_outside_stays_one() -> None:
    """Whoever cancels the task gets a cancelled task, not a timeout."""

    async def work() -> None:
        with Deadline(30):
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize(("outer", "inner"), [(30, 0.01), (0.01, 30)])
async def test_of_two_deadlines_the_one_that_passed_times_out(outer: float, inner: float) -> None:
    """A limit that passed ends its own block, whether it stands inside another one or around it."""
    with pytest.raises(TimeoutError), Deadline(outer), Deadline(inner):
        await asyncio.Event().wait()
    with Deadline(1):
        await asyncio.sleep(0)
