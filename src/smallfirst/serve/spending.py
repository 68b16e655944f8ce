"""Daily budgets of API keys: what an answer may cost is set aside before it is asked for, what it did cost settled."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from smallfirst.budget import Allowance
from smallfirst.cascade import Pricing
from smallfirst.errors import LimitError
from smallfirst.serve.access import Caller
from smallfirst.store import Store
from smallfirst.types import Request, Stage, total_usd

DAY_S = 86_400
SETTLED_S = 60  # more than the store takes to settle a reservation


@asynccontextmanager
async def within_budget(
    store: Store, caller: Caller, pricing: Pricing, stages: Sequence[Stage], request: Request, allowance: Allowance
) -> AsyncIterator[None]:
    """Hold the most that `stages` may cost for `request`, and keep `allowance` within it; settle what was spent.

    All of it counts as spent when the work is broken off. The caller has a budget. Raises LimitError when that does not
    allow the work, or when a price is unknown.
    """
    limit = caller.limits.usd_per_day
    assert limit is not None
    most = _most_usd(pricing, stages, request)
    if most is None:
        hint = "Give models.NAME.price in smallfirst.toml."
        raise LimitError("The key has a budget in USD, and the price of a model is unknown.", hint=hint)
    allowance.usd = most if allowance.usd is None else min(allowance.usd, most)
    now = time.time()
    day = now - now % DAY_S
    held = await store.reserve(caller.key, most, limit, day, ttl_s=_most_s(stages))
    if held is None:
        message = f"The key's budget of {limit:g} USD a day does not allow this call (up to {most:.2g} USD)."
        raise LimitError(message, retry_after=day + DAY_S - now)
    spent = most  # what is broken off may have cost as much
    try:
        yield
        spent = allowance.spent_usd
    finally:
        await asyncio.shield(store.settle(held, spent))


def _most_usd(pricing: Pricing, stages: Sequence[Stage], request: Request) -> float | None:
    """What the work costs with every stage asked and every repair made, in USD; None when a price is unknown."""
    expected = [(pricing.expected(s, request), 1 + s.repairs) for s in stages]
    return total_usd(None if usd is None else usd * times for usd, times in expected)


def _most_s(stages: Sequence[Stage]) -> float:
    """Seconds after which the work is over and settled for certain."""
    return SETTLED_S + sum(stage.timeout_s * (1 + stage.repairs) for stage in stages)
