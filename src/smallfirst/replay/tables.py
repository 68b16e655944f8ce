"""What a replay printed: figures over the test calls of all splits, each with its interval.

A call's outcome is its mean over the splits that tested it, so the bootstrap over calls gives the interval of the
sample of calls; the splits themselves share calls and add no observations. ECE and AUROC are means over splits, with
the range that 95 % of splits lie in. Violations are splits whose accepted answers failed more often than alpha.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE
from rich.console import Group
from rich.table import Column, Table
from rich.text import Text

from smallfirst import stats
from smallfirst.guarantee import Certificate, Refusal
from smallfirst.replay.policies import Results
from smallfirst.replay.run import Replay, Split
from smallfirst.report import figure_row
from smallfirst.schemas import canonical_json
from smallfirst.stats import Figure

Floats = NDArray[np.float64]
FIGURES = ("accuracy", "escalation", "coverage", "accepted_failure", "cps", "cps_ratio", "ece", "auroc", "violations")
_MEANINGS = {
    "accuracy": "right, of all calls",
    "escalation": "the large model was asked",
    "coverage": "the small model's answer was accepted",
    "accepted_failure": "wrong, of the accepted",
    "cps": "cost per successful call",
    "cps_ratio": "the same against the large model alone, paired",
    "ece": "calibration error on the test calls",
    "auroc": "right from wrong by confidence",
    "violations": "splits with accepted_failure over alpha",
}


def figures(replay: Replay) -> dict[str, dict[str, Figure]]:
    """The figures of our way ("cascade") and of each baseline, by name."""
    names = ["cascade", *replay.splits[0].baselines]
    large = _by_call(replay, lambda split: split.baselines["always-large"])
    return {name: _figures(replay, name, large) for name in names}


def to_json(replay: Replay) -> dict[str, Any]:
    """One object: our figures, `baselines` by name, and `settings` with all that was chosen and found on the way."""
    rows = {
        name: {figure: figure_row(each) for figure, each in found.items()} for name, found in figures(replay).items()
    }
    return {**rows.pop("cascade"), "baselines": rows, "settings": _settings(replay)}


def render(replay: Replay) -> Group:
    """The same for people."""
    found = figures(replay)
    settings = _settings(replay)
    shown = [name for name in FIGURES if name not in {"cps", "ece", "auroc"}]
    table = Table(Column("", no_wrap=True), *(name.replace("_", " ") for name in shown), box=SIMPLE, pad_edge=False)
    for name, row in found.items():
        table.add_row(name, *(_cell(row[figure]) for figure in shown))
    intervals = Table("cascade", "value", "95 % interval", "n", "is", box=SIMPLE, pad_edge=False)
    for name in FIGURES:
        figure = found["cascade"][name]
        ends = "" if figure.low is None or figure.high is None else f"{figure.low:.4g} to {figure.high:.4g}"
        intervals.add_row(name.replace("_", " "), _cell(figure), ends, str(figure.n), _MEANINGS[name])
    return Group(intervals, table, Text(_summary(settings)))


def _figures(replay: Replay, name: str, large: Results) -> dict[str, Figure]:
    def pick(split: Split) -> Results:
        return split.ours if name == "cascade" else split.baselines[name]

    by_call = _by_call(replay, pick)
    nothing = Figure(None, None, None, 0, "none")
    return {
        "accuracy": stats.mean(by_call.success),
        "escalation": stats.mean(by_call.escalated),
        "coverage": stats.mean(by_call.accepted),
        "accepted_failure": stats.ratio(by_call.failed, by_call.accepted),
        "cps": stats.ratio(by_call.cost, by_call.success),
        "cps_ratio": stats.ratio_of_ratios((by_call.cost, large.cost), (by_call.success, large.success)),
        "ece": _spread([s.ece for s in replay.splits if s.ece is not None]) if name == "cascade" else nothing,
        "auroc": _spread([s.auroc for s in replay.splits if s.auroc is not None]) if name == "cascade" else nothing,
        "violations": stats.wilson(sum(_violated(split, pick(split)) for split in replay.splits), len(replay.splits)),
    }


def _by_call(replay: Replay, pick: Callable[[Split], Results]) -> Results:
    """Each tested call's mean over the splits that tested it."""
    n = len(replay.calls)
    times = np.zeros(n)
    sums = {name: np.zeros(n) for name in Results.__slots__}
    for split in replay.splits:
        times[split.index] += 1
        results = pick(split)
        for name, total in sums.items():
            total[split.index] += getattr(results, name)
    tested = times > 0
    return Results(**{name: total[tested] / times[tested] for name, total in sums.items()})


