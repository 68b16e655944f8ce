"""What calls came to: cost per success, the four rates, accuracy, latency and tokens, each with its interval.

The definitions are those of mechanisms section 1 (after arXiv 2510.03847). What needs to know right from wrong is
computed over the labelled calls alone, and `Report.label` names the label; a call without one is never guessed at. A
call whose price is unknown is left out of costs and counted as unpriced.

What small-first saves is told by pairs: calls whose answer served stands beside the large model's to the same call.
Calls that the large model answered are pairs as they are; of those that a small model answered, the audited ones, each
of which stands for one over the probability of its audit. Right means there: the same as the large model's. This module
knows neither store nor gateway.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE
from rich.console import Group
from rich.table import Table
from rich.text import Text

from smallfirst import stats
from smallfirst.stats import Figure
from smallfirst.types import Pair

Columns = NDArray[Any]
FEEDBACK = "latest feedback of kind 'correct'"
_PAGE = 4096
_NUMBERS = ("seconds", "cost_usd", "cost_usd_local_free", "input_tokens", "output_tokens", "large_usd")
_SMALL_NUMBERS = ("afterwards_usd", "weight", "large_tokens")
_FLAGS = (
    *("valid_first", "executable", "escalated", "cached", "served", "labelled", "right"),
    *("by_small", "differs"),
)
_COLUMNS = np.dtype(
    [
        ("task", "u4"),
        *((name, "f8") for name in _NUMBERS),
        *((name, "f4") for name in _SMALL_NUMBERS),
        *((name, "?") for name in _FLAGS),
    ]
)
_TASK_TABLE = ("coverage", "accepted_failure", "accuracy", "cps", "cps_ratio")


class Call(Protocol):
    """A recorded call in numbers (`store.RecordSummary` is one). `served` is None when no answer was given; `correct`
    is the label, None without one; costs are in USD, None when a price is unknown. `afterwards_usd` is what shadows and
    audits cost, which is in no other cost."""

    @property
    def task(self) -> str: ...
    @property
    def seconds(self) -> float: ...
    @property
    def served(self) -> int | None: ...
    @property
    def correct(self) -> bool | None: ...
    @property
    def cost_usd(self) -> float | None: ...
    @property
    def cost_usd_local_free(self) -> float | None: ...
    @property
    def input_tokens(self) -> int: ...
    @property
    def output_tokens(self) -> int: ...
    @property
    def valid_first(self) -> bool: ...
    @property
    def executable(self) -> bool: ...
    @property
    def escalated(self) -> bool: ...
    @property
    def cached(self) -> bool: ...
    @property
    def by_small(self) -> bool: ...
    @property
    def pair(self) -> Pair | None: ...
    @property
    def afterwards_usd(self) -> float | None: ...


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures of one task, or of all calls when `task` is None. `FIGURES` says what each of them means.

    `cost_usd`, `cost_usd_local_free` and `afterwards_usd` are totals over the calls with a known price; `unpriced`
    counts the others.
    """

    task: str | None
    calls: int
    unpriced: int
    cost_usd: float
    cost_usd_local_free: float
    afterwards_usd: float
    valid_first: Figure
    executable: Figure
    accuracy: Figure
    wrong_but_valid: Figure
    escalation: Figure
    cache_hits: Figure
    answered: Figure
    labelled: Figure
    coverage: Figure
    accepted_failure: Figure
    accepted_failure_labelled: Figure
    latency_p50: Figure
    latency_p95: Figure
    tokens_in: Figure
    tokens_out: Figure
    cps: Figure
    cps_local_free: Figure
    cps_ratio: Figure
    cost_saved: Figure
    tokens_saved: Figure


@dataclass(frozen=True, slots=True)
class Report:
    """All calls together and by task (most calls first), with intervals at `level`; `label` says what "right" means."""

    label: str
    level: float
    overall: Summary
    tasks: tuple[Summary, ...]


@dataclass(frozen=True, slots=True)
class FigureSpec:
    """How a figure of a `Summary` is shown and what it means; unless `always`, only where it is known."""

    attribute: str
    name: str
    unit: Literal["rate", "seconds", "tokens", "usd", "ratio"]
    meaning: str
    always: bool = True


