"""What an evaluation found: each arm's figures with intervals, paired with the large model's where that answered.

The figures are those of `report`, over the test calls; this module adds what compares arms, and how an evaluation is
kept and shown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE
from rich.console import Group
from rich.table import Table
from rich.text import Text

from smallfirst import report, stats
from smallfirst.acceptance import Acceptance
from smallfirst.artifact import write_json
from smallfirst.exact import upper_bound
from smallfirst.guarantee import Certificate
from smallfirst.learn.asking import Asked
from smallfirst.learn.paired import difference, least_calls, p_noninferior
from smallfirst.report import FigureSpec, figure_row
from smallfirst.stats import Figure

Arm = Literal["B0", "B1", "B2", "B3", "B4"]
ARMS: Mapping[Arm, str] = {
    "B0": "the large model only",
    "B1": "the small model, zero-shot",
    "B2": "the small model with the nearest examples",
    "B3": "the specialist",
    "B4": "the specialist where it is accepted, else the large model",
}
UTILISATIONS = (0.5, 0.2)
"""Shares of the time in which the local machine works, beside all of it; the rest is paid for all the same."""
FILE = "evaluation.json"
_HEADS: Mapping[Arm, str] = {"B0": "large", "B1": "zero-shot", "B2": "examples", "B3": "specialist", "B4": "cascade"}
_UNITS = {"rate": ", %", "seconds": ", s", "usd": ", $"}


def _cps_at(utilisation: float) -> str:
    return f"cps_{100 * utilisation:.0f}"


_OF_REPORT = ("accuracy", "valid_first", "executable", "wrong_but_valid", "escalation", "coverage")
_OF_COST = ("latency_p50", "latency_p95", "tokens_in", "tokens_out", "cps", "cps_local_free")
_SPECS = {spec.attribute: spec for spec in report.FIGURES}
FIGURES: tuple[FigureSpec, ...] = (
    *(_SPECS[name] for name in _OF_REPORT),
    FigureSpec("accepted_failure", "accepted failure", "rate", "small answers served that are wrong; exact bound"),
    FigureSpec("difference", "accuracy - B0's", "rate", "paired by call"),
    *(_SPECS[name] for name in _OF_COST),
    *(FigureSpec(f"cps_{u:.0%}"[:-1], f"CPS at {u:.0%}", "usd", "local machine used so") for u in UTILISATIONS),
    FigureSpec("cps_ratio", "CPS to B0's", "ratio", "paired by call"),
    FigureSpec("tokens_moved", "tokens moved", "rate", "of the large model's, not asked of it any more"),
    FigureSpec("cost_moved", "cost moved", "rate", "of the large model's, for calls that a small model answered"),
    FigureSpec("cost_saved", "cost saved", "rate", "of the large model's, small attempts paid"),
)
"""An arm's figures in the order in which they are shown; coverage is the share of calls moved."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What is evaluated, and how.

    The newest `limit` test calls are asked in every arm, the newest `labels` calibration calls of the specialist only.
    `examples` are shown in B2. `alpha` and `delta` are those of the promise (`guarantee.learn_then_test`); B4 is called
    non-inferior to B0 when it is shown, at level `delta`, to be right less often by less than `margin`.
    """

    arms: tuple[Arm, ...] = tuple(ARMS)
    limit: int = 100
    labels: int = 400
    examples: int = 4
    alpha: float = 0.05
    delta: float = 0.05
    margin: float = 0.02
    level: float = 0.95


@dataclass(frozen=True, slots=True)
class ArmResult:
    """An arm on the test calls. `figures` by the attributes of FIGURES. `p_noninferior` is the p-value against being
    worse than B0 by the margin, None without B0. `joules` are those of the whole machine for each call, None where it
    does not tell, and for B0, which works elsewhere. `errors` counts calls without an answer by why."""

    arm: Arm
    model: str
    calls: tuple[Asked, ...]
    figures: Mapping[str, Figure]
    p_noninferior: float | None
    joules: float | None
    errors: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What was found. `small` is the id of the version evaluated, which names its stage.

    `acceptance` is the calibration that B4 ran with, None where there was none; `refused` says why nothing is accepted,
    `needed` how many more labels that would take by estimate. `judged` are the specialist's test answers: confidence,
    and whether right. `labels` counts the test calls by how their answers are known. `notes` are sentences for the
    reader. `configuration` is the policy in force, `parents` sha256 of what was evaluated.
    """

    task: str
    small: str
    arms: tuple[ArmResult, ...]
    acceptance: Acceptance | None
    refused: str
    needed: int | None
    judged: tuple[tuple[float, bool], ...]
    labels: Mapping[str, int]
    notes: tuple[str, ...]
    settings: Settings
    configuration: Mapping[str, Any]
    parents: Mapping[str, str]
    made_at: float
    seconds: float

    def arm(self, arm: Arm) -> ArmResult | None:
        """The result of an arm, None if it was not run."""
        return next((each for each in self.arms if each.arm == arm), None)

    @property
    def certificate(self) -> Certificate | None:
        outcome = None if self.acceptance is None else self.acceptance.outcome
        return outcome if isinstance(outcome, Certificate) else None


