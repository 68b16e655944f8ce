"""The whole path of a call, on one screen: authenticate, parse, route, run the cascade, record, answer.

A call is not acknowledged before its record is durable: a plain answer is sent, and a stream is ended, only after
`store.append` returned.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from random import Random

import msgspec
from msgspec import Struct, field
from msgspec.structs import replace

from smallfirst.budget import Allowance
from smallfirst.cascade import Cascade, Outcome
from smallfirst.chance import draw
from smallfirst.confidence import request_features
from smallfirst.config import Config, Policy
from smallfirst.errors import RequestError, SmallfirstError, StoreError
from smallfirst.router import TASK_NAME, Candidate, identify, promising, route, without_small
from smallfirst.serve.access import Access, Admission, Caller
from smallfirst.serve.audit import Audits
from smallfirst.serve.cache import ResponseCache
from smallfirst.serve.calibrations import Calibrations, Standing
from smallfirst.serve.exchange import ClientGone, Exchange, printable
from smallfirst.serve.releases import AS_CONFIGURED, InService, Releases
from smallfirst.serve.shadow import Shadow, Shadows
from smallfirst.serve.spending import within_budget
from smallfirst.serve.tasks import Tasks
from smallfirst.serve.telemetry import Telemetry
from smallfirst.store import Store
from smallfirst.types import Attempt, Delta, Origin, Record, Request, Route, Trial, Usage, Wire, total_usd
from smallfirst.validators import check_schemas, unchecked_keywords
from smallfirst.wire import WIRES
from smallfirst.wire.accumulate import split

UNCHECKED_NAMED = 20
FORWARDED = ("anthropic-beta", "anthropic-version", "idempotency-key", "openai-organization", "openai-project")


class Call(Struct, frozen=True):
    """A parsed call with everything that was decided before any model was asked."""

    id: str
    created_at: float
    started: float
    caller: Caller
    request: Request
    policy: Policy
    route: Route
    beside: Route | None
    trial: Trial | None
    cascade: Cascade
    attempts: list[Attempt] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Gateway:
    """The online half, assembled: `candidates` by model name, `cascades` by task ("" for all others)."""

    config: Config
    config_hash: str
    candidates: Mapping[str, Candidate]
    cascades: Mapping[str, Cascade]
    known_model: Callable[[str], bool]
    store: Store
    access: Access
    admission: Admission
    cache: ResponseCache
    shadows: Shadows
    tasks: Tasks
    calibrations: Calibrations
    releases: Releases
    audits: Audits
    telemetry: Telemetry
    random: Random

    async def answer(self, wire: Wire, exchange: Exchange) -> None:
        """Answer one call on `wire`. Raises SmallfirstError as long as nothing was sent."""
        caller = await self.access.authenticate(exchange.headers)
        server = self.config.server
        raw = await exchange.body(limit=int(server.max_body_mb * 2**20), timeout_s=server.body_timeout_s)
        with self.admission.admit(caller):
            await exchange.while_connected(lambda: self._answer(wire, exchange, caller, raw))

    async def _answer(self, wire: Wire, exchange: Exchange, caller: Caller, raw: bytes) -> None:
        request = WIRES[wire].parse(raw, _origin(exchange.headers, caller))
        if headers := _forwarded(exchange.headers):
            request = replace(request, headers=headers)
        call = self._plan(request, caller)
        stream = _Stream(exchange, call) if call.request.stream else None
        try:
            outcome = await self._outcome(call, exchange.headers, stream)
            record = await self._record(call, outcome)
        except (asyncio.CancelledError, ClientGone):
            await asyncio.shield(self._record(call, _gone(call)))
            raise
        except StoreError as err:
            if stream is None or not exchange.started:
                raise
            await stream.fail(err)
            return
        if stream is not None and (outcome.error is None or exchange.started):
            await stream.finish(outcome, _headers(call, outcome))
        elif outcome.completion is None:
            raise Failed(outcome, _headers(call, outcome))
        else:
            answer = WIRES[wire].render(outcome.completion, call.request, id=call.id, created=call.created_at)
            await exchange.reply(200, msgspec.json.encode(answer), _headers(call, outcome))
        self._afterwards(call, outcome, record)

    def _afterwards(self, call: Call, outcome: Outcome, record: Record) -> None:
        """Have other models answer what was served: small ones in shadow, or the large one as an audit."""
        asked = (record.id, call.caller, call.cascade)
        for plan in filter(None, (call.route, call.beside)):
            for stage in plan.shadow:
                asking = (call.request, call.policy.capture)
                self.shadows.submit(Shadow(*asked, stage, *asking, plan.others, plan.calibrator))
        standing = call.route.calibrator if isinstance(call.route.calibrator, Standing) else None
        if standing is not None or call.trial is not None:
            large = Shadow(*asked, call.route.stages[-1], call.request, call.policy.capture)
            audit = self.audits.of(large, outcome, standing, call.policy.audit)
            if audit is not None:
                self.shadows.submit(audit)

    def _plan(self, request: Request, caller: Caller) -> Call:
        """Task, policy and route of a call; everything that can be refused before a model is asked is refused here."""
        check_schemas(request)
        task = identify(request, self.config.matches, self.tasks.assign)
        if not TASK_NAME.fullmatch(task):
            hint = "Use up to 128 letters, digits and the characters _ . : / -"
            raise RequestError(f"The task name {task!r} is not allowed.", hint=hint, param="metadata.smallfirst_task")
        call_id, policy = new_id(), self.config.policy(task)
        served = self.releases.of(task, request.origin.episode or call_id)
        if served is not AS_CONFIGURED and any(self.candidates[n].named(request.model) for n in policy.stages):
            served = AS_CONFIGURED
        policy = served.policy(policy)
        chosen, beside = self._route(request, task, policy, served), self._beside(request, task, policy, served)
        cascade = self.cascades.get(task, self.cascades[""])
        now, started = time.time(), time.monotonic()
        return Call(call_id, now, started, caller, request, policy, chosen, beside, served.trial, cascade)

    def _beside(self, request: Request, task: str, policy: Policy, served: InService) -> Route | None:
        """The route by which a version in shadow is asked: that of a call which is only observed."""
        if served.shadow is None:
            return None
        plan = self._route(request, task, msgspec.structs.replace(policy, mode="observe"), InService(served.shadow))
        stages = tuple(stage for stage in (*plan.shadow, *plan.stages) if stage.small)
        return replace(plan, shadow=stages, calibrator=self.calibrations.standing(served.shadow.stage.name))

    def _route(self, request: Request, task: str, policy: Policy, served: InService) -> Route:
        """The route of a call. Of small stages only the one that the task's calibration judges is enforced."""
        standing = self.calibrations.standing(served.watched(task))
        candidates = served.stages([self.candidates[name] for name in policy.stages])
        if standing is not None and policy.mode == "enforce":
            candidates = [c for c in candidates if not c.stage.small or c.stage.name == standing.acceptance.stage]
        chosen = route(
            request,
            task,
            policy,
            candidates,
            calibrator=standing,
            alarm=standing is not None and standing.alarm,
            others=[self.candidates[name].stage for name in policy.others],
            known_model=self.known_model,
        )
        if standing is None or chosen.calibrator is None or standing.acceptance.expects is None:
            return chosen
        expected = standing.acceptance.expected_acceptance(request_features(request))
        if promising(standing.acceptance.costs, expected):
            return chosen
        explored, probability = draw(policy.explore, self.random)
        return replace(chosen, probability=probability) if explored else without_small(chosen, probability)

    async def _outcome(self, call: Call, headers: Mapping[str, str], stream: _Stream | None) -> Outcome:
        """The answer: from the cache where the task has one, else from the cascade, within the key's budget."""
        cached = await self.cache.get(call.request, call.route, call.policy, headers)
        if cached is not None:
            call.attempts.append(cached)
            return Outcome(tuple(call.attempts), 0, "accept" if cached.small else "escalate", "cache")
        allowance = Allowance(call.started, call.policy.max_usd, call.policy.max_seconds)
        async with self._budget(call, allowance):
            outcome = await call.cascade.run(call.route, call.request, allowance, stream, call.attempts)
        await self.cache.put(call.request, call.route, call.policy, headers, outcome)
        return outcome

    def _budget(self, call: Call, allowance: Allowance) -> AbstractAsyncContextManager[None]:
        """The caller's daily budget, where there is one."""
        if call.caller.limits.usd_per_day is None:
            return nullcontext()
        stages = (*call.route.stages, *call.route.others)
        return within_budget(self.store, call.caller, call.cascade.pricing, stages, call.request, allowance)

    async def _record(self, call: Call, outcome: Outcome) -> Record:
        """Make the call durable, then count it. Raises StoreError: the call is then not acknowledged."""
        error = outcome.error
        record = Record(
            id=call.id,
            created_at=call.created_at,
            request=call.request,
            task=call.route.task,
            mode=call.route.mode,
            attempts=outcome.attempts,
            served=outcome.served,
            decision=outcome.decision,
            reason=outcome.reason,
            status=499 if outcome.reason == "client_gone" else error.status if error else 200,
            seconds=time.monotonic() - call.started,
            config_hash=self.config_hash,
            trial=call.trial,
        )
        await self.store.append(record, capture=call.policy.capture)
        usages = [a.completion.usage for a in record.attempts if a.completion]
        self.admission.used(call.caller, sum(u.input_tokens + u.output_tokens for u in usages))
        self.telemetry.observe(record)
        return record


