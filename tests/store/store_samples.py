"""Records for the store's tests, and as a program: append records for ever and print each id once it is durable."""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
import uuid

from msgspec.structs import replace

from smallfirst.store import open_store
from smallfirst.types import (
    Attempt,
    Choice,
    Completion,
    Native,
    Origin,
    Record,
    Request,
    TokenLogprob,
    Tool,
    ToolCall,
    Usage,
    Verdict,
    Violation,
)

_numbers = itertools.count()
LOCAL = Origin()
SYSTEM = {"role": "system", "content": "You plan trips."}
TOOLS = [{"type": "function", "function": {"name": "book", "parameters": {"type": "object"}}}]


def next_id() -> str:
    """An id that sorts by time, as UUIDv7 does."""
    return f"{time.time_ns():020d}-{next(_numbers):06d}-{uuid.uuid4().hex[:6]}"


def make_request(text: str = "Book a room in Lyon", origin: Origin = LOCAL) -> Request:
    """A chat call with a system message, a tools list and a field that the store does not know."""
    messages = [SYSTEM, {"role": "user", "content": text}]
    body = {"model": "auto", "messages": messages, "tools": TOOLS, "temperature": 0, "x_unknown": {"kept": [1, None]}}
    tools = (Tool("book", parameters={"type": "object"}),)
    return Request("chat", body, "auto", tuple(messages), tools, origin=origin)


def make_attempt(stage: str = "small", **changes: object) -> Attempt:
    """An answered attempt with a tool call and log-probabilities; `changes` replace its fields."""
    logprobs = (TokenLogprob("book", -0.1, (("book", -0.1), ("no", float("-inf")))), TokenLogprob("(", -0.5))
    choice = Choice(
        tool_calls=(ToolCall("c1", "book", '{"city": "Lyon"}'),), finish_reason="tool_calls", logprobs=logprobs
    )
    attempt = Attempt(
        stage=stage,
        backend="fake",
        model=f"{stage}-model",
        kind="generate",
        decision="accept",
        reason="valid",
        completion=Completion(
            (choice,), Usage(12, 7, busy_seconds=0.25), f"{stage}-model", Native("chat", {"id": "x"})
        ),
        features={"margin_min": 0.5, "not_measured": float("nan")},
        confidence=0.75,
        probability=0.5,
        cost_usd=0.002,
        cost_usd_local_free=0.001,
        seconds=0.25,
        first_token_s=0.125,
    )
    return replace(attempt, **changes)


def make_record(text: str = "Book a room in Lyon", *, origin: Origin = LOCAL, **changes: object) -> Record:
    """A record that a first attempt escalated and a second one answered; `changes` replace its fields."""
    wrong = Verdict((Violation("arguments", "'Lyon' is not a number", "$.city"),))
    small = make_attempt("small", decision="escalate", reason="invalid", verdict=wrong)
    record = Record(
        id=next_id(),
        created_at=time.time(),
        request=make_request(text, origin),
        task="trips",
        mode="enforce",
        attempts=(small, make_attempt("large")),
        served=1,
        decision="escalate",
        reason="invalid",
        status=200,
        seconds=0.5,
        config_hash="c0ffee",
    )
    return replace(record, **changes)


async def _append_for_ever(url: str) -> None:
    store = await open_store(url)

    async def one_caller() -> None:
        while True:
            record = make_record(f"call {next(_numbers)}")
            await store.append(record)
            print(record.id, flush=True)

    await asyncio.gather(*(one_caller() for _ in range(8)))


if __name__ == "__main__":
    asyncio.run(_append_for_ever(sys.argv[1]))
