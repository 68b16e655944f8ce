"""What another policy would have done at a recorded call, as far as the record tells.

A `Trace` is a recorded call in short. `play` walks it as the target policy would: which answer is served, at what cost,
and where the record stops telling. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from smallfirst.labels import Label
from smallfirst.store import StoredRecord
from smallfirst.targets import AS_RECORDED, Target
from smallfirst.types import AFTERWARDS, Attempt, ConstraintMode, Mode, evidence_of, offered

Action = Literal["accept", "escalate", "large", "none"]
ENOUGH = 400
"""Calls that tell any rate to within five points (1.96^2 / 4 / 0.05^2 = 384)."""

NAN = math.nan
_AS_THEY_ARE = frozenset({"cache", "model_named", "client_gone"})
_NOTHING_TO_HOLD_TO = ("tools", "schema_chars")


@dataclass(frozen=True, slots=True)
class Step:
    """An attempt in short, with what other models cost that answered beside it as evidence.

    `probability` is that of the draw by which it was made (1: none), `label_probability` that of the draw by which
    `right` came to be known. `usd` is NaN where the price is unknown. `features` are kept where there is no confidence.
    """

    stage: str
    small: bool
    answered: bool
    ok: bool
    accepted: bool
    skipped: bool
    afterwards: bool
    constrained: bool | None
    confidence: float | None
    probability: float
    usd: float
    seconds: float
    right: bool | None = None
    label_probability: float = 1.0
    features: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Trace:
    """A recorded call in short. `size` is log(1 + input tokens) of its first attempt."""

    task: str
    mode: Mode
    reason: str
    size: float
    steps: tuple[Step, ...]

    def of(self, stage: str) -> tuple[Step, ...]:
        """The steps of a stage: the call's own, else those made afterwards."""
        steps = [s for s in self.steps if s.stage == stage]
        return tuple(s for s in steps if not s.afterwards) or tuple(steps)

    @property
    def explored(self) -> bool:
        """Whether a draw chose where the call began: the small model did not look promising for it."""
        return bool(self.steps) and not self.steps[0].afterwards and self.steps[0].probability < 1

    @property
    def treated(self) -> str:
        """By which rule the call was treated: calls of one kind had the same chance of all that was drawn."""
        if self.explored:
            return f"{self.mode}:explored"
        own = [s for s in self.steps if not s.afterwards]
        asked = ("small" if any(s.small for s in own) else "", "large" if any(not s.small for s in own) else "")
        return f"{self.mode}:{'+'.join(asked)}"


@dataclass(frozen=True, slots=True)
class Play:
    """What a policy comes to at a call; NaN where the record does not tell, `missing` then says what it lacks.

    `action` None: not even that is known. `drawn` is the probability of the draw by which the small model's part was
    seen, `later` that by which the served answer's, given that; `judged` that by which its label was, given both.
    """

    action: Action | None
    usd: float = NAN
    seconds: float = NAN
    success: float = NAN
    confidence: float | None = None
    drawn: float = 1.0
    later: float = 1.0
    judged: float = 1.0
    missing: str = ""

    @property
    def escalated(self) -> bool:
        return self.action in ("escalate", "large")


def trace(record: StoredRecord, labels: Sequence[Label | None]) -> Trace:
    """`record` in short; `labels` has one entry for each of its attempts."""
    attempts = record.attempts
    later = next((n for n, a in enumerate(attempts) if a.decision in AFTERWARDS), len(attempts))
    audits = [a.probability for a in attempts if a.decision == "audit" and a.probability is not None]
    by_audit = min(audits, default=1.0)
    steps = [
        _step(attempts, n, labels, afterwards=n >= later, by_audit=by_audit)
        for n, attempt in enumerate(attempts)
        if attempt.decision != "evidence"
    ]
    first = attempts[0].completion if attempts else None
    size = math.log1p(first.usage.input_tokens) if first else 0.0
    return Trace(record.task, record.mode, record.reason, size, tuple(steps))


