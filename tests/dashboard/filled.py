"""A store as some weeks of use leave it: three tasks, one of them calibrated and audited, one with a candidate."""

from __future__ import annotations

import json
import math
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace

from smallfirst.acceptance import Acceptance, Costs, certify
from smallfirst.guarantee import Certificate
from smallfirst.monitor import Monitor
from smallfirst.registry import Release, Version, released
from smallfirst.rollout import Rules
from smallfirst.serve.gateway import new_id
from smallfirst.store import Store
from smallfirst.types import (
    Attempt,
    Choice,
    Completion,
    Decision,
    Feedback,
    Json,
    Origin,
    Record,
    Request,
    TokenLogprob,
    Tool,
    ToolCall,
    Trial,
    Usage,
    Verdict,
    Violation,
)

CALIBRATED, OBSERVED, TRIED = "helpdesk/route", "invoices/extract", "helpdesk/reply"
DAYS = 20
TRIED_FOR = 5 * 86_400
SCHEMA: Json = {
    "type": "object",
    "properties": {"queue": {"enum": ["billing", "delivery", "returns"]}, "urgent": {"type": "boolean"}},
    "required": ["queue", "urgent"],
}
_QUEUES = ("billing", "delivery", "returns")
_MAILS = (
    "I was charged twice for order 4417. Please give the second payment back.",
    "The parcel was to be here on Monday. Where is it?",
    "The lamp came broken. I would like to send it back.",
)


def call(queue: str, *, urgent: bool = False, sure: float = 0.97) -> Choice:
    """A call of the routing tool with the log-probabilities of its tokens; `sure` is the probability of the queue."""
    arguments = json.dumps({"queue": queue, "urgent": urgent})
    other = next(each for each in _QUEUES if each != queue)
    pieces = ['{"name": "', "route", '", "arguments": {"queue": "', queue, '", "urgent": ', str(urgent).lower(), "}}"]
    odds = [0.99, 0.98, 0.99, sure, 0.99, 0.9, 0.99]
    logprobs = tuple(
        TokenLogprob(text, math.log(p), ((text, math.log(p)), (other, math.log(max(1 - p, 1e-6)))))
        for text, p in zip(pieces, odds, strict=True)
    )
    return Choice(tool_calls=(ToolCall("call_1", "route", arguments),), finish_reason="tool_calls", logprobs=logprobs)


def request(mail: str, *, episode: str | None = None, key: str = "local") -> Request:
    """A call that asks which queue a mail belongs to."""
    tool = Tool("route", "Puts a mail into a queue", SCHEMA)
    messages = (
        {"role": "system", "content": "You sort the mail of a shop."},
        {"role": "user", "content": mail},
    )
    function = {"name": tool.name, "description": tool.description, "parameters": SCHEMA}
    body = {"model": "auto", "messages": list(messages), "tools": [{"type": "function", "function": function}]}
    return Request("chat", body, "auto", messages, (tool,), origin=Origin(key, episode=episode))


def attempt(choice: Choice | None, *, small: bool, decision: Decision, reason: str, **changed: Any) -> Attempt:
    """An answer of the small or of the large model."""
    made = Attempt(
        stage="small" if small else "large",
        backend="fake",
        model="smollm2-135m" if small else "gpt-large",
        kind="generate",
        decision=decision,
        reason=reason,
        completion=Completion((choice,), Usage(320, 24), "") if choice else None,
        small=small,
        features={"margin_min": 0.9, "prompt_chars": 210.0, "tools": 1.0} if small else {},
        cost_usd=0.00002 if small else 0.0019,
        cost_usd_local_free=0.0 if small else 0.0019,
        seconds=0.21 if small else 0.9,
        first_token_s=0.1 if small else 0.4,
    )
    return replace(made, **changed)


def record(task: str, at: float, asked: Request, attempts: tuple[Attempt, ...], **changed: Any) -> Record:
    """A call that its last own attempt answered."""
    own = [a for a in attempts if a.decision not in {"shadow", "audit"}]
    last = own[-1]
    made = Record(
        id=new_id(),
        created_at=at,
        request=asked,
        task=task,
        mode="enforce",
        attempts=attempts,
        served=len(own) - 1 if last.completion else None,
        decision="accept" if last.small else "escalate",
        reason=own[0].reason,
        status=200,
        seconds=sum(a.seconds for a in own) + 0.01,
        config_hash="c0ffee000000",
    )
    return replace(made, **changed)


async def fill(store: Store, now: float | None = None, calls: int = 360) -> None:
    """Put `calls` calls of the last 20 days into an empty store, with labels, a calibration, audits and a candidate."""
    now, rng = time.time() if now is None else now, random.Random(7)
    acceptance = _acceptance(now - DAYS * 86_400)
    row = await store.save_calibration(CALIBRATED, "small", json.dumps(acceptance.to_json()))
    assert isinstance(acceptance.outcome, Certificate)
    monitor = Monitor.of(row.id, acceptance.outcome, 0.7)
    for n in range(calls):
        at = now - DAYS * 86_400 * (1 - (n + 1) / calls) - 5
        made = (_routed, _observed, _replied)[n % 3](rng, at, n)
        if made.task == TRIED and at > now - TRIED_FOR:
            made = replace(made, trial=Trial("r1", "canary" if rng.random() < 0.25 else "incumbent", 0.25))
        await store.append(made)
        if rng.random() < 0.3:
            right = not (made.decision == "accept" and rng.random() < 0.05)
            await store.add_feedback(Feedback(new_id(), made.id, at + 60, "correct", right, "tests"))
        if made.task == CALIBRATED and made.attempts[-1].decision == "audit":
            wrong = made.attempts[-1].reason == "different"
            monitor.take(made.id, wrong, made.attempts[-1].probability or 1.0, accepted=True, least=0.7, now=at)
    await store.change_monitor(CALIBRATED, lambda _: monitor.to_json())
    await release_candidate(store, TRIED, now - TRIED_FOR)


