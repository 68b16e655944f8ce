"""The cascade: generate, validate, repair, accept, escalate, abstain."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from smallfirst.backends.fake import HANG, FakeBackend, Script, say
from smallfirst.budget import Allowance
from smallfirst.cascade import Cascade, Outcome
from smallfirst.errors import BackendError, BackendGarbage, BackendUnavailable, ConstraintUnsupported, NoAnswerError
from smallfirst.types import (
    Attempt,
    Capabilities,
    Choice,
    Completion,
    Delta,
    Request,
    ResponseFormat,
    Route,
    Sampling,
    Stage,
    Tool,
    ToolCall,
    Usage,
)
from smallfirst.validators import validate

TOOL = Tool("add", "Adds.", {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]})
GOOD, BAD = '{"a": 1}', '{"a": "one"}'


class Pricing:
    """Every attempt costs a dollar."""

    def cost(self, stage: Stage, usage: Usage) -> tuple[float | None, float | None]:
        return 1.0, 1.0

    def expected(self, stage: Stage, request: Request) -> float | None:
        return 1.0


@dataclass(frozen=True)
class Calibrator:
    """Gives every answer the same confidence, and other stages' answers beside it theirs."""

    value: float
    threshold: float = 0.9
    others: Mapping[str, float] = field(default_factory=dict)

    def confidence(self, features: Any) -> float:
        return self.value

    def beside(self, stage: str, features: Any) -> float | None:
        return self.others.get(stage)


@dataclass
class Collected:
    """A sink that keeps what it is sent."""

    deltas: list[Delta] = field(default_factory=list)

    async def send(self, delta: Delta) -> None:
        self.deltas.append(delta)


CASCADE = Cascade(lambda request, completion: validate(completion, request), lambda _: None, Pricing(), time.monotonic)


def request(**fields: Any) -> Request:
    given: dict[str, Any] = {"messages": ({"role": "user", "content": "add one"},), "tools": (TOOL,), **fields}
    body = {"model": "auto", "messages": list(given["messages"])}
    return Request("chat", body, "auto", **given)


def call(arguments: str) -> Completion:
    return Completion((Choice(tool_calls=(ToolCall("c", "add", arguments),), finish_reason="tool_calls"),), Usage(9, 3))


def calls(*arguments: str | BackendError) -> Script:
    """A script that answers with these arguments, or errors, in turn; the last one stays."""
    left = list(arguments)

    def script(_: Request) -> Completion | BackendError:
        given = left.pop(0) if len(left) > 1 else left[0]
        return given if isinstance(given, BackendError) else call(given)

    return script


def stage(name: str, script: Script, **fields: Any) -> Stage:
    return Stage(name, FakeBackend(name, script, Capabilities(top_logprobs=5)), name, small=name == "small", **fields)


async def run(stages: Sequence[Stage], asked: Request | None = None, **fields: Any) -> Outcome:
    allowance = fields.pop("allowance", None) or Allowance(time.monotonic())
    sink = fields.pop("sink", None)
    for each in stages:
        await each.backend.start()
    route = Route("t", fields.pop("mode", "enforce"), tuple(stages), reason="because", **fields)
    return await CASCADE.run(route, asked or request(), allowance, sink)


def story(outcome: Outcome) -> list[tuple[str, str, str, str]]:
    return [(a.stage, a.kind, a.decision, a.reason) for a in outcome.attempts]


async def test_a_valid_small_answer_is_accepted() -> None:
    """Validity is enough where the route says so; the large model is not asked."""
    large = stage("large", calls(GOOD))
    outcome = await run([stage("small", calls(GOOD)), large])
    assert story(outcome) == [("small", "generate", "accept", "because")]
    assert (outcome.decision, outcome.served) == ("accept", 0)
    assert large.backend.seen == []  # type: ignore[attr-defined]


async def test_an_invalid_answer_is_repaired_by_the_same_model_with_its_errors() -> None:
    """The repair sees the first answer and what was wrong with it."""
    small = stage("small", calls(BAD, GOOD), repairs=1)
    outcome = await run([small, stage("large", calls(GOOD))])
    assert [a[1:3] for a in story(outcome)] == [("generate", "escalate"), ("repair", "accept")]
    asked = small.backend.seen[1]  # type: ignore[attr-defined]
    assert len(asked.messages) > 1
    assert list(asked.messages) == asked.body["messages"]
    assert "integer" in str(asked.messages)


async def test_repairs_are_bounded_then_the_large_model_answers() -> None:
    """Two repairs that fail are two repairs; then it escalates."""
    outcome = await run([stage("small", calls(BAD), repairs=2), stage("large", calls(GOOD))])
    assert [a.stage for a in outcome.attempts] == ["small", "small", "small", "large"]
    assert (outcome.decision, outcome.reason) == ("escalate", "invalid:arguments")