def _violated(split: Split, results: Results) -> bool:
    """Whether accepted answers failed more often than the split's alpha; without one nothing was promised."""
    accepted = float(results.accepted.sum())
    alpha = 1.0 if split.acceptance is None else split.acceptance.outcome.alpha
    return accepted > 0 and float(results.failed.sum()) / accepted > alpha


def _spread(values: Sequence[float]) -> Figure:
    if not values:
        return Figure(None, None, None, 0, "splits")
    low, high = np.quantile(values, (0.025, 0.975)).tolist() if len(values) > 1 else (None, None)
    return Figure(float(np.mean(values)), low, high, len(values), "splits")


def _settings(replay: Replay) -> dict[str, Any]:
    settings, splits = replay.settings, replay.splits
    learned = [s.acceptance for s in splits if s.acceptance is not None]
    certified = [a.outcome for a in learned if isinstance(a.outcome, Certificate)]
    missing = [a.outcome.needed for a in learned if isinstance(a.outcome, Refusal) and a.outcome.needed is not None]
    return {
        **asdict(settings),
        "alpha": float(np.mean([a.outcome.alpha for a in learned])),
        "alpha_given": settings.alpha,
        "calls": len(replay.calls),
        "fitted_on": replay.fitted_on,
        "tested_on": len(splits[0].index),
        "fitted_and_tested": _in_both(replay),
        "unit": replay.prices.unit,
        "priced_by_list": list(replay.prices.by_list),
        "certified_splits": len(certified),
        "refused_splits": len(splits) - len(certified),
        "labels_missing": int(np.median(missing)) if missing else None,
        "threshold": float(np.mean([c.threshold for c in certified])) if certified else None,
        "features": list(learned[0].model.names),
        "decision_ms": replay.decision_ms,
    }


def _in_both(replay: Replay) -> int:
    """Test calls of the first split whose request, word for word, is fitted on as well."""
    tested = set(replay.splits[0].index.tolist())
    fitted = {canonical_json(call.request.body) for n, call in enumerate(replay.calls) if n not in tested}
    return sum(canonical_json(replay.calls[n].request.body) in fitted for n in tested)


def _summary(settings: dict[str, Any]) -> str:
    chosen = f"not promised: the cheapest threshold's bound, a wrong answer at {settings['failure_cost']:g} large calls"
    given = "given" if settings["alpha_given"] is not None else chosen
    of = f"{settings['fitted_on']} calls to fit on, {settings['tested_on']} to test on, {settings['splits']} splits"
    lists = ", ".join(settings["priced_by_list"]) or "none"
    lines = [
        f"small {settings['small']}, second {settings['second'] or 'none'}, large {settings['large']}",
        f"alpha {settings['alpha']:.3g} ({given}), delta {settings['delta']:g}; {of}",
        f"costs in {settings['unit']}; by price list: {lists}; others {settings['small_cost_ratio']:g} of a large call",
    ]
    if both := settings["fitted_and_tested"]:
        lines.append(
            f"{both} of the calls tested on are fitted on as well: on unseen calls the figures would be worse."
        )
    if refused := settings["refused_splits"]:
        needed = settings["labels_missing"]
        more = f"; about {needed} more labels are needed there" if needed else ""
        lines.append(f"No threshold could be certified in {refused} splits: all calls escalated{more}.")
    return "\n".join(lines)


def _cell(figure: Figure) -> str:
    return "" if figure.value is None else f"{figure.value:.4g}"
