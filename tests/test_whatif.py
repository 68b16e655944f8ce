"""`smallfirst whatif`: estimates against known truths, what is refused, and the command on a real store."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from smallfirst.chance import audit_probability
from smallfirst.cli import app
from smallfirst.errors import ConfigError
from smallfirst.store import Store, open_store
from smallfirst.targets import Target, Targets, parse
from smallfirst.traces import Step, Trace, play
from smallfirst.types import Attempt, Choice, Completion, Origin, Record, Request, Tool, ToolCall, Usage
from smallfirst.whatif import Whatif, judge

SMALL = frozenset({"s"})


def step(stage: str = "s", **changes: Any) -> Step:
    """A valid step; `changes` replace its fields."""
    fields: dict[str, Any] = {
        "small": stage.startswith("s"),
        "answered": True,
        "ok": True,
        "accepted": not stage.startswith("s"),
        "skipped": False,
        "afterwards": False,
        "constrained": None,
        "confidence": 0.7 if stage.startswith("s") else None,
        "probability": 1.0,
        "usd": 0.001 if stage.startswith("s") else 0.01,
        "seconds": 0.5 if stage.startswith("s") else 2.0,
        "right": True,
    }
    return Step(stage, **{**fields, **changes})


def call(*steps: Step, **changes: Any) -> Trace:
    """A call of task t under "enforce"; `changes` replace its fields."""
    return replace(Trace("t", "enforce", "calibrated", 6.0, steps), **changes)


@dataclass(frozen=True)
class World:
    """n calls with everything known of both models."""

    confidence: Any
    right: Any
    usd: Any
    large_right: Any

    @classmethod
    def of(cls, rng: np.random.Generator, n: int) -> World:
        confidence = rng.beta(3, 1.2, n)
        usd = 0.01 * rng.gamma(8, 1 / 8, n) + 0.004 * (1 - confidence)
        return cls(confidence, rng.random(n) < confidence, usd, rng.random(n) < 0.97 - 0.1 * (1 - confidence))

    def truth(self, threshold: float) -> dict[str, float]:
        """The figures of a policy that accepts from `threshold` on."""
        accepted = self.confidence >= threshold
        success = np.where(accepted, self.right, self.large_right)
        usd = 0.001 + np.where(accepted, 0, self.usd)
        return {
            "cps": usd.sum() / success.sum(),
            "failure": 1 - success.mean(),
            "accepted_failure": 1 - self.right[accepted].mean(),
            "escalation": 1 - accepted.mean(),
            "cost": usd.mean(),
        }

    def log(self, rng: np.random.Generator, threshold: float, audits: float) -> list[Trace]:
        """What is recorded when a small answer is accepted from `threshold` on and accepted ones are audited."""
        calls = []
        for n, confidence in enumerate(map(float, self.confidence)):
            large = step("l", usd=float(self.usd[n]), right=bool(self.large_right[n]))
            small = step(confidence=confidence, accepted=confidence >= threshold, right=bool(self.right[n]))
            if not small.accepted:
                calls.append(call(small, large))
                continue
            chance = audit_probability(confidence, threshold, audits)
            if rng.random() < chance:
                audit = replace(large, afterwards=True, probability=chance)
                calls.append(call(replace(small, label_probability=chance), audit))
            else:
                calls.append(call(replace(small, right=None)))
        return calls


def judged(calls: list[Trace], resamples: int = 100, **target: Any) -> Whatif:
    return judge(calls, Targets(Target(**target)), resamples=resamples)


@pytest.mark.parametrize(("recorded", "target"), [(0.6, 0.8), (0.8, 0.5)], ids=["stricter", "looser"])
def test_another_threshold_is_estimated(recorded: float, target: float) -> None:
    """Over 40 logs under one threshold, the intervals for another cover its truth at least 34 times (of a 95 % interval
    fewer come in one of 300 runs), and the mean estimate lies within four standard errors of it."""
    truth = World.of(np.random.default_rng(10**6), 400_000).truth(target)
    covered = dict.fromkeys(truth, 0)
    values: dict[str, list[float]] = {key: [] for key in truth}
    for seed in range(40):
        rng = np.random.default_rng(seed)
        result = judged(World.of(rng, 400).log(rng, recorded, 0.1), threshold=target)
        for key, true in truth.items():
            found = result.overall.figures[key].target
            assert found.value is not None
            assert found.low is not None
            assert found.high is not None
            covered[key] += found.low <= true <= found.high
            values[key].append(found.value)
    assert min(covered.values()) >= 34
    for key, each in values.items():
        assert np.mean(each) == pytest.approx(truth[key], abs=4 * float(np.std(each)) / 40**0.5)


def test_what_is_as_recorded_does_not_differ() -> None:
    """A target that decides as the recorded policy did has a difference of 0 with an interval of no width."""
    rng = np.random.default_rng(0)
    found = judged(World.of(rng, 300).log(rng, 0.6, 0.2), threshold=0.6).overall.figures
    assert all(each.difference.value == 0 for each in found.values())
    assert all(each.difference.low == each.difference.high == 0 for each in found.values())


def test_no_failures_in_few_audits_still_leave_an_upper_bound() -> None:
    """Where 20 audits of 200 accepted answers found no failure, the interval reaches beyond 10 %."""
    audited = call(step(accepted=True, label_probability=0.1), step("l", afterwards=True, probability=0.1))
    calls = [audited] * 20 + [call(step(accepted=True, right=None))] * 180
    failure = judged(calls, threshold=0.5).overall.figures["failure"].target
    assert failure.value == 0
    assert failure.high is not None
    assert failure.high > 0.1


def test_without_audits_a_stricter_threshold_is_refused() -> None:
    """Accepted calls that no large model answered have no propensity: there is no cost, but the advice to audit."""
    calls = [call(step(accepted=True, confidence=0.6 + 0.004 * n)) for n in range(100)]
    found = judged(calls, threshold=0.8).overall
    assert found.figures["cps"].target.value is None
    assert found.figures["escalation"].target.value == pytest.approx(0.5)
    assert "audit accepted calls" in found.gaps[0].advice
    assert found.gaps[0].share == pytest.approx(0.5)


def test_a_small_share_without_support_widens_the_interval() -> None:
    """Up to a fifth of calls without support, rates are given and take in that all of these, or none, failed."""
    told = [call(step(accepted=True, right=n % 10 != 0)) for n in range(900)]
    other = [call(step(accepted=True, right=None), task="u") for _ in range(100)]
    failure = judged(told + other, threshold=0.5).overall.figures["failure"]
    assert failure.unsupported == pytest.approx(0.1)
    assert failure.target.low is not None
    assert failure.target.high is not None
    assert failure.target.low < 0.09 < 0.19 < failure.target.high


@pytest.mark.parametrize(
    ("target", "what"),
    [
        ({"stages": ("s2", "l")}, "s2 did not answer"),
        ({"stages": ("s", "l2")}, "l2 did not answer"),
        ({"constraint": "free"}, "no answer was made under this constraint"),
        ({"constraint": "late"}, "no answer was made under this constraint"),
        ({"repairs": 1}, "no further repair was tried"),
    ],
)
def test_what_was_never_run_is_refused_with_its_reason(target: dict[str, Any], what: str) -> None:
    """Another model, constraint mode or repair that no record knows gives no figure and says which it is."""
    invalid = step(ok=False, right=None, constrained=True)
    found = judged([call(invalid, step("l"))] * 60, **target).overall
    assert found.figures["cps"].target.value is None
    assert what in {gap.what for gap in found.gaps}


def test_observed_calls_need_a_threshold() -> None:
    """Small answers that were only recorded tell of "enforce" when a threshold is given, and ask for one otherwise."""
    observed = call(step("l"), step(afterwards=True, accepted=False), mode="observe", reason="observe")
    found = judged([observed] * 60, mode="enforce").overall
    assert "give threshold or alpha" in found.gaps[0].advice
    told = judged([observed] * 60, mode="enforce", threshold=0.5).overall
    assert told.figures["escalation"].target.value == 0
    assert told.figures["cps"].target.value == pytest.approx(0.001)


def test_a_threshold_that_is_not_used_is_said_to_be_none() -> None:
    """A threshold for calls that were observed by the operator's word changes nothing, and a note says what would."""
    observed = call(step("l"), step(afterwards=True, accepted=False), mode="observe", reason="observe")
    waiting = call(step("l"), step(afterwards=True, accepted=False), mode="observe", reason="uncalibrated")
    found = judged([observed] * 60 + [waiting] * 40, threshold=0.5)
    assert found.overall.figures["escalation"].target.value == pytest.approx(0.6)
    assert next(note for note in found.notes if 'add mode = "enforce"' in note).startswith("60 calls")


