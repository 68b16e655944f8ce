"""What the recorded calls of a rollout say of its two sides: from a record to the `rollout.Outcome` that is bet on.

Two versions are compared by their own answers, whether they were accepted or not, so that the same is measured where a
side is calibrated, where it is not, and where it only answers in shadow. A first version is compared with what is
served without it, and so by what is served with it: what of it is not accepted counts as the large model's answer. That
a tool ran without an error is no label here: only answers that were served have such, and of one side more may be.
Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from smallfirst.labels import Label, Outcomes, label_of, referred, request_of
from smallfirst.registry import watched
from smallfirst.rollout import Answer, Outcome, Rollout
from smallfirst.store import StoredRecord
from smallfirst.types import Attempt, total_usd

_NOT_ASKED = frozenset({"budget", "cancelled"})
_NOT_ACCEPTED = ("low_confidence", "invalid:", "error:")
_NOT_FOR_SMALL = "small_incapable"
_NO_OUTCOMES = Outcomes()


@dataclass(frozen=True, slots=True)
class Judged:
    """A stage's answer to a recorded call; `observed` is the chance with which its success came to be known."""

    answer: Answer
    observed: float = 1.0


def outcome_of(record: StoredRecord, rollout: Rollout) -> Outcome | None:
    """What `record` says of the sides of `rollout` that answered it; None when neither did.

    The success of answers whose label had less of a chance than the rules promise counts as unknown.
    """
    trial, rules = record.trial, rollout.rules
    if trial is None or trial.rollout != rollout.id:
        return None
    least = {"canary": rules.labelled, "incumbent": rules.labelled_incumbent}
    candidate = None if trial.arm == "incumbent" else judged(record, rollout.candidate)
    if candidate is not None and not rollout.incumbent:
        candidate = _as_served(record, rollout.candidate, candidate)
    incumbent = None if trial.arm == "canary" else judged(record, rollout.incumbent)
    sides = [side for side in (candidate, incumbent) if side is not None]
    if not sides:
        return None
    observed = min(side.observed for side in sides)
    told = observed >= least.get(trial.arm, min(least.values()))
    new, old = (_counted(side, told) for side in (candidate, incumbent))
    return Outcome(record.episode or "", new, old, trial.share, observed if told else 1.0)


def _counted(side: Judged | None, told: bool) -> Answer | None:
    if side is None:
        return None
    return side.answer if told else replace(side.answer, success=None)


def judged(record: StoredRecord, stage: str) -> Judged | None:
    """What the small stage of that name answered; "": what was served by what is configured.

    None when it was not asked. An invalid answer has no success; a valid one's is its label, and unknown without one.
    """
    if not stage:
        return _configured(record)
    asked = _asked(record, stage)
    if not asked or record.attempts[asked[-1]].reason in _NOT_ASKED:
        return None
    last = record.attempts[asked[-1]]
    valid = last.completion is not None and last.verdict.ok
    label = label_of(record, request_of(record), asked[-1], _NO_OUTCOMES) if valid else None
    success = (label.correct if label else None) if valid else False
    beside = [a for a in record.attempts if a.decision == "evidence" and a.reason == stage]
    tries = [record.attempts[n] for n in asked]
    usd = total_usd(a.cost_usd for a in (*tries, *beside))
    return Judged(Answer(success, valid, sum(a.seconds for a in tries), usd), _observed(record, label))


def _asked(record: StoredRecord, stage: str) -> list[int]:
    """The stage's attempts: those of the call, or without such those in shadow."""
    asked = [n for n, a in enumerate(record.attempts) if a.stage == stage and _is_answer(a)]
    return [n for n in asked if record.attempts[n].decision != "shadow"] or asked


def _configured(record: StoredRecord) -> Judged | None:
    """What was served, unless a version of the task's answered, or no small model could."""
    if record.served is None or record.reason == _NOT_FOR_SMALL:
        return None
    served = record.attempts[record.served]
    if not served.small:
        return _large(record)
    return None if watched(record.task, served.stage) == served.stage else judged(record, served.stage)


def _as_served(record: StoredRecord, stage: str, own: Judged) -> Judged:
    """The stage's own answer where it was, or from the shadow would have been, accepted; else the large model's, with
    the time and cost of both."""
    last, large = record.attempts[_asked(record, stage)[-1]], _large(record)
    if large is None or not last.reason.startswith(_NOT_ACCEPTED):
        return own
    seconds = own.answer.seconds + large.answer.seconds
    return replace(
        large, answer=replace(large.answer, seconds=seconds, usd=total_usd((own.answer.usd, large.answer.usd)))
    )


def _large(record: StoredRecord) -> Judged | None:
    """The large model's answer, by which others are judged; right unless somebody said that it is not."""
    n = referred(record)
    if n is None:
        return None
    attempt, label = record.attempts[n], label_of(record, None, n, _NO_OUTCOMES)
    return Judged(Answer(label is None or label.correct, True, attempt.seconds, attempt.cost_usd))


def _is_answer(attempt: Attempt) -> bool:
    return attempt.small and attempt.kind != "cache" and attempt.decision != "evidence"


def _observed(record: StoredRecord, label: Label | None) -> float:
    """The chance of a label that only an audit gave."""
    audits = [a.probability for a in record.attempts if a.decision == "audit" and a.probability is not None]
    return min(audits) if audits and label is not None and label.kind == "agreement" else 1.0
