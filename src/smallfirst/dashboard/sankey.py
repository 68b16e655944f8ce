"""A Sankey picture as a Vega specification: columns of states, bands as wide as the calls that went between them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

_VEGA = "https://vega.github.io/schema/vega/v6.json"
_WIDTH, _HEIGHT, _NODE, _GAP = 960.0, 260.0, 12.0, 14.0
_LABELS = 130.0

Link = tuple[str, str, int]


def sankey(links: Sequence[Link]) -> Mapping[str, Any]:
    """Links (source, target, amount) of a graph without cycles, from left to right; without links an empty picture."""
    columns = _columns(links)
    size = {name: max(_sum(links, 0, name), _sum(links, 1, name)) for name in columns}
    widest = max(columns.values(), default=0)
    step = (_WIDTH - _LABELS - _NODE) / max(widest, 1)
    tallest = max((sum(1 for c in columns.values() if c == column) for column in range(widest + 1)), default=1)
    total = max((sum(size[n] for n, c in columns.items() if c == column) for column in range(widest + 1)), default=1)
    unit = (_HEIGHT - _GAP * (tallest - 1)) / max(total, 1)
    top: dict[str, float] = {}
    for column in range(widest + 1):
        y = 0.0
        for name in (n for n, c in columns.items() if c == column):
            top[name], y = y, y + unit * size[name] + _GAP
    nodes = [
        {"name": name, "x": columns[name] * step, "y": top[name], "height": unit * size[name], "calls": size[name]}
        for name in columns
    ]
    return _picture(nodes, _bands(links, columns, top, step, unit))


def _sum(links: Sequence[Link], end: int, name: str) -> int:
    return sum(link[2] for link in links if link[end] == name)


def _columns(links: Sequence[Link]) -> dict[str, int]:
    """How many steps each state is from the beginning, at the longest, in the order of the links."""
    found: dict[str, int] = {}
    for source, target, _ in links:
        found.setdefault(source, 0)
        found.setdefault(target, 0)
    for _ in found:
        for source, target, _ in links:
            found[target] = max(found[target], found[source] + 1)
    return found


def _bands(
    links: Sequence[Link], columns: Mapping[str, int], top: Mapping[str, float], step: float, unit: float
) -> list[dict[str, Any]]:
    left: dict[str, float] = defaultdict(float)
    entered: dict[str, float] = defaultdict(float)
    bands = []
    for source, target, amount in links:
        wide = unit * amount
        x0, x1 = columns[source] * step + _NODE, columns[target] * step
        y0, y1 = top[source] + left[source], top[target] + entered[target]
        left[source] += wide
        entered[target] += wide
        half = (x0 + x1) / 2
        path = (
            f"M{x0:.1f},{y0:.1f}C{half:.1f},{y0:.1f} {half:.1f},{y1:.1f} {x1:.1f},{y1:.1f}"
            f"L{x1:.1f},{y1 + wide:.1f}C{half:.1f},{y1 + wide:.1f} {half:.1f},{y0 + wide:.1f} {x0:.1f},{y0 + wide:.1f}Z"
        )
        bands.append({"source": source, "target": target, "calls": amount, "path": path})
    return bands


def _picture(nodes: Sequence[Mapping[str, Any]], bands: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    said = "datum.source + ' → ' + datum.target + ': ' + format(datum.calls, ',d')"
    label = "datum.name + ' ' + format(datum.calls, ',d')"
    return {
        "$schema": _VEGA,
        "width": _WIDTH,
        "height": _HEIGHT,
        "padding": 5,
        "data": [{"name": "nodes", "values": list(nodes)}, {"name": "bands", "values": list(bands)}],
        "scales": [
            {
                "name": "end",
                "type": "ordinal",
                "domain": {"data": "bands", "field": "target"},
                "range": "category",
            }
        ],
        "marks": [
            {
                "type": "path",
                "from": {"data": "bands"},
                "encode": {
                    "enter": {
                        "path": {"field": "path"},
                        "fill": {"scale": "end", "field": "target"},
                        "fillOpacity": {"value": 0.45},
                        "tooltip": {"signal": said},
                    },
                },
            },
            {
                "type": "rect",
                "from": {"data": "nodes"},
                "encode": {
                    "enter": {
                        "x": {"field": "x"},
                        "y": {"field": "y"},
                        "width": {"value": _NODE},
                        "height": {"field": "height"},
                        "fill": {"value": "gray"},
                        "tooltip": {"signal": label},
                    },
                },
            },
            {
                "type": "text",
                "style": "guide-label",
                "from": {"data": "nodes"},
                "encode": {
                    "enter": {
                        "x": {"field": "x", "offset": _NODE + 4},
                        "y": {"signal": "datum.y + datum.height / 2"},
                        "baseline": {"value": "middle"},
                        "fontSize": {"value": 13},
                        "text": {"signal": label},
                    },
                },
            },
        ],
    }
