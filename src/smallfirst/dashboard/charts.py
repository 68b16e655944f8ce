"""Charts as Vega-Lite specifications (JSON-ready objects), drawn in the browser by the bundle that is served with them.

Colours, fonts and sizes are the page's theme: specifications name series and no colours. What a mark says on hover is
what the page's table and CSV say too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from smallfirst.dashboard.queries import (
    Audited,
    AuditStream,
    Compressor,
    Confusion,
    CostPoint,
    Curves,
    Event,
    Flow,
    StageCost,
    Value,
)
from smallfirst.dashboard.sankey import sankey

Spec = Mapping[str, Any]
_LITE = "https://vega.github.io/schema/vega-lite/v6.json"
_TIME = {"field": "at", "type": "temporal", "title": None}
_TOOLS_SHOWN = 12
_LINE = 24  # pixels


def costs(points: Sequence[CostPoint]) -> Spec:
    """CPS over time, small-first against the large model alone, with bands for the intervals."""
    series = [
        _bounds(value) | {"at": _ms(point.start + point.seconds / 2), "as": name}
        for point in points
        for name, value in (("small-first", point.small_first), ("large only", point.large_only))
        if value.value is not None
    ]
    x, colour = {"x": _TIME}, {"color": _named("as", "small-first", "large only")}
    y = {"field": "value", "type": "quantitative", "title": "USD per 1,000 right answers"}
    band = {"y": {"field": "low", "type": "quantitative"}, "y2": {"field": "high"}}
    shown = [_tip("as", "series"), _when(), _tip("value", "CPS", ".4~f"), *_interval(".4~f"), _tip("n", "pairs", ",d")]
    return _layers(
        series,
        {"mark": {"type": "area", "opacity": 0.2}, "encoding": x | colour | band},
        {"mark": {"type": "line", "point": True}, "encoding": x | colour | {"y": y, "tooltip": shown}},
    )


def flow(flows: Sequence[Flow]) -> Spec:
    """How calls flow through the stages: a Sankey picture as a Vega (not Vega-Lite) specification."""
    return sankey([(each.source, each.target, each.calls) for each in flows])


def calibration(curves: Curves) -> Spec:
    """Confidence against the share of right answers, with intervals and the diagonal."""
    bins = [_bounds(each.right) | {"confidence": each.confidence} for each in curves.bins]
    x = {"x": _part("confidence", "confidence")}
    shown = [_tip("confidence", "confidence", ".1%"), _tip("value", "right", ".1%"), *_interval(".1%"), _labels()]
    diagonal = {"values": [{"confidence": 0, "value": 0}, {"confidence": 1, "value": 1}]}
    return _layers(
        bins,
        {"data": diagonal, "mark": {"type": "line", "strokeDash": [4, 4]}, "encoding": x | {"y": _part("value", "")}},
        {"mark": "rule", "encoding": x | {"y": _part("low", "right"), "y2": {"field": "high"}}},
        {"mark": {"type": "point", "filled": True}, "encoding": x | {"y": _part("value", "right"), "tooltip": shown}},
    )


def risk(curves: Curves) -> Spec:
    """Coverage against accepted failure, with the promise and the chosen threshold."""
    rows = [_bounds(p.failure) | {"coverage": p.coverage, "threshold": p.threshold} for p in curves.risk]
    chosen = [row for row in rows if curves.threshold is not None and row["threshold"] >= curves.threshold][-1:]
    x = {"x": _part("coverage", "share of calls accepted")}
    y = {"y": _part("value", "wrong among accepted", whole=False)}
    shown = [
        _tip("threshold", "from confidence", ".3f"),
        _tip("coverage", "accepted", ".1%"),
        _tip("value", "wrong", ".1%"),
        *_interval(".1%"),
        _labels(),
    ]
    band = {"y": _part("low", "wrong among accepted", whole=False), "y2": {"field": "high"}}
    return _layers(
        rows,
        {"mark": {"type": "area", "opacity": 0.2}, "encoding": x | band},
        {"mark": {"type": "line", "point": True}, "encoding": x | y | {"tooltip": shown}},
        _rule(curves.alpha, "promised"),
        {"data": {"values": chosen}, "mark": {"type": "rule", "strokeDash": [2, 2]}, "encoding": x},
        {
            "data": {"values": chosen},
            "mark": {"type": "point", "size": 120, "filled": True},
            "encoding": x | y | {"tooltip": shown},
        },
    )


def audits(stream: AuditStream) -> Spec:
    """Audits over time with the confidence sequence and the promise."""
    rows = [_audit(each) for each in stream.audits]
    x = {"x": _TIME}
    band = {"y": _part("low", "failure of accepted answers", whole=False), "y2": {"field": "high"}}
    shown = [_tip("found", "found"), _when(), _tip("confidence", "confidence", ".3f"), *_interval(".1%")]
    found = _named("found", "the same answer", "another answer")
    ticks = {"y": {"value": 0}, "shape": found, "color": found, "tooltip": shown}
    return _layers(
        rows,
        {"mark": {"type": "area", "opacity": 0.2, "interpolate": "step-after"}, "encoding": x | band},
        {"mark": {"type": "point", "filled": True}, "encoding": x | ticks},
        *([] if stream.alpha is None else [_rule(stream.alpha, "promised")]),
    )


def stages(costs_by_stage: Sequence[StageCost]) -> Spec:
    """USD for 1,000 calls by stage and part."""
    rows = [
        _bounds(each.usd_per_1000)
        | {"stage": each.stage, "model": each.model, "part": each.part, "attempts": each.attempts}
        for each in costs_by_stage
    ]
    shown = [_tip("stage", "stage"), _tip("model", "model"), _tip("part", "for"), _tip("value", "USD", ".4~f")]
    encoding = {
        "y": {"field": "stage", "type": "nominal", "title": None, "sort": "-x"},
        "x": {"field": "value", "type": "quantitative", "title": "USD per 1,000 calls"},
        "color": _named("part"),
        "tooltip": [*shown, *_interval(".4~f"), _tip("attempts", "attempts", ",d")],
    }
    return _spec({"values": rows}, {"height": _high(rows, "stage"), "mark": "bar", "encoding": encoding})


def tools(confusion: Confusion) -> Spec:
    """The large model's choice of tool against the small one's; the rarest together as "others"."""
    names = [name or "words" for name in confusion.names]
    shown = [*names[:_TOOLS_SHOWN], "others"] if len(names) > _TOOLS_SHOWN else names
    counts: dict[tuple[str, str], int] = {}
    for row, line in enumerate(confusion.counts):
        for column, calls in enumerate(line):
            place = (shown[min(row, _TOOLS_SHOWN)], shown[min(column, _TOOLS_SHOWN)])
            counts[place] = counts.get(place, 0) + calls
    cells = [{"large": large, "small": small, "calls": n} for (large, small), n in counts.items()]
    axes = {
        "y": {"field": "large", "type": "nominal", "title": "large model", "sort": shown},
        "x": {"field": "small", "type": "nominal", "title": "small model", "sort": shown},
    }
    shade = {"field": "calls", "type": "quantitative", "title": "calls"}
    tip = [_tip("large", "large model"), _tip("small", "small model"), _tip("calls", "calls", ",d")]
    layers = [
        {"mark": "rect", "encoding": axes | {"color": shade, "tooltip": tip}},
        {"mark": "text", "encoding": axes | {"text": {"field": "calls", "type": "quantitative"}}},
    ]
    return _spec({"values": cells}, {"height": _high(cells, "large"), "layer": layers})


def timeline(events: Sequence[Event]) -> Spec:
    """Calibrations, alarms and releases on a time line."""
    rows = [{"at": _ms(each.at), "kind": each.kind.replace("_", " "), "text": each.text} for each in events]
    encoding = {
        "x": _TIME,
        "y": {"field": "kind", "type": "nominal", "title": None},
        "color": _named("kind"),
        "tooltip": [_when(), _tip("kind", "what"), _tip("text", "why")],
    }
    mark = {"type": "point", "filled": True, "size": 100}
    return _spec({"values": rows}, {"height": _high(rows, "kind"), "mark": mark, "encoding": encoding})


def compression(compressors: Sequence[Compressor]) -> Spec:
    """Tokens read against wrong answers, the Pareto front joined."""
    rows = [
        {"name": each.name, "task": each.task, "front": each.front, "tokens": each.tokens.value}
        | _bounds(each.distortion)
        for each in compressors
    ]
    x = {"x": {"field": "tokens", "type": "quantitative", "title": "tokens read for a question"}}
    y = {"y": _part("value", "wrong answers", whole=False)}
    shown = [_tip("name", "compressor"), _tip("task", "set"), _tip("tokens", "tokens", ",.0f")]
    tip = {"tooltip": [*shown, _tip("value", "wrong", ".1%"), *_interval(".1%"), _tip("n", "questions", ",d")]}
    only_front = [{"filter": "datum.front"}]
    return _layers(
        rows,
        {"mark": "line", "transform": only_front, "encoding": x | y | {"detail": {"field": "task", "type": "nominal"}}},
        {
            "mark": "rule",
            "encoding": x | {"y": _part("low", "wrong answers", whole=False), "y2": {"field": "high"}},
        },
        {"mark": {"type": "point", "filled": True}, "encoding": x | y | tip | {"color": _named("name")}},
    )


def _spec(data: Mapping[str, Any], rest: Mapping[str, Any]) -> Spec:
    fitted = {"width": "container", "autosize": {"type": "fit-x", "contains": "padding"}}
    return {"$schema": _LITE, **fitted, "data": data, **rest}


def _layers(rows: Sequence[Mapping[str, Any]], *layers: Mapping[str, Any]) -> Spec:
    return _spec({"values": list(rows)}, {"layer": list(layers)})


def _high(rows: Sequence[Mapping[str, Any]], field: str) -> int:
    """The height of a chart with a line for each value of `field`."""
    return _LINE * len({row[field] for row in rows})


def _bounds(value: Value) -> dict[str, Any]:
    return {"value": value.value, "low": value.low, "high": value.high, "n": value.n}


def _audit(audit: Audited) -> dict[str, Any]:
    found = "another answer" if audit.wrong else "the same answer"
    return {
        "at": _ms(audit.at),
        "found": found,
        "confidence": audit.confidence,
        "low": audit.low,
        "high": audit.high,
    }


def _rule(at: float, name: str) -> dict[str, Any]:
    """A horizontal line that says what it is."""
    place = {
        "y": {"field": "value", "type": "quantitative"},
        "tooltip": [_tip("name", "line"), _tip("value", "at", ".1%")],
    }
    return {
        "data": {"values": [{"value": at, "name": name}]},
        "mark": {"type": "rule", "strokeDash": [6, 3]},
        "encoding": place,
    }


def _part(field: str, title: str, *, whole: bool = True) -> dict[str, Any]:
    """A scale of parts of 1, over all of it or as far as the data go."""
    scale = {"scale": {"domain": [0, 1]}} if whole else {}
    return {"field": field, "type": "quantitative", "title": title or None, "axis": {"format": "~%"}, **scale}


def _named(field: str, *order: str) -> dict[str, Any]:
    """Series by name, in `order` where that is given: the theme's first colour is small-first's and what went well."""
    scale = {"scale": {"domain": list(order)}} if order else {}
    return {"field": field, "type": "nominal", "title": None, **scale}


def _when() -> dict[str, Any]:
    return {"field": "at", "type": "temporal", "title": "when", "format": "%Y-%m-%d %H:%M"}


def _labels() -> dict[str, Any]:
    return _tip("n", "labels", ",d")


def _interval(form: str) -> list[dict[str, Any]]:
    return [_tip("low", "from", form), _tip("high", "to", form)]


def _tip(field: str, title: str, form: str = "") -> dict[str, Any]:
    if not form:
        return {"field": field, "type": "nominal", "title": title}
    return {"field": field, "type": "quantitative", "title": title, "format": form}


def _ms(seconds: float) -> float:
    return 1000 * seconds
