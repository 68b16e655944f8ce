"""What a way of deciding came to, call by call, and the simple ways that a cascade must be compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of each call, arrays of shape (n,): whether the answers are right and valid, whether the second
    model agrees, and what the answers cost. `second_cost` is 0, `agrees` and `second_right` are false where there is
    no second model's answer."""

    small_right: Bools
    small_valid: Bools
    second_right: Bools
    large_right: Bools
    agrees: Bools
    small_cost: Floats
    second_cost: Floats
    large_cost: Floats

    def part(self, index: NDArray[np.int64]) -> Facts:
        return Facts(**{name: getattr(self, name)[index] for name in self.__slots__})


@dataclass(frozen=True, slots=True)
class Results:
    """What came of deciding each call, arrays of shape (n,): a success (or the chance of one), the cost, whether the
    large model was asked, whether a small answer was accepted, and accepted and wrong."""

    success: Floats
    cost: Floats
    escalated: Floats
    accepted: Floats
    failed: Floats


def accepting(facts: Facts, accept: Bools, *, with_second: bool) -> Results:
    """Small first, the large model where `accept` is false; the second model answers beside each valid answer."""
    asked_second = facts.second_cost * facts.small_valid if with_second else 0.0
    return Results(
        success=np.where(accept, facts.small_right, facts.large_right).astype(float),
        cost=facts.small_cost + asked_second + np.where(accept, 0.0, facts.large_cost),
        escalated=(~accept).astype(float),
        accepted=accept.astype(float),
        failed=(accept & ~facts.small_right).astype(float),
    )


def baselines(facts: Facts, ours: Results, *, with_second: bool) -> Mapping[str, Results]:
    """The simple ways, by name.

    always-small, always-large; random-mix: each call goes to one of the two by lot, at the share that costs as much as
    `ours`; validity-only: accepted when valid; agreement-only: accepted when valid and the second model agrees (there
    with a second model only); oracle: knows which answers are right and pays only for the one that is used, the bound
    that no router passes.
    """
    every = np.ones(len(facts.small_right), dtype=bool)
    small = Results(
        success=facts.small_right.astype(float),
        cost=facts.small_cost,
        escalated=np.zeros(len(every)),
        accepted=every.astype(float),
        failed=(~facts.small_right).astype(float),
    )
    large = Results(
        success=facts.large_right.astype(float),
        cost=facts.large_cost,
        escalated=every.astype(float),
        accepted=np.zeros(len(every)),
        failed=np.zeros(len(every)),
    )
    found = {
        "always-small": small,
        "always-large": large,
        "random-mix": _mix(small, large, float(ours.cost.mean())),
        "validity-only": accepting(facts, facts.small_valid, with_second=False),
    }
    if with_second:
        found["agreement-only"] = accepting(facts, facts.small_valid & facts.agrees, with_second=True)
    return found | {"oracle": _oracle(facts)}


def _mix(small: Results, large: Results, cost: float) -> Results:
    """The mean of a lottery between two ways that costs `cost` a call, as far as one between them can."""
    low, high = float(small.cost.mean()), float(large.cost.mean())
    share = float(np.clip((cost - low) / (high - low), 0.0, 1.0)) if high != low else 0.0
    fields: dict[str, Any] = {
        name: (1 - share) * getattr(small, name) + share * getattr(large, name) for name in Results.__slots__
    }
    return Results(**fields)


def _oracle(facts: Facts) -> Results:
    among = facts.small_right | facts.second_right
    hopeful = ~among & facts.large_right
    cheapest = np.where(facts.small_right | ~facts.second_right, facts.small_cost, facts.second_cost)
    return Results(
        success=(among | facts.large_right).astype(float),
        cost=np.where(hopeful, facts.large_cost, cheapest),
        escalated=hopeful.astype(float),
        accepted=(~hopeful).astype(float),
        failed=(~hopeful & ~among).astype(float),
    )
