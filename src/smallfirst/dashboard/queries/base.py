"""Reading the hourly sums, and figures with intervals from sums alone.

Intervals: Wilson for rates; for ratios of sums the linearised variance on the logarithm (Cochran 1977, section 6.3),
which needs sums of products only; for totals that audits tell, the variance of Horvitz and Thompson's estimate.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np

from smallfirst import stats
from smallfirst.dashboard.queries.values import HOUR_S, LEVEL, Filters, Unit, Value
from smallfirst.store import Store
from smallfirst.store.database import Connection
from smallfirst.store.facts import MEASURES, PAIR, PRODUCTS, bounds
from smallfirst.store.rollups import Span, Sums, durations, first_hour, sums

Totals = Mapping[str, float]
_WIDTHS = (1, 2, 3, 6, 24, 72, 168, 720, 8760)
_POINTS = 60
_Z = NormalDist().inv_cdf((1 + LEVEL) / 2)

_SAVED = (
    "What the calls would have cost at the large model's price less what they cost, by pairs: calls that it answered, "
    "and audited ones, each for one over its probability of an audit. Tasks whose accepted answers were never audited "
    "are left out. The interval is that of the audits' draw."
)
DEFINITIONS: Mapping[str, tuple[Unit, str]] = {
    "calls": ("calls", "Calls recorded."),
    "saved": ("usd", _SAVED),
    "cost saved": ("rate", "Part of the large model's cost that small-first saved, by the same pairs."),
    "calls moved": ("calls", "Calls that a small model answered."),
    "tokens moved": ("tokens", "Tokens that the large model would have used for those calls, told by audits."),
    "energy": ("count", "Joules saved; measured by nobody here."),
    "CPS to large-only": (
        "ratio",
        "Cost per right answer, small-first over large-only, by pairs; right means the same as the large model's.",
    ),
    "CPS, small-first": ("usd", "USD for 1,000 right answers as calls were answered, by pairs."),
    "CPS, large-only": ("usd", "USD for 1,000 answers of the large model to the same calls."),
    "spent": ("usd", "Cost of all calls with a known price, every attempt counted."),
    "shadows and audits": ("usd", "Cost of what was asked after the answer, to learn from it; in no other figure."),
    "coverage": ("rate", "Calls for which a small model's answer was accepted."),
    "escalation": ("rate", "Calls for which the large model was asked before the answer."),
    "accepted failure": (
        "rate",
        "Accepted answers that are not the large model's, by audits, each weighted by one over its probability.",
    ),
    "accuracy": ("rate", "Right answers among those that feedback calls right or wrong."),
    "answered": ("rate", "Calls that got an answer."),
    "cache hits": ("rate", "Calls answered from the response cache."),
    "valid at once": ("rate", "Calls whose first answer broke no rule of the request."),
    "p50": ("seconds", "Median time of a call, from buckets: at most 9.1 % off."),
    "p95": ("seconds", "Time that 95 of 100 calls stay under, from buckets: at most 9.1 % off."),
    "cost a month": ("usd", "Cost of the task's calls, extended to a month from the days it was seen in the period."),
    "valid answers": ("rate", "Answers given that broke no rule of the request."),
    "median time": ("seconds", "Median time of a call."),
    "arm cost": ("usd", "USD for 1,000 calls, attempts with an unknown price left out."),
    "stage cost": ("usd", "USD for 1,000 of the task's newest calls, attempts with an unknown price left out."),
    "stage time": ("seconds", "Mean time of an attempt."),
    "audits' bound": (
        "rate",
        "Failures among accepted answers; the bounds hold at any time, since the last window of audits began.",
    ),
}


@dataclass(frozen=True, slots=True)
class Book:
    """The sums of a period: by span of `width` hours and task, and how many calls took a time of each bucket."""

    cells: Sequence[Sums]
    times: Mapping[int, int]
    width: int

    @property
    def tasks(self) -> dict[str, list[Sums]]:
        """The cells of each task."""
        found: dict[str, list[Sums]] = defaultdict(list)
        for cell in self.cells:
            found[cell.task].append(cell)
        return found


async def read(store: Store, wanted: Filters, now: float) -> Book:
    """The sums of the calls wanted, in at most some sixty spans."""
    return await store.read(lambda connection: _book(connection, wanted, now))


def _book(connection: Connection, wanted: Filters, now: float) -> Book:
    oldest = first_hour(connection)
    last = int((now if wanted.until is None else wanted.until) // HOUR_S)
    if oldest is None or oldest > last:
        return Book((), {}, 1)
    first = oldest if wanted.since is None else max(oldest, int(wanted.since // HOUR_S))
    width = next((width for width in _WIDTHS if (last - first) / width <= _POINTS), _WIDTHS[-1])
    span = Span(first, last, wanted.key, wanted.task)
    return Book(sums(connection, span, width), durations(connection, span), width)


def total(cells: Sequence[Sums]) -> Totals:
    """The cells' sums together, by name."""
    summed = np.sum([cell.measures for cell in cells], axis=0) if cells else np.zeros(len(MEASURES))
    return dict(zip(MEASURES, summed.tolist(), strict=True))


