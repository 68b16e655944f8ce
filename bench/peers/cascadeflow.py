"""cascadeflow's quality check, driven: the package's agent runs over the recorded answers.

Its agent sends requests that look complex (key words such as "then", several verbs, nested or many parameters) to the
large model at once. A draft that calls tools is kept where a weighted sum of five checks (JSON object, name and
arguments present, tool exists, required fields present, arguments an object) reaches 0.70, 0.75 or 0.85 by complexity
(quality/tool_validator.py); values and types are not looked at. A draft without a call is rejected whenever tools were
offered (core/cascade.py). Nothing is learnt: the score is the quality less the threshold that it had to reach.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from . import Floats, Sample, environments, views

REQUIREMENT = "cascadeflow==1.2.0"
AGENT = Path(__file__).parent / "elsewhere" / "cascadeflow_agent.py"


class Cascadeflow:
    """The agent's margin over its own threshold; what it decided for a call is kept for later splits."""

    name = "cascadeflow"
    settings = f"driven: {REQUIREMENT}, agent and quality settings by its defaults; nothing fitted"
    pre_generation = False
    asks_second = False
    threshold = 0.0

    def __init__(self) -> None:
        self._known: dict[str, float] = {}

    def fit(
        self,
        samples: Sequence[Sample],  # noqa: ARG002
        correct: Sequence[Mapping[str, bool]],  # noqa: ARG002
        *,
        small: str,
        second: str | None,  # noqa: ARG002
        large: str,  # noqa: ARG002
        alpha: float,  # noqa: ARG002
        delta: float,  # noqa: ARG002
        costs: Sequence[Mapping[str, float]],  # noqa: ARG002
    ) -> None:
        self._small = small

    def score(self, samples: Sequence[Sample]) -> Floats:
        keys = [views.fingerprint(sample, [self._small]) for sample in samples]
        unknown = {key: sample for key, sample in zip(keys, samples, strict=True) if key not in self._known}
        self._known.update(zip(unknown, self._run(list(unknown.values())), strict=True))
        return np.array([self._known[key] for key in keys], dtype=np.float64)

    def _run(self, samples: Sequence[Sample]) -> list[float]:
        if not samples:
            return []
        python = environments.install("cascadeflow", REQUIREMENT) / "python"
        lines = [json.dumps({"request": each.request, "answer": each.answers[self._small]}) for each in samples]
        done = subprocess.run(
            [python, AGENT],
            input="\n".join(lines),
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "CASCADEFLOW_LOG_LEVEL": "ERROR"},
        )
        scores = [json.loads(line)["score"] for line in done.stdout.splitlines()]
        return [-np.inf if score is None else score for score in scores]
