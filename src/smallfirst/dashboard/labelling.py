"""Labels by people: which pairs of answers tell most, shown blind, and the feedback that a judgement becomes.

A pair is a small model's answer beside the large one's to the same call. Those come first whose confidence is nearest
to the threshold: their labels move it most. Which answer stands left is drawn from the record's id and a secret, so
that it gives nothing away and stays the same when the page is loaded again.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from smallfirst.agreement import same_answer
from smallfirst.errors import RequestError
from smallfirst.labels import referred, request_of
from smallfirst.serve.calibrations import Calibrations
from smallfirst.serve.gateway import new_id
from smallfirst.store import RecordFilter, RecordSummary, Store, StoredRecord
from smallfirst.types import Attempt, Choice, Feedback, Request

Verdict = Literal["left", "right", "both", "neither"]
VERDICTS: tuple[Verdict, ...] = ("left", "right", "both", "neither")
ORDER = "dashboard label order"
"""What the secret is for that draws which answer stands left."""
LOOKED_AT = 1000
_OPENED = 200
_UNCALIBRATED = 0.5


@dataclass(frozen=True, slots=True)
class Pair:
    """Two different answers to one call, `left` and `right` as they are shown; `small` tells which is the small one's.

    Each is the index of an attempt of `record`."""

    record: StoredRecord
    request: Request
    left: int
    right: int
    small: Literal["left", "right"]
    away: float | None

    def answer(self, side: Literal["left", "right"]) -> Choice:
        """The answer shown on that side."""
        completion = self.record.attempts[self.left if side == "left" else self.right].completion
        assert completion is not None
        return completion.choices[0]


@dataclass(frozen=True, slots=True)
class Queue:
    """The pair to label next, None when there is none; `waiting` counts the calls with two answers and no label among
    the newest ones, pairs of the same answer included, since only looking tells them apart."""

    pair: Pair | None
    waiting: int
    skipped: int


async def queue(store: Store, calibrations: Calibrations, task: str | None, skip: int) -> Queue:
    """The pairs of the newest 1,000 calls without feedback, those nearest to their task's threshold first, `skip` of
    them passed over."""
    wanted = RecordFilter(task=task, has_feedback=False)
    calls = [call for call in await store.list_records(wanted, limit=LOOKED_AT) if _promising(call)]
    away = {call.id: _away(call, calibrations) for call in calls}
    calls.sort(key=lambda call: (away[call.id] is None, away[call.id] or 0.0, call.id))
    passed = 0
    for call in calls[: skip + _OPENED]:
        pair = pair_of(await store.get(call.id), store.secret(ORDER), away[call.id])
        if pair is None:
            continue
        if passed == skip:
            return Queue(pair, len(calls) - passed, passed)
        passed += 1
    return Queue(None, 0, passed)


def pair_of(record: StoredRecord, secret: bytes, away: float | None = None) -> Pair | None:
    """The record's two answers; None where one is missing, the texts were not kept, or they are the same answer."""
    request, large = request_of(record), referred(record)
    small = next((n for n, a in reversed(list(enumerate(record.attempts))) if _answered_by_small(a)), None)
    if request is None or large is None or small is None:
        return None
    answers = [a.completion.choices[0] for a in (record.attempts[small], record.attempts[large]) if a.completion]
    if same_answer(request, *answers):
        return None
    if hmac.digest(secret, record.id.encode(), "sha256")[0] & 1:
        return Pair(record, request, small, large, "left", away)
    return Pair(record, request, large, small, "right", away)


def feedback_of(pair: Pair, verdict: str, source: str) -> list[Feedback]:
    """What `verdict` says of both answers, in the words that labels are made of (see `labels.label_of`): whether the
    one served was right, and a right answer where there is one. Raises RequestError for another word."""
    if verdict not in VERDICTS:
        raise RequestError(f"The verdict is {verdict!r:.50}.", hint=f"Allowed: {', '.join(VERDICTS)}.")
    served = "left" if pair.record.served == pair.left else "right" if pair.record.served == pair.right else None
    other: Literal["left", "right"] = "right" if served == "left" else "left"
    said: list[tuple[Literal["correct", "answer"], Any]] = []
    if served is not None:
        said.append(("correct", verdict in {served, "both"}))
    if verdict in {"left", "right"}:
        said.append(("answer", _as_feedback(pair.answer("left" if verdict == "left" else "right"))))
    elif verdict == "both":
        said.append(("answer", _as_feedback(pair.answer(other))))
    return [Feedback(new_id(), pair.record.id, time.time(), kind, value, source) for kind, value in said]


def _promising(call: RecordSummary) -> bool:
    """Whether the call may have a pair: a small and a large answer, both valid."""
    valid = [a for a in call.attempts if a.ok and a.decision != "evidence"]
    return any(a.small for a in valid) and any(not a.small for a in valid)


def _away(call: RecordSummary, calibrations: Calibrations) -> float | None:
    """How far the small answer's confidence is from the threshold; without a calibration, its least margin from 0.5."""
    small = next(a for a in reversed(call.attempts) if a.small and a.ok and a.decision != "evidence")
    standing = calibrations.standing(call.task)
    if standing is not None and standing.acceptance.stage == small.stage and small.features:
        return abs(standing.confidence(small.features) - standing.threshold)
    margin = small.features.get("margin_min")
    return None if margin is None else abs(margin - _UNCALIBRATED)


def _answered_by_small(attempt: Attempt) -> bool:
    answered = attempt.completion is not None and bool(attempt.completion.choices)
    return attempt.small and attempt.decision != "evidence" and answered and attempt.verdict.ok


def _as_feedback(answer: Choice) -> Mapping[str, Any]:
    """An answer as `labels.as_choice` reads it."""
    if not answer.tool_calls:
        return {"content": answer.text}
    calls = [
        {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
        for c in answer.tool_calls
    ]
    return {"content": answer.text or None, "tool_calls": calls}
