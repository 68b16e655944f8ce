"""RouteLLM-style routing before generation (Ong et al. 2024, arXiv 2406.18665).

RouteLLM estimates from the prompt alone whether the strong model would win, and asks the weak model alone where that
is unlikely. Its package cannot be fitted here: its routers embed prompts with a hosted model or fetch weights, and are
trained on chat preferences. What is kept is the method: a classifier on the prompt, fitted on which model was right,
and one threshold. The threshold is the cheapest that keeps the large model's accuracy, on cross-fitted estimates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from . import Floats, Sample, views
from .learned import TextRegressor
from .thresholds import frontier, stakes


class RouteLLM:
    """P(the small model is right) from the request's messages."""

    name = "RouteLLM-style"
    settings = (
        f"reimplemented: {TextRegressor.settings} on the messages instead of embeddings; label: the small model was "
        "right; cheapest threshold with the large model's accuracy"
    )
    pre_generation = True
    asks_second = False
    threshold = np.inf

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
        at = stakes(self, correct, costs, small, second, large)
        self._regressor = TextRegressor()
        scores = self._regressor.fit(self._texts(samples), at.small_right)
        options = frontier(scores, at, pre_generation=True)
        self.threshold = float(options.threshold[options.cheapest(float(at.large_right.mean()))])

    def score(self, samples: Sequence[Sample]) -> Floats:
        return self._regressor.predict(self._texts(samples))

    def _texts(self, samples: Sequence[Sample]) -> list[str]:
        return [views.question(sample.request) for sample in samples]
