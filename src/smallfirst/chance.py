"""Randomised choices: every one of them is drawn here, and comes with its probability, which goes on the record."""

from __future__ import annotations

import math
from random import Random


def draw(probability: float, random: Random) -> tuple[bool, float]:
    """Whether what has `probability` in [0, 1] happens, and the probability of what did."""
    happens = random.random() < probability
    return happens, probability if happens else 1 - probability


def audit_probability(confidence: float, threshold: float, least: float) -> float:
    """How likely an accepted answer is audited: ten times `least` at the threshold, falling towards `least` above it.

    Answers near the threshold are the ones that tell most of where it should be. With s a fifth of the room between
    threshold and 1: min(1, least x (1 + 9 exp(-(confidence - threshold) / s))).
    """
    room = max((1 - threshold) / 5, 1e-3)
    return min(1.0, least * (1 + 9 * math.exp(-max(confidence - threshold, 0.0) / room)))