class _Stream:
    """Sends deltas to the client as they come (a cascade's Sink), then the rest of an outcome."""

    def __init__(self, exchange: Exchange, call: Call) -> None:
        self._exchange, self._call = exchange, call
        self._writer = WIRES[call.request.wire].Writer(call.request, id=call.id, created=call.created_at)

    async def send(self, delta: Delta) -> None:
        data = self._writer.feed(delta)
        if not self._exchange.started:
            await self._exchange.start_stream(_headers(self._call, None))
        if data:
            await self._exchange.write(data)

    async def finish(self, outcome: Outcome, headers: Mapping[str, str]) -> None:
        """End the stream; an answer that was not streamed while it was generated is sent whole."""
        if not self._exchange.started:
            await self._exchange.start_stream(headers)
            for delta in split(replace(outcome.completion, native=None)) if outcome.completion else ():
                await self._exchange.write(self._writer.feed(delta))
        if outcome.error is not None:
            await self.fail(outcome.error)
        else:
            usage = outcome.completion.usage if outcome.completion else Usage()
            await self._exchange.write(_comment(headers) + self._writer.finish(usage), last=True)

    async def fail(self, error: SmallfirstError) -> None:
        """End a stream that has begun with an error in the wire's form."""
        await self._exchange.write(self._writer.error(error), last=True)


