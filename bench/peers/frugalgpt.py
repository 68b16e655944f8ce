"""FrugalGPT's learned scoring (Chen, Zaharia and Zou 2023, arXiv 2305.05176, section 3).

A regressor g(query, answer) estimates whether an answer is right, and the cascade keeps the small model's answer where
g reaches a threshold, chosen to get most right within a budget. FrugalGPT fine-tunes DistilBERT on a data set's
training half; its weights cannot be fetched here, so g is `learned.TextRegressor` on the same text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from . import Floats, Sample, views
from .learned import TextRegressor
from .thresholds import frontier, stakes


class FrugalGPT:
    """P(the small model's answer is right) from the text of query and answer.

    `budget` is the mean cost of a call that may be spent, as a share of the large model's.
    """

    name = "FrugalGPT-style"
    pre_generation = False
    asks_second = False
    threshold = np.inf

    def __init__(self, budget: float = 1 / 3) -> None:
        self._budget = budget
        self.settings = (
            f"reimplemented: {TextRegressor.settings} on messages and answer instead of DistilBERT; most accurate "
            f"threshold within {budget:.0%} of the large model's cost"
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
        self._small = small
        at = stakes(self, correct, costs, small, second, large)
        self._regressor = TextRegressor()
        scores = self._regressor.fit(self._texts(samples), at.small_right)
        options = frontier(scores, at, pre_generation=False)
        self.threshold = float(options.threshold[options.best(self._budget * float(at.large_cost.mean()))])

    def score(self, samples: Sequence[Sample]) -> Floats:
        return self._regressor.predict(self._texts(samples))

    def _texts(self, samples: Sequence[Sample]) -> list[str]:
        return [f"{views.question(each.request)}\n{views.response(each.answers[self._small])}" for each in samples]