def test_shadows_drawn_at_random_stand_for_all_calls() -> None:
    """With small answers on a tenth of observed calls, the target's rates are estimated for all, with few effective."""
    rng = np.random.default_rng(1)
    calls = []
    for _ in range(2000):
        confidence = float(rng.random())
        small = step(afterwards=True, accepted=False, probability=0.1, confidence=confidence)
        drawn = (replace(small, right=rng.random() < confidence),) if rng.random() < 0.1 else ()
        calls.append(call(step("l"), *drawn, mode="observe", reason="observe"))
    found = judged(calls, mode="enforce", threshold=0.5).overall.figures
    escalation = found["escalation"].target
    assert escalation.low is not None
    assert escalation.high is not None
    assert escalation.low < 0.5 < escalation.high
    assert found["escalation"].effective == pytest.approx(200, rel=0.25)


def test_calls_passed_by_at_random_count_by_their_chance() -> None:
    """Where the router tried one unpromising call in ten, small_only is estimated from those, weighted by ten."""
    tried = call(step(probability=0.1, accepted=True), reason="calibrated")
    passed = call(step("l", probability=0.9), reason="unpromising")
    found = judged([tried] * 40 + [passed] * 360, mode="small_only").overall.figures
    assert found["cost"].target.value == pytest.approx(0.001)
    assert found["cost"].recorded.value == pytest.approx((40 * 0.001 + 360 * 0.01) / 400)


