from __future__ import annotations

import asyncio
import random

import pytest

from smallfirst.errors import RequestError


async def test_reservations_and_spending_stay_within_the_limit(store):
    """What is reserved counts until it is settled; then what was spent counts."""
    first = await store.reserve("k", 0.6, 1.0, 0.0)
    assert await store.reserve("k", 0.5, 1.0, 0.0) is None
    assert await store.reserve("other", 0.5, 1.0, 0.0)
    assert await store.reserve("k", 0.5, 1.0, 86400.0)
    await store.settle(first, 0.1)
    await store.settle(first, 0.1)
    assert await store.spent("k", 0.0) == pytest.approx(0.1)
    second = await store.reserve("k", 0.9, 1.0, 0.0)
    assert await store.reserve("k", 0.000001, 1.0, 0.0) is None
    await store.settle(second, 0.0)
    assert await store.spent("k", 0.0) == pytest.approx(0.1)
    assert await store.reserve("k", 0.9, 1.0, 0.0)


async def test_a_forgotten_reservation_expires_but_still_settles(store):
    """A crashed caller's reservation blocks nothing after its time; settling it late still counts the money."""
    lost = await store.reserve("k", 1.0, 1.0, 0.0, ttl_s=-1.0)
    assert await store.reserve("k", 1.0, 1.0, 0.0)
    await store.settle(lost, 0.25)
    assert await store.spent("k", 0.0) == 0.25


@pytest.mark.parametrize("usd", [-0.1, float("nan"), float("inf")])
async def test_an_amount_that_is_no_money_is_refused(store, usd):
    """Negative and infinite amounts never enter the ledger."""
    with pytest.raises(RequestError, match="usd"):
        await store.reserve("k", usd, 1.0, 0.0)


async def test_concurrent_processes_never_exceed_the_limit(opener):
    """Many reservers on two stores at once, two keys: no limit is passed, and spending is the sum of settlements."""
    stores = [await opener(), await opener()]
    rng = random.Random(1)
    settled = {"a": 0, "b": 0}
    held = {"a": 0, "b": 0}
    granted = 0

    async def caller(number: int) -> None:
        nonlocal granted
        for _ in range(12):
            store, key = stores[number % 2], rng.choice("ab")
            wanted = rng.randint(1, 90)
            reservation = await store.reserve(key, wanted / 1000, 1.0, 0.0)
            if reservation is None:
                continue
            granted += 1
            held[key] += wanted
            assert settled[key] + held[key] <= 1000
            await asyncio.sleep(0)
            actual = rng.randint(0, wanted)
            held[key] -= wanted
            settled[key] += actual
            await store.settle(reservation, actual / 1000)

    await asyncio.gather(*(caller(n) for n in range(16)))
    assert granted > 20
    for key, total in settled.items():
        assert await stores[0].spent(key, 0.0) == pytest.approx(total / 1000, abs=1e-12)