FIGURES = (
    FigureSpec("valid_first", "valid@1", "rate", "first output satisfies the request"),
    FigureSpec("executable", "ExecRate", "rate", "answer calls tools as their schemas say"),
    FigureSpec("accuracy", "accuracy", "rate", "right, among labelled calls"),
    FigureSpec("wrong_but_valid", "wrong-but-valid", "rate", "valid but wrong, among labelled calls"),
    FigureSpec("escalation", "escalation", "rate", "a larger model was asked"),
    FigureSpec("cache_hits", "cache hits", "rate", "answered from the response cache"),
    FigureSpec("answered", "answered", "rate", "an answer was given"),
    FigureSpec("labelled", "labelled", "rate", "calls with a label"),
    FigureSpec("coverage", "coverage", "rate", "a small model's answer was accepted"),
    FigureSpec("accepted_failure", "accepted failure", "rate", "accepted, but not what audits found", False),
    FigureSpec("accepted_failure_labelled", "accepted failure, labels", "rate", "accepted, but labelled wrong", False),
    FigureSpec("latency_p50", "p50", "seconds", "median time of a call"),
    FigureSpec("latency_p95", "p95", "seconds", "time that 95 of 100 calls stay under"),
    FigureSpec("tokens_in", "tokens in", "tokens", "mean input tokens, every attempt"),
    FigureSpec("tokens_out", "tokens out", "tokens", "mean output tokens, every attempt"),
    FigureSpec("cps", "CPS", "usd", "USD per 1,000 right answers"),
    FigureSpec("cps_local_free", "CPS, local free", "usd", "the same, local machine time at 0"),
    FigureSpec("cps_ratio", "CPS to large-only", "ratio", "by pairs with the large model's answer", False),
    FigureSpec("cost_saved", "cost saved", "rate", "of the cost of the large model alone, by pairs", False),
    FigureSpec("tokens_saved", "large tokens saved", "rate", "of the large model's tokens, by pairs", False),
)


class Tally:
    """Adds calls up and keeps of each what the figures need, 73 bytes, so that any number of them can be reported."""

    def __init__(self) -> None:
        self._tasks: dict[str, int] = {}
        self._page: list[tuple[float | bool | None, ...]] = []
        self._pages: list[Columns] = []

    def add(self, call: Call) -> None:
        """Count `call` in."""
        pair = call.pair
        self._page.append(
            (
                self._tasks.setdefault(call.task, len(self._tasks)),
                call.seconds,
                call.cost_usd,
                call.cost_usd_local_free,
                call.input_tokens,
                call.output_tokens,
                pair.large_usd if pair else None,
                call.afterwards_usd,
                pair.weight if pair else 0.0,
                pair.large_tokens if pair else 0.0,
                call.valid_first,
                call.executable,
                call.escalated,
                call.cached,
                call.served is not None,
                call.correct is not None,
                bool(call.correct),
                call.by_small,
                bool(pair and pair.differs),
            )
        )
        if len(self._page) == _PAGE:
            self._pages.append(np.array(self._page, dtype=_COLUMNS))
            self._page = []

    def report(self, *, label: str = FEEDBACK, level: float = 0.95) -> Report:
        """The report of the calls so far; `label` names where their `correct` comes from.

        Intervals: Wilson for rates, BCa bootstrap over calls for costs and means, order statistics for latencies.
        """
        every = np.concatenate([*self._pages, np.array(self._page, dtype=_COLUMNS)])
        by_task = {task: every[every["task"] == number] for task, number in self._tasks.items()}
        largest_first = sorted(by_task.items(), key=lambda item: (-len(item[1]), item[0]))
        tasks = tuple(_summary(task, calls, level) for task, calls in largest_first)
        return Report(label, level, _summary(None, every, level), tasks)


def summarise(calls: Iterable[Call], *, label: str = FEEDBACK, level: float = 0.95) -> Report:
    """The report of `calls`, see `Tally.report`."""
    tally = Tally()
    for call in calls:
        tally.add(call)
    return tally.report(label=label, level=level)


def to_rows(report: Report) -> list[dict[str, Any]]:
    """One JSON-ready object for all calls (task None), then one for each task; keys are the names in `FIGURES`."""
    return [_row(summary, report) for summary in (report.overall, *report.tasks)]


