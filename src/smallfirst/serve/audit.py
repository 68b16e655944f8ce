"""Audits: some accepted answers are asked of the large model too, after the client was served.

Whether an answer is audited is drawn with a recorded probability, more likely near the threshold and never less than
the policy's `audit`, so that the failure rate of all accepted answers can be told from those audited. The outcome goes
into the task's monitor, which outlives this process and is shared with every other one on the same store.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from random import Random

from msgspec.structs import replace

from smallfirst.budget import Allowance
from smallfirst.cascade import Outcome
from smallfirst.chance import audit_probability, draw
from smallfirst.guarantee import Certificate
from smallfirst.labels import agrees
from smallfirst.monitor import Monitor
from smallfirst.serve.calibrations import Calibrations, Standing
from smallfirst.serve.shadow import Shadow
from smallfirst.store import Store
from smallfirst.types import Attempt, Completion, Stage, offered

_REASONS = {True: "same", False: "different", None: "not_told"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit(Shadow):
    """A large stage's answer, to be compared with the `small` one; `probability` is that of the draw.

    `answered` is set where the large model was asked already, because a stricter threshold than the certified one
    escalated the call; None where the small answer was accepted. `standing` is None where it was accepted unjudged, as
    calls of a rollout may be: then it has no monitor.
    """

    small: Completion
    standing: Standing | None
    probability: float
    least: float
    calibrations: Calibrations
    answered: Attempt | None = None

    @property
    def stages(self) -> tuple[Stage, ...]:
        return () if self.answered else (self.stage,)

    async def attempts(self, allowance: Allowance) -> tuple[Attempt, ...]:
        if self.answered is not None:
            return ()
        attempt = await self.cascade.audit(self.stage, self.request, allowance)
        return (replace(attempt, reason=_REASONS[self._same(attempt)], probability=self.probability),)

    async def recorded(self, store: Store, attempts: tuple[Attempt, ...]) -> None:
        """Take the audit into the stage's monitor, as long as the calibration that it judges is in force."""
        if self.standing is None:
            return
        name = self.standing.watched
        same, now = self._same(self.answered or attempts[0]), self.calibrations.standing(name)
        if same is None or now is None or now.id != self.standing.id:
            return
        self.calibrations.audited(
            name, await store.change_monitor(name, partial(self._changed, self.standing, not same))
        )

    def _same(self, attempt: Attempt) -> bool | None:
        if attempt.completion is None or not attempt.completion.choices or not attempt.verdict.ok:
            return None
        return agrees(self.request, self.small.choices[0], attempt.completion.choices[0])

    def _changed(self, standing: Standing, wrong: bool, state: str) -> str:
        """The monitor's state with this audit; a new monitor when it watched another calibration."""
        monitor = Monitor.from_json(state)
        if monitor is None or monitor.calibration != standing.id:
            outcome = standing.acceptance.outcome
            assert isinstance(outcome, Certificate)
            monitor = Monitor.of(standing.id, outcome, self.least, monitor.since if monitor else 0.0)
        accepted = self.answered is None
        monitor.take(self.record_id, wrong, self.probability, accepted=accepted, least=self.least, now=time.time())
        return monitor.to_json()


@dataclass(frozen=True, slots=True)
class Audits:
    """Decides what is audited."""

    calibrations: Calibrations
    random: Random

    def of(self, asked: Shadow, outcome: Outcome, standing: Standing | None, least: float) -> Audit | None:
        """The audit of an outcome that `standing` decided on, if there is one; `asked` is the large stage with the
        call, `least` the policy's `audit`, which is the chance of every accepted answer where nothing judged it."""
        attempts = outcome.attempts
        decided = next((n for n in reversed(range(len(attempts))) if _judged(attempts[n])), None)
        if not least or decided is None:
            return None
        judged = attempts[offered(attempts, decided)]
        confidence = judged.confidence
        if judged.completion is None or asked.stage.small or (standing and confidence is None):
            return None
        answered, probability = None, 1.0
        if attempts[decided].decision == "accept":
            chance = least
            if standing is not None and confidence is not None:
                chance = audit_probability(confidence, standing.threshold, least)
            audited, probability = draw(chance, self.random)
            if not audited:
                return None
        elif outcome.served is None or not _withheld(judged, standing):
            return None
        else:
            answered = outcome.attempts[outcome.served]
        return Audit(
            asked.record_id,
            asked.caller,
            asked.cascade,
            asked.stage,
            asked.request,
            asked.capture,
            small=judged.completion,
            standing=standing,
            probability=probability,
            least=least,
            calibrations=self.calibrations,
            answered=answered,
        )


def _judged(attempt: Attempt) -> bool:
    return attempt.small and attempt.kind != "cache" and attempt.decision in {"accept", "escalate"}


def _withheld(judged: Attempt, standing: Standing | None) -> bool:
    """Whether only a stricter threshold than the certified one kept the answer back."""
    if standing is None or judged.confidence is None or not judged.verdict.ok:
        return False
    return judged.confidence >= standing.acceptance.threshold