async def test_a_valid_answer_below_the_threshold_is_escalated() -> None:
    """Calibrated confidence decides, not validity."""
    stages = [stage("small", calls(GOOD)), stage("large", calls(GOOD))]
    unsure = await run(stages, calibrator=Calibrator(0.8))
    sure = await run(stages, calibrator=Calibrator(0.95))
    assert (unsure.decision, unsure.reason, unsure.attempts[0].confidence) == ("escalate", "low_confidence", 0.8)
    assert (sure.decision, sure.served) == ("accept", 0)


async def test_a_dead_small_model_escalates() -> None:
    """An error of the small backend costs the client nothing but time."""
    outcome = await run([stage("small", calls(BackendUnavailable("dead"))), stage("large", calls(GOOD))])
    assert (outcome.decision, outcome.reason) == ("escalate", "error:unavailable")
    assert outcome.attempts[0].error == "unavailable: dead"


async def test_a_dead_large_model_falls_back_to_a_valid_small_answer_and_abstains() -> None:
    """The unsure small answer is better than none, and nothing vouches for it."""
    stages = [stage("small", calls(GOOD)), stage("large", calls(BackendUnavailable("dead")))]
    outcome = await run(stages, calibrator=Calibrator(0.1))
    assert (outcome.decision, outcome.served, outcome.reason) == ("abstain", 0, "fallback:error:unavailable")


async def test_the_backends_error_is_the_calls_error() -> None:
    """When the only model fails, its error is what the client gets."""
    error = BackendUnavailable("dead")
    outcome = await run([stage("large", calls(error))])
    assert outcome.error is error
    assert outcome.completion is None


async def test_an_invalid_last_answer_is_withheld_with_the_reason() -> None:
    """What breaks the request's schema is not handed to the agent."""
    outcome = await run([stage("large", calls(BAD))])
    assert isinstance(outcome.error, NoAnswerError)
    assert "integer" in outcome.error.message


async def test_observing_changes_nothing_that_the_large_model_says() -> None:
    """In observe mode even an invalid answer is served as it is."""
    outcome = await run([stage("large", calls(BAD))], mode="observe")
    assert (outcome.decision, outcome.served) == ("escalate", 0)
    assert not outcome.attempts[0].verdict.ok


async def test_an_answer_cut_off_at_the_callers_limit_is_served() -> None:
    """finish_reason "length" is an answer to who set max_tokens, from the last stage; before it, a reason to go on."""
    cut = lambda _: Completion((Choice("Once upon", finish_reason="length"),))  # noqa: E731
    asked = request(tools=())
    limited = replace(asked, sampling=Sampling(max_tokens=3))
    alone = await run([stage("small", cut)], limited)
    before = await run([stage("small", cut), stage("large", say("done"))], asked)
    assert (alone.decision, alone.reason, alone.served) == ("accept", "truncated", 0)
    assert (before.decision, before.reason) == ("escalate", "invalid:truncated")


async def test_a_small_models_own_limit_withholds_structure_only() -> None:
    """Without max_tokens, plain text that the last small model cut off is served, half a JSON answer is not."""
    cut = lambda _: Completion((Choice('{"a": ', finish_reason="length"),))  # noqa: E731
    text = await run([stage("small", cut)], request(tools=()))
    json = await run([stage("small", cut)], request(tools=(), response_format=ResponseFormat("json_object")))
    assert (text.decision, text.reason, text.served) == ("accept", "truncated", 0)
    assert (json.served, json.reason) == (None, "invalid:truncated")


async def test_a_schema_that_no_grammar_holds_is_asked_for_freely() -> None:
    """A constraint that the engine cannot compile costs the constraint, not the small model's answer."""

    def script(asked: Request) -> Completion | BackendError:
        return ConstraintUnsupported("lookahead") if asked.constraint else call(GOOD)

    capabilities = Capabilities(top_logprobs=5, constraint=True)
    small = Stage("small", FakeBackend("small", script, capabilities), "small", small=True, constraint="constrained")
    await small.backend.start()
    cascade = replace(CASCADE, constrain=lambda _: {"type": "object"})
    route = Route("t", "small_only", (small,), reason="because")
    outcome = await cascade.run(route, request(), Allowance(time.monotonic()))
    assert story(outcome) == [("small", "generate", "accept", "because")]
    assert outcome.attempts[0].features["constrained"] == 0


async def test_budget_in_usd_stops_further_stages() -> None:
    """A stage that would cost more than is left is not started."""
    large = stage("large", calls(GOOD))
    allowance = Allowance(time.monotonic(), usd=1.5)
    outcome = await run([stage("small", calls(BAD)), large], allowance=allowance)
    assert story(outcome)[-1] == ("large", "generate", "abstain", "budget")
    assert large.backend.seen == []  # type: ignore[attr-defined]
    assert "budget" in str(outcome.error)


