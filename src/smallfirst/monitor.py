"""One task's audits since it was calibrated: whether the promise is still kept, and how strict acceptance has to be.

Only audits are taken in, because they alone are drawn at random with known odds. Feedback is not: people report what
went wrong more often than what went right, and no bound on a rate follows from reports that come so.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from smallfirst.guarantee import AdaptiveThreshold, Certificate, ConfidenceSequence

WINDOW = 300
"""Audits after which the sequence starts afresh, with its part of delta, so that a long calm does not hide a rise."""


@dataclass(slots=True)
class Monitor:
    """What became of the answers that one calibration would accept (`calibration` is its id): those accepted and
    audited, and those that only the stricter threshold escalated. `alarm` stays until there is another calibration.

    `weight` and `wrong_weight` are sums of 1 / probability over the audits, and over those that found the accepted
    answer wrong; `squares` is the sum of the squared weights. `last` is the record of the last audit.
    """

    calibration: str
    alpha: float
    delta: float
    sequence: ConfidenceSequence
    adaptive: AdaptiveThreshold
    window: int = 1
    audits: int = 0
    wrong: int = 0
    weight: float = 0.0
    wrong_weight: float = 0.0
    squares: float = 0.0
    alarm: bool = False
    last: str = ""
    since: float = 0.0

    @classmethod
    def of(cls, calibration: str, certificate: Certificate, least: float, since: float = 0.0) -> Monitor:
        """A new one: nothing audited yet, audits drawn with a probability of at least `least`."""
        alpha, delta = certificate.alpha, certificate.delta
        adaptive = AdaptiveThreshold(certified=certificate.threshold, alpha=alpha, least=least)
        return cls(calibration, alpha, delta, _sequence(delta, 1, least), adaptive, since=since)

    @property
    def threshold(self) -> float:
        """The confidence that acceptance takes under drift, never below the certified one."""
        return self.adaptive.threshold

    def take(self, record: str, wrong: bool, probability: float, *, accepted: bool, least: float, now: float) -> None:
        """Take in the audit of a record, drawn with `probability` where none is drawn with less than `least`.

        An answer that was not `accepted`, although the certified threshold allows it, is known without a draw
        (probability 1), because the large model was asked. It bears on the rate that the calibration promised; to the
        stricter threshold it is one that did no harm, so that it can relax again.
        The same record again changes nothing.
        """
        if record == self.last:
            return
        if self.sequence.n >= WINDOW or self.sequence.least != least:
            self.window += 1
            self.sequence = _sequence(self.delta, self.window, least)
        self.sequence.update(wrong, probability)
        self.adaptive.least = least
        self.adaptive.update(wrong and accepted, probability)
        self.last = record
        self.audits += 1
        self.wrong += wrong
        self.weight += 1 / probability
        self.wrong_weight += wrong / probability
        self.squares += 1 / probability**2
        if self.sequence.lower > self.alpha and not self.alarm:
            self.alarm, self.since = True, now

    def to_json(self) -> str:
        """The whole state."""
        kept = {name: getattr(self, name) for name in _PLAIN}
        return json.dumps(kept | {"sequence": self.sequence.to_json(), "adaptive": self.adaptive.to_json()})

    @classmethod
    def from_json(cls, text: str) -> Monitor | None:
        """The monitor that `to_json` wrote; None for "" and for what is none of this version's."""
        try:
            kept = json.loads(text)
            sequence = ConfidenceSequence.from_json(kept.pop("sequence"))
            adaptive = AdaptiveThreshold.from_json(kept.pop("adaptive"))
            return cls(sequence=sequence, adaptive=adaptive, **kept)
        except (ValueError, KeyError, TypeError, AttributeError):
            return None


_PLAIN = tuple(name for name in Monitor.__dataclass_fields__ if name not in {"sequence", "adaptive"})


def _sequence(delta: float, window: int, least: float) -> ConfidenceSequence:
    """The j-th window's, with delta / (j (j + 1)): that sums to delta (see `ConfidenceSequence`)."""
    return ConfidenceSequence(delta=delta / (window * (window + 1)), least=least)