def result_of(
    arm: Arm,
    model: str,
    calls: Sequence[Asked],
    large: Mapping[str, Asked],
    settings: Settings,
    *,
    certain: bool = False,
    joules: float | None = None,
) -> ArmResult:
    """The arm's figures; `large` are B0's calls by id, empty without B0. `certain`: B0 is right by definition."""
    summary = report.summarise(calls, level=settings.level).overall
    known = {name: getattr(summary, name) for name in (*_OF_REPORT, *_OF_COST)}
    accepted = [call.correct for call in calls if call.by_small and call.correct is not None]
    pairs = [(call, large[call.id]) for call in calls if call.id in large]
    both = [(call.correct, base.correct) for call, base in pairs]
    told = [(right, base) for right, base in both if right is not None and base is not None]
    wins, losses = sum(right > base for right, base in told), sum(base > right for right, base in told)
    return ArmResult(
        arm=arm,
        model=model,
        calls=tuple(calls),
        figures={
            **known,
            "accepted_failure": _accepted_failure(accepted.count(False), len(accepted), settings.delta),
            "difference": difference(wins, losses, len(told), settings.level),
            **_utilised(calls, settings.level),
            **_compared(pairs, settings.level),
        },
        p_noninferior=p_noninferior(wins, losses, len(told), settings.margin, never_wins=certain) if told else None,
        joules=None if joules is None or not calls else joules / len(calls),
        errors=dict(Counter(call.error for call in calls if call.error)),
    )


def _accepted_failure(failures: int, n: int, delta: float) -> Figure:
    """The rate with its exact one-sided bound at level delta."""
    if n == 0:
        return Figure(None, None, None, 0, "clopper-pearson, one-sided")
    return Figure(failures / n, None, float(upper_bound(failures, n, delta)), n, "clopper-pearson, one-sided")


def _utilised(calls: Sequence[Asked], level: float) -> dict[str, Figure]:
    """Cost per success when the machine stands idle for the rest of the time and that is paid too."""
    priced = [(c.cost_usd, c.cost_usd_local_free, c.correct) for c in calls if c.correct is not None]
    known = [(usd, free, right) for usd, free, right in priced if usd is not None and free is not None]
    right = np.array([right for *_, right in known], dtype=float)
    free = np.array([free for _, free, _ in known], dtype=float)
    machine = np.array([usd - free for usd, free, _ in known], dtype=float)
    return {_cps_at(u): stats.ratio(free + machine / u, right, level=level) for u in UTILISATIONS}


def _compared(pairs: Sequence[tuple[Asked, Asked]], level: float) -> dict[str, Figure]:
    """Costs and tokens against the large model's on the same calls, as far as prices are known."""
    priced = [(c, b, c.cost_usd, b.cost_usd) for c, b in pairs]
    known = [(c, b, usd, base) for c, b, usd, base in priced if usd is not None and base is not None]
    told = [each for each in known if each[0].correct is not None and each[1].correct is not None]

    def column(rows: Sequence[Any], value: Callable[..., float]) -> NDArray[np.float64]:
        return np.array([value(*row) for row in rows], dtype=float)

    usd, base = column(known, lambda _c, _b, usd, _l: usd), column(known, lambda _c, _b, _u, large: large)
    small = column(known, lambda c, *_: c.by_small)
    tokens = column(pairs, lambda _, b: b.large_tokens)
    kept = column(pairs, lambda c, _: c.large_tokens)
    costs = column(told, lambda _c, _b, usd, _l: usd), column(told, lambda _c, _b, _u, large: large)
    right = column(told, lambda c, *_: c.correct), column(told, lambda _, b, *__: b.correct)
    return {
        "cps_ratio": stats.ratio_of_ratios(costs, right, level=level),
        "tokens_moved": stats.ratio(tokens - kept, tokens, level=level),
        "cost_moved": stats.ratio(base * small, base, level=level),
        "cost_saved": stats.ratio(base - usd, base, level=level),
    }