def figure_row(figure: Figure) -> dict[str, float | int | None]:
    """A figure as every JSON output of ours writes it."""
    return {"value": figure.value, "low": figure.low, "high": figure.high, "n": figure.n}


def render(report: Report) -> Group:
    """The report as tables that fit 80 columns; tasks get a table of their own when there are several."""
    tables = [_overall_table(report)]
    if len(report.tasks) > 1:
        tables.append(_task_table(report))
    return Group(*tables, *_notes(report))


def _summary(task: str | None, calls: Columns, level: float) -> Summary:
    labelled = calls[calls["labelled"]]
    priced = calls[~(np.isnan(calls["cost_usd"]) | np.isnan(calls["cost_usd_local_free"]))]

    def rate(hits: Columns) -> Figure:
        return stats.wilson(int(hits.sum()), len(hits), level)

    return Summary(
        task=task,
        calls=len(calls),
        unpriced=len(calls) - len(priced),
        cost_usd=float(priced["cost_usd"].sum()),
        cost_usd_local_free=float(priced["cost_usd_local_free"].sum()),
        afterwards_usd=float(np.nansum(calls["afterwards_usd"], dtype=np.float64)),
        valid_first=rate(calls["valid_first"]),
        executable=rate(calls["executable"]),
        accuracy=rate(labelled["right"]),
        wrong_but_valid=rate(labelled["executable"] & ~labelled["right"]),
        escalation=rate(calls["escalated"]),
        cache_hits=rate(calls["cached"]),
        answered=rate(calls["served"]),
        labelled=rate(calls["labelled"]),
        coverage=rate(calls["by_small"]),
        accepted_failure=_accepted_failure(calls, level),
        accepted_failure_labelled=rate(~labelled["right"][labelled["by_small"]]),
        latency_p50=stats.quantile(calls["seconds"], 0.5, level),
        latency_p95=stats.quantile(calls["seconds"], 0.95, level),
        tokens_in=stats.mean(calls["input_tokens"], level=level),
        tokens_out=stats.mean(calls["output_tokens"], level=level),
        **_costs_per_success(priced[priced["labelled"]], level),
        **_savings(calls, level),
    )


def _costs_per_success(calls: Columns, level: float) -> dict[str, Figure]:
    return {
        "cps": stats.ratio(calls["cost_usd"], calls["right"], level=level),
        "cps_local_free": stats.ratio(calls["cost_usd_local_free"], calls["right"], level=level),
    }


def _accepted_failure(calls: Columns, level: float) -> Figure:
    """The rate at which audits found accepted answers wrong, each weighted by one over its probability, with Wilson's
    interval at the effective number of audits, (sum w)^2 / sum w^2 (Kish 1965)."""
    audits = calls[calls["by_small"] & (calls["weight"] > 0)]
    weight = audits["weight"].astype(np.float64)
    if not len(audits):
        return Figure(None, None, None, 0, "wilson")
    rate = float(weight[audits["differs"]].sum() / weight.sum())
    low, high = stats.score_interval(rate, float(weight.sum() ** 2 / (weight**2).sum()), level)
    return Figure(rate, low, high, len(audits), "wilson, effective n")


def _savings(calls: Columns, level: float) -> dict[str, Figure]:
    """Small-first against the large model alone, over weighted pairs; unknown unless a small model's answers were
    audited in every task where some were accepted."""
    names = ("cps_ratio", "cost_saved", "tokens_saved")
    small, paired = calls["by_small"], calls["weight"] > 0
    told = np.isin(calls["task"], np.setdiff1d(calls["task"][small], calls["task"][small & paired]), invert=True)
    pairs = calls[paired & told & ~np.isnan(calls["cost_usd"]) & ~np.isnan(calls["large_usd"])]
    if not pairs["by_small"].any():
        return dict.fromkeys(names, Figure(None, None, None, 0, "bca"))
    weight = pairs["weight"].astype(np.float64)
    cost, large = weight * pairs["cost_usd"], weight * pairs["large_usd"]
    tokens = weight * pairs["large_tokens"]
    return {
        "cps_ratio": stats.ratio_of_ratios((cost, large), (weight * ~pairs["differs"], weight), level=level),
        "cost_saved": stats.ratio(large - cost, large, level=level),
        "tokens_saved": stats.ratio(tokens * pairs["by_small"], tokens, level=level),
    }


