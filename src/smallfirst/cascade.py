"""Run the stages of a route in order: generate -> mend -> validate -> repair -> accept | escalate | abstain.

Retries of a broken connection belong to the backend; escalation belongs here; never both. A stage that may still
escalate is never streamed to the client; the last stage streams as it generates, through a guard that stops at the
first byte that no valid answer can contain. Nothing here knows HTTP, a database or a clock of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, cast

from msgspec import Struct
from msgspec.structs import replace

from smallfirst.budget import Allowance
from smallfirst.confidence import features
from smallfirst.deadline import Deadline
from smallfirst.errors import (
    BackendError,
    BackendGarbage,
    BackendTimeout,
    ConstraintUnsupported,
    NoAnswerError,
    SmallfirstError,
)
from smallfirst.incremental import StreamGuard
from smallfirst.mend import mend
from smallfirst.types import (
    Attempt,
    Calibrator,
    Completion,
    Constraint,
    Decision,
    Delta,
    Json,
    Request,
    Route,
    Stage,
    Usage,
    Verdict,
    offered,
    total_usd,
)
from smallfirst.validators import repair_messages
from smallfirst.wire import WIRES
from smallfirst.wire.accumulate import Accumulator

TOP_LOGPROBS = 5


class Sink(Protocol):
    """Where the last stage's deltas go while they are generated."""

    async def send(self, delta: Delta) -> None: ...


class Pricing(Protocol):
    """What stages cost in USD, None where the price is unknown: `cost` after the fact as (local machine time priced,
    local free), `expected` before, for an answer as long as the request allows."""

    def cost(self, stage: Stage, usage: Usage) -> tuple[float | None, float | None]: ...
    def expected(self, stage: Stage, request: Request) -> float | None: ...


class Outcome(Struct, frozen=True):
    """What came of a call. `error` is set exactly when no completion was served."""

    attempts: tuple[Attempt, ...]
    served: int | None
    decision: Decision
    reason: str
    error: SmallfirstError | None = None

    @property
    def completion(self) -> Completion | None:
        return None if self.served is None else self.attempts[self.served].completion


class _Try(Struct, frozen=True):
    """An attempt with the request as it was asked, the exception behind its `error`, whether its calls were put right,
    and what other stages answered beside it."""

    attempt: Attempt
    asked: Request
    error: BackendError | None = None
    mended: bool = False
    evidence: tuple[Attempt, ...] = ()


class _Call(Struct, frozen=True):
    """A call on its way: what is asked, by which route, within what, and the attempts made so far. In the `shadow` a
    stage answers as it does where another one may follow."""

    route: Route
    request: Request
    allowance: Allowance
    sink: Sink | None
    attempts: list[Attempt]
    shadow: bool = False

    def last(self, stage: Stage) -> bool:
        return stage is self.route.stages[-1] and not self.shadow

    def sink_of(self, stage: Stage) -> Sink | None:
        """Where the stage's deltas go: only the last one's are sent while they are generated."""
        return self.sink if self.last(stage) else None