def to_json(evaluation: Evaluation) -> dict[str, Any]:
    """The evaluation as one JSON object; figures by the names in FIGURES."""
    acceptance = evaluation.acceptance
    return {
        "task": evaluation.task,
        "small": evaluation.small,
        "arms": {each.arm: _arm_json(each) for each in evaluation.arms},
        "certificate": None if evaluation.certificate is None else asdict(evaluation.certificate),
        "refused": evaluation.refused,
        "needed": evaluation.needed,
        "quality": None if acceptance is None else dict(acceptance.quality),
        "judged": evaluation.judged,
        "labels": dict(evaluation.labels),
        "notes": evaluation.notes,
        "settings": asdict(evaluation.settings),
        "configuration": evaluation.configuration,
        "parents": dict(evaluation.parents),
        "made_at": evaluation.made_at,
        "seconds": evaluation.seconds,
    }


def save(evaluation: Evaluation, folder: Path) -> Path:
    """Writes `evaluation.json` into `folder`, whole or not at all. Raises DataError when that cannot be written."""
    return write_json(to_json(evaluation), folder / FILE)


def render(evaluation: Evaluation) -> Group:
    """The evaluation for people: figures by arm, what was certified, and notes."""
    table = Table(box=SIMPLE, pad_edge=False, title=evaluation.small, title_justify="left")
    table.add_column("", no_wrap=True)
    for each in evaluation.arms:
        table.add_column(f"{each.arm}\n{_HEADS[each.arm]}", justify="right", no_wrap=True)
    for spec in FIGURES:
        figures = [each.figures[spec.attribute] for each in evaluation.arms]
        if any(figure.value is not None for figure in figures):
            table.add_row(spec.name + _UNITS.get(spec.unit, ""), *(_cell(figure, spec) for figure in figures))
    if any(each.joules is not None for each in evaluation.arms):
        table.add_row("joules a call", *("" if r.joules is None else f"{r.joules:.3g}" for r in evaluation.arms))
    table.add_row("calls", *(str(len(each.calls)) for each in evaluation.arms))
    return Group(table, *(Text(line) for line in sentences(evaluation)))


def sentences(evaluation: Evaluation) -> list[str]:
    """What the figures come to."""
    settings, found = evaluation.settings, []
    if (made := evaluation.certificate) is not None:
        found.append(
            f"Accepted from a confidence of {made.threshold:.3f}: at most {made.alpha:.1%} wrong ({1 - made.delta:.0%} "
            f"sure), {made.accepted} of {made.n} calibration calls, {made.failures} of them wrong."
        )
    elif evaluation.refused:
        more = f" About {evaluation.needed} more labels are needed." if evaluation.needed else ""
        found.append(f"Nothing is accepted: {evaluation.refused.rstrip('.')}.{more}")
    for each in evaluation.arms:
        if each.p_noninferior is not None and each.arm in ("B3", "B4"):
            found.append(_noninferior(each, each.p_noninferior, settings))
        if each.errors:
            counts = ", ".join(f"{n} {code}" for code, n in each.errors.items())
            found.append(f"{each.arm} left calls without an answer: {counts}.")
    models = ", ".join(f"{each.arm} {each.model}" for each in evaluation.arms)
    labels = ", ".join(f"{n} {kind}" for kind, n in evaluation.labels.items())
    found.append(
        f"Models: {models}. Right by: {labels}. USD are for 1,000 right answers; intervals at {settings.level:.0%}."
    )
    return [*found, *evaluation.notes]


def _noninferior(result: ArmResult, p: float, settings: Settings) -> str:
    shown, n = p <= settings.delta, result.figures["difference"].n
    least = least_calls(settings.margin, settings.delta)
    few = f"; {least} calls could show it, without a loss among them" if not shown and n < least else ""
    claim = f"shown to be at most {100 * settings.margin:g} points less often right than B0"
    return f"{result.arm} is {'' if shown else 'not '}{claim} (p = {p:.2g}, n = {n}{few})."


def _arm_json(result: ArmResult) -> dict[str, Any]:
    return {
        "name": ARMS[result.arm],
        "model": result.model,
        "calls": len(result.calls),
        **{spec.name: figure_row(result.figures[spec.attribute]) for spec in FIGURES},
        "joules": result.joules,
        "p_noninferior": result.p_noninferior,
        "errors": dict(result.errors),
    }


def _cell(figure: Figure, spec: FigureSpec) -> Text:
    if figure.value is None:
        return Text("")
    ends = report.interval_text(figure, spec, 2).replace(" ", "")
    return Text.assemble(report.number_text(figure.value, spec, 2), "\n", (ends, "dim"))
