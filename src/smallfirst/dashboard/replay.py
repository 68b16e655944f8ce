"""A recorded call asked again of another model, to look at: its answer is shown and kept nowhere.

It is not added to the record, because attempts there are evidence, and what a person picked out is no random sample.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, nullcontext

import structlog
from msgspec.structs import replace

from smallfirst.budget import Allowance
from smallfirst.cascade import Cascade
from smallfirst.errors import NotFoundError, UnsupportedError
from smallfirst.labels import request_of
from smallfirst.serve.access import Caller
from smallfirst.serve.gateway import Gateway
from smallfirst.serve.spending import within_budget
from smallfirst.store import StoredRecord
from smallfirst.types import Attempt, Request, Stage

log = structlog.get_logger("smallfirst.dashboard")


def models(gateway: Gateway, record: StoredRecord) -> tuple[str, ...]:
    """The configured models that can answer the call; none where its texts were not kept."""
    request = request_of(record)
    if request is None:
        return ()
    stages = {name: _stage(gateway, name, record) for name in gateway.candidates}
    return tuple(name for name, s in stages.items() if s.model and not s.backend.capabilities.missing(request))


async def replay(gateway: Gateway, caller: Caller, record: StoredRecord, model: str) -> Sequence[Attempt]:
    """What `model` answers to the recorded request now, its repairs included, at the caller's expense.

    Raises NotFoundError for a model that is none of `models`, UnsupportedError where the request was not kept, and
    LimitError where the caller's limits do not allow it.
    """
    request = request_of(record)
    if request is None:
        raise UnsupportedError("The request was not kept.", hint="Set capture = true for the task.")
    if model not in models(gateway, record):
        raise NotFoundError(f"No model {model!r:.100} can answer this call.", hint="Choose one of the list.")
    stage, cascade = _stage(gateway, model, record), gateway.cascades.get(record.task, gateway.cascades[""])
    policy = gateway.config.policy(record.task)
    allowance = Allowance(time.monotonic(), policy.max_usd, policy.max_seconds)
    with gateway.admission.admit(caller):
        async with _budget(gateway, caller, cascade, stage, request, allowance):
            attempts = await cascade.shadow(stage, replace(request, stream=False), allowance)
    gateway.telemetry.attempted(attempts)
    log.info("replayed", record=record.id, model=model, by=caller.key)
    return attempts


def _stage(gateway: Gateway, name: str, record: StoredRecord) -> Stage:
    candidate, policy = gateway.candidates[name], gateway.config.policy(record.task)
    stage = candidate.stage
    if not stage.model and candidate.hands_on(record.model):
        stage = replace(stage, model=record.model)
    return replace(stage, constraint=policy.constraint, repairs=policy.repairs) if stage.small else stage


def _budget(
    gateway: Gateway, caller: Caller, cascade: Cascade, stage: Stage, request: Request, allowance: Allowance
) -> AbstractAsyncContextManager[None]:
    if caller.limits.usd_per_day is None:
        return nullcontext()
    return within_budget(gateway.store, caller, cascade.pricing, (stage,), request, allowance)
