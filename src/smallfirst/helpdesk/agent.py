"""The agent: its calls ticket by ticket, and a log of them as an OpenAI client would have kept it."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from smallfirst.helpdesk.large import Large
from smallfirst.helpdesk.sites import SITES, Ask, claims
from smallfirst.helpdesk.tickets import draw_ticket


def asks(tickets: Iterable[int], *, seed: int = 0) -> Iterator[Ask]:
    """The calls for the tickets of these numbers, at the six sites; the same for the same seed."""
    for number in tickets:
        ticket = draw_ticket(seed, number)
        for name, (site, share) in SITES.items():
            rng = random.Random(f"{ticket.seed}/{name}")
            if rng.random() < share:
                yield site(ticket, rng)


def claim_asks(tickets: Iterable[int], *, age: float = 0.0, seed: int = 0) -> Iterator[Ask]:
    """The calls of the seventh site, one a ticket; `age`, from 0 to 1, is how far its notes have drifted."""
    for number in tickets:
        ticket = draw_ticket(seed, number)
        yield claims(ticket, random.Random(f"{ticket.seed}/claims"), age)


def write_log(path: Path, made: Iterable[Ask], large: Large, *, first: float, last: float) -> int:
    """Write the calls with the large model's answers as JSON lines, spread evenly from `first` to `last` (seconds since
    the epoch), for `smallfirst import`. Returns how many."""
    calls = list(made)
    step = (last - first) / max(len(calls) - 1, 1)
    with path.open("wb") as file:
        for n, ask in enumerate(calls):
            line = {
                "id": f"{ask.episode}-{ask.site}",
                "created_at": first + n * step,
                "cost_usd": large.cost(ask),
                "metadata": {"session_id": ask.episode},
                "request": ask.body,
                "response": large.completion(ask),
            }
            file.write(msgspec.json.encode(line) + b"\n")
    return len(calls)
