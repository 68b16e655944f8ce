"""An evaluation as pictures (SVG): what is wrong at which coverage, and what accuracy costs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smallfirst.extra import need
from smallfirst.learn.evaluation import ARMS, Evaluation

_WIDTH, _HEIGHT = 420, 280


def draw(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Writes the pictures there are data for into `folder`. Raises ConfigError when altair is not installed."""
    need("vl_convert", "dashboard")
    charts = {"accuracy-cost.svg": _accuracy_cost(evaluation), "risk-coverage.svg": _risk_coverage(evaluation)}
    drawn = {folder / name: chart for name, chart in charts.items() if chart is not None}
    for path, chart in drawn.items():
        chart.save(path)
    return list(drawn)


def risk_coverage(judged: Sequence[tuple[float, bool]]) -> list[dict[str, float]]:
    """Accepting the most confident answers first: the share accepted and the share of those that is wrong, where
    confidence changes."""
    ordered, found, wrong = sorted(judged, key=lambda pair: -pair[0]), list[dict[str, float]](), 0
    for n, (confidence, right) in enumerate(ordered, start=1):
        wrong += not right
        if n == len(ordered) or ordered[n][0] < confidence:
            found.append({"coverage": n / len(ordered), "wrong": wrong / n, "confidence": confidence})
    return found


def _risk_coverage(evaluation: Evaluation) -> Any | None:
    if not evaluation.judged:
        return None
    alt = need("altair", "dashboard")
    percent = alt.Axis(format="%")
    points = alt.Chart(alt.Data(values=risk_coverage(evaluation.judged)))
    chart = points.mark_line(interpolate="step-before").encode(
        x=alt.X("coverage:Q", title="accepted, of the test calls", axis=percent, scale=alt.Scale(domain=[0, 1])),
        y=alt.Y("wrong:Q", title="wrong, of those accepted", axis=percent),
    )
    promised = alt.Chart(alt.Data(values=[{"alpha": evaluation.settings.alpha}]))
    chart += promised.mark_rule(strokeDash=[4, 4], color="gray").encode(y="alpha:Q")
    if evaluation.certificate is not None:
        reached = [p for p in risk_coverage(evaluation.judged) if p["confidence"] >= evaluation.certificate.threshold]
        dots = alt.Chart(alt.Data(values=reached[-1:])).mark_point(filled=True, size=80)
        chart += dots.encode(x="coverage:Q", y="wrong:Q")
    return chart.properties(title=f"{evaluation.small}: risk and coverage", width=_WIDTH, height=_HEIGHT)


def _accuracy_cost(evaluation: Evaluation) -> Any | None:
    points = []
    for result in evaluation.arms:
        accuracy, cps = result.figures["accuracy"], result.figures["cps"]
        if accuracy.value is not None and cps.value:
            point = {"accuracy": accuracy.value, "low": accuracy.low, "high": accuracy.high, "usd": 1000 * cps.value}
            points.append({**point, "arm": f"{result.arm} {ARMS[result.arm]}"})
    if not points:
        return None
    alt = need("altair", "dashboard")
    cost = alt.X("usd:Q", title="USD for 1,000 right answers", scale=alt.Scale(type="log"))
    percent = alt.Axis(format="%")
    base = alt.Chart(alt.Data(values=points)).encode(x=cost, color=alt.Color("arm:N", title=None))
    spans = base.mark_rule().encode(y=alt.Y("low:Q", title="right", axis=percent), y2="high:Q")
    dots = base.mark_point(filled=True, size=80).encode(y=alt.Y("accuracy:Q", title="right"))
    title = f"{evaluation.task}: accuracy and cost"
    return (spans + dots).properties(title=title, width=_WIDTH, height=_HEIGHT)
