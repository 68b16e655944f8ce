"""What every figure of the dashboard is made of, and what all of them are asked with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from smallfirst.errors import RequestError

Unit = Literal["usd", "rate", "ratio", "seconds", "tokens", "calls", "count", "bytes"]
HOUR_S = 3600
MONTH_S = 365.25 / 12 * 86400
LEVEL = 0.95

PERIODS: Mapping[str, float | None] = {
    "24h": 86_400.0,
    "7d": 7 * 86_400.0,
    "30d": 30 * 86_400.0,
    "90d": 90 * 86_400.0,
    "all": None,
}


@dataclass(frozen=True, slots=True)
class Filters:
    """Which calls: those from `since` to before `until` (seconds since the epoch; None: no limit) of the application
    `key` (an API key's public id) and of `task`. Figures resolve time to hours: `since` counts from the beginning of
    its hour, `until` to the end of its hour."""

    since: float | None = None
    until: float | None = None
    key: str | None = None
    task: str | None = None


@dataclass(frozen=True, slots=True)
class Value:
    """A figure as a page shows it: `name`, `value` in `unit`, its interval [low, high] at 95 %, and what it means.

    `n` is the number of observations behind it. `value` is None where the records do not tell; `low` or `high` is None
    where they do not bound it, and equal to `value` where it was counted and not estimated. Rates and shares are parts
    of 1, times in seconds, money in USD.
    """

    name: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    unit: Unit
    definition: str


def filters(period: str, now: float, *, key: str | None = None, task: str | None = None) -> Filters:
    """The calls of the last `period`, one of `PERIODS`. Raises RequestError for another."""
    if period not in PERIODS:
        raise RequestError(f"The period is {period!r}; allowed are {', '.join(PERIODS)}.", param="period")
    span = PERIODS[period]
    return Filters(None if span is None else now - span, None, key or None, task or None)