async def release_candidate(store: Store, task: str, now: float) -> Version:
    """A version of the task's small model, on trial."""
    version = await store.save_version(Version(f"{task}@0123456789ab", task, now - 3600, {"backend": "fake"}))

    def change(before: Release, _: frozenset[str]) -> tuple[Release, str]:
        made = released(before, version.id, "canary", share=0.25, rules=Rules(), rollout_id="r1", now=now, by="tests")
        return made, "trained on 400 calls"

    await store.change_release(task, change)
    return version


def _acceptance(made_at: float) -> Acceptance:
    rng = np.random.default_rng(3)
    rows, right = [], []
    for _ in range(300):
        margin = float(rng.random())
        rows.append({"margin_min": margin, "prompt_chars": 210.0, "tools": 1.0})
        right.append(bool(rng.random() < 0.6 + 0.4 * min(1.0, margin * 2)))
    costs = Costs(0.00002, 0.0019)
    given: dict[str, Any] = {"task": CALIBRATED, "stage": "small", "label": "agreement", "made_at": made_at}
    return certify(rows, right, alpha=0.1, delta=0.1, costs=costs, **given)


def _routed(rng: random.Random, at: float, n: int) -> Record:
    """A call of the calibrated task: accepted, or escalated for want of confidence; some are audited."""
    queue, sure = _QUEUES[n % 3], rng.uniform(0.4, 0.99)
    features = {"margin_min": 2 * sure - 1, "prompt_chars": 210.0, "tools": 1.0}
    accepted = sure > 0.65
    decision: Decision = "accept" if accepted else "escalate"
    reason = "calibrated" if accepted else "low_confidence"
    given = {"features": features, "confidence": 0.5 + sure / 2, "seconds": rng.uniform(0.1, 0.4)}
    small = attempt(call(queue, sure=sure), small=True, decision=decision, reason=reason, **given)
    attempts = (small,)
    if not accepted:
        attempts += (attempt(call(queue), small=False, decision="accept", reason="calibrated"),)
    elif rng.random() < 0.7:
        wrong = rng.random() < 0.04
        answer = call(_QUEUES[(n + wrong) % 3])
        found = "different" if wrong else "same"
        attempts += (attempt(answer, small=False, decision="audit", reason=found, probability=0.7),)
    return record(CALIBRATED, at, request(_MAILS[n % 3], episode=f"ticket-{n // 9}"), attempts)


def _observed(rng: random.Random, at: float, n: int) -> Record:
    """A call of the task without a calibration: the large model answers, the small one in shadow, often otherwise."""
    large = attempt(call(_QUEUES[n % 3]), small=False, decision="accept", reason="uncalibrated")
    other = call(_QUEUES[(n + (rng.random() < 0.3)) % 3], sure=rng.uniform(0.5, 0.9))
    features = {"margin_min": rng.uniform(0.1, 0.9), "prompt_chars": 210.0, "tools": 1.0}
    shadow = attempt(other, small=True, decision="shadow", reason="uncalibrated", features=features)
    asked = request(_MAILS[n % 3], episode=f"ticket-{n // 9}")
    return record(OBSERVED, at, asked, (large, shadow), mode="observe", decision="escalate")


def _replied(rng: random.Random, at: float, n: int) -> Record:
    """A call of the task that small models alone answer: valid, repaired, or failed."""
    asked = request(_MAILS[n % 3], key="local")
    luck = rng.random()
    if luck < 0.75:
        fine = attempt(call(_QUEUES[n % 3]), small=True, decision="accept", reason="no_large_model")
        return record(TRIED, at, asked, (fine,), mode="small_only")
    broken = Verdict((Violation("enum", "'sales' is not one of billing, delivery, returns.", "$.queue"),))
    first = attempt(call("sales", sure=0.4), small=True, decision="abstain", reason="invalid:enum", verdict=broken)
    if luck < 0.92:
        again = attempt(call(_QUEUES[n % 3]), small=True, decision="accept", reason="no_large_model", kind="repair")
        return record(TRIED, at, asked, (first, again), mode="small_only")
    failed: dict[str, Any] = {"served": None, "decision": "abstain", "status": 502}
    return record(TRIED, at, asked, (first,), mode="small_only", **failed)


def write_comparison(folder: Path) -> None:
    """Measurements of compressors, as `smallfirst compressors compare` writes them."""
    folder.mkdir(parents=True)
    points = [
        _point("none", 900.0, 0.90, front=True),
        _point("sentences-0.5", 460.0, 0.88, front=True),
        _point("tokens-0.5", 470.0, 0.71, front=False),
        _point("extract-0.25", 230.0, 0.80, front=True),
    ]
    (folder / "comparison.json").write_text(json.dumps({"points": points}), encoding="utf-8")


def _point(name: str, tokens: float, right: float, *, front: bool) -> Json:
    def figure(value: float, n: int = 200) -> Json:
        return {"value": value, "low": 0.95 * value, "high": min(1.05 * value, value + 40), "n": n}

    return {
        "name": name,
        "accuracy": figure(right),
        "rate": figure(8.0 / tokens),
        "information": figure(8.0 * right),
        "tokens": figure(tokens),
        "cps": figure(tokens * 1e-6),
        "front": front,
    }
