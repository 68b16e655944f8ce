"""A comparison of compressors as a picture: wrong answers against information, rate, and tokens."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from smallfirst.compress.distortion import Comparison, Fit, Point
from smallfirst.extra import need
from smallfirst.stats import Figure

_SIDE = 300
_TITLES = {
    "information": "information, bits",
    "rate": "rate, bits a token",
    "tokens": "tokens that the predictor reads",
}


def draw(comparison: Comparison, folder: Path, title: str) -> list[Path]:
    """Writes rate-distortion.svg and .png into `folder`. Raises ConfigError when altair is not installed."""
    need("vl_convert", "dashboard")
    alt = need("altair", "dashboard")
    rows = [_row(point) for point in comparison.points]
    panels = [_panel(alt, rows, x, next((fit for fit in comparison.fits if fit.x == x), None)) for x in _TITLES]
    chart = alt.hconcat(*panels).properties(title=title)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "rate-distortion.svg", folder / "rate-distortion.png"]
    for path in paths:
        chart.save(path, ppi=144) if path.suffix == ".png" else chart.save(path)
    return paths


def _row(point: Point) -> dict[str, Any]:
    low, high = point.accuracy.high, point.accuracy.low
    row: dict[str, Any] = {
        "name": point.compressor,
        "budget": str(point.budget or ""),
        "front": point.front,
        "wrong": 1 - (point.accuracy.value or 0.0),
    }
    row |= {"wrong_low": 1 - (low or 0.0), "wrong_high": 1 - (high or 0.0)}
    for key, figure in (("information", point.information), ("rate", point.rate), ("tokens", point.tokens)):
        row |= _span(key, figure)
    return row


def _span(key: str, figure: Figure) -> dict[str, float | None]:
    return {key: figure.value, f"{key}_low": figure.low, f"{key}_high": figure.high}


def _panel(alt: Any, rows: list[dict[str, Any]], x: str, fit: Fit | None) -> Any:
    shown = [row for row in rows if row[x] is not None]
    axis, scale = alt.Axis(format="%"), alt.Scale(domain=[0, 1])
    wrong = alt.Y("wrong:Q", title="wrong answers (distortion)", axis=axis, scale=scale)
    base = alt.Chart(alt.Data(values=shown)).encode(x=alt.X(f"{x}:Q", title=_TITLES[x]), y=wrong)
    colour = alt.Color("name:N", title="compressor", sort=list(dict.fromkeys(row["name"] for row in rows)))
    chart = base.mark_rule(opacity=0.3).encode(y=alt.Y("wrong_low:Q"), y2="wrong_high:Q", color=colour)
    chart += base.mark_rule(opacity=0.3).encode(x=f"{x}_low:Q", x2=f"{x}_high:Q", color=colour)
    chart += base.mark_point(filled=True, size=70, opacity=1).encode(color=colour)
    chart += base.mark_text(dx=6, dy=-6, align="left", fontSize=9).encode(text="budget:N", color=colour)
    if fit is not None and shown:
        curve = alt.Chart(alt.Data(values=_curve(fit, [row[x] for row in shown])))
        chart += curve.mark_line(strokeDash=[4, 3], color="gray", clip=True).encode(x="x:Q", y="y:Q")
    if x == "tokens":
        front = base.transform_filter("datum.front")
        chart += front.mark_line(color="black", strokeWidth=1, opacity=0.6).encode(order="tokens:Q")
    return chart.properties(width=_SIDE, height=_SIDE)


def _curve(fit: Fit, xs: list[float]) -> list[dict[str, float]]:
    scale, decay, floor = (figure.value or 0.0 for figure in (fit.scale, fit.decay, fit.floor))
    low, high = min(xs), max(xs)
    points = (low + (high - low) * i / 60 for i in range(61))
    return [{"x": x, "y": scale * math.exp(-decay * x) + floor} for x in points]
