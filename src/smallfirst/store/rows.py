"""What the store gives back: records in full, summaries in numbers, and the filter that both are asked with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import takewhile

from smallfirst.types import AFTERWARDS, Attempt, Decision, Feedback, Json, Mode, Pair, Trial, Wire, total_usd


@dataclass(frozen=True, slots=True)
class RecordFilter:
    """Which records; None means any. `user` and `episode` are the caller's own words, `pseudonym` is the episode as
    records show it. `model` is the one that served; `failed` tells whether the status is 400 or more.

    `since` is inclusive, `until` exclusive, both in seconds since the epoch.
    """

    task: str | None = None
    decision: Decision | None = None
    reason: str | None = None
    model: str | None = None
    episode: str | None = None
    user: str | None = None
    key: str | None = None
    since: float | None = None
    until: float | None = None
    has_feedback: bool | None = None
    failed: bool | None = None
    pseudonym: str | None = None


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """A record as it was kept. `body` is the client's JSON object, put together again; `messages` are chat messages.

    `user` and `episode` are pseudonyms, also where the body names them. Without capture `body` and `messages` are empty
    and each completion has its usage but no choices. `attempts` holds the call's own attempts, then those added later;
    `served` indexes them.
    """

    id: str
    created_at: float
    task: str
    mode: Mode
    decision: Decision
    reason: str
    status: int
    seconds: float
    config_hash: str
    served: int | None
    wire: Wire
    model: str
    key: str
    user: str | None
    episode: str | None
    captured: bool
    body: Json
    messages: tuple[Json, ...]
    attempts: tuple[Attempt, ...]
    feedback: tuple[Feedback, ...] = ()
    trial: Trial | None = None


@dataclass(frozen=True, slots=True)
class AttemptSummary:
    """An attempt in numbers. `answered`: there is a completion; `violations` are the validators' codes."""

    stage: str
    model: str
    kind: str
    decision: Decision
    reason: str
    small: bool
    answered: bool
    violations: tuple[str, ...]
    confidence: float | None
    probability: float | None
    cost_usd: float | None
    cost_usd_local_free: float | None
    seconds: float
    first_token_s: float | None
    input_tokens: int
    output_tokens: int
    features: Mapping[str, float] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """It answered and broke no rule of the request."""
        return self.answered and not self.violations


@dataclass(frozen=True, slots=True)
class RecordSummary:
    """A record in numbers: all that a report needs, read without opening a payload.

    `correct` is the latest "correct" feedback, None when there is none. Costs and tokens count the call's own
    attempts; shadow and audit attempts are measurements beside it and are found in `attempts`.
    """

    id: str
    created_at: float
    task: str
    mode: Mode
    decision: Decision
    reason: str
    status: int
    seconds: float
    served: int | None
    key: str
    user: str | None
    episode: str | None
    correct: bool | None
    attempts: tuple[AttemptSummary, ...]
    trial: Trial | None = None

    @property
    def own_attempts(self) -> tuple[AttemptSummary, ...]:
        """The attempts that the call itself made, those of other models beside a small one's included."""
        return tuple(takewhile(lambda attempt: attempt.decision not in AFTERWARDS, self.attempts))

    @property
    def afterwards_usd(self) -> float | None:
        """What shadows and audits of the call cost."""
        return total_usd(a.cost_usd for a in self.attempts[len(self.own_attempts) :])

    @property
    def by_small(self) -> bool:
        """A small model's answer was accepted and served, and not from the response cache."""
        return self.decision == "accept" and not self.cached

    @property
    def pair(self) -> Pair | None:
        """The answer served beside the large model's: its own, or an audit's; None without either."""
        audit = next((a for a in self.attempts if a.decision == "audit" and a.reason != "not_told"), None)
        served = self.served_attempt
        if self.by_small and audit is not None and audit.probability is not None:
            tokens = audit.input_tokens + audit.output_tokens
            return Pair(1 / audit.probability, audit.reason == "different", audit.cost_usd, tokens)
        if served is None or served.small or self.cached:
            return None
        return Pair(1.0, False, served.cost_usd, served.input_tokens + served.output_tokens)

    @property
    def served_attempt(self) -> AttemptSummary | None:
        """The attempt whose answer was given."""
        return None if self.served is None else self.attempts[self.served]

    @property
    def model(self) -> str:
        """The model that answered, "" when none did."""
        return self.served_attempt.model if self.served_attempt else ""

    @property
    def stage(self) -> str:
        """The stage that answered, "" when none did."""
        return self.served_attempt.stage if self.served_attempt else ""

    @property
    def cost_usd(self) -> float | None:
        return total_usd(a.cost_usd for a in self.own_attempts)

    @property
    def cost_usd_local_free(self) -> float | None:
        return total_usd(a.cost_usd_local_free for a in self.own_attempts)

    @property
    def input_tokens(self) -> int:
        return sum(a.input_tokens for a in self.own_attempts)

    @property
    def output_tokens(self) -> int:
        return sum(a.output_tokens for a in self.own_attempts)

    @property
    def valid_first(self) -> bool:
        """The first answer broke no rule of the request."""
        return bool(self.own_attempts) and self.own_attempts[0].ok

    @property
    def executable(self) -> bool:
        """The answer given calls only tools that exist, with arguments that satisfy their schemas."""
        return self.served_attempt is not None and self.served_attempt.ok

    @property
    def escalated(self) -> bool:
        """The large model was asked in order to serve this call."""
        return any(not a.small and a.kind != "cache" and a.decision != "evidence" for a in self.own_attempts)

    @property
    def cached(self) -> bool:
        """The answer came from the response cache."""
        return self.served_attempt is not None and self.served_attempt.kind == "cache"
