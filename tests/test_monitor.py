"""monitor and chance: audits with known odds raise an alarm when the promise is broken, and hardly ever otherwise."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallfirst.chance import audit_probability, draw
from smallfirst.guarantee import Certificate
from smallfirst.monitor import WINDOW, Monitor

CERTIFICATE = Certificate(0.05, 0.05, 0.9, 100, 0, 0.03, 200, 0.5)


def fed(rate: float, n: int, *, seed: int = 0, probability: float = 0.1) -> Monitor:
    """A monitor after `n` audits of answers that fail at a rate."""
    monitor, random = Monitor.of("c", CERTIFICATE, 0.02), Random(seed)
    for k in range(n):
        monitor.take(f"r{k}", random.random() < rate, probability, accepted=True, least=0.02, now=1e9 + k)
    return monitor


def test_a_broken_promise_raises_an_alarm_that_stays() -> None:
    """Failures at several times alpha are noticed within a few hundred audits, and when is remembered."""
    monitor = fed(0.4, 400)
    assert monitor.alarm
    noticed = monitor.since
    monitor.take("later", False, 0.1, accepted=True, least=0.02, now=2e9)
    assert (monitor.alarm, monitor.since) == (True, noticed)
    assert Monitor.of("d", CERTIFICATE, 0.02, monitor.since).alarm is False


def test_a_kept_promise_raises_hardly_any() -> None:
    """At alpha itself, over several windows, at most delta of tasks have an alarm (here of 20: at most three)."""
    alarms = [fed(0.05, 700, seed=seed).alarm for seed in range(20)]
    assert sum(alarms) <= 3


def test_windows_start_afresh() -> None:
    """After so many audits the sequence begins anew with less delta; counts go on."""
    monitor = fed(0.0, WINDOW + 5)
    assert (monitor.window, monitor.sequence.n, monitor.audits) == (2, 5, WINDOW + 5)
    assert monitor.sequence.delta == pytest.approx(0.05 / 6)
    monitor.take("x", False, 0.5, accepted=True, least=0.5, now=0.0)
    assert (monitor.window, monitor.sequence.least) == (3, 0.5)


def test_the_threshold_rises_on_failures_and_relaxes_on_what_it_held_back() -> None:
    """Only accepted wrong answers raise it; wrong ones that it escalated did no harm, and still count for the alarm."""
    monitor = Monitor.of("c", CERTIFICATE, 1.0)
    monitor.take("a", True, 1.0, accepted=True, least=1.0, now=0.0)
    risen = monitor.threshold
    assert risen > CERTIFICATE.threshold
    monitor.take("b", True, 1.0, accepted=False, least=1.0, now=0.0)
    assert CERTIFICATE.threshold < monitor.threshold < risen
    assert monitor.wrong == 2


def test_the_same_record_again_changes_nothing() -> None:
    """A write that was repeated is not counted twice."""
    monitor = fed(0.0, 3)
    before = monitor.to_json()
    monitor.take("r2", True, 0.1, accepted=True, least=0.02, now=0.0)
    assert monitor.to_json() == before


@given(st.lists(st.tuples(st.booleans(), st.floats(0.02, 1)), max_size=20))
def test_a_monitor_reads_back_as_it_was(audits: list[tuple[bool, float]]) -> None:
    """What is written is read again, and goes on in the same way."""
    monitor = Monitor.of("c", CERTIFICATE, 0.02)
    for k, (wrong, probability) in enumerate(audits):
        monitor.take(f"r{k}", wrong, probability, accepted=True, least=0.02, now=5.0)
    again = Monitor.from_json(monitor.to_json())
    assert again is not None
    for k in range(40):
        for each in (monitor, again):
            each.take(f"later{k}", True, 0.5, accepted=True, least=0.02, now=6.0)
    for name in ("audits", "wrong", "weight", "wrong_weight", "squares", "alarm", "since", "last", "threshold"):
        assert getattr(again, name) == getattr(monitor, name)
    assert again.sequence.lower <= monitor.sequence.lower
    assert again.sequence.lower == pytest.approx(monitor.sequence.lower, abs=0.003)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"sequence": "{}"}', '{"sequence": 3, "adaptive": 4}'])
def test_what_is_no_monitor_is_none(text: str) -> None:
    """A state that another version wrote is as good as none: the monitor begins anew."""
    assert Monitor.from_json(text) is None


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0.001, 1))
def test_audits_are_likelier_near_the_threshold(above: float, threshold: float, least: float) -> None:
    """Never below the least, at most ten times it, and falling with confidence."""
    confidence = threshold + above * (1 - threshold)
    found = audit_probability(confidence, threshold, least)
    assert least <= found <= min(1.0, 10 * least) + 1e-12
    assert audit_probability(threshold, threshold, least) >= found


@given(st.floats(0, 1), st.integers())
def test_a_draw_tells_the_probability_of_what_happened(probability: float, seed: int) -> None:
    """What happens has its probability, what does not the rest; the certain is certain."""
    happened, said = draw(probability, Random(seed))
    assert said == (probability if happened else 1 - probability)
    assert said > 0
