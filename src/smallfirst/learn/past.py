"""What a large model answered when it was recorded, and that model as a backend that answers so again.

Time that has passed is not waited for: the backend puts the clock forward instead, so that a cascade which asks it
takes the seconds that the call took.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from smallfirst.cascade import Pricing
from smallfirst.errors import BackendUnavailable, NotFoundError, RequestError, StoreError
from smallfirst.labels import referred
from smallfirst.learn.dataset import Row
from smallfirst.learn.scrub import ScrubbedRecord, Scrubber
from smallfirst.learn.scrubbed import scrubber_of
from smallfirst.learn.usable import choice_of
from smallfirst.store import Store, StoredRecord
from smallfirst.types import Capabilities, Choice, Delta, Request, Stage, ToolCallDelta, Usage

RECORDED = "~recorded"
"""The name of the stage; no configured model can have it."""


@dataclass(frozen=True, slots=True)
class Past:
    """The large model's recorded answer to a call, scrubbed like the dataset; `usd` is None where no price is known.
    `taken`: it is right by definition, since the dataset takes it for the right one."""

    answer: Choice
    model: str
    usage: Usage
    seconds: float
    usd: float | None
    taken: bool = False


async def answers_of(store: Store, rows: Sequence[Row]) -> dict[str, Past]:
    """By id, what is recorded of the large model's valid answers to the calls of `rows`, as far as there is one.

    An answer that a row takes for right is not scrubbed again; others are, with the store's own scrubber, so that they
    can be compared. Raises StoreError when the store cannot be read.
    """
    found: dict[str, Past] = {}
    scrubber: Scrubber | None = None
    for row in rows:
        try:
            stored = await store.get(row.id)
        except NotFoundError:
            continue
        n = referred(stored)
        if n is None:
            continue
        taken = row.label == "large" or (row.label == "execution" and stored.served == n)
        if taken:
            answer: Choice | None = choice_of(row.answer)
        else:
            scrubber = scrubber or await scrubber_of(store)
            answer = _scrubbed(scrubber, stored)
        if answer is not None:
            attempt = stored.attempts[n]
            used = Usage() if attempt.completion is None else attempt.completion.usage
            found[row.id] = Past(answer, attempt.model, used, attempt.seconds, attempt.cost_usd, taken)
    return found


def _scrubbed(scrubber: Scrubber, stored: StoredRecord) -> Choice | None:
    try:
        record = scrubber.record(stored)
    except (RequestError, StoreError):
        return None
    return _large_answer(record)


def _large_answer(record: ScrubbedRecord) -> Choice | None:
    """The large model's valid answer: the one served if it is that, else its last one."""
    if record.answer is not None and not record.small and record.valid:
        return choice_of(record.answer)
    return next((choice_of(a.answer) for a in reversed(record.attempts) if a.valid and not a.small), None)


class Clock:
    """A monotonic clock in seconds that can be put forward."""

    def __init__(self) -> None:
        self._ahead = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self._ahead

    def skip(self, seconds: float) -> None:
        """Let so much time have passed."""
        self._ahead += seconds


class PastModel:
    """A `Backend` that gives the recorded answers: to a request, that of the call which its origin's episode names."""

    name = RECORDED
    capabilities = Capabilities(
        modalities=frozenset({"text", "image", "audio", "file"}), native=frozenset({"chat"}), custom_tools=True
    )

    def __init__(self, answers: Mapping[str, Past], clock: Clock) -> None:
        self._answers, self._clock = answers, clock

    async def generate(self, request: Request) -> AsyncIterator[Delta]:
        """The recorded answer. Raises BackendUnavailable when there is none."""
        past = self._answers.get(request.origin.episode or "")
        if past is None:
            raise BackendUnavailable("The large model's answer to this call is not recorded.")
        self._clock.skip(past.seconds)
        calls = [ToolCallDelta(n, c.id, c.name, c.arguments) for n, c in enumerate(past.answer.tool_calls)]
        yield Delta(
            text=past.answer.text,
            tool_calls=tuple(calls),
            finish_reason="tool_calls" if calls else "stop",
            usage=replace(past.usage, busy_seconds=past.usd),  # carries the cost, see `PastPricing`
            model=past.model,
        )

    async def start(self) -> None:
        """Nothing to start."""

    async def close(self) -> None:
        """Nothing to close."""


@dataclass(frozen=True, slots=True)
class PastPricing:
    """The prices `others`, and of the recorded stage what its answers cost when they were given."""

    others: Pricing

    def cost(self, stage: Stage, usage: Usage) -> tuple[float | None, float | None]:
        if stage.name == RECORDED:
            return usage.busy_seconds, usage.busy_seconds
        return self.others.cost(stage, usage)

    def expected(self, stage: Stage, request: Request) -> float | None:
        return 0.0 if stage.name == RECORDED else self.others.expected(stage, request)
