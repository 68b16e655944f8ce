"""Other people's ways to decide whether a small model's answer is kept, over recorded calls.

    python -m bench.peers --data FILE --small MODEL --large MODEL [--second MODEL]

`every()` gives the peers. Each is fitted on one part of the calls and scores another; a call's small answer is kept
where its score reaches the threshold, so a caller can also sweep the threshold. `thresholds.frontier` does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Sample:
    """One call as a router sees it: the OpenAI body of the request, and by model the answer as recorded.

    An answer has `tool_calls` ([{"name", "arguments"}], or None or [] for no call) and `content`; it may have
    `logprobs` as OpenAI's API gives them. Whether it is right is not in it.
    """

    id: str
    request: Mapping[str, Any]
    answers: Mapping[str, Mapping[str, Any]]


class Peer(Protocol):
    """A way to decide. `name` and `settings` are printed.

    `pre_generation`: it decides on the request alone, and below the threshold the small model is not asked at all.
    `asks_second`: as fitted, it needs the second model's answer wherever it asks the small one.
    """

    name: str
    pre_generation: bool
    asks_second: bool
    threshold: float

    @property
    def settings(self) -> str: ...

    def fit(
        self,
        samples: Sequence[Sample],
        correct: Sequence[Mapping[str, bool]],
        *,
        small: str,
        second: str | None,
        large: str,
        alpha: float,
        delta: float,
        costs: Sequence[Mapping[str, float]],
    ) -> None:
        """Learn from labelled calls and choose `threshold`: infinite where nothing should be kept.

        `correct` and `costs` (USD) are by call and model. Raises environments.NotInstalled where the peer's package
        cannot be installed.
        """
        ...

    def score(self, samples: Sequence[Sample]) -> Floats:
        """One score for each call, shape (n,), higher for an answer that is rather kept.

        Minus infinity: the peer goes to the large model without asking the small one.
        """
        ...


def every() -> list[Peer]:
    """All peers, not fitted. Those with a package of their own keep what it answered for a call, so fit one object on
    many splits rather than many objects on one."""
    from .cascadeflow import Cascadeflow
    from .firstpass import Firstpass
    from .frugalgpt import FrugalGPT
    from .routellm import RouteLLM
    from .ucci import UCCI

    return [Cascadeflow(), Firstpass(), RouteLLM(), UCCI(), FrugalGPT()]
