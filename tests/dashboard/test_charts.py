"""Charts: specifications that Vega-Lite accepts and that draw what they are given."""

from __future__ import annotations

import altair
import pytest
import vl_convert

from smallfirst.dashboard import charts
from smallfirst.dashboard.queries import (
    Audited,
    AuditStream,
    Bin,
    Compressor,
    Confusion,
    CostPoint,
    Curves,
    Event,
    Flow,
    RiskPoint,
    StageCost,
    Value,
)

V = Value("a figure", 0.3, 0.2, 0.4, 10, "rate", "what it is")
UNBOUND = Value("a figure", 0.5, None, None, 1, "rate", "what it is")
CURVES = Curves(
    *("small", "labels", 20, (Bin(0.2, V), Bin(0.9, UNBOUND)), (RiskPoint(0.9, 0.5, V), RiskPoint(0.2, 1.0, UNBOUND))),
    *(0.5, 0.1, None, None, None),
)
SPECS = {
    "costs": charts.costs([CostPoint(0.0, 3600.0, V, UNBOUND), CostPoint(3600.0, 3600.0, V, V)]),
    "calibration": charts.calibration(CURVES),
    "risk": charts.risk(CURVES),
    "audits": charts.audits(AuditStream(0.1, (Audited("r", 0.0, 0.9, 0.5, True, 0.0, 1.0),))),
    "stages": charts.stages([StageCost("small", "m", "answer", True, 3, 3, 0.1, V, 1, 2, V, V)]),
    "tools": charts.tools(Confusion(("a", ""), ((3, 1), (0, 2)), V, 6)),
    "timeline": charts.timeline([Event(0.0, "rolled_back", "why <b>")]),
    "compression": charts.compression([Compressor("qa", "extract", V, V, V, V, V, True)]),
}
NOTHING = {
    "costs": charts.costs([]),
    "audits": charts.audits(AuditStream(None, ())),
    "stages": charts.stages([]),
    "tools": charts.tools(Confusion((), (), V, 0)),
    "timeline": charts.timeline([]),
    "compression": charts.compression([]),
}


@pytest.mark.parametrize(
    "spec", [*SPECS.values(), *NOTHING.values()], ids=[*SPECS, *(f"no {name}" for name in NOTHING)]
)
def test_vega_lite_accepts_and_draws_every_chart(spec: charts.Spec) -> None:
    """Each specification is valid, with data and without, and Vega draws it."""
    altair.Chart.from_dict(dict(spec), validate=True)
    assert vl_convert.vegalite_to_svg(dict(spec) | {"width": 300}).startswith("<svg")


def test_a_chart_of_tools_gathers_the_rare_ones() -> None:
    """Of many tools the most frequent are shown, the others together; no call is lost."""
    names = tuple(f"t{n}" for n in range(20))
    counts = tuple(tuple(1 for _ in names) for _ in names)
    spec = charts.tools(Confusion(names, counts, V, 400))
    cells = spec["data"]["values"]
    assert {cell["large"] for cell in cells} == {*names[:12], "others"}
    assert sum(cell["calls"] for cell in cells) == 400


def test_the_flow_keeps_every_call() -> None:
    """A band for each flow, a node for each state, as tall as its calls, within the picture, drawn by Vega."""
    flows = [
        Flow("calls", "small first", 80),
        Flow("calls", "large at once", 20),
        Flow("small first", "valid at once", 60),
        Flow("small first", "repaired", 20),
        Flow("valid at once", "accepted", 60),
        Flow("repaired", "escalated", 20),
        Flow("large at once", "escalated", 20),
    ]
    spec = charts.flow(flows)
    nodes, bands = (data["values"] for data in spec["data"])
    assert {(b["source"], b["target"]): b["calls"] for b in bands} == {(f.source, f.target): f.calls for f in flows}
    by_name = {node["name"]: node for node in nodes}
    assert by_name["calls"]["calls"] == 100
    assert by_name["escalated"]["calls"] == 40
    assert by_name["escalated"]["height"] == pytest.approx(2 * by_name["large at once"]["height"])
    assert by_name["calls"]["x"] < by_name["small first"]["x"] < by_name["repaired"]["x"] < by_name["escalated"]["x"]
    assert all(node["y"] >= 0 and node["y"] + node["height"] <= spec["height"] + 1e-6 for node in nodes)
    assert vl_convert.vega_to_svg(dict(spec)).startswith("<svg")
    assert vl_convert.vega_to_svg(dict(charts.flow([]))).startswith("<svg")