def _step(
    attempts: Sequence[Attempt], n: int, labels: Sequence[Label | None], *, afterwards: bool, by_audit: float
) -> Step:
    """The n-th attempt, with the confidence and the label of the answer that its stage offers."""
    attempt, beside, best = attempts[n], [attempts[m] for m in evidence_of(attempts, n)], offered(attempts, n)
    label = labels[best]
    features, answered = attempt.features, attempt.completion is not None
    ok = answered and attempt.verdict.ok
    told = "constrained" in features and any(features.get(name, 0) > 0 for name in _NOTHING_TO_HOLD_TO)
    audited = not afterwards and label is not None and label.kind == "agreement"
    return Step(
        stage=attempt.stage,
        small=attempt.small,
        answered=answered,
        ok=ok,
        accepted=attempt.decision == "accept",
        skipped=attempt.reason == "budget",
        afterwards=afterwards,
        constrained=bool(features["constrained"]) if told else None,
        confidence=attempts[best].confidence,
        probability=1.0 if attempt.probability is None else attempt.probability,
        usd=sum(NAN if a.cost_usd is None else a.cost_usd for a in (attempt, *beside)),
        seconds=attempt.seconds + max((a.seconds for a in beside), default=0.0),
        right=None if label is None else label.correct,
        label_probability=by_audit if audited else 1.0,
        features=features if attempt.small and ok and attempt.confidence is None else {},
    )


@dataclass(slots=True)
class _Walk:
    """A call on its way through the target policy."""

    target: Target
    mode: Mode
    threshold: float | None
    usd: float = 0.0
    seconds: float = 0.0
    drawn: float = 1.0
    asked: bool = False
    confidence: float | None = None
    fallback: Step | None = None

    @property
    def limited(self) -> bool:
        return self.target.max_usd is not None or self.target.max_seconds is not None

    def start(self, steps: Sequence[Step]) -> bool:
        """Whether a stage may start, judged by what its first attempt cost."""
        in_money = self.target.max_usd is None or self.usd + steps[0].usd <= self.target.max_usd
        return in_money and (self.target.max_seconds is None or self.seconds < self.target.max_seconds)

    def spend(self, steps: Sequence[Step]) -> bool:
        """Add what the steps cost; False when they end after the time allowed, and are broken off then."""
        self.usd += sum(step.usd for step in steps)
        self.seconds += sum(step.seconds for step in steps)
        late = self.target.max_seconds is not None and self.seconds > self.target.max_seconds
        self.seconds = min(self.seconds, self.target.max_seconds or self.seconds)
        return not late

    def serve(self, action: Action, step: Step | None, *, later: float = 1.0) -> Play:
        """`step` is served (None: nothing is)."""
        told = step is None or step.right is not None
        return Play(
            action,
            usd=self.usd,
            seconds=self.seconds,
            success=float(bool(step and step.right)) if told else NAN,
            confidence=self.confidence,
            drawn=self.drawn,
            later=later,
            judged=step.label_probability if step else 1.0,
            missing="" if told else "label",
        )


def play(call: Trace, target: Target, threshold: float | None, seen_small: frozenset[str]) -> Play:
    """What `target` comes to at `call`; `threshold` is that of acceptance (None: as recorded).

    `seen_small` are the names of the stages that are small models, from all records.
    """
    if target == AS_RECORDED or _left_alone(call, target):
        done = _walked(call, _Walk(AS_RECORDED, call.mode, None), *_recorded_stages(call))
        return replace(done, drawn=1.0, later=1.0)
    mode = target.mode or mode_of(call, threshold)
    small, large = _recorded_stages(call)
    if target.stages is not None:
        small = [stage for stage in target.stages if stage in seen_small or stage != target.stages[-1]]
        large = None if target.stages[-1] in seen_small else target.stages[-1]
        mode = mode if large else "small_only"
    elif not small and mode != "observe":
        return Play(None, missing="small")
    done = _walked(call, _Walk(target, mode, threshold), small, large)
    return replace(done, drawn=1.0) if call.explored and _begins_as_recorded(target) else done


def _walked(call: Trace, walk: _Walk, small: Sequence[str], large: str | None) -> Play:
    for stage in small if walk.mode != "observe" else ():
        done = _ask_small(walk, call.of(stage), stage)
        if done is not None:
            return done
    if walk.mode == "small_only":
        return walk.serve("none", walk.fallback)
    return _ask_large(walk, call.of(large) if large else (), large)


def _left_alone(call: Trace, target: Target) -> bool:
    """Whether the target treats the call as it was treated: the client chose the model, say, or the router passed the
    small one by."""
    if call.reason in _AS_THEY_ARE:
        return True
    return call.mode == "enforce" and not any(s.small for s in call.steps) and _begins_as_recorded(target)


def _begins_as_recorded(target: Target) -> bool:
    """Whether the target's router passes the small model by where the recorded one did."""
    return target.stages is None and target.mode in (None, "enforce")


def mode_of(call: Trace, threshold: float | None) -> Mode:
    """The recorded mode; a call that was only observed for want of a threshold is not, where there is one."""
    waited = call.mode == "observe" and call.reason == "uncalibrated"
    return "enforce" if waited and threshold is not None else call.mode


