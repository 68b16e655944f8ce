"""Which stages answer a call, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from msgspec.structs import replace

from smallfirst.acceptance import Costs
from smallfirst.backends.fake import FakeBackend
from smallfirst.config import Match, Policy
from smallfirst.errors import NotFoundError, UnsupportedError
from smallfirst.router import Candidate, fingerprint, identify, promising, route, without_small
from smallfirst.types import Capabilities, Origin, Request, Route, Stage, Tool

TEXT = Capabilities()
SMALL = Candidate(Stage("small", FakeBackend("small", capabilities=TEXT), "smol", small=True))
LARGE = Candidate(Stage("large", FakeBackend("large", capabilities=TEXT), "gpt-5-mini"), ("gpt-*",))
POLICY = Policy(stages=("small", "large"))


def request(model: str = "auto", **fields: Any) -> Request:
    fields = {"messages": ({"role": "user", "content": "hi"},), **fields}
    return Request("chat", {}, model, **fields)


def chosen(asked: Request, policy: Policy = POLICY, candidates: Any = (SMALL, LARGE), **more: Any) -> Route:
    return route(asked, "t", policy, candidates, **more)


def names(found: Route) -> tuple[list[str], list[str], str]:
    return [s.name for s in found.stages], [s.name for s in found.shadow], found.reason


@dataclass(frozen=True)
class Sure:
    """A calibrator that is always half sure."""

    threshold: float = 0.5

    def confidence(self, features: Any) -> float:
        return 0.5

    def beside(self, stage: str, features: Any) -> float | None:
        return None


def test_uncalibrated_task_is_answered_by_the_large_model_with_the_small_in_shadow() -> None:
    """Nothing is trusted before it is measured: enforce without a calibrator observes, and says why."""
    assert names(chosen(request())) == (["large"], ["small"], "uncalibrated")


def test_calibrated_task_is_answered_small_first() -> None:
    """With a calibrator the small model comes first and nothing runs in shadow."""
    assert names(chosen(request(), calibrator=Sure())) == (["small", "large"], [], "calibrated")


def test_an_alarm_puts_the_large_model_back() -> None:
    """Whatever the policy accepts: the large model answers and the small one goes on in shadow, to be learned from."""
    policy = Policy(stages=("small", "large"), accept_uncalibrated=True)
    assert names(chosen(request(), policy, calibrator=Sure(), alarm=True)) == (["large"], ["small"], "alarm")


def test_a_small_attempt_must_pay() -> None:
    """It is promising where what acceptances save is at least what attempts cost, and where that is not known."""
    costs = Costs(small_usd=0.2, large_usd=1.0)
    assert [promising(costs, p) for p in (0.19, 0.2, 0.21, None)] == [False, True, True, True]
    assert promising(None, 0.0)
    plan = without_small(chosen(request(), calibrator=Sure()), 0.98)
    assert names(plan) == (["large"], [], "unpromising")
    assert (plan.calibrator, plan.others, plan.probability) == (None, (), 0.98)


def test_operator_may_accept_on_validity_alone() -> None:
    """accept_uncalibrated runs the cascade on validity, and the reason says so."""
    policy = Policy(stages=("small", "large"), accept_uncalibrated=True)
    assert names(chosen(request(), policy)) == (["small", "large"], [], "validity_only")


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("observe", (["large"], ["small"], "observe")), ("small_only", (["small"], [], "small_only"))],
)
def test_modes(mode: Any, expected: Any) -> None:
    """Observe lets the large model answer; small_only asks no large model."""
    assert names(chosen(request(), Policy(stages=("small", "large"), mode=mode))) == expected


def test_without_a_large_model_the_small_one_answers_and_says_so() -> None:
    """A gateway with nothing but the embedded model answers, with a reason that tells."""
    found = chosen(request(), candidates=[SMALL])
    assert (found.mode, *names(found)) == ("small_only", ["small"], [], "no_large_model")


def test_a_clients_model_name_is_handed_on() -> None:
    """A name that a server's patterns match is what that server is asked for."""
    assert chosen(request("gpt-6-huge")).stages[0].model == "gpt-6-huge"
    assert chosen(request("auto")).stages[0].model == "gpt-5-mini"


def test_a_name_goes_to_the_large_model_that_hands_it_on() -> None:
    """With two providers each is asked for its own names, and the first one for `auto`."""
    other = Candidate(Stage("other", FakeBackend("other", capabilities=TEXT), "claude-1"), ("claude-*",))
    models = {m: chosen(request(m), candidates=[SMALL, LARGE, other]).stages[0].model for m in ("auto", "claude-2")}
    assert models == {"auto": "gpt-5-mini", "claude-2": "claude-2"}


def test_naming_a_configured_model_asks_it_alone() -> None:
    """A client that names one model gets it and nothing else; a server's model that it hands on is no exception to the
    cascade."""
    assert names(chosen(request("smol"))) == (["small"], [], "model_named")
    assert names(chosen(request("large"))) == (["large"], [], "model_named")
    assert names(chosen(request("gpt-5-mini"))) == (["large"], ["small"], "uncalibrated")


def test_a_listed_hosted_model_is_answered_when_nothing_hands_it_on() -> None:
    """Names of the price list are accepted, so that a client needs no change to try the embedded model."""
    found = route(request("gpt-4o"), "t", POLICY, [SMALL], known_model=lambda m: m == "gpt-4o")
    assert names(found) == (["small"], [], "no_large_model")


def test_unknown_model_is_refused_with_the_names_there_are() -> None:
    """A name nobody knows is a 404 that lists what may be asked for."""
    with pytest.raises(NotFoundError, match="nonsense") as caught:
        chosen(request("nonsense"))
    assert "gpt-5-mini" in caught.value.hint


def test_incapable_stages_are_left_out() -> None:
    """An image goes to the model that sees; without one the call is refused, naming what is missing."""
    seeing = Capabilities(modalities=frozenset({"text", "image"}))
    large = replace(LARGE, stage=replace(LARGE.stage, backend=FakeBackend("large", capabilities=seeing)))
    asked = request(needs=frozenset({"image"}))
    assert names(chosen(asked, candidates=[SMALL, large])) == (["large"], [], "small_incapable")
    with pytest.raises(UnsupportedError, match="image"):
        chosen(asked)


def test_task_is_the_callers_word_then_the_configured_match_then_a_fingerprint() -> None:
    """Tasks are identified in that order."""
    tools = (Tool("pay"), Tool("refund"))
    matches = {"payments": Match(tools=("refund", "pay")), "briefs": Match(system="Be brief")}
    assert identify(request(origin=Origin(task="mine"), tools=tools), matches) == "mine"
    assert identify(request(tools=tools), matches) == "payments"
    for role, task in (("system", "briefs"), ("developer", "briefs"), ("user", None)):
        said = request(messages=({"role": role, "content": "Be brief."},))
        assert identify(said, matches) == (task or f"auto:{fingerprint(said)}")


def test_fingerprint_ignores_what_varies_between_calls() -> None:
    """Same tools and system text, another question: the same fingerprint; another tool: another one."""
    system = {"role": "system", "content": "Be brief."}
    ask = [request(messages=(system, {"role": "user", "content": q})) for q in ("a", "b")]
    assert fingerprint(ask[0]) == fingerprint(ask[1])
    assert fingerprint(replace(ask[0], tools=(Tool("x"),))) != fingerprint(ask[0])
