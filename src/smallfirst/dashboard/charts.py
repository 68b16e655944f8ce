"""Charts as Vega-Lite specifications (JSON-ready objects), drawn in the browser by the bundle that is served with them.

Colours, fonts and width are the page's: specifications carry none that a theme would have to undo. Every chart has the
figures behind it in its data, so a page can offer them as CSV.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from smallfirst.dashboard.queries import AuditStream, Compressor, Confusion, CostPoint, Curves, Event, Flow, StageCost

Spec = Mapping[str, Any]


def costs(points: Sequence[CostPoint]) -> Spec:
    """CPS over time, small-first against the large model alone, with bands for the intervals."""
    raise NotImplementedError


def flow(flows: Sequence[Flow]) -> Spec:
    """How calls flow through the stages: a Sankey picture as a Vega (not Vega-Lite) specification."""
    raise NotImplementedError


def calibration(curves: Curves) -> Spec:
    """Confidence against the share of right answers, with intervals and the diagonal."""
    raise NotImplementedError


def risk(curves: Curves) -> Spec:
    """Coverage against accepted failure, with the promise and the chosen threshold."""
    raise NotImplementedError


def audits(stream: AuditStream) -> Spec:
    """Audits over time with the confidence sequence and the promise."""
    raise NotImplementedError


def stages(costs_by_stage: Sequence[StageCost]) -> Spec:
    """USD for 1,000 calls by stage and part."""
    raise NotImplementedError


def tools(confusion: Confusion) -> Spec:
    """The large model's choice of tool against the small one's."""
    raise NotImplementedError


def timeline(events: Sequence[Event]) -> Spec:
    """Calibrations, alarms and releases on a time line."""
    raise NotImplementedError


def compression(compressors: Sequence[Compressor]) -> Spec:
    """Rate against distortion, the Pareto front joined."""
    raise NotImplementedError