def test_alpha_asks_for_the_threshold_that_would_be_certified() -> None:
    """A looser alpha accepts more; one that no label set can certify accepts nothing and says why."""
    rng = np.random.default_rng(5)
    calls = World.of(rng, 1500).log(rng, 0.99, 0.2)
    loose, strict = (judged(calls, alpha=alpha).overall.figures["escalation"].target.value for alpha in (0.3, 0.15))
    assert loose is not None
    assert strict is not None
    assert loose < strict < 1
    refused = judged(calls[:50], alpha=0.01)
    assert refused.overall.figures["escalation"].target.value == 1
    assert any("alpha = 0.01 accepts nothing" in note for note in refused.notes)


def test_answers_without_confidence_get_a_cross_fitted_one() -> None:
    """Shadows recorded before there was a calibrator are judged by one fitted on their labels."""
    rng = np.random.default_rng(2)
    calls = []
    for _ in range(400):
        margin = float(rng.random())
        features = {"margin_mean": margin, "tools": 1.0, "no_call": 0.0}
        right = bool(rng.random() < margin)
        shadow = step(afterwards=True, accepted=False, confidence=None, features=features, right=right)
        calls.append(call(step("l"), shadow, mode="observe", reason="uncalibrated"))
    found = judged(calls, threshold=0.8).overall.figures
    assert found["escalation"].target.value == pytest.approx(0.8, abs=0.12)
    wrong = found["accepted_failure"].target
    assert wrong.value is not None
    assert wrong.value < 0.25
    few = judged(calls[:20], threshold=0.8)
    assert few.overall.figures["escalation"].target.value is None
    assert any("none can be fitted" in note for note in few.notes)


