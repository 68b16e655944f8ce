"""report: figures of a small set worked out by hand, and what is said when something is not known."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import dataclass, replace

import pytest
from rich.console import Console

from smallfirst import report
from smallfirst.types import Pair


@dataclass(frozen=True)
class Call:
    task: str = "book"
    seconds: float = 1.0
    served: int | None = 0
    correct: bool | None = True
    cost_usd: float | None = 0.02
    cost_usd_local_free: float | None = 0.01
    input_tokens: int = 100
    output_tokens: int = 10
    valid_first: bool = True
    executable: bool = True
    escalated: bool = False
    cached: bool = False
    by_small: bool = False
    pair: Pair | None = None
    afterwards_usd: float | None = 0.0


CALLS = [
    Call(),
    Call(seconds=2.0, correct=False, valid_first=False, escalated=True, cost_usd=0.04, cost_usd_local_free=0.03),
    Call(seconds=3.0, correct=None, cached=True, cost_usd=0.0, cost_usd_local_free=0.0, input_tokens=0),
    Call(seconds=4.0, correct=False, served=None, executable=False, valid_first=False, cost_usd=None),
    Call(task="ask", seconds=5.0, cost_usd=0.03),
]


def text_of(calls: list[Call], width: int = 100) -> str:
    console = Console(width=width)
    with console.capture() as captured:
        console.print(report.render(report.summarise(calls)))
    return captured.get()


def test_the_figures_are_those_worked_out_by_hand() -> None:
    """Rates over all calls, accuracy over the labelled ones, costs over the labelled ones with a price."""
    overall = report.summarise(CALLS).overall
    values = {spec.attribute: getattr(overall, spec.attribute) for spec in report.FIGURES if spec.always}
    assert values.pop("coverage").value == 0
    assert {name: (figure.value, figure.n) for name, figure in values.items()} == {
        "valid_first": (3 / 5, 5),
        "executable": (4 / 5, 5),
        "accuracy": (2 / 4, 4),
        "wrong_but_valid": (1 / 4, 4),
        "escalation": (1 / 5, 5),
        "cache_hits": (1 / 5, 5),
        "answered": (4 / 5, 5),
        "labelled": (4 / 5, 5),
        "latency_p50": (3.0, 5),
        "latency_p95": (5.0, 5),
        "tokens_in": (80.0, 5),
        "tokens_out": (10.0, 5),
        "cps": (pytest.approx((0.02 + 0.04 + 0.03) / 2), 3),
        "cps_local_free": (pytest.approx((0.01 + 0.03 + 0.01) / 2), 3),
    }
    assert (overall.calls, overall.unpriced) == (5, 1)
    assert (overall.cost_usd, overall.cost_usd_local_free) == (pytest.approx(0.09), pytest.approx(0.05))


def test_failed_attempts_cost_too() -> None:
    """What wrong answers cost is part of the cost of the right ones."""
    assert report.summarise([Call(), Call(correct=False)]).overall.cps.value == pytest.approx(0.04)


def test_every_figure_has_an_interval_around_it() -> None:
    """With enough calls every figure has both bounds, and they enclose the value."""
    calls = [replace(call, seconds=call.seconds + i) for i in range(60) for call in CALLS]
    overall = report.summarise(calls).overall
    for spec in report.FIGURES:
        figure = getattr(overall, spec.attribute)
        if figure.value is None and not spec.always:
            continue
        assert figure.low <= figure.value <= figure.high, spec.name


def test_tasks_come_by_their_number_of_calls() -> None:
    """Each task has figures of its own; the busiest comes first."""
    tasks = report.summarise(CALLS).tasks
    assert [(summary.task, summary.calls) for summary in tasks] == [("book", 4), ("ask", 1)]
    assert tasks[1].accuracy.value == 1.0


def test_rows_are_json_with_value_bounds_and_n() -> None:
    """Rows survive JSON: a row for all calls, one for each task, figures as value, low, high and n."""
    rows = json.loads(json.dumps(report.to_rows(report.summarise(CALLS, label="gold")), allow_nan=False))
    assert [row["task"] for row in rows] == [None, "book", "ask"]
    assert rows[0]["accuracy"] == {
        "value": 0.5,
        "low": pytest.approx(0.15, abs=0.01),
        "high": pytest.approx(0.85, abs=0.01),
        "n": 4,
    }
    assert rows[0]["label"] == "gold"
    assert {spec.name for spec in report.FIGURES} <= set(rows[0])


def test_unlabelled_calls_are_said_to_be_unlabelled() -> None:
    """Without labels accuracy and cost per success are not guessed: the row is null, the table says why."""
    unlabelled = [replace(call, correct=None) for call in CALLS]
    row = report.to_rows(report.summarise(unlabelled))[0]
    assert row["accuracy"] == row["CPS"] == {"value": None, "low": None, "high": None, "n": 0}
    assert "not labelled" in text_of(unlabelled)
    assert "No call is labelled." in text_of(unlabelled)


def test_the_label_is_named() -> None:
    """The table says where right and wrong come from."""
    assert "latest feedback of kind 'correct'" in text_of(CALLS)


def test_unknown_prices_are_said_to_be_unknown() -> None:
    """Calls without a price are counted and in no cost."""
    assert "Calls without a known price, which are in no cost: 1." in text_of(CALLS)
    assert "unknown price" in text_of([Call(cost_usd=None)])


def test_no_success_has_no_cost_per_success() -> None:
    """Where every labelled call is wrong there is a cost, but none per success."""
    assert "none right" in text_of([Call(correct=False)])


def audited(differs: bool, weight: float, **more: object) -> Call:
    """An accepted small answer that cost a tenth of what the large model's audit did."""
    pair = Pair(weight, differs, large_usd=0.2, large_tokens=100)
    return Call(correct=None, by_small=True, cost_usd=0.02, pair=pair, **more)


