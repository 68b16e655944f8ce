"""Whether a shortened text may stand for the whole: cheap signs of what it kept, and a certified threshold on them.

The signs ("facts") cost no model: how many of the question's words the context has (`found`) and the shortened text
kept (`coverage`), how much relevance was kept and by what margin (`mass`, `margin`; extraction), how sure the model was
of its notes (`confidence`, the mean log-probability) and how many of their names and numbers the context has
(`grounded`). A `Guard` learns from audited calls, where the answer from the full context stands beside the one from the
shortened text, which signs go with the same answer: P(answer changes | shortened) <= alpha is certified by the same
Learn-then-Test as a small model's answers are (`acceptance.certify`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from smallfirst.acceptance import Acceptance, Costs, certify
from smallfirst.compress.bm25 import Index
from smallfirst.errors import CalibrationError, ConfigError, unreadable
from smallfirst.evidence import terms
from smallfirst.guarantee import Certificate

PREFIX = "compression_"
"""Before the name of a fact where it is a feature of an attempt (`confidence.COMPRESSION_FEATURES`)."""

_SPECIFIC = re.compile(r"\b[A-Z][\w-]+|\d[\d.,:/-]*\d|\d")


def coverage(context: str, question: str, text: str) -> dict[str, float]:
    """found and coverage, words weighted by their rarity among the context's lines."""
    index = Index([terms(line) for line in context.splitlines()])
    weights = {term: index.rarity(term) for term in sorted(set(terms(question)))}
    there, kept = set(terms(context)), set(terms(text))
    present = sum(w for term, w in weights.items() if term in there)
    covered = sum(w for term, w in weights.items() if term in there & kept)
    return {
        "found": present / sum(weights.values()) if weights else 0.0,
        "coverage": covered / present if present else 0.0,
    }


def grounded(context: str, text: str) -> float:
    """The share of the names and numbers of `text` that stand in `context`; 1 when there are none."""
    said = set(_SPECIFIC.findall(text))
    return sum(each in context for each in said) / len(said) if said else 1.0


@dataclass(frozen=True, slots=True)
class Guard:
    """Decides by call: shorten, shorten less, or send in full.

    `least` is the coverage below which a shortened text is too short; with an `acceptance` fitted on audited calls its
    certified threshold decides as well, and where nothing could be certified everything is sent in full.
    """

    least: float = 0.0
    acceptance: Acceptance | None = None

    def allows(self, facts: Mapping[str, float]) -> bool:
        """Whether a text with these `facts` may be sent for the whole."""
        return self.covers(facts) and (self.acceptance is None or self.confidence(facts) >= self.acceptance.threshold)

    def covers(self, facts: Mapping[str, float]) -> bool:
        """Whether enough of the question's words was kept, as far as the compressor tells."""
        return facts.get("coverage", 1.0) >= self.least

    def confidence(self, facts: Mapping[str, float]) -> float:
        """P(the answer stays the same), 1 without a fitted acceptance."""
        return 1.0 if self.acceptance is None else self.acceptance.confidence(features(facts))


def features(facts: Mapping[str, float]) -> dict[str, float]:
    """`facts` under the names that an attempt's features have."""
    return {PREFIX + name: value for name, value in facts.items()}


def fit(
    facts: Sequence[Mapping[str, float]],
    same: Sequence[bool],
    *,
    task: str,
    stage: str,
    alpha: float,
    delta: float,
    made_at: float,
    costs: Costs | None = None,
) -> Acceptance:
    """Certify when shortening leaves the answer the same: `facts` of audited calls, and whether both answers agreed.

    `costs` are those of a call with the shortened text (`small_usd`) and with the full one (`large_usd`). The promise:
    with probability 1 - delta over these calls, among calls that are shortened the answer changes in at most alpha.
    Raises CalibrationError for too few calls.
    """
    rows = [features(each) for each in facts]
    label = "agreement with the full context"
    return certify(
        rows, same, task=task, stage=stage, label=label, alpha=alpha, delta=delta, made_at=made_at, costs=costs
    )


def load(path: Path, least: float) -> Guard:
    """The guard kept at `path`. Raises ConfigError when it cannot be read, CalibrationError when it is damaged."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            unreadable(path, error), hint="A guard is a file that `smallfirst guard` writes from audited calls."
        ) from None
    if not isinstance(kept, dict):
        raise CalibrationError(f"The guard {str(path)!r} is {type(kept).__name__}, not an object.")
    return Guard(least, Acceptance.from_json(kept))


def promised(acceptance: Acceptance) -> str:
    """What `acceptance` promises, in a sentence."""
    outcome = acceptance.outcome
    if isinstance(outcome, Certificate):
        return (
            f"Shortened are {outcome.coverage:.0%} of the calls; the answer changes in at most {outcome.alpha:.1%} of "
            f"those (certified at {1 - outcome.delta:.0%} from {outcome.n} audited calls)."
        )
    return f"Nothing is shortened: {outcome.reason}."