def test_budgets_end_a_call_where_its_money_or_time_ends() -> None:
    """A stage that would cost more than is left is not asked; an answer that comes too late is not served."""
    escalated = call(step(confidence=0.1, accepted=False, right=False), step("l"))
    poor = play(escalated, Target(max_usd=0.005), None, SMALL)
    assert (poor.action, poor.usd, poor.success) == ("none", 0.001, 0.0)
    late = play(escalated, Target(max_seconds=1.0), None, SMALL)
    assert (late.action, late.seconds, late.success) == ("escalate", 1.0, 0.0)


def test_fewer_repairs_take_the_answer_before_them() -> None:
    """Without repairs a call that was repaired escalates, at the cost of its first attempt alone."""
    repaired = call(step(ok=False, accepted=False, right=None), step(accepted=True), step("l", afterwards=True))
    assert play(repaired, Target(repairs=1), None, SMALL).action == "accept"
    without = play(repaired, Target(repairs=0), None, SMALL)
    assert (without.action, without.usd) == ("escalate", pytest.approx(0.011))


def test_calls_whose_model_was_chosen_stay_as_they_were() -> None:
    """A call for which the client named the model costs what it cost under any policy."""
    named = call(step("l"), reason="model_named")
    assert play(named, Target(mode="small_only", threshold=0.1), 0.1, SMALL).action == "large"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[cascade]\nthreshhold = 0.9", "unknown field `threshhold`"),
        ("[cascade]\nthreshold = 2", "<= 1.0"),
        ("[cascade]\nalpha = 0.1\nthreshold = 0.9", "both `threshold` and `alpha`"),
        ("[cascade]\nstages = ['a', 'a']", "twice"),
        ("[models.a]\nbackend = 'fake'", "unknown field `models`"),
        ("[cascade]\nvalidators = []", "unknown field `validators`"),
        ("", "changes nothing"),
        ("[cascade", "not valid TOML"),
        ("tasks = 3", "Expected `object`"),
    ],
)
def test_wrong_policy_files_are_refused(text: str, said: str) -> None:
    """What a policy file may not hold is named, and the allowed keys are listed where one is unknown."""
    with pytest.raises(ConfigError) as refused:
        parse(text, source="p.toml")
    assert said in refused.value.message
    assert refused.value.message.startswith("p.toml")


def test_a_task_differs_from_the_default_in_what_it_says() -> None:
    """A task's keys are laid over the default's, and its alpha replaces the default's threshold."""
    found = parse("[cascade]\nthreshold = 0.9\nrepairs = 0\n[tasks.a]\nalpha = 0.1", source="p")
    assert found.of("a") == Target(alpha=0.1, repairs=0)
    assert found.of("b") == Target(threshold=0.9, repairs=0)


TOOL = {"type": "function", "function": {"name": "book", "parameters": {"type": "object"}}}


def attempt(stage: str, city: str, **changes: Any) -> Attempt:
    """An answered attempt that books a room in `city`."""
    made = Completion((Choice(tool_calls=(ToolCall("c1", "book", json.dumps({"city": city})),)),), Usage(400, 9), stage)
    small = stage == "s"
    usd, seconds = (0.001, 0.5) if small else (0.01, 2.0)
    base = Attempt(stage, stage, stage, "generate", "accept", "calibrated", made, small, seconds=seconds)
    return msgspec.structs.replace(base, cost_usd=usd, cost_usd_local_free=usd, **changes)


def record(number: int, attempts: tuple[Attempt, ...], decision: Any) -> Record:
    said = {"role": "user", "content": f"Book room {number}"}
    body = {"model": "auto", "messages": [said], "tools": [TOOL]}
    request = Request("chat", body, "auto", (said,), (Tool("book", parameters={"type": "object"}),), origin=Origin())
    created = time.time() - number
    return Record(
        f"r{number:05d}", created, request, "rooms", "enforce", attempts, len(attempts) - 1, decision, "calibrated",
        200, 1.0, "c",
    )  # fmt: skip