async def test_an_answer_that_breaks_off_is_not_free() -> None:
    """Nobody tells what half an answer cost, or one without usage, so the record says unknown, and a budget counts what
    it may have cost; a refusal costs nothing."""

    class ByUsage(Pricing):
        def cost(self, stage: Stage, usage: Usage) -> tuple[float | None, float | None]:
            return float(usage.output_tokens), 0.0

    spent, costs = {}, {}
    for name, script in {
        "hangs": lambda _: HANG,
        "breaks": lambda _: (Delta(text="Once", usage=Usage(3)), BackendUnavailable("gone")),
        "garbles": lambda _: BackendGarbage("unreadable"),
        "says no usage": lambda _: (Delta(text="Once", finish_reason="stop"),),
        "refuses": lambda _: BackendUnavailable("dead"),
    }.items():
        alone = stage("large", script, timeout_s=0.05)  # type: ignore[arg-type]
        await alone.backend.start()
        allowance = Allowance(time.monotonic(), usd=5.0)
        route = Route("t", "enforce", (alone,))
        outcome = await replace(CASCADE, pricing=ByUsage()).run(route, request(tools=()), allowance)
        spent[name], costs[name] = allowance.spent_usd, outcome.attempts[0].cost_usd
    assert spent == {"hangs": 1.0, "breaks": 1.0, "garbles": 1.0, "says no usage": 1.0, "refuses": 0.0}
    assert costs == {"hangs": None, "breaks": None, "garbles": None, "says no usage": None, "refuses": 0.0}


async def test_a_hanging_stage_ends_at_its_time_limit() -> None:
    """The stage's own limit bounds it, and the work is cancelled."""
    small = stage("small", lambda _: HANG, timeout_s=0.05)
    outcome = await run([small, stage("large", calls(GOOD))])
    assert (outcome.decision, outcome.reason) == ("escalate", "error:timeout")
    assert small.backend.cancelled == 1  # type: ignore[attr-defined]


async def test_a_cancelled_call_tells_the_attempts_made() -> None:
    """What was tried before the client went away can be recorded, and what it broke off, at an unknown cost."""
    left = iter([call(BAD), HANG])
    small = stage("small", lambda _: next(left), repairs=1)  # type: ignore[arg-type, return-value]
    await small.backend.start()
    attempts: list[Attempt] = []
    route, allowance = Route("t", "small_only", (small,)), Allowance(time.monotonic())
    running = asyncio.create_task(CASCADE.run(route, request(), allowance, None, attempts))
    while len(small.backend.seen) < 2:  # type: ignore[attr-defined]  # noqa: ASYNC110
        await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert [(a.kind, a.reason) for a in attempts] == [("generate", "invalid:arguments"), ("repair", "cancelled")]
    assert [a.cost_usd for a in attempts] == [1.0, None]


async def test_only_the_last_stage_streams() -> None:
    """Nothing of a stage that may escalate reaches the client."""
    sink = Collected()
    asked = request(tools=(), stream=True)
    script = say("a long enough answer to come in pieces")
    small = stage("small", lambda _: BackendUnavailable("dead"))
    await run([small, stage("large", script)], asked, sink=sink)
    assert "".join(d.text for d in sink.deltas) == "a long enough answer to come in pieces"
    assert not small.backend.seen[0].stream  # type: ignore[attr-defined]


async def test_a_stream_that_cannot_become_valid_is_stopped() -> None:
    """The guard stops at the first piece that no valid answer can contain; the client gets the error, not the rest."""
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": False}
    asked = request(tools=(), stream=True, response_format=ResponseFormat("json_schema", schema))
    sink = Collected()
    outcome = await run([stage("large", say('{"b": "and much more that nobody should see"}'))], asked, sink=sink)
    assert isinstance(outcome.error, BackendError)
    assert outcome.error.code == "invalid_answer"
    assert "much more" not in "".join(d.text for d in sink.deltas)


async def test_small_attempts_ask_for_log_probabilities() -> None:
    """Margins are computed for every small attempt, whether or not the client wants log-probabilities."""
    small = stage("small", calls(GOOD))
    large = stage("large", calls(GOOD))
    await run([small])
    await run([large])
    assert small.backend.seen[0].sampling.top_logprobs == 5  # type: ignore[attr-defined]
    assert not large.backend.seen[0].sampling.logprobs  # type: ignore[attr-defined]