class Cascade(Struct, frozen=True):
    """The cascade's fixed parts: `check` validates, `constrain` derives a constraint's schema from a request."""

    check: Callable[[Request, Completion], Verdict]
    constrain: Callable[[Request], Json | None]
    pricing: Pricing
    clock: Callable[[], float]

    async def run(
        self,
        route: Route,
        request: Request,
        allowance: Allowance,
        sink: Sink | None = None,
        attempts: list[Attempt] | None = None,
    ) -> Outcome:
        """Answer `request`; with a `sink` the last stage is streamed into it.

        Errors of backends end in the outcome, not as exceptions. Cancelling the task cancels the backend's work;
        `attempts` is filled as they are made, so that a cancelled call can be recorded too.
        """
        call = _Call(route, request, allowance, sink, [] if attempts is None else attempts)
        error: SmallfirstError | None = None
        for stage in route.stages:
            if not self._affordable(request, allowance, stage):
                error = NoAnswerError(
                    "The call's budget does not allow another attempt.", hint="Raise max_usd or max_seconds."
                )
                call.attempts.append(_unstarted(stage, call.last(stage), "budget"))
                continue
            done = await self._stage(call, stage)
            if done.attempt.decision == "accept":
                return _accepted(stage, call.attempts)
            error = done.error or error
        streamed = sink is not None and call.attempts[-1].first_token_s is not None
        return _fallback(call.attempts, error, streamed=streamed)

    async def shadow(
        self,
        stage: Stage,
        request: Request,
        allowance: Allowance,
        others: tuple[Stage, ...] = (),
        calibrator: Calibrator | None = None,
    ) -> tuple[Attempt, ...]:
        """Answer `request` as `stage` would have, with `others` beside it, for the record only. With a `calibrator` the
        reason tells whether the answer would have been accepted."""
        route = Route("", "observe", (stage,), others=others, calibrator=calibrator)
        call = _Call(route, request, allowance, None, [], shadow=True)
        await self._stage(call, stage)
        return tuple(a if a.decision == "evidence" else replace(a, decision="shadow") for a in call.attempts)

    async def audit(self, stage: Stage, request: Request, allowance: Allowance) -> Attempt:
        """The answer of `stage` to a request for which another stage's was accepted, for the record only."""
        call = _Call(Route("", "observe", (stage,)), request, allowance, None, [])
        return replace((await self._stage(call, stage)).attempt, decision="audit")

    def _affordable(self, request: Request, allowance: Allowance, *stages: Stage) -> bool:
        """Whether the budget allows all of `stages` to answer."""
        expected = 0.0 if allowance.usd is None else total_usd(self.pricing.expected(s, request) for s in stages)
        return allowance.allows(expected, self.clock())

    async def _stage(self, call: _Call, stage: Stage) -> _Try:
        """Add one stage's attempts: the first, and repairs while they are worth it. The last one of them."""
        asked = self._prepared(call, stage)
        for repairs in range(stage.repairs + 1):
            try:
                done = await self._attempt(call, stage, asked, repairs)
                if isinstance(done.error, ConstraintUnsupported):  # nothing was generated; the feature "constrained": 0
                    asked = replace(asked, constraint=None)
                    done = await self._attempt(call, stage, asked, repairs)
            except asyncio.CancelledError:
                call.attempts.append(_cancelled(stage, repairs))
                raise
            attempt = done.attempt
            call.attempts.extend((attempt, *done.evidence))
            repairable = call.sink_of(stage) is None and attempt.completion is not None and not attempt.verdict.ok
            if attempt.decision == "accept" or not repairable or repairs == stage.repairs:
                break
            if not self._affordable(asked, call.allowance, stage):
                break
            said = repair_messages(call.request, cast(Completion, attempt.completion), attempt.verdict)
            asked = WIRES[asked.wire].extend(asked, said)
        return done

    def _prepared(self, call: _Call, stage: Stage) -> Request:
        left = call.allowance.left_s(self.clock(), stage.timeout_s)
        return _prepare(stage, call.request, self.constrain, timeout_s=left, stream=call.sink_of(stage) is not None)

    async def _attempt(
        self, call: _Call, stage: Stage, asked: Request, repairs: int = 0, *, judged: bool = True
    ) -> _Try:
        """Generate once, check, and decide; evidence and features only of what is `judged`."""
        route, sink, started = call.route, call.sink_of(stage), self.clock()
        guard = StreamGuard(asked) if sink is not None and not _observed(route, stage) else None
        run = _Generation(stage, asked, sink, guard, self.clock)
        completion, error = await run.finish(call.allowance.left_s(started, stage.timeout_s))
        priced, free = self._costs(stage, run, error)
        call.allowance.spend((self.pricing.expected(stage, asked) if priced is None else priced) or 0.0)
        seconds = self.clock() - started
        mended = mend(asked, completion) if completion is not None and stage.small and sink is None else None
        completion = mended or completion
        verdict = Verdict() if completion is None else self.check(asked, completion)
        evidence: tuple[Attempt, ...] = ()
        found: Mapping[str, float] = {}
        if completion is not None and stage.small and judged:
            evidence = await self._evidence(call, stage, completion) if verdict.ok else ()
            answers = [each.completion for each in evidence if each.completion is not None]
            said = replace(asked, messages=call.request.messages) if repairs else asked  # what a repair says is ours
            found = features(said, completion, verdict, repairs, mended=mended is not None, others=answers)
        confidence = route.calibrator.confidence(found) if route.calibrator and found else None
        known = [c for c in (confidence, *(each.confidence for each in evidence)) if c is not None]
        sure = max(known, default=None)
        decision, reason = _decide(route, stage, asked, completion, verdict, sure, error, last=call.last(stage))
        attempt = Attempt(
            stage=stage.name,
            backend=stage.backend.name,
            model=(completion.model if completion else "") or stage.model,
            kind="repair" if repairs else "generate",
            decision=decision,
            reason=reason,
            completion=completion,
            small=stage.small,
            verdict=verdict,
            features=found or (completion.facts if completion else {}),
            confidence=confidence,
            probability=route.probability if stage is route.stages[0] else None,
            cost_usd=priced,
            cost_usd_local_free=free,
            seconds=seconds,
            first_token_s=run.first_token_s,
            error=f"{error.code}: {error}" if error else None,
        )
        return _Try(attempt, asked, error, mended is not None, evidence)

    async def _evidence(self, call: _Call, stage: Stage, completion: Completion) -> tuple[Attempt, ...]:
        """What the route's other stages answer to the request that `stage` gave `completion` to, with the confidence in
        answers that differ from it; nothing when the budget does not allow all."""
        others, calibrator = call.route.others, call.route.calibrator
        if not others or not self._affordable(call.request, call.allowance, *others):
            return ()
        alone = replace(call, route=Route("", "observe", others), sink=None)
        tries = [self._attempt(alone, other, self._prepared(alone, other), judged=False) for other in others]
        made = await asyncio.gather(*tries)
        return tuple(_beside(stage, done, [completion, *_answers(made, done)], calibrator) for done in made)

    def _costs(self, stage: Stage, run: _Generation, error: BackendError | None) -> tuple[float | None, float | None]:
        """What an attempt cost (see `Pricing.cost`): nothing when it was refused before it began; unknown when it broke
        off, because the usage of half an answer is nowhere told, and when no usage came."""
        if error is not None and run.first_token_s is None and not isinstance(error, BackendTimeout | BackendGarbage):
            return 0.0, 0.0
        if error is not None or run.answer.usage is None:
            return None, None
        return self.pricing.cost(stage, run.answer.usage)


