"""Audits: some accepted answers are asked of the large model too, after the client was served.

Whether an answer is audited is drawn with a recorded probability, more likely near the threshold and never less than
the policy's `audit`, so that the failure rate of all accepted answers can be told from those audited. The outcome goes
into the task's monitor, which outlives this process and is shared with every other one on the same store.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial

from smallfirst.budget import Allowance
from smallfirst.cascade import Outcome
from smallfirst.chance import audit_probability
from smallfirst.guarantee import Certificate
from smallfirst.labels import agrees
from smallfirst.monitor import Monitor
from smallfirst.serve.calibrations import Calibrations, Standing
from smallfirst.serve.shadow import Shadow
from smallfirst.store import Store
from smallfirst.types import Attempt, Completion

VERDICTS = {True: "same", False: "different", None: "not_told"}
"""Reasons of audit attempts: whether the large model gave the same answer, None where that cannot be told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit(Shadow):
    """A large stage's answer, to be compared with the `accepted` one; `probability` is that of the draw."""

    task: str
    accepted: Completion
    standing: Standing
    probability: float
    least: float
    calibrations: Calibrations

    async def attempts(self, allowance: Allowance) -> tuple[Attempt, ...]:
        attempt = await self.cascade.audit(self.stage, self.request, allowance)
        return (replace(attempt, reason=VERDICTS[self._same(attempt)], probability=self.probability),)

    async def recorded(self, store: Store, attempts: tuple[Attempt, ...]) -> None:
        """Take the audit into the task's monitor, as long as the calibration that it judges is in force."""
        reason, now = attempts[0].reason, self.calibrations.standing(self.task)
        if reason == VERDICTS[None] or now is None or now.id != self.standing.id:
            return
        changed = await store.change_monitor(self.task, partial(self._changed, reason == VERDICTS[False]))
        self.calibrations.audited(self.task, Monitor.from_json(changed))

    def _same(self, attempt: Attempt) -> bool | None:
        if attempt.completion is None or not attempt.completion.choices or not attempt.verdict.ok:
            return None
        return agrees(self.request, self.accepted.choices[0], attempt.completion.choices[0])

    def _changed(self, wrong: bool, state: str) -> str:
        """The monitor's state with this audit; a new monitor when it watched another calibration."""
        monitor = Monitor.from_json(state) if state else None
        if monitor is None or monitor.calibration != self.standing.id:
            outcome = self.standing.acceptance.outcome
            assert isinstance(outcome, Certificate)
            monitor = Monitor.of(self.standing.id, outcome, self.least, monitor.since if monitor else 0.0)
        monitor.take(self.record_id, wrong, self.probability, least=self.least, now=time.time())
        return monitor.to_json()


def chance_of_audit(standing: Standing | None, outcome: Outcome, least: float) -> float:
    """How likely this outcome's answer is audited: 0 unless a calibrator accepted it."""
    if standing is None or not least or outcome.served is None or outcome.decision != "accept":
        return 0.0
    served = outcome.attempts[outcome.served]
    if served.confidence is None or served.kind == "cache":
        return 0.0
    return audit_probability(served.confidence, standing.threshold, least)
