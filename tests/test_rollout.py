"""rollout: who answers which episode, when a candidate moves, and how often it moves wrongly."""

from __future__ import annotations

import json
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smallfirst.betting import Bets
from smallfirst.rollout import (
    Abort,
    Answer,
    Decision,
    Evidence,
    Hold,
    Outcome,
    Promote,
    Rollout,
    Rules,
    arm,
    decide,
    moved,
)

SHADOW = Rollout("r1", "orders", "orders-2", "orders-1", "salt", 0.0, rules=Rules(known_n=200))
CANARY = Rollout("r1", "orders", "orders-2", "orders-1", "salt", 0.0, "canary", 0.05, Rules(known_n=200))
GOOD, BAD = Answer(True, True, 1.0, 0.001), Answer(False, True, 1.0, 0.001)
shares = st.floats(0, 1)
answers = st.none() | st.builds(
    Answer, st.none() | st.booleans(), st.booleans(), st.floats(0, 100), st.none() | st.floats(0, 1)
)
outcomes = st.builds(
    Outcome, st.sampled_from(["", *"abcdefgh"]), answers, answers, st.sampled_from([0.0, 0.05, 0.25, 0.95, 1.0])
)


def fed(rollout: Rollout, given: list[Outcome]) -> Evidence:
    evidence = Evidence(rollout)
    for outcome in given:
        evidence.take(rollout.rules, outcome)
    return evidence


def answer(right: bool) -> Answer:
    return GOOD if right else BAD


def split(random: Random, n: int, new: float, old: float, share: float = 0.2) -> list[Outcome]:
    """n calls, each of its own episode, that go to one arm by lot; the arms are right at these rates."""
    found = []
    for i in range(n):
        if random.random() < share:
            found.append(Outcome(str(i), answer(random.random() < new), None, share))
        else:
            found.append(Outcome(str(i), None, answer(random.random() < old), share))
    return found


def first_decision(rollout: Rollout, given: list[Outcome]) -> tuple[Decision, int]:
    """The first decision to move, and after how many outcomes it was taken."""
    evidence = Evidence(rollout)
    for n, outcome in enumerate(given, start=1):
        evidence.take(rollout.rules, outcome)
        decision = decide(rollout, evidence)
        if not isinstance(decision, Hold):
            return decision, n
    return Hold(""), len(given)


def bets(sign: int, margin: float = 0.0, least: tuple[float, float] = (1.0, 1.0), prior: float = 0.9) -> Bets:
    sizes = ((0.05, 0.5), (0.15, 0.5))
    return Bets(sign=1 if sign > 0 else -1, margin=margin, sizes=sizes, prior=prior, prior_n=50, least=least)


@given(st.text(), shares, shares, st.text())
def test_a_canary_stays_one_while_the_share_grows(key: str, one: float, other: float, salt: str) -> None:
    """An episode in the canary at a share is in it at every larger one, and asks always give the same arm."""
    low, high = sorted((one, other))
    assert arm(key, low, salt) == arm(key, low, salt)
    assert arm(key, low, salt)[0] == "incumbent" or arm(key, high, salt)[0] == "canary"


def test_arms_have_their_share_and_say_their_probability() -> None:
    """Of 10,000 episodes a share of 0.2 is in the canary, others by another salt; share 0 is nobody, 1 is all."""
    keys = [str(i) for i in range(10_000)]
    here = {key for key in keys if arm(key, 0.2, "one") == ("canary", 0.2)}
    there = {key for key in keys if arm(key, 0.2, "two") == ("canary", 0.2)}
    assert abs(len(here) - 2000) < 200
    assert abs(len(here & there) - 400) < 100
    assert {arm(key, 0.2, "one") for key in keys if key not in here} == {("incumbent", 0.8)}
    assert {arm(key, 0.0, "one") for key in keys} == {("incumbent", 1.0)}
    assert {arm(key, 1.0, "one") for key in keys} == {("canary", 1.0)}


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    """Shares outside [0, 1] are refused with what was given."""
    with pytest.raises(ValueError, match="share"):
        arm("e", share, "salt")


