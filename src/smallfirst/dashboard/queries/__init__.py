"""The dashboard's figures: one function for each page or figure, read-only, on SQLite and PostgreSQL alike.

Each figure is a `Value` with interval, n and definition. What covers a whole period is read from the store's hourly
sums (`store.rollups`), so its cost grows with the period's hours and not with its calls; what must look at calls looks
at a stated number of the newest.
"""

from __future__ import annotations

from smallfirst.dashboard.queries.compression import Compressor, compression
from smallfirst.dashboard.queries.overview import Alarm, CostPoint, Overview, overview
from smallfirst.dashboard.queries.releases import Arm, Candidate, Change, Releases, Test, releases
from smallfirst.dashboard.queries.standing import Guarantee
from smallfirst.dashboard.queries.system import KeyUse, Setting, System, settings, system
from smallfirst.dashboard.queries.task import (
    Audited,
    AuditStream,
    Bin,
    Confusion,
    Curves,
    Event,
    Flow,
    RiskPoint,
    StageCost,
    TaskPage,
    task_page,
)
from smallfirst.dashboard.queries.tasks import Action, TaskLine, tasks
from smallfirst.dashboard.queries.values import PERIODS, Filters, Value, filters

__all__ = [
    "PERIODS",
    "Action",
    "Alarm",
    "Arm",
    "AuditStream",
    "Audited",
    "Bin",
    "Candidate",
    "Change",
    "Compressor",
    "Confusion",
    "CostPoint",
    "Curves",
    "Event",
    "Filters",
    "Flow",
    "Guarantee",
    "KeyUse",
    "Overview",
    "Releases",
    "RiskPoint",
    "Setting",
    "StageCost",
    "System",
    "TaskLine",
    "TaskPage",
    "Test",
    "Value",
    "compression",
    "filters",
    "overview",
    "releases",
    "settings",
    "system",
    "task_page",
    "tasks",
]