async def fill(store: Store, n: int = 160) -> None:
    """Calls accepted from a confidence of 0.5 on; half of the accepted ones audited."""
    rng = np.random.default_rng(3)
    for number in range(n):
        confidence = float(rng.random())
        right = rng.random() < confidence
        small = attempt("s", "Lyon" if right else "Nice", confidence=confidence)
        if confidence < 0.5:
            escalated = msgspec.structs.replace(small, decision="escalate", reason="low_confidence")
            await store.append(record(number, (escalated, attempt("l", "Lyon")), "escalate"))
            continue
        made = record(number, (small,), "accept")
        await store.append(made)
        if rng.random() < 0.5:
            await store.add_attempts(made.id, [attempt("l", "Lyon", decision="audit", probability=0.5)])


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """A filled store and its configuration, as options of the command."""
    config = tmp_path / "smallfirst.toml"
    config.write_text(f'[models.m]\nbackend = "fake"\n[store]\nurl = "sqlite:///{tmp_path}/calls.db"\n')

    async def write() -> None:
        store = await open_store(f"sqlite:///{tmp_path}/calls.db")
        await fill(store)
        await store.close()

    asyncio.run(write())
    return ["--config", str(config)]


def test_the_command_judges_a_store(files: list[str], tmp_path: Path) -> None:
    """From recorded calls with audits, the command's JSON holds every figure with its interval, and support."""
    policy = tmp_path / "strict.toml"
    policy.write_text("[cascade]\nthreshold = 0.75\n")
    done = CliRunner().invoke(app, ["whatif", "--policy", str(policy), *files, "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["calls"] == 160
    assert found["settings"]["cascade"]["threshold"] == 0.75
    assert found["labels"].keys() == {"agreement"}
    escalation = found["figures"]["escalation"]["target"]
    assert escalation["low"] < 0.75 < escalation["high"]
    assert set(escalation) == {"value", "low", "high", "n"}
    accepted = found["figures"]["accepted_failure"]
    assert accepted["target"]["low"] < 0.125 < accepted["target"]["high"]
    assert accepted["recorded"]["low"] < 0.25 < accepted["recorded"]["high"]
    cost = found["figures"]["cost"]
    assert cost["target"]["value"] == pytest.approx(0.001 + 0.01 * escalation["value"], rel=1e-6)
    assert cost["difference"]["low"] > 0


def test_the_command_shows_a_table_and_what_is_missing(files: list[str], tmp_path: Path) -> None:
    """The table compares both policies; a model that was never run is named with what to record."""
    policy = tmp_path / "p.toml"
    policy.write_text('[tasks.rooms]\nstages = ["other", "l"]\n')
    done = CliRunner().invoke(app, ["whatif", "--policy", str(policy), *files], env={"COLUMNS": "120"})
    assert done.exit_code == 0, done.output
    assert "cannot tell" in done.stdout
    assert "other did not answer" in done.stdout
    assert "as recorded" in done.stdout


def test_the_command_refuses_tasks_that_no_record_knows(files: list[str], tmp_path: Path) -> None:
    """A policy for a task without calls is an error that lists the recorded tasks; so is a missing file."""
    policy = tmp_path / "p.toml"
    policy.write_text("[tasks.flights]\nthreshold = 0.5\n")
    done = CliRunner().invoke(app, ["whatif", "--policy", str(policy), *files])
    assert isinstance(done.exception, ConfigError)
    assert "flights" in done.exception.message
    assert "rooms" in done.exception.hint
    missing = CliRunner().invoke(app, ["whatif", "--policy", str(tmp_path / "no.toml"), *files])
    assert isinstance(missing.exception, ConfigError)