def told(cells: Sequence[Sums]) -> list[Sums]:
    """The cells of tasks of which pairs tell what was saved: those whose accepted answers were audited, if any were."""
    by_task: dict[str, list[Sums]] = defaultdict(list)
    for cell in cells:
        by_task[cell.task].append(cell)
    sure = {task for task, own in by_task.items() if not _unaudited(total(own))}
    return [cell for cell in cells if cell.task in sure]


def _unaudited(t: Totals) -> bool:
    return small(t) > 0 and not t["audits"]


def small(t: Totals) -> float:
    """Calls that a small model answered."""
    return t["first_accepted"] + t["repaired_accepted"]


def value(name: str, figure: stats.Figure) -> Value:
    """A figure under its definition."""
    unit, meaning = DEFINITIONS[name]
    return Value(name, figure.value, figure.low, figure.high, figure.n, unit, meaning)


def counted(name: str, amount: float, n: float) -> Value:
    """What was counted and not estimated."""
    return value(name, stats.Figure(amount, amount, amount, round(n), "counted"))


def unknown(name: str) -> Value:
    """What the records do not tell."""
    return value(name, stats.Figure(None, None, None, 0, "unknown"))


def rate(name: str, hits: float, n: float) -> Value:
    """A share of calls."""
    return value(name, stats.wilson(round(hits), round(n), LEVEL))


def estimated(name: str, amount: float, variance: float, n: float) -> Value:
    """A total that a sample tells."""
    half = _Z * math.sqrt(variance)
    return value(name, stats.Figure(amount, amount - half, amount + half, round(n), "normal"))


def mean(name: str, amount: float, squares: float, n: int, *, scale: float = 1.0) -> Value:
    """The mean of `n` numbers from their sum and the sum of their squares, times `scale`."""
    middle = amount / n
    half = _Z * math.sqrt(max(squares / n - middle**2, 0.0) / (n - 1)) if n > 1 else math.inf
    low, high = ((middle - half) * scale, (middle + half) * scale) if n > 1 else (None, None)
    return value(name, stats.Figure(middle * scale, low, high, n, "normal"))


def accepted_failure(t: Totals) -> Value:
    """As `report` computes it."""
    if not t["audits"]:
        return unknown("accepted failure")
    wrong = min(max(t["audit_wrong"] / t["audit_w"], 0.0), 1.0)
    low, high = stats.score_interval(wrong, t["audit_w"] ** 2 / t["audit_ww"], LEVEL)
    return value("accepted failure", stats.Figure(wrong, low, high, round(t["audits"]), "wilson, effective n"))


def cps_ratio(t: Totals) -> Value:
    """Small-first against large-only; None without pairs of both kinds of calls."""
    return _ratio("CPS to large-only", t, {"wc": 1, "wr": -1, "wl": -1, "w": 1})


def cps(name: str, t: Totals, cost: str, right: str) -> Value:
    """USD per 1,000 of what `right` counts."""
    return _ratio(name, t, {cost: 1, right: -1}, 1000.0)


def saved_share(t: Totals) -> Value:
    """1 less the ratio of costs."""
    spent = _ratio("cost saved", t, {"wc": 1, "wl": -1})
    part, low, high = (None if bound is None else 1 - bound for bound in (spent.value, spent.high, spent.low))
    return replace(spent, value=part, low=low, high=high)


def _ratio(name: str, t: Totals, powers: Mapping[str, int], scale: float = 1.0) -> Value:
    """The product of sums over pairs, each to its power, with an interval symmetric on the logarithm."""
    if any(t[part] <= 0 for part in powers):
        return unknown(name)
    amount = scale * math.prod(t[part] ** power for part, power in powers.items())
    part_of = {part: powers.get(part, 0) / t[part] if t[part] else 0.0 for part in PAIR}
    variance = sum((1 if a == b else 2) * part_of[a] * part_of[b] * t[f"{a}_{b}"] for a, b in PRODUCTS)
    factor = math.exp(_Z * math.sqrt(max(variance, 0.0)))
    if t["pairs"] < 2:
        return value(name, stats.Figure(amount, None, None, round(t["pairs"]), "linearised"))
    return value(name, stats.Figure(amount, amount / factor, amount * factor, round(t["pairs"]), "linearised"))


def quantile(name: str, times: Mapping[int, int], q: float) -> Value:
    """The q-quantile of durations counted in buckets: the geometric middle of its bucket; bounds are ends of the
    buckets that hold the order statistics of the exact interval."""
    n = sum(times.values())
    if not n:
        return unknown(name)
    half = _Z * math.sqrt(n * q * (1 - q))
    ranks = (math.ceil(n * q), math.floor(n * q - half), math.ceil(n * q + half) + 1)
    at, below, above = (_bucket(times, rank) for rank in ranks)
    low, high = bounds(at)
    middle = math.sqrt(low * high) if low else high
    return value(
        name,
        stats.Figure(
            middle,
            bounds(below)[0] if ranks[1] >= 1 else None,
            bounds(above)[1] if ranks[2] <= n else None,
            n,
            "order statistics of buckets",
        ),
    )


def _bucket(times: Mapping[int, int], rank: int) -> int:
    """The bucket that holds the observation of that rank."""
    below = 0
    for bucket, calls in sorted(times.items()):
        below += calls
        if below >= rank:
            return bucket
    return max(times)