def _recorded_stages(call: Trace) -> tuple[Sequence[str], str | None]:
    """The small stages in order and the large one, the call's own before those asked afterwards."""
    own = [s for s in call.steps if not s.afterwards]
    small = list(dict.fromkeys(s.stage for s in (own if any(s.small for s in own) else call.steps) if s.small))
    return small, next((s.stage for s in (*own, *call.steps) if not s.small), None)


def _ask_small(walk: _Walk, steps: Sequence[Step], stage: str) -> Play | None:
    """One small stage: the play if it ends here (served, or not told), None when the walk goes on."""
    if not steps:
        return Play(None, missing=f"stage:{stage}")
    if steps[0].skipped:
        return Play(None, missing="budget") if walk.limited else None
    target = walk.target
    made = steps if target.repairs is None else steps[: target.repairs + 1]
    last = made[-1]
    if target.repairs is not None and last.answered and not last.ok and len(made) <= target.repairs:
        return Play(None, missing="repairs")
    if target.constraint is not None and not all(_held(step, target.constraint) for step in made):
        return Play(None, missing="constraint")
    walk.drawn = min(walk.drawn, *(s.probability for s in made))
    if not walk.start(made):
        return None
    walk.asked = True
    if not walk.spend(made) or not last.ok:
        return None
    walk.fallback, walk.confidence = last, last.confidence
    accepted = True if walk.mode == "small_only" else _accepts(last, walk.threshold)
    if accepted is None:
        return Play(None, missing="threshold" if walk.threshold is None else "confidence")
    return walk.serve("accept", last) if accepted else None


def _accepts(step: Step, threshold: float | None) -> bool | None:
    """Whether a valid small answer is accepted; None when the record does not tell."""
    if threshold is None:
        return None if step.afterwards else step.accepted
    if threshold <= 0:
        return True
    return None if step.confidence is None else step.confidence >= threshold


def _held(step: Step, constraint: ConstraintMode) -> bool:
    """Whether the step was decoded under that constraint, or would not differ by it.

    Records tell whether decoding was held to a schema, not whether from the first token ("constrained") or from a later
    one ("late"): it counts as "constrained", and nothing counts as "late".
    """
    return step.constrained is None or constraint == ("constrained" if step.constrained else "free")


def _ask_large(walk: _Walk, steps: Sequence[Step], stage: str | None) -> Play:
    """The last stage; where it gives no valid answer, the last valid small one is served."""
    action: Action = "escalate" if walk.asked else "large"
    if not steps or (steps[0].skipped and walk.limited):
        missing = "large" if walk.target.stages is None else f"stage:{stage}"
        return Play(action, confidence=walk.confidence, drawn=walk.drawn, missing=missing)
    if steps[0].skipped or not walk.start(steps):
        return walk.serve("none", walk.fallback)
    in_time, last = walk.spend(steps), steps[-1]
    good = in_time and (last.ok or last.accepted or walk.mode == "observe")
    return walk.serve(action, last if good else walk.fallback, later=min(s.probability for s in steps))


_ADVICE: Mapping[str, tuple[str, str]] = {
    "label": (
        "nobody knows whether the answer was right",
        "audit accepted calls, or send feedback to /v1/feedback",
    ),
    "large": (
        "the large model's answer to calls that a small one answered",
        f'audit accepted calls, or record about {ENOUGH} calls in mode = "observe" with shadow = true',
    ),
    "small": (
        "no small model answered",
        f"record about {ENOUGH} calls with shadow = true",
    ),
    "threshold": (
        "small answers were only recorded, so whether they would be accepted",
        "give threshold or alpha in the policy file",
    ),
    "confidence": (
        "the small answer has no confidence",
        "label more of its answers: audits, feedback, or shadow = true",
    ),
    "repairs": (
        "no further repair was tried",
        f'record about {ENOUGH} calls with these repairs in mode = "observe" with shadow = true',
    ),
    "constraint": (
        "no answer was made under this constraint",
        f'record about {ENOUGH} calls under it in mode = "observe" with shadow = true',
    ),
    "budget": (
        "the recorded budget ended the call before",
        f"record about {ENOUGH} calls with this budget",
    ),
}


def lacking(missing: str) -> tuple[str, str]:
    """What `Play.missing` stands for, and what to record or to say so that it is known."""
    kind, _, stage = missing.partition(":")
    if kind == "stage":
        advice = f'record about {ENOUGH} calls with it in `stages`, mode = "observe" and shadow = true'
        return f"{stage} did not answer", advice
    return _ADVICE[kind]
