"""The calibrations in force and what audits say of them, read from the store and followed while the gateway runs."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import structlog

from smallfirst import agreement
from smallfirst.acceptance import Acceptance
from smallfirst.confidence import TOKEN_FEATURES
from smallfirst.config import Config, Policy
from smallfirst.errors import CalibrationError
from smallfirst.monitor import Monitor
from smallfirst.registry import watched
from smallfirst.router import Candidate
from smallfirst.serve.telemetry import Telemetry
from smallfirst.store import CalibrationRow, Store, Versions

log = structlog.get_logger("smallfirst.calibrations")


@dataclass(frozen=True, slots=True)
class Standing:
    """A calibration (`id` in the store) with what audits have made of it: the `Calibrator` of a small stage's calls.

    `threshold` is the certified one or, under drift, a stricter one; after an `alarm` nothing is accepted.
    """

    id: str
    acceptance: Acceptance
    threshold: float
    alarm: bool = False

    def confidence(self, features: Mapping[str, float]) -> float:
        return self.acceptance.confidence(features)

    def beside(self, stage: str, features: Mapping[str, float]) -> float | None:
        return self.acceptance.beside(stage, features)

    @property
    def watched(self) -> str:
        """The name under which its audits are counted."""
        return watched(self.acceptance.task, self.acceptance.stage)


class Calibrations:
    """Standings by the name that they are watched under: a task, for its first configured stage that has one, or a
    version. A new calibration counts within `follow.REFRESH_S` s.

    A calibration that this gateway cannot follow is refused with a warning and a metric; its task stays uncalibrated.
    """

    def __init__(self, store: Store, config: Config, candidates: Mapping[str, Candidate], telemetry: Telemetry) -> None:
        self._store, self._config, self._candidates, self._telemetry = store, config, candidates, telemetry
        self._read: dict[str, Standing | None] = {}  # by the id of a calibration; None: refused
        self._standings: dict[str, Standing] = {}
        self._seen = Versions()

    def standing(self, name: str) -> Standing | None:
        """None while the task or version is not calibrated, or was and nothing could be promised."""
        return self._standings.get(name)

    def audited(self, name: str, state: str) -> None:
        """Take note of what a monitor has come to."""
        standing, monitor = self._standings.get(name), Monitor.from_json(state)
        if standing is None or monitor is None or standing.id != monitor.calibration:
            return
        if monitor.alarm and not standing.alarm:
            log.error(
                "alarm: accepted answers fail too often; the large model answers until the task is calibrated again",
                watched=name,
                alpha=monitor.alpha,
                at_least=round(monitor.sequence.lower, 4),
            )
        adapt = self._config.policy(standing.acceptance.task).adapt
        threshold = monitor.threshold if adapt else standing.acceptance.threshold
        self._standings[name] = replace(standing, threshold=threshold, alarm=monitor.alarm)
        self._telemetry.monitored(name, alarm=monitor.alarm, threshold=threshold)

    async def refresh(self) -> None:
        """Read what has changed. Raises StoreError."""
        versions = await self._store.calibration_versions()
        if versions == self._seen:
            return
        standings = self._standings
        if versions.calibrations != self._seen.calibrations:
            standings = await self._read_calibrations()
            changed = list(standings)
        else:
            before = self._seen.monitors or {}
            changed = [name for name, n in (versions.monitors or {}).items() if before.get(name) != n]
        states = await self._store.monitors(changed) if changed else {}
        self._standings = standings  # with the next line at once: no call meets a calibration without its alarm
        for name, state in states.items():
            self.audited(name, state)
        self._seen = versions

    async def _read_calibrations(self) -> dict[str, Standing]:
        rows = await self._store.calibrations()
        new = [row for row in rows if row.id not in self._read]
        made = await asyncio.to_thread(lambda: [self._standing_of(row) for row in new])
        self._read |= {row.id: standing for row, standing in zip(new, made, strict=True)}
        standings: dict[str, Standing] = {}
        for row in sorted(rows, key=self._place):
            name = watched(row.task, row.stage)
            standing, before = self._read[row.id], self._standings.get(name)
            if standing is not None and math.isfinite(standing.threshold) and name not in standings:
                now = standings[name] = before if before and before.id == row.id else standing
                self._telemetry.monitored(name, alarm=now.alarm, threshold=now.threshold)
        return standings

    def _place(self, row: CalibrationRow) -> int:
        stages = self._config.policy(row.task).stages
        return stages.index(row.stage) if row.stage in stages else len(stages)

    def _standing_of(self, row: CalibrationRow) -> Standing | None:
        try:
            acceptance = Acceptance.from_json(json.loads(row.payload))
            _check(acceptance, self._config.policy(row.task), self._candidates)
        except (CalibrationError, ValueError) as err:
            log.warning("calibration refused", task=row.task, stage=row.stage, error=str(err))
            self._telemetry.calibration_refused(row.task)
            return None
        return Standing(row.id, acceptance, acceptance.threshold)


def _check(acceptance: Acceptance, policy: Policy, candidates: Mapping[str, Candidate]) -> None:
    """Raises CalibrationError where the features that every label had cannot be computed for the task's calls."""
    version = watched(acceptance.task, acceptance.stage) == acceptance.stage
    candidate = candidates.get(acceptance.stage) if acceptance.stage in policy.stages else None
    if not version and (candidate is None or not candidate.stage.small):
        allowed = ", ".join(name for name in policy.stages if candidates[name].stage.small) or "none"
        raise CalibrationError(
            f"The calibration judges {acceptance.stage!r}; the small stages of {acceptance.task!r} are: {allowed}.",
            hint="Run `smallfirst calibrate` again.",
        )
    if missing := sorted(acceptance.others.keys() - set(policy.others)):
        raise CalibrationError(
            f"The calibration serves answers of {', '.join(missing)} beside those of {acceptance.stage!r}.",
            hint=f"Name them in `others` of the task {acceptance.task!r}, or calibrate again.",
        )
    lacking = set[str]()
    if not policy.others and not policy.samples:
        lacking |= acceptance.model.always & agreement.FEATURES.keys()
    if candidate is not None and not candidate.stage.backend.capabilities.top_logprobs:
        lacking |= acceptance.model.always & TOKEN_FEATURES.keys()
    if lacking:
        raise CalibrationError(
            f"The calibration needs features that cannot be computed here: {', '.join(sorted(lacking))}.",
            hint="Configure `others` and models as when the labels were recorded, or calibrate again.",
        )
