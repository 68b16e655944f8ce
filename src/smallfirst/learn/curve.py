"""The course of a training as a picture: an SVG of loss by tokens, and of the evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import msgspec

_WIDTH, _HEIGHT, _MARGIN = 640, 320, 56
_SMOOTHING = 0.9  # weight of what was before, in the line drawn through the losses
_LOSS, _SCORE = "#1f77b4", "#d62728"


class Point(msgspec.Struct, frozen=True):
    """After a step: tokens and seconds so far, the step's loss, and the evaluation's score if there was one."""

    step: int
    tokens: int
    seconds: float
    loss: float
    score: float | None


def draw(curve: Sequence[Point], path: Path) -> None:
    """Writes the picture: the smoothed loss against tokens (left axis), evaluations as dots (right axis)."""
    smooth: list[float] = []
    for point in curve:
        smooth.append(point.loss if not smooth else _SMOOTHING * smooth[-1] + (1 - _SMOOTHING) * point.loss)
    scores = [(p.tokens, p.score) for p in curve if p.score is not None]
    losses = [(p.tokens, value) for p, value in zip(curve, smooth, strict=True)]
    most = max((p.tokens for p in curve), default=1)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif">',
        '<rect width="100%" height="100%" fill="white"/>',
        _text(_WIDTH / 2, _HEIGHT - 12, f"tokens (to {most:,})", "middle"),
    ]
    if losses:
        places, low, high = _placed(losses, most)
        parts.append(
            f'<polyline fill="none" stroke="{_LOSS}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in places)}"/>'
        )
        parts += _axis(8, "loss", low, high, _LOSS, "start")
    if scores:
        places, low, high = _placed(scores, most)
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{_SCORE}"/>' for x, y in places]
        parts += _axis(_WIDTH - 8, "score", low, high, _SCORE, "end")
    path.write_text("\n".join([*parts, "</svg>\n"]), encoding="utf-8")


def _placed(values: Sequence[tuple[int, float]], most: int) -> tuple[list[tuple[float, float]], float, float]:
    low, high = min(v for _, v in values), max(v for _, v in values)
    span = (high - low) or 1.0
    width, height = _WIDTH - 2 * _MARGIN, _HEIGHT - 2 * _MARGIN
    return [(_MARGIN + width * x / most, _MARGIN + height * (high - v) / span) for x, v in values], low, high


def _axis(x: float, name: str, low: float, high: float, colour: str, anchor: str) -> list[str]:
    return [
        _text(x, _MARGIN - 24, name, anchor, colour),
        _text(x, _MARGIN + 4, f"{high:.3g}", anchor, colour),
        _text(x, _HEIGHT - _MARGIN + 4, f"{low:.3g}", anchor, colour),
    ]


def _text(x: float, y: float, text: str, anchor: str, colour: str = "black") -> str:
    return f'<text font-size="12" x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'