class _Generation:
    """One pass over a backend's deltas: accumulate, guard, hand on."""

    def __init__(
        self, stage: Stage, asked: Request, sink: Sink | None, guard: StreamGuard | None, clock: Callable[[], float]
    ) -> None:
        self.answer = Accumulator()
        self.first_token_s: float | None = None
        self._stage, self._asked, self._sink, self._guard, self._clock = stage, asked, sink, guard, clock

    async def finish(self, timeout_s: float) -> tuple[Completion | None, BackendError | None]:
        """Read to the end, at most `timeout_s` seconds: the completion, or the error that ended it."""
        try:
            with Deadline(timeout_s):
                await self._read()
            return self.answer.completion(), None
        except TimeoutError:
            return None, BackendTimeout(f"{self._stage.name} did not finish within {timeout_s:.3g} s.")
        except BackendError as err:
            return None, err

    async def _read(self) -> None:
        started = self._clock()
        deltas = cast(Any, self._stage.backend.generate(self._asked))
        try:
            async for delta in deltas:
                if self.first_token_s is None:
                    self.first_token_s = self._clock() - started
                if self._guard and (violation := self._guard.feed(delta)):
                    raise _Aborted(f"Stopped: the answer breaks the request's schema: {violation.message}")
                self.answer.feed(delta)
                if self._sink:
                    await self._sink.send(delta)
        finally:
            await deltas.aclose()


class _Aborted(BackendError):
    """A streamed answer was stopped at the first byte that no valid completion can contain."""

    code = "invalid_answer"


def _answers(tries: Sequence[_Try], but: _Try) -> list[Completion]:
    """What was answered in `tries`, `but` apart."""
    return [t.attempt.completion for t in tries if t is not but and t.attempt.completion is not None]


def _beside(stage: Stage, done: _Try, others: list[Completion], calibrator: Calibrator | None) -> Attempt:
    """An attempt made beside one of `stage`, with its features and, where it says something else, its confidence."""
    attempt, confidence = done.attempt, None
    found: Mapping[str, float] = {}
    if attempt.completion is not None and attempt.small and attempt.verdict.ok:
        found = features(done.asked, attempt.completion, attempt.verdict, mended=done.mended, others=others)
        if calibrator is not None and found.get("agree", 0.0) < 1:
            confidence = calibrator.beside(attempt.stage, found)
    return replace(attempt, decision="evidence", reason=stage.name, features=found, confidence=confidence)


