"""How long `Store.append` takes until a record is durable, and how many records a second it acknowledges.

    python bench/store.py                                  SQLite in a temporary directory
    python bench/store.py --url postgresql://host/db       another database; the records stay there
    python bench/store.py --encrypt --durability power     with encryption, safe against a power cut

A record here is a call of an agent in the middle of its run: 12 messages of about 600 characters of which the last two
are new, 10 tools, two attempts, the first with 40 tokens of log-probabilities (top 5). One event loop (uvloop) does
everything, as in the gateway. `p50` and `p95` are milliseconds from the call of `append` to its return, with a 95 %
interval over `--rounds` rounds; `busy` is the process's CPU time for one record in milliseconds.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import statistics
import tempfile
import time
from dataclasses import dataclass

import numpy as np
import uvloop
from rich.console import Console
from rich.table import Table

from smallfirst.store import Keyring, Store, open_store
from smallfirst.types import Attempt, Choice, Completion, Record, Request, TokenLogprob, Tool, ToolCall, Usage

_numbers = itertools.count()
_TEXT = "The traveller wants a quiet room near the station. " * 12
_HISTORY = [{"role": ("user", "assistant")[n % 2], "content": f"{n} {_TEXT}"} for n in range(10)]
_PARAMETERS = {"type": "object", "properties": {f"field{n}": {"type": "string"} for n in range(6)}}
_TOOLS = [
    {"type": "function", "function": {"name": f"tool{n}", "description": _TEXT[:200], "parameters": _PARAMETERS}}
    for n in range(10)
]
_TOP = tuple((f"tok{n}", -0.1 * n - 0.01) for n in range(5))
_LOGPROBS = tuple(TokenLogprob(f"tok{n}", -0.01, _TOP) for n in range(40))
_DOMAIN_TOOLS = tuple(Tool(t["function"]["name"], parameters=_PARAMETERS) for t in _TOOLS)


@dataclass(frozen=True)
class Figure:
    """A mean over rounds with its 95 % interval (normal approximation) and the number of rounds."""

    value: float
    low: float
    high: float
    n: int

    @classmethod
    def over(cls, rounds: list[float]) -> Figure:
        mean = statistics.fmean(rounds)
        half = 1.96 * statistics.stdev(rounds) / len(rounds) ** 0.5 if len(rounds) > 1 else float("inf")
        return cls(mean, mean - half, mean + half, len(rounds))

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


def make_record() -> Record:
    number = next(_numbers)
    messages = [*_HISTORY, *({"role": r, "content": f"{number} {_TEXT}"} for r in ("user", "assistant"))]
    body = {"model": "auto", "messages": messages, "tools": _TOOLS, "temperature": 0}
    call = ToolCall("c", "tool1", '{"field1": "value", "field2": "value"}')
    features = {f"feature{n}": 0.5 for n in range(12)}

    def attempt(stage: str, logprobs: tuple[TokenLogprob, ...]) -> Attempt:
        choice = Choice(tool_calls=(call,), finish_reason="tool_calls", logprobs=logprobs)
        answer = Completion((choice,), Usage(2000, 40), stage)
        return Attempt(stage, "b", stage, "generate", "accept", "valid", answer, features=features, cost_usd=1e-4)

    request = Request("chat", body, "auto", tuple(messages), _DOMAIN_TOOLS)
    attempts = (attempt("small", _LOGPROBS), attempt("large", ()))
    record_id = f"{time.time_ns():020d}-{number}"
    return Record(record_id, time.time(), request, "t", "enforce", attempts, 1, "escalate", "r", 200, 0.1, "c")


async def measure(store: Store, concurrency: int, seconds: float) -> tuple[float, float, float, float]:
    """One round: records a second, p50 and p95 in ms, CPU ms for a record."""
    taken: list[float] = []
    end = time.perf_counter() + seconds

    async def caller() -> None:
        while time.perf_counter() < end:
            record = make_record()
            start = time.perf_counter()
            await store.append(record)
            taken.append(time.perf_counter() - start)

    started, busy = time.perf_counter(), time.process_time()
    await asyncio.gather(*(caller() for _ in range(concurrency)))
    wall, busy = time.perf_counter() - started, time.process_time() - busy
    p50, p95 = np.percentile(taken, [50, 95]) * 1000
    return len(taken) / wall, float(p50), float(p95), busy / len(taken) * 1000


async def bench(arguments: argparse.Namespace, url: str) -> list[dict[str, object]]:
    keyring = Keyring("k1", {"k1": os.urandom(32)}) if arguments.encrypt else None
    store = await open_store(url, keyring=keyring, durability=arguments.durability)
    rows: list[dict[str, object]] = []
    try:
        await measure(store, 8, arguments.seconds)  # warm: connection, statements, shared messages
        for concurrency in arguments.concurrency:
            rounds = [await measure(store, concurrency, arguments.seconds) for _ in range(arguments.rounds)]
            figures = [Figure.over(list(column)) for column in zip(*rounds, strict=True)]
            names = ("records/s", "p50 ms", "p95 ms", "busy ms")
            setting = {
                "database": url.partition(":")[0],
                "durability": arguments.durability,
                "encrypted": arguments.encrypt,
                "concurrency": concurrency,
            }
            rows.append({**setting, **dict(zip(names, figures, strict=True))})
    finally:
        await store.close()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="the store's URL (default: SQLite in a temporary directory)")
    parser.add_argument("--durability", choices=("process", "power"), default="process")
    parser.add_argument("--encrypt", action="store_true", help="encrypt payloads")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32], metavar="N")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a round")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        rows = uvloop.run(bench(arguments, arguments.url or f"sqlite:///{directory}/records.db"))
    if arguments.json:
        print(json.dumps(rows, default=vars))
        return
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
