"""What `information`, `compressors compare` and `attribute` print: as JSON, and as tables for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from smallfirst.compress import attribution, distortion
from smallfirst.compress.information import Report
from smallfirst.report import figure_row
from smallfirst.stats import Figure

_OF_ALL = {
    "accuracy": "right",
    "oracle": "right after the oracle",
    "empty": "right after nothing",
    "loss": "the compressor's loss",
    "rest": "the predictor's",
    "lucky": "right though not after the oracle",
}
_OF_WRONG = {
    "lost": "lost by the compressor",
    "missed": "missed by the predictor",
    "by_predictor": "another predictor has it right",
    "by_compressor": "after another compressor it is right",
}
_OF_RIGHT = {"guessed": "right after nothing too"}


def report_row(report: Report) -> dict[str, Any]:
    """The report as JSON: bits, tokens, FLOPs and seconds per summary, joules of all of them."""
    told, random = report.estimate, report.baseline
    return {
        "compressor": report.compressor,
        "scorer": report.scorer,
        "budget": report.budget,
        "contexts": report.contexts,
        "summaries": report.summaries,
        "information": figure_row(told.information),
        "leave_one_out": figure_row(told.leave_one_out),
        "tuned": None if told.tuned is None else figure_row(told.tuned),
        "temperature": told.temperature,
        "unclipped": told.unclipped,
        "bound": told.bound,
        "saturated": told.saturated,
        "length": figure_row(report.length),
        "rate": figure_row(report.rate),
        "prefill_flops": _row(report.prefill_flops),
        "decode_flops": _row(report.decode_flops),
        "seconds": figure_row(report.seconds),
        "tokens_read": figure_row(report.tokens_read),
        "tokens_written": figure_row(report.tokens_written),
        "joules": report.joules,
        "baseline": None
        if random is None
        else {
            "information": figure_row(random.information),
            "length": figure_row(random.length),
            "rate": figure_row(random.rate),
        },
        "cost": msgspec.to_builtins(report.cost),
        "notes": list(report.notes),
    }


def comparison_row(comparison: distortion.Comparison) -> dict[str, Any]:
    """The comparison as JSON: cost per right answer in USD."""
    figures = ("information", "length", "rate", "accuracy", "tokens", "cps", "cps_local_free")
    return {
        "points": [
            {
                "name": p.name,
                "compressor": p.compressor,
                "budget": p.budget,
                "front": p.front,
                "by_length": p.by_length,
            }
            | {name: figure_row(getattr(p, name)) for name in figures}
            for p in comparison.points
        ],
        "fits": [
            {"x": f.x, "r2": f.r2} | {"C": figure_row(f.scale), "b": figure_row(f.decay), "D0": figure_row(f.floor)}
            for f in comparison.fits
        ],
        "spearman": figure_row(comparison.spearman),
        "recommended": comparison.recommended,
        "margin": comparison.margin,
    }


def attribution_row(one: attribution.Attribution) -> dict[str, Any]:
    """The attribution as JSON."""
    return {
        "compressor": one.compressor,
        "predictor": one.predictor,
        "cases": one.cases,
        **{name: _row(getattr(one, name)) for name in (*_OF_ALL, *_OF_WRONG, *_OF_RIGHT)},
        "examples": [{"whose": e.whose, **msgspec.to_builtins(e.answer)} for e in one.examples],
    }


def shown(report: Report) -> Group:
    """The report for people."""
    told, random = report.estimate, report.baseline
    title = f"{report.compressor} on {report.contexts} documents, scored by {report.scorer}"
    table = Table(title=escape(title), title_justify="left")
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_column("95% interval", justify="right")
    rows: list[tuple[str, Figure | None]] = [
        (f"information, bits (at most {told.bound:.2f})", told.information),
        ("the same, own document left out of the mean", told.leave_one_out),
        ("the same, temperature from the other half", told.tuned),
        ("length, the scorer's tokens", report.length),
        ("rate, bits a token", report.rate),
        ("random sentences as long: bits", None if random is None else random.information),
        ("random sentences as long: bits a token", None if random is None else random.rate),
        ("tokens read", report.tokens_read),
        ("tokens written", report.tokens_written),
        ("prefill, FLOPs", report.prefill_flops),
        ("decode, FLOPs", report.decode_flops),
        ("seconds", report.seconds),
    ]
    for name, figure in rows:
        table.add_row(name, *(_cells(figure) if figure is not None else ("not measured", "")))
    table.add_row("energy of all, joules", "not measured" if report.joules is None else f"{report.joules:.0f}", "")
    cost = report.cost
    spent = f"The estimate took {cost.scores:,} scores, {cost.tokens:,} tokens, {cost.flops:.2g} FLOPs"
    return Group(table, f"{spent}, {cost.seconds:.0f} s.", *(f"[yellow]{escape(note)}[/]" for note in report.notes))


def compared(comparison: distortion.Comparison) -> Group:
    """The comparison for people."""
    table = Table(title="Compressors, * on the front of tokens and right answers", title_justify="left")
    table.add_column("compressor")
    for name in ("bits", "tokens", "bits/token", "by length", "right", "read", "USD/1,000 right"):
        table.add_column(name, justify="right")
    for p in comparison.points:
        share = "" if p.by_length is None else f"{p.by_length:.0%}"
        accuracy = "\n".join(_cells(p.accuracy, 100))
        columns = ["\n".join(_cells(f)) for f in (p.information, p.length, p.rate)]
        cost = "\n".join(_cells(p.cps, 1000))
        table.add_row(escape(p.name) + ("*" if p.front else ""), *columns, share, accuracy, _cells(p.tokens)[0], cost)
    said = [
        f"D({'R' if f.x == 'rate' else 'I'}) = C exp(-b x) + D0: C {_said(f.scale)}, b {_said(f.decay)}, "
        f"D0 {_said(f.floor)}, R² {f.r2:.2f}."
        for f in comparison.fits
    ]
    rank = f"Rank correlation of information and right answers: {_said(comparison.spearman)}."
    name, margin = escape(comparison.recommended), f"{comparison.margin:.0%}"
    taken = f"Recommended: [bold]{name}[/], the least cost of those within {margin} of the best."
    return Group(table, *said, rank, taken)


def attributed(one: attribution.Attribution) -> Group:
    """The attribution for people."""
    table = Table(title=escape(f"{one.compressor}, then {one.predictor}: {one.cases} cases"), title_justify="left")
    table.add_column("share")
    table.add_column("%", justify="right")
    table.add_column("95% interval", justify="right")
    parts = ("of all", _OF_ALL), ("of wrong answers", _OF_WRONG), ("of right ones", _OF_RIGHT)
    for of, names in parts:
        for name, said in names.items():
            figure: Figure | None = getattr(one, name)
            if figure is not None:
                table.add_row(f"{of}: {said}", *_cells(figure, 100))
    return Group(table, *(_example(example) for example in one.examples))


def _row(figure: Figure | None) -> dict[str, float | int | None] | None:
    return None if figure is None else figure_row(figure)


def _example(example: attribution.Example) -> str:
    answer = example.answer
    texts = {"Q": answer.question, "Z": answer.summary, "said": answer.answer, "expected": answer.expected}
    told = "; ".join(f"{name}: {' '.join(text.split())[:160]}" for name, text in texts.items() if text)
    return escape(f"The {example.whose}'s, case {answer.id}. {told}")


def _cells(figure: Figure, times: float = 1.0) -> Sequence[str]:
    """Value and interval, in three digits."""
    if figure.value is None:
        return "-", ""
    low, high = (bound if bound is None else _number(bound * times) for bound in (figure.low, figure.high))
    return _number(figure.value * times), f"{low or ''} – {high or ''}"


def _said(figure: Figure) -> str:
    value, interval = _cells(figure)
    return f"{value} ({interval})"


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}" if abs(value) < 1e7 else f"{value:.2e}"