def _observed(route: Route, stage: Stage) -> bool:
    """Whether the gateway only looks on: the large model's answer is then served whatever it is."""
    return route.mode == "observe" and not stage.small


def _decide(
    route: Route,
    stage: Stage,
    asked: Request,
    completion: Completion | None,
    verdict: Verdict,
    confidence: float | None,
    error: BackendError | None,
    *,
    last: bool,
) -> tuple[Decision, str]:
    """The cascade's rule for one attempt (mechanisms, section 2): validity first, then calibrated confidence.

    What the last stage cut off at the caller's own limit, and plain text that it cut off at any, is an answer, as any
    provider gives it (finish_reason length).
    """
    otherwise: Decision = "abstain" if last else "escalate"
    if error is not None or completion is None:
        return otherwise, f"error:{error.code if error else 'empty'}"
    if _observed(route, stage):
        return "accept", route.reason
    truncated = any(v.code == "truncated" for v in verdict.violations)
    if last and truncated:
        plain = not asked.callable_tools and asked.response_format.kind == "text"
        if plain or asked.sampling.max_tokens is not None or not stage.small:
            return "accept", "truncated"
    if not verdict.ok:
        return otherwise, f"invalid:{verdict.violations[0].code}"
    if not last and route.calibrator and not (confidence is not None and confidence >= route.calibrator.threshold):
        return "escalate", "low_confidence"
    return "accept", route.reason


def _accepted(stage: Stage, attempts: list[Attempt]) -> Outcome:
    last = max(n for n, attempt in enumerate(attempts) if attempt.decision == "accept")
    earlier = [a for a in attempts[:last] if a.stage != stage.name and a.decision != "evidence"]
    reason = earlier[-1].reason if earlier else attempts[last].reason
    return Outcome(tuple(attempts), offered(attempts, last), "accept" if stage.small else "escalate", reason)


def _fallback(attempts: list[Attempt], error: SmallfirstError | None, *, streamed: bool) -> Outcome:
    """No stage accepted: the last valid answer if there is one, else the clearest error there is.

    Once bytes of another answer went out (`streamed`), there is only the error.
    """
    tried = [index for index, attempt in enumerate(attempts) if attempt.decision != "evidence"]
    last = attempts[tried[-1]]
    for index in reversed(tried):
        if not streamed and attempts[index].completion is not None and attempts[index].verdict.ok:
            return Outcome(tuple(attempts), index, "abstain", f"fallback:{last.reason}")
    if error is None or (last.error is None and last.reason != "budget"):
        said = "; ".join(v.message for v in last.verdict.violations[:3])
        error = NoAnswerError(
            f"No model gave a valid answer; the last one ({last.model}) failed: {said}",
            hint="Configure a larger model to escalate to, or relax the schema.",
        )
    return Outcome(tuple(attempts), None, "abstain", last.reason, error)


def _unstarted(stage: Stage, last: bool, reason: str) -> Attempt:
    decision: Decision = "abstain" if last else "escalate"
    return Attempt(
        stage.name, stage.backend.name, stage.model, "generate", decision, reason, None, stage.small, error=reason
    )


def _cancelled(stage: Stage, repairs: int) -> Attempt:
    """The attempt that a client's leaving broke off."""
    unstarted = _unstarted(stage, last=True, reason="cancelled")
    kind: Literal["generate", "repair"] = "repair" if repairs else "generate"
    return replace(unstarted, kind=kind, cost_usd=None, cost_usd_local_free=None)


def _prepare(
    stage: Stage, request: Request, constrain: Callable[[Request], Json | None], *, timeout_s: float, stream: bool
) -> Request:
    """The request as this stage is asked it: its model, its constraint, log-probabilities where they are watched."""
    capabilities, sampling = stage.backend.capabilities, request.sampling
    if stage.temperature is not None:
        sampling = replace(sampling, temperature=stage.temperature, seed=None)
    if stage.small and capabilities.top_logprobs:
        top = max(sampling.top_logprobs, min(TOP_LOGPROBS, capabilities.top_logprobs))
        sampling = replace(sampling, logprobs=True, top_logprobs=top)
    constraint = None
    if stage.constraint != "free" and capabilities.constraint and (schema := constrain(request)) is not None:
        constraint = Constraint(schema, stage.constraint)
    return replace(
        request,
        model=stage.model,
        adapter=stage.adapter,
        sampling=sampling,
        constraint=constraint,
        stream=stream,
        timeout_s=timeout_s,
    )