ESCALATED = Call(correct=None, escalated=True, cost_usd=0.22, pair=Pair(1.0, False, 0.2, 100))


def test_accepted_failure_is_weighted_by_the_odds_of_audits() -> None:
    """An audit drawn with 1 in 10 stands for ten calls; its interval is that of the effective number of audits."""
    calls = [audited(True, 1.0), *[audited(False, 1.0)] * 9, *[audited(False, 10.0)] * 9]
    figure = report.summarise(calls).overall.accepted_failure
    assert (figure.value, figure.n) == (pytest.approx(1 / 100), 19)
    assert figure.low < 0.01 < 0.2 < figure.high < 0.4


def test_savings_are_told_by_pairs() -> None:
    """Cost, tokens and cost per success against the large model alone, accepted calls by their audits' weights."""
    calls = [*[audited(False, 4.0)] * 19, audited(True, 4.0), *[ESCALATED] * 20, *[Call(by_small=True)] * 60]
    overall = report.summarise(calls).overall
    cost, large, right = 80 * 0.02 + 20 * 0.22, 100 * 0.2, 96 / 100
    assert overall.coverage.value == 0.8
    assert overall.cost_saved.value == pytest.approx(1 - cost / large)
    assert overall.cps_ratio.value == pytest.approx(cost / large / right)
    assert overall.tokens_saved.value == pytest.approx(0.8)
    assert "CPS to large-only" in text_of(calls)


def test_savings_are_not_told_without_audits() -> None:
    """Escalated calls alone would make small-first look dear, accepted ones without audits cheap: neither is said."""
    overall = report.summarise([ESCALATED, Call(by_small=True)]).overall
    assert (overall.cps_ratio.value, overall.cost_saved.value, overall.accepted_failure.value) == (None, None, None)


def test_what_is_made_afterwards_is_a_cost_of_its_own() -> None:
    """Shadows and audits are in no call's cost, and told beside it."""
    calls = [Call(afterwards_usd=0.5), Call(afterwards_usd=None)]
    assert report.summarise(calls).overall.afterwards_usd == pytest.approx(0.5)
    assert "Shadows and audits, which are in no other cost: $0.5." in text_of(calls)


def test_no_calls_make_an_empty_report() -> None:
    """A report of nothing is a table that says so."""
    assert report.summarise([]).overall.calls == 0
    assert "no calls" in text_of([])


def test_a_report_does_not_keep_the_calls() -> None:
    """However many calls there are, a few bytes of each are kept, and the figures are those of all."""
    tally, many = report.Tally(), 20_000
    tracemalloc.start()
    for number in range(many):
        tally.add(Call(task=f"t{number % 3}", seconds=float(number)))
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    found = tally.report()
    assert kept / many < 200
    assert (found.overall.calls, found.overall.latency_p50.value) == (many, many / 2 - 1)
    assert [task.calls for task in found.tasks] == [6667, 6667, 6666]


@pytest.mark.parametrize("width", [80, 100])
def test_the_tables_fit_whole(width: int) -> None:
    """No cell is cut off at 80 columns and no column left out, long task names included."""
    calls = [replace(call, task=f"{call.task}:live_parallel_multiple") for call in CALLS for _ in range(50)]
    text = text_of(calls, width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    by_task = text.partition("By task")[2]
    assert all(word in by_task.split() for word in ("accuracy", "coverage", "failure", "CPS", "only"))