@pytest.mark.parametrize(
    "wrong", [{"shares": (0.2, 0.1)}, {"shares": ()}, {"level": 0.0}, {"margin": 1.0}, {"labelled": 0.0}]
)
def test_rules_that_make_no_sense_are_refused(wrong: dict[str, object]) -> None:
    """Rules outside what is allowed are refused, naming the rule."""
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Rules(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("rollout", [SHADOW, CANARY])
def test_without_evidence_nothing_moves(rollout: Rollout) -> None:
    """Calls of which nobody knows whether they succeeded, however many and however valid, move nothing."""
    unknown = Answer(None, True, 0.1)
    both = rollout.step == "shadow"
    given = [Outcome(str(i), unknown, unknown if both else None, rollout.share) for i in range(2000)]
    decision = decide(rollout, fed(rollout, given))
    assert isinstance(decision, Hold)
    assert "no call has shown" in decision.reason


def test_one_arm_alone_shows_nothing() -> None:
    """Where the other arm had no chance, in the shadow or at a share of 1, single answers are no comparison."""
    for share in (0.0, 1.0):
        evidence = fed(CANARY, [Outcome(str(i), BAD, None, share) for i in range(500)])
        assert evidence.worse("success") == evidence.fit("success") == 1
        assert evidence.shown == {"canary": 0, "incumbent": 0, "pair": 0}


def test_a_live_version_is_compared_for_so_many_calls() -> None:
    """After the calls of patience without harm it gets all episodes; with harm it goes back, whenever that shows."""
    rollout = Rollout("r", "t", "new", "old", "s", 0.0, "live", 0.95, Rules(patience=100))
    equal = fed(rollout, split(Random(3), 100, 0.9, 0.9, 0.95))
    assert isinstance(decide(rollout, fed(rollout, split(Random(3), 99, 0.9, 0.9, 0.95))), Hold)
    decision = decide(rollout, equal)
    assert isinstance(decision, Promote)
    after = moved(rollout, decision, 9.0)
    assert (after.step, after.share, after.since) == ("live", 1.0, 0.0)
    assert isinstance(decide(after, equal), Hold)


def test_patience_ends_in_a_hold_that_says_so() -> None:
    """When the evidence does not come, the decision stays Hold and says that a person has to decide."""
    rollout = Rollout("r", "t", "new", "old", "s", 0.0, "canary", 0.05, Rules(patience=50))
    decision = decide(rollout, fed(rollout, split(Random(1), 50, 0.9, 0.9, 0.05)))
    assert isinstance(decision, Hold)
    assert "a person has to decide" in decision.reason


def test_the_whole_way_of_a_good_candidate() -> None:
    """An equal candidate goes shadow, canary by growing shares, live, and stays there; each step begins afresh."""
    random, rollout, seen = Random(5), SHADOW, [(SHADOW.step, SHADOW.share)]
    evidence = Evidence(rollout)
    for n in range(30_000):
        if rollout.step == "shadow":
            outcome = Outcome(str(n), answer(random.random() < 0.95), answer(random.random() < 0.95))
        else:
            [outcome] = split(random, 1, 0.95, 0.95, rollout.share)
            outcome = Outcome(str(n), outcome.candidate, outcome.incumbent, rollout.share)
        evidence.take(rollout.rules, outcome)
        after = moved(rollout, decide(rollout, evidence), float(n))
        if after != rollout:
            seen.append((after.step, after.share))
            evidence = evidence if after.step == rollout.step else Evidence(after)
        rollout = after
        if rollout.step == "live":
            break
    assert seen == [("shadow", 0.0), ("canary", 0.05), ("canary", 0.25), ("live", 0.95)]
    assert isinstance(decide(rollout, Evidence(rollout)), Hold)


def test_worse_candidates_are_withdrawn_and_stay_so() -> None:
    """In the shadow, as canary and live, a candidate that fails far more often is rolled back for good."""
    paired = [Outcome(str(i), answer(i % 3 > 0), GOOD) for i in range(200)]
    live = Rollout("r1", "orders", "new", "old", "salt", 0.0, "live", 0.95, Rules())
    for rollout, calls in [
        (SHADOW, paired),
        (CANARY, split(Random(2), 4000, 0.6, 0.9, 0.05)),
        (live, split(Random(2), 8000, 0.6, 0.9, 0.95)),
    ]:
        decision, _ = first_decision(rollout, calls)
        assert isinstance(decision, Abort)
        assert decision.measure == "success"
        back = moved(rollout, decision, 7.0)
        assert (back.step, back.share, back.since) == ("rolled_back", 0.0, 7.0)
        assert moved(back, decide(back, Evidence(back)), 9.0) == back


@pytest.mark.parametrize(
    ("measure", "worse"),
    [("valid", Answer(True, False, 1.0, 0.001)), ("in_time", Answer(True, True, 9.0, 0.001)),
     ("value", Answer(True, True, 1.0, 0.002))],
)  # fmt: skip
def test_every_measure_can_withdraw(measure: str, worse: Answer) -> None:
    """Right answers that are invalid, late, or cost twice a success's worth, are reason enough."""
    rollout = Rollout("r", "t", "new", "old", "s", 0.0, rules=Rules(late_s=2.0, usd_per_success=0.001))
    decision, n = first_decision(rollout, [Outcome(str(i), worse, GOOD) for i in range(400)])
    assert isinstance(decision, Abort)
    assert decision.measure == measure
    assert n < 100


def test_promotion_needs_every_measure() -> None:
    """A candidate that succeeds alike but has not shown that it is in time waits, and the reason names that."""
    rollout = Rollout("r", "t", "new", "old", "s", 0.0, rules=Rules(late_s=2.0, late_margin=0.001))
    decision = decide(rollout, fed(rollout, [Outcome(str(i), GOOD, GOOD) for i in range(300)]))
    assert isinstance(decision, Hold)
    assert "in_time" in decision.reason


def test_better_is_said_only_of_what_is_better() -> None:
    """A candidate that wins most differing pairs is promoted as better; one that never differs is only not worse."""
    better, _ = first_decision(SHADOW, [Outcome(str(i), GOOD, answer(i % 2 > 0)) for i in range(400)])
    alike, _ = first_decision(SHADOW, [Outcome(str(i), GOOD, GOOD) for i in range(400)])
    assert isinstance(better, Promote)
    assert better.better
    assert isinstance(alike, Promote)
    assert not alike.better


@given(st.lists(outcomes, max_size=60), st.lists(outcomes, max_size=20))
@settings(max_examples=40, deadline=None)
def test_evidence_survives_a_restart(before: list[Outcome], after: list[Outcome]) -> None:
    """Written and read between any two outcomes, evidence comes to the same state as without."""
    rules = Rules(late_s=1.0, usd_per_success=0.5)
    rollout = Rollout("r", "t", "new", "old", "s", 0.0, "canary", 0.05, rules)
    kept = fed(rollout, before)
    read = Evidence.from_json(rollout, kept.to_json())
    for outcome in after:
        kept.take(rules, outcome)
        read.take(rules, outcome)
    assert read.to_json() == kept.to_json()
    assert decide(rollout, read) == decide(rollout, kept)


def test_rollouts_survive_a_restart_and_evidence_of_another_step_does_not() -> None:
    """A rollout reads back equal; evidence of another step counts for nothing; broken texts are refused."""
    assert Rollout.from_json(CANARY.to_json()) == CANARY
    shadowed = fed(SHADOW, [Outcome("e", GOOD, GOOD)]).to_json()
    assert Evidence.from_json(SHADOW, shadowed).calls == 1
    assert Evidence.from_json(CANARY, shadowed).calls == Evidence.from_json(CANARY, "").calls == 0
    cut = json.dumps({"rollout": "r1", "step": "shadow"})
    for read, text in [(Rollout.from_json, "[]"), (Rollout.from_json, "{"), (Rollout.from_json, '{"rules": {}}')]:
        with pytest.raises(ValueError):  # noqa: PT011
            read(text)
    with pytest.raises(ValueError, match="evidence"):
        Evidence.from_json(SHADOW, cut)


def test_the_state_does_not_grow() -> None:
    """After ten times as many episodes the kept text is about as long."""
    few, many = (len(fed(CANARY, split(Random(3), n, 0.9, 0.9)).to_json()) for n in (300, 3000))
    assert many < 1.2 * few


def test_calls_of_no_episode_are_each_their_own() -> None:
    """Calls without an episode come to what calls of as many episodes come to, and are not remembered."""
    given = split(Random(3), 100, 0.8, 0.9)
    evidence = fed(CANARY, given)
    alone = fed(CANARY, [replace(outcome, episode="") for outcome in given])
    assert alone.worse("success") == evidence.worse("success") != 1
    assert len(alone.to_json()) < 3000


def test_a_call_of_an_episode_that_changed_arms_counts_for_nothing() -> None:
    """Where a grown share takes an episode into the canary, its later calls are no evidence."""
    test = bets(-1)
    test.take("e", None, 1.0, 0.1, 1.0)
    before = test.capital
    test.take("e", 0.0, None, 0.1, 1.0)
    assert test.capital == before


@pytest.mark.parametrize(("share", "observed"), [(0.0, 1.0), (1.0, 1.0), (0.5, 0.1), (0.5, 1.5)])
def test_impossible_probabilities_are_refused(share: float, observed: float) -> None:
    """A share without chance for one arm, or a label less likely than the least, is refused."""
    with pytest.raises(ValueError, match="allowed"):
        bets(-1, least=(0.5, 0.5)).take("e", 1.0, None, share, observed)


@given(
    st.sampled_from([-1, 1]),
    st.floats(0.05, 0.95),
    st.sampled_from([(1.0, 1.0), (0.2, 0.2), (1.0, 0.2)]),
    st.floats(0.05, 0.95),
    st.floats(0.5, 0.99),
)
@settings(deadline=None)
def test_the_draw_makes_the_bets_fair(
    sign: int, share: float, least: tuple[float, float], rate: float, prior: float
) -> None:
    """At the edge of the hypothesis, the mean capital after one call is 1 at most, whatever the forecast was."""
    margin = 0.03 if sign > 0 else 0.0
    new = rate - margin
    mean = 0.0
    for side, p, right in [("c", share, new), ("i", 1 - share, rate)]:
        seen = least[side == "i"]
        mean += p * (1 - seen)
        for value, chance in [(1.0, right), (0.0, 1 - right)]:
            test = bets(sign, margin, least, prior)
            test.take("e", *((value, None) if side == "c" else (None, value)), share, seen)
            mean += p * seen * chance * test.capital
    assert mean == pytest.approx(1)


@pytest.mark.parametrize("alike", [0.0, 1.0])
def test_peeking_after_every_call_keeps_the_level(alike: float) -> None:
    """An equal candidate, in episodes of four calls that may all be alike, is seldom called worse at any time."""
    wrong = 0
    for seed in range(150):
        random, test = Random(seed), bets(-1)
        for n in range(120):
            canary, first = random.random() < 0.2, random.random() < 0.85
            for _ in range(4):
                right = first if random.random() < alike else random.random() < 0.85
                test.take(str(n), *((float(right), None) if canary else (None, float(right))), 0.2, 1.0)
                if test.capital >= 20:
                    break
            if test.capital >= 20:
                wrong += 1
                break
    assert wrong <= 0.05 * 150 + 2 * (0.05 * 0.95 * 150) ** 0.5


def test_a_regression_of_fifteen_points_is_found_soon() -> None:
    """From 0.90 to 0.75 at a share of 5 %, 15 of 16 canaries are withdrawn within 150 of their calls."""
    found = 0
    for seed in range(16):
        random, evidence, calls, n = Random(seed), Evidence(CANARY), 0, 0
        decision: Decision = Hold("")
        while calls < 150 and isinstance(decision, Hold):
            [outcome] = split(random, 1, 0.75, 0.9, 0.05)
            evidence.take(CANARY.rules, replace(outcome, episode=str(n)))
            calls, n = calls + (outcome.candidate is not None), n + 1
            decision = decide(CANARY, evidence)
        found += isinstance(decision, Abort)
    assert found >= 15
