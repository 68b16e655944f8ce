"""The peers of `bench/peers` on generated calls, as far as they need no package of their own."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peers import Peer, Sample, thresholds, views
from peers.thresholds import Stakes, at_threshold, frontier

MODELS = {"small": "s", "second": None, "large": "l"}
COSTS = {"s": 1.0, "l": 10.0}


def stakes(small: list[int], large: list[int]) -> Stakes:
    n = len(small)
    return Stakes(np.array(small, float), np.array(large, float), np.full(n, 1.0), np.full(n, 10.0))


def answer(*calls: tuple[str, dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {"tool_calls": [{"name": name, "arguments": given} for name, given in calls], "content": None, **more}


def test_frontier_is_exact_on_a_small_case() -> None:
    """Each distinct score is a threshold, after the large model alone, with its accuracy, mean cost and share kept."""
    found = frontier(np.array([0.9, 0.5, 0.5]), stakes([1, 0, 1], [1, 1, 0]), pre_generation=False)
    assert found.threshold.tolist() == [math.inf, 0.9, 0.5]
    assert found.accuracy.tolist() == pytest.approx([2 / 3, 2 / 3, 2 / 3])
    assert found.cost.tolist() == pytest.approx([10, (1 + 11 + 11) / 3, 1])
    assert found.kept.tolist() == pytest.approx([0, 1 / 3, 1])


def test_who_decides_before_generation_pays_for_no_answer_that_is_thrown_away() -> None:
    """Below the threshold such a peer costs the large model's answer alone; so does a score of minus infinity."""
    at = stakes([1, 1], [1, 1])
    scores = np.array([0.9, 0.1])
    assert at_threshold(0.5, scores, at, pre_generation=True).cost[0] == pytest.approx((1 + 10) / 2)
    assert at_threshold(0.5, scores, at, pre_generation=False).cost[0] == pytest.approx((1 + 11) / 2)
    unasked = np.array([0.9, -math.inf])
    assert at_threshold(0.5, unasked, at, pre_generation=False).cost[0] == pytest.approx((1 + 10) / 2)


def test_choices_on_a_frontier() -> None:
    """The cheapest threshold reaches the accuracy asked for, or is the large model; the best one is within budget."""
    found = frontier(np.array([0.9, 0.6, 0.2]), stakes([1, 1, 0], [1, 0, 1]), pre_generation=False)
    assert found.threshold[found.cheapest(1.0)] == 0.6
    assert found.threshold[found.cheapest(1.1)] == math.inf
    assert found.threshold[found.best(8.0)] == 0.6
    assert found.threshold[found.best(0.5)] == 0.2


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans(), st.booleans()), min_size=1, max_size=30), st.booleans())
def test_a_looser_threshold_keeps_more_and_costs_no_more(rows: list[tuple[float, bool, bool]], early: bool) -> None:
    """Down the finite thresholds the share kept grows and the cost falls, whenever the small model is cheaper."""
    scores = np.array([row[0] for row in rows])
    at = stakes([int(row[1]) for row in rows], [int(row[2]) for row in rows])
    found = frontier(scores, at, pre_generation=early)
    assert (np.diff(found.kept) > 0).all()
    assert (np.diff(found.cost[1:]) < 0).all()


def test_agreement_counts_call_items_in_common() -> None:
    """Key order does not matter; two answers without a call agree; other values and other functions do not."""
    one = answer(("f", {"a": 1, "b": [1, 2]}))
    assert views.agreement(one, answer(("f", {"b": [1, 2], "a": 1}))) == 1.0
    assert views.agreement(answer(), {"tool_calls": None, "content": "no tool fits"}) == 1.0
    assert views.agreement(one, answer(("f", {"a": 1, "b": [2]}))) == pytest.approx(2 / 4)
    assert views.agreement(one, answer(("g", {"a": 1, "b": [1, 2]}))) == 0.0


def test_margin_is_the_mean_gap_of_the_two_likeliest_tokens() -> None:
    """OpenAI's log-probabilities become probabilities first; without them there is no margin."""
    tokens = [{"top_logprobs": [{"logprob": math.log(p)} for p in pair]} for pair in ((0.9, 0.1), (0.3, 0.7))]
    assert views.margin(answer(logprobs={"content": tokens})) == pytest.approx((0.8 + 0.4) / 2)
    assert views.margin(answer()) is None


def generated(n: int = 120) -> tuple[list[Sample], list[dict[str, bool]]]:
    """Calls whose question and answer tell whether the small model is right; the large one is always right."""
    samples, correct = [], []
    for i, right in enumerate(np.random.default_rng(0).random(n) < 0.7):
        word = "add the numbers" if right else "explain the integral"
        tokens = [{"top_logprobs": [{"logprob": math.log(0.9 if right else 0.6)}, {"logprob": math.log(0.1)}]}]
        small = answer(("f", {"a": i}), logprobs={"content": tokens})
        request = {"messages": [{"role": "user", "content": f"{word} {i}"}], "tools": []}
        samples.append(Sample(str(i), request, {"s": small, "l": answer(("f", {"a": i}))}))
        correct.append({"s": bool(right), "l": True})
    return samples, correct


@pytest.mark.parametrize("name", ["RouteLLM-style", "UCCI", "FrugalGPT-style"])
def test_learned_peers_find_what_tells_right_from_wrong(name: str) -> None:
    """On calls that can be told apart, the peer's own threshold keeps right answers only, and most of them."""
    pytest.importorskip("sklearn")
    from peers import every

    peer: Peer = next(each for each in every() if each.name == name)
    samples, correct = generated()
    peer.fit(samples[:80], correct[:80], **MODELS, alpha=0.05, delta=0.05, costs=[COSTS] * 80)
    kept = peer.score(samples[80:]) >= peer.threshold
    right = np.array([row["s"] for row in correct[80:]])
    assert not (kept & ~right).any()
    assert kept.sum() >= 0.8 * right.sum()
    at = thresholds.stakes(peer, correct[80:], [COSTS] * 40, **MODELS)
    assert at_threshold(peer.threshold, peer.score(samples[80:]), at, pre_generation=peer.pre_generation).accuracy == 1
