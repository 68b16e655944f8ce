"""The calls of a dataset asked again, through the cascade that the gateway runs, and compared with their right answers.

One call is asked at a time, so that its seconds are those of a machine which does nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from smallfirst.budget import Allowance
from smallfirst.cascade import Cascade, Outcome
from smallfirst.config import Policy
from smallfirst.labels import agrees
from smallfirst.learn.card import Folder
from smallfirst.learn.dataset import Row
from smallfirst.learn.examples import with_examples
from smallfirst.learn.usable import choice_of
from smallfirst.types import Attempt, Choice, Origin, Request, Route, total_usd
from smallfirst.wire import WIRES

_LEAST_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Question:
    """A row of a dataset as it is asked; `answer` is the right one."""

    row: Row
    request: Request
    answer: Choice

    def right(self, given: Choice | None) -> bool | None:
        """Whether `given` is the right answer (type-aware, the whole call); None where two free texts cannot be
        compared. No answer (None) is wrong wherever answers can be compared."""
        return agrees(self.request, given or Choice(), self.answer)


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a call, in the numbers that `report.Call` wants. `large_tokens` are those of larger models; `error`
    says why nothing was served."""

    id: str
    task: str
    seconds: float
    served: int | None
    correct: bool | None
    cost_usd: float | None
    cost_usd_local_free: float | None
    input_tokens: int
    output_tokens: int
    large_tokens: int
    valid_first: bool
    executable: bool
    escalated: bool
    by_small: bool
    error: str = ""
    cached: bool = False
    pair: None = None
    afterwards_usd: float | None = 0.0


def question(task: str, row: Row, examples: Sequence[Row] = (), most_tokens: int | None = None) -> Question:
    """The row as a call of `task`, its id in the place of the episode, `examples` before it, the answer's length
    limited where `most_tokens` says so."""
    body = with_examples(row.request, examples)
    if most_tokens is not None:
        body["max_tokens"] = most_tokens
    request = WIRES["chat"].parse(msgspec.json.encode(body), Origin(task=task, episode=row.id))
    return Question(row, request, choice_of(row.answer))


def most_tokens(data: Folder) -> int:
    """A limit for models that were not trained for the task, and may not come to an end: as many tokens as the longest
    right answer of the dataset has bytes, which no answer needs; at least 64."""
    return max(_LEAST_TOKENS, *(len(row.completion.encode()) for rows in data.splits.values() for row in rows))


async def ask(cascade: Cascade, route: Route, asked: Question, policy: Policy) -> tuple[Asked, Outcome]:
    """Ask by `route`, within what `policy` allows a call to cost."""
    started = cascade.clock()
    outcome = await cascade.run(route, asked.request, Allowance(started, policy.max_usd, policy.max_seconds))
    return numbers(asked, outcome, cascade.clock() - started), outcome


def numbers(asked: Question, outcome: Outcome, seconds: float) -> Asked:
    """The outcome in numbers."""
    attempts, served = outcome.attempts, outcome.served
    given = None if served is None else attempts[served]
    return Asked(
        id=asked.row.id,
        task=asked.request.origin.task or "",
        seconds=seconds,
        served=served,
        correct=asked.right(choice(given)),
        cost_usd=total_usd(a.cost_usd for a in attempts),
        cost_usd_local_free=total_usd(a.cost_usd_local_free for a in attempts),
        input_tokens=sum(_tokens(a)[0] for a in attempts),
        output_tokens=sum(_tokens(a)[1] for a in attempts),
        large_tokens=sum(sum(_tokens(a)) for a in attempts if not a.small),
        valid_first=bool(attempts) and attempts[0].completion is not None and attempts[0].verdict.ok,
        executable=given is not None and given.verdict.ok,
        escalated=any(not a.small and a.decision != "evidence" for a in attempts),
        by_small=outcome.decision == "accept",
        error="" if outcome.error is None else outcome.error.code,
    )


def unasked(asked: Question, error: str) -> Asked:
    """A call that no model could be asked."""
    return msgspec.structs.replace(numbers(asked, Outcome((), None, "abstain", error), 0.0), error=error)


def choice(attempt: Attempt | None) -> Choice | None:
    """The attempt's answer."""
    return attempt.completion.choices[0] if attempt and attempt.completion and attempt.completion.choices else None


def _tokens(attempt: Attempt) -> tuple[int, int]:
    used = attempt.completion.usage if attempt.completion else None
    return (used.input_tokens, used.output_tokens) if used else (0, 0)