async def test_shadow_attempts_are_marked() -> None:
    """A shadow runs as the stage would have, and never counts as served."""
    small = replace(stage("small", calls(BAD, GOOD)), repairs=1)
    await small.backend.start()
    attempts = await CASCADE.shadow(small, request(), Allowance(time.monotonic()))
    assert [(a.kind, a.decision) for a in attempts] == [("generate", "shadow"), ("repair", "shadow")]
    assert attempts[1].verdict.ok


@pytest.mark.parametrize("now", [0.0, 5.0])
def test_an_unknown_price_is_never_within_a_budget(now: float) -> None:
    """With a limit in USD, what may cost anything is not started."""
    assert not Allowance(0.0, usd=100.0).allows(None, now)
    assert Allowance(0.0).allows(None, now)


@given(
    st.floats(0, 1) | st.sampled_from([math.nan, 0.0, 1.0]),
    st.floats(0, 1, exclude_min=True) | st.just(math.inf),
    st.lists(st.sampled_from([GOOD, BAD, "{", ""]), min_size=1, max_size=3),
    st.sampled_from([GOOD, BAD]),
    st.integers(0, 2),
    st.booleans(),
)
def test_nothing_unsure_and_nothing_invalid_is_accepted(
    confidence: float, threshold: float, answers: list[str], large: str, repairs: int, evidence: bool
) -> None:
    """Whatever is answered, repaired and believed: an accepted small answer is valid and reaches the threshold."""
    stages = [stage("small", calls(*answers), repairs=repairs), stage("large", calls(large))]
    others = (stage("small", calls(GOOD)),) if evidence else ()
    outcome = asyncio.run(run(stages, calibrator=Calibrator(confidence, threshold), others=others))
    accepted = [a for a in outcome.attempts if a.small and a.decision == "accept"]
    for attempt in accepted:
        assert attempt.verdict.ok
        assert attempt.confidence is not None
        assert attempt.confidence >= threshold
    assert (outcome.decision == "accept") == bool(accepted)
    if outcome.completion is not None:
        assert outcome.attempts[outcome.served or 0].verdict.ok


def beside(name: str, answer: str) -> Stage:
    return Stage(name, FakeBackend(name, calls(answer)), name, small=True)


@pytest.mark.parametrize(
    ("own", "theirs", "answer", "served"),
    [
        (0.5, 0.95, '{"a": 2}', "second"),
        (0.95, 0.97, '{"a": 2}', "second"),
        (0.95, 0.92, '{"a": 2}', "small"),
        (0.95, 0.99, GOOD, "small"),
        (0.5, 0.8, '{"a": 2}', "large"),
        (0.5, 0.99, BAD, "large"),
    ],
)
async def test_of_two_small_answers_that_differ_the_surer_one_is_served(
    own: float, theirs: float, answer: str, served: str
) -> None:
    """If it is sure enough; one that says the same or is not valid stays evidence, and both are paid for."""
    second, judge = beside("second", answer), Calibrator(own, others={"second": theirs})
    await second.backend.start()
    outcome = await run([stage("small", calls(GOOD)), stage("large", calls(GOOD))], calibrator=judge, others=(second,))
    assert outcome.served is not None
    assert outcome.attempts[outcome.served].stage == served
    assert outcome.decision == ("escalate" if served == "large" else "accept")
    small, evidence = outcome.attempts[:2]
    assert (small.decision, evidence.decision) == (outcome.decision, "evidence")
    assert small.confidence == own
    assert evidence.confidence == (theirs if answer == '{"a": 2}' else None)


async def test_an_answer_that_the_calibrator_does_not_judge_stays_evidence() -> None:
    """Without a calibration of its own a second model's answer is never served."""
    second = beside("second", '{"a": 2}')
    await second.backend.start()
    stages = [stage("small", calls(GOOD)), stage("large", calls('{"a": 3}'))]
    outcome = await run(stages, calibrator=Calibrator(0.5), others=(second,))
    assert outcome.served is not None
    assert outcome.attempts[outcome.served].stage == "large"
    assert outcome.attempts[1].features["agree"] == 0


async def test_what_was_cut_off_is_repaired_in_the_shadow_as_it_is_before_the_large_model() -> None:
    """What is learned from shadows holds for the answers that are served."""
    whole = Completion((Choice("all of it", finish_reason="stop"),), Usage(9, 3))

    def script(asked: Request) -> Completion:
        return whole if len(asked.messages) > 1 else Completion((Choice("half", finish_reason="length"),), Usage(9, 3))

    asked = request(tools=())
    small, large = stage("small", script, repairs=1), stage("large", script)
    served = await run([small, large], asked)
    shadowed = await CASCADE.shadow(small, asked, Allowance(time.monotonic()))
    assert [(a.kind, a.features) for a in served.attempts] == [(a.kind, a.features) for a in shadowed]
    assert served.attempts[-1].kind == "repair"