def _row(summary: Summary, report: Report) -> dict[str, Any]:
    return {
        "task": summary.task,
        "calls": summary.calls,
        **{spec.name: figure_row(getattr(summary, spec.attribute)) for spec in FIGURES},
        "cost USD": summary.cost_usd,
        "cost USD, local free": summary.cost_usd_local_free,
        "shadows and audits USD": summary.afterwards_usd,
        "unpriced": summary.unpriced,
        "label": report.label,
        "level": report.level,
    }


def _overall_table(report: Report) -> Table:
    table = Table(title=f"{report.overall.calls:,} calls", title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("figure", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column(f"{report.level:.0%} interval", justify="right", no_wrap=True)
    table.add_column("n", justify="right", no_wrap=True)
    table.add_column("meaning", style="dim")
    for spec in FIGURES:
        figure: Figure = getattr(report.overall, spec.attribute)
        if figure.value is None and not spec.always:
            continue
        value = _value_text(report.overall, spec)
        table.add_row(spec.name, value, interval_text(figure, spec), f"{figure.n:,}", spec.meaning)
    return table


def _task_table(report: Report) -> Table:
    table = Table(
        title=f"By task, {report.level:.0%} intervals", title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0)
    )
    table.add_column("task\ncalls", overflow="fold")
    columns = [[Text(f"{summary.task}\n{summary.calls:,}") for summary in report.tasks]]
    for spec in (spec for spec in FIGURES if spec.attribute in _TASK_TABLE):
        heading, cells = spec.name.replace("-", " "), []
        unbroken = heading.split()
        for summary in report.tasks:
            figure: Figure = getattr(summary, spec.attribute)
            value, interval = _value_text(summary, spec, 2), interval_text(figure, spec, 2).replace(" ", "")
            unbroken += value.split() if figure.value is None else [value, interval]
            cells.append(Text.assemble(value, "\n", (interval, "dim")))
        table.add_column(heading, justify="right", width=max(map(len, unbroken)))
        columns.append(cells)
    for row in zip(*columns, strict=True):
        table.add_row(*row)
    return table


def _notes(report: Report) -> list[Text]:
    overall = report.overall
    labels = f"Right or wrong by: {report.label}." if overall.labelled.value else "No call is labelled."
    costs = f"Total cost ${overall.cost_usd:.4g}; with local machine time at 0, ${overall.cost_usd_local_free:.4g}."
    beside = (
        [Text(f"Shadows and audits, which are in no other cost: ${overall.afterwards_usd:.4g}.")]
        if overall.afterwards_usd
        else []
    )
    unpriced = (
        [Text(f"Calls without a known price, which are in no cost: {overall.unpriced:,}.")] if overall.unpriced else []
    )
    return [Text(labels), Text(costs), *beside, *unpriced]


def _value_text(summary: Summary, spec: FigureSpec, digits: int = 3) -> str:
    figure: Figure = getattr(summary, spec.attribute)
    if figure.value is not None:
        return number_text(figure.value, spec, digits) + {"rate": " %", "seconds": " s"}.get(spec.unit, "")
    if figure.n:
        return "none right"
    if summary.calls == 0:
        return "no calls"
    if not spec.always:
        return "not told"
    return "unknown price" if summary.labelled.value else "not labelled"


def interval_text(figure: Figure, spec: FigureSpec, digits: int = 3) -> str:
    """The interval; one-sided where the sample bounds only one side, "" where it bounds none."""
    low, high = (None if bound is None else number_text(bound, spec, digits) for bound in (figure.low, figure.high))
    if low is None:
        return "" if high is None else f"≤ {high}"
    return f"≥ {low}" if high is None else f"{low} – {high}"


def number_text(value: float, spec: FigureSpec, digits: int) -> str:
    """The value in words: `digits` significant digits (whole tokens; rates in percent, so many digits up to 100)."""
    if spec.unit == "rate":
        return f"{100 * value:.{digits - 2}f}"
    if spec.unit == "tokens":
        return f"{value:,.0f}"
    scaled = 1000 * value if spec.unit == "usd" else value
    return f"{float(f'{scaled:.{digits}g}'):g}"