class Failed(SmallfirstError):
    """A recorded call without an answer: the cascade's error, with the headers that tell about it."""

    def __init__(self, outcome: Outcome, headers: Mapping[str, str]) -> None:
        assert outcome.error is not None
        super().__init__(outcome.error.message)
        self.error = outcome.error
        self.headers = headers


def new_id() -> str:
    """A UUIDv7 (RFC 9562): sorts by the time it was made at."""
    value = int(time.time() * 1000) << 80 | int.from_bytes(os.urandom(10), "big")
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def _origin(headers: Mapping[str, str], caller: Caller) -> Origin:
    get = headers.get
    return Origin(caller.key, get("x-smallfirst-task"), get("x-smallfirst-episode"), get("x-smallfirst-user"))


def _forwarded(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: headers[name] for name in FORWARDED if name in headers}


def _gone(call: Call) -> Outcome:
    return Outcome(tuple(call.attempts), None, "abstain", "client_gone")


def _headers(call: Call, outcome: Outcome | None) -> dict[str, str]:
    """What the answer says of itself; before a stream's end only what is known by then."""
    headers = {"x-smallfirst-record": call.id, "x-smallfirst-task": call.route.task}
    if names := unchecked_keywords(call.request):
        headers["x-smallfirst-unchecked"] = ", ".join(names[:UNCHECKED_NAMED])
    if outcome is None:
        stage = call.route.stages[-1]
        decision = "accept" if stage.small else "escalate"
        reason = call.attempts[-1].reason if call.attempts else call.route.reason
        more = {"model": stage.model, "decision": decision, "reason": reason, "attempts": str(len(call.attempts) + 1)}
    else:
        model = outcome.attempts[outcome.served].model if outcome.served is not None else ""
        usd = total_usd(a.cost_usd for a in outcome.attempts)
        cost = "unknown" if usd is None else f"{usd:.8f}"
        more = {"model": model, "decision": outcome.decision, "reason": outcome.reason}
        more |= {"attempts": str(len(outcome.attempts)), "cost-usd": cost}
        if outcome.decision == "accept" and (confidence := _confidence(outcome)) is not None:
            more["confidence"] = f"{confidence:.4f}"
    return headers | {f"x-smallfirst-{name}": value for name, value in more.items()}


def _confidence(outcome: Outcome) -> float | None:
    """The calibrated P(correct) of the answer served."""
    return None if outcome.served is None else outcome.attempts[outcome.served].confidence


def _comment(headers: Mapping[str, str]) -> bytes:
    """The final headers as a comment of the event stream, which clients skip."""
    return b": " + " ".join(f"{k}={printable(v)}" for k, v in headers.items()).encode("ascii") + b"\n\n"
