"""UCCI: calibrated uncertainty for cascades (Kotte 2026, arXiv 2605.18796).

The uncertainty of an answer is one less the mean over tokens of the margin between the two likeliest tokens. Isotonic
regression on labelled calls maps it to a probability of error, and the threshold on that probability is the cheapest
whose expected accuracy is the one wanted: here the large model's.

Answers recorded without log-probabilities have no margins. Then the margin of an answer is a stand-in, one for all
calls: the share of call items that a second small model's answer has in common with it, or without a second model, 0
for calls that the request's schemas forbid and else 1 / (1 + characters of the answer / 1000).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jsonschema_rs
import numpy as np
from sklearn.isotonic import IsotonicRegression

from . import Floats, Sample, views
from .thresholds import Stakes, frontier, stakes

SOURCES = {
    "margins": "mean token margin",
    "agreement": "no log-probabilities recorded: stand-in margin = call items shared with the second model's answer",
    "shape": "no log-probabilities recorded: stand-in margin = schema validity, then brevity of the answer",
}


class UCCI:
    """P(the small model's answer is right) by isotonic regression on its margin."""

    name = "UCCI"
    pre_generation = False
    asks_second = False
    threshold = np.inf
    _source = "margins"

    @property
    def settings(self) -> str:
        return (
            f"reimplemented: {SOURCES[self._source]}; isotonic regression; cheapest threshold whose expected accuracy "
            "is the large model's"
        )

    def fit(
        self,
        samples: Sequence[Sample],
        correct: Sequence[Mapping[str, bool]],
        *,
        small: str,
        second: str | None,
        large: str,
        alpha: float,  # noqa: ARG002
        delta: float,  # noqa: ARG002
        costs: Sequence[Mapping[str, float]],
    ) -> None:
        self._small, self._second = small, second
        recorded = all(views.margin(answer) is not None for answer in views.answers(samples, small))
        self._source = "margins" if recorded else "shape" if second is None else "agreement"
        self.asks_second = self._source == "agreement"
        at = stakes(self, correct, costs, small, second, large)
        self._isotonic = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip")
        self._isotonic.fit(self._margins(samples), at.small_right)
        scores = self.score(samples)
        accuracy = float(at.large_right.mean())
        expected = Stakes(scores, np.full_like(scores, accuracy), at.small_cost, at.large_cost)
        options = frontier(scores, expected, pre_generation=False)
        self.threshold = float(options.threshold[options.cheapest(accuracy)])

    def score(self, samples: Sequence[Sample]) -> Floats:
        return np.asarray(self._isotonic.predict(self._margins(samples)), dtype=np.float64)

    def _margins(self, samples: Sequence[Sample]) -> Floats:
        return np.array([self._margin(sample) for sample in samples], dtype=np.float64)

    def _margin(self, sample: Sample) -> float:
        answer = sample.answers[self._small]
        if self._source == "margins":
            return views.margin(answer) or 0.0
        if self._source == "agreement":
            assert self._second is not None
            return views.agreement(answer, sample.answers[self._second])
        return _valid(sample.request, answer) / (1 + len(views.response(answer)) / 1000)


def _valid(request: Mapping[str, Any], answer: views.Answer) -> bool:
    schemas = {tool["function"]["name"]: tool["function"].get("parameters", {}) for tool in request.get("tools") or ()}
    return all(
        call["name"] in schemas and jsonschema_rs.is_valid(schemas[call["name"]], call["arguments"])
        for call in answer["tool_calls"] or ()
    )
