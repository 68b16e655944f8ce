"""The first page: what was saved, whether it is still right, and what wants attention."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from smallfirst.dashboard.queries.base import (
    Book,
    Totals,
    accepted_failure,
    counted,
    cps,
    cps_ratio,
    estimated,
    quantile,
    rate,
    read,
    saved_share,
    small,
    told,
    total,
    unknown,
)
from smallfirst.dashboard.queries.standing import Guarantee, guarantees
from smallfirst.dashboard.queries.values import HOUR_S, Filters, Value
from smallfirst.store import Store
from smallfirst.store.rollups import Sums


@dataclass(frozen=True, slots=True)
class CostPoint:
    """USD per 1,000 right answers in the span that begins at `start` (seconds since the epoch) and lasts `seconds`:
    as it was with small-first, and as it would have been with the large model alone."""

    start: float
    seconds: float
    small_first: Value
    large_only: Value


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something that a person has to look at: `task` is "" where it is of no task; `since` in seconds since the epoch,
    None where unknown."""

    task: str
    text: str
    since: float | None


@dataclass(frozen=True, slots=True)
class Overview:
    """The first page. `sentence` says the figures in words; `points` are oldest first. `joules` is unknown as long as
    nothing measures it. `spent_usd` is what the calls cost; shadows and audits, `afterwards_usd`, come on top."""

    sentence: str
    calls: Value
    saved_usd: Value
    saved_share: Value
    moved_calls: Value
    moved_tokens: Value
    joules: Value
    cps_ratio: Value
    spent_usd: Value
    afterwards_usd: Value
    coverage: Value
    escalation: Value
    accepted_failure: Value
    accuracy: Value
    answered: Value
    cached: Value
    latency_p50: Value
    latency_p95: Value
    points: tuple[CostPoint, ...]
    guarantees: tuple[Guarantee, ...]
    alarms: tuple[Alarm, ...]

    @property
    def figures(self) -> tuple[Value, ...]:
        """Every figure of the page, in the order in which it shows them."""
        return tuple(each for name in self.__slots__ if isinstance(each := getattr(self, name), Value))


async def overview(store: Store, wanted: Filters, now: float) -> Overview:
    """The first page's figures of the calls wanted."""
    book = await read(store, wanted, now)
    standing = await guarantees(store, wanted.task)
    figures = summary(book)
    return Overview(
        sentence=_sentence(figures, standing),
        **figures,
        points=points(book),
        guarantees=tuple(standing),
        alarms=tuple(_alarms(standing, total(book.cells))),
    )


def summary(book: Book) -> dict[str, Value]:
    """The figures of all calls of the book, by their names in `Overview`."""
    t, pairs = total(book.cells), total(told(book.cells))
    calls = t["calls"]
    known = pairs["pairs_small"] > 0
    usd = pairs["wl"] - pairs["wc"]
    return {
        "calls": counted("calls", calls, calls),
        "saved_usd": estimated("saved", usd, pairs["usd_var"], pairs["pairs"]) if known else unknown("saved"),
        "saved_share": saved_share(pairs) if known else unknown("cost saved"),
        "moved_calls": counted("calls moved", small(t), calls),
        "moved_tokens": _moved_tokens(pairs) if known else unknown("tokens moved"),
        "joules": unknown("energy"),
        "cps_ratio": cps_ratio(pairs) if known else unknown("CPS to large-only"),
        "spent_usd": counted("spent", t["usd"], t["priced"]),
        "afterwards_usd": counted("shadows and audits", t["afterwards_usd"], calls),
        "coverage": rate("coverage", small(t), calls),
        "escalation": rate("escalation", t["escalated"], calls),
        "accepted_failure": accepted_failure(t),
        "accuracy": rate("accuracy", t["right_labelled"], t["labelled"]),
        "answered": rate("answered", t["answered"], calls),
        "cached": rate("cache hits", t["cache"], calls),
        "latency_p50": quantile("p50", book.times, 0.5),
        "latency_p95": quantile("p95", book.times, 0.95),
    }


def _moved_tokens(pairs: Totals) -> Value:
    return estimated("tokens moved", pairs["wt_small"], pairs["tokens_var"], pairs["pairs_small"])


def points(book: Book) -> tuple[CostPoint, ...]:
    """CPS in each span with pairs, oldest first."""
    spans: dict[int, list[Sums]] = defaultdict(list)
    for cell in told(book.cells):
        spans[cell.hour].append(cell)
    found = [(hour, total(cells)) for hour, cells in sorted(spans.items())]
    return tuple(
        CostPoint(
            float(hour * HOUR_S),
            float(book.width * HOUR_S),
            cps("CPS, small-first", t, "wc", "wr"),
            cps("CPS, large-only", t, "wl", "w"),
        )
        for hour, t in found
        if t["pairs"]
    )


def _alarms(standing: Sequence[Guarantee], t: Totals) -> list[Alarm]:
    found = [
        Alarm(
            each.task,
            f"Accepted answers of {each.stage} fail more often than the promised {each.alpha:.1%}; the large model "
            "answers until the task is calibrated again.",
            each.since,
        )
        for each in standing
        if each.alarm and each.alpha is not None
    ]
    if t["failed"] > 0.05 * t["calls"]:
        found.append(Alarm("", f"{t['failed']:,.0f} of {t['calls']:,.0f} calls failed.", None))
    return found


def _sentence(figures: dict[str, Value], standing: Sequence[Guarantee]) -> str:
    calls, saved, share = figures["calls"], figures["saved_usd"], figures["saved_share"]
    if not calls.value:
        return "No calls were recorded in this period."
    said = f"Small models answered {figures['coverage'].value or 0:.0%} of {calls.value:,.0f} calls"
    if saved.value is None:
        said += "; what that saved is not known until some of their answers are audited."
    elif saved.low is not None and saved.low > 0:
        said += f" and saved {saved.value:,.2f} USD ({saved.low:,.2f} to {saved.high:,.2f})"
        said += f", {share.value:.0%} of what the large model alone would have cost."
    elif saved.high is not None and saved.high < 0:
        said += f" and cost {-saved.value:,.2f} USD more than the large model alone would have."
    else:
        said += f"; whether that saved money is not sure yet ({saved.low:,.2f} to {saved.high:,.2f} USD)."
    promised = [each for each in standing if each.alpha is not None]
    if any(each.alarm for each in promised):
        return f"{said} A promise is broken: see the alarms."
    return f"{said} Every promise is kept, as far as audits tell." if promised else said
