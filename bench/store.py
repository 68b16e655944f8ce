"""How long `Store.append` takes until a record is durable, and how many records a second it acknowledges.

    python bench/store.py                                  SQLite in a temporary directory
    python bench/store.py --url postgresql://host/db       another database; the records stay there
    python bench/store.py --encrypt --durability power     with encryption, safe against a power cut

A record here is a call of an agent in the middle of its run: 12 messages of about 600 characters of which the last two
are new, 10 tools, two attempts, the first with 40 tokens of log-probabilities (top 5). One event loop (uvloop) does
everything, as in the gateway. `p50` and `p95` are milliseconds from the call of `append` to its return, over all calls;
`busy` is the process's CPU time for one record, making it included, and `records/s` what was acknowledged, over rounds.
All with 95 % intervals.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import tempfile
import time

import uvloop
from rich.console import Console
from rich.table import Table

from smallfirst import stats
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


async def measure(store: Store, concurrency: int, seconds: float) -> tuple[list[float], float, float]:
    """One round: ms until durable of each append, records a second, CPU ms for a record."""
    taken: list[float] = []
    end = time.perf_counter() + seconds

    async def caller() -> None:
        while time.perf_counter() < end:
            record = make_record()
            start = time.perf_counter()
            await store.append(record)
            taken.append((time.perf_counter() - start) * 1000)

    started, busy = time.perf_counter(), time.process_time()
    await asyncio.gather(*(caller() for _ in range(concurrency)))
    wall, busy = time.perf_counter() - started, time.process_time() - busy
    return taken, len(taken) / wall, busy / len(taken) * 1000


async def bench(arguments: argparse.Namespace, url: str) -> list[dict[str, object]]:
    keyring = Keyring("k1", {"k1": os.urandom(32)}) if arguments.encrypt else None
    store = await open_store(url, keyring=keyring, durability=arguments.durability)
    rows: list[dict[str, object]] = []
    try:
        await measure(store, 8, arguments.seconds)  # warm: connection, statements, shared messages
        for concurrency in arguments.concurrency:
            rounds = [await measure(store, concurrency, arguments.seconds) for _ in range(arguments.rounds)]
            taken = list(itertools.chain.from_iterable(r[0] for r in rounds))
            rows.append(
                {
                    "database": url.partition(":")[0],
                    "durability": arguments.durability,
                    "encrypted": arguments.encrypt,
                    "concurrency": concurrency,
                    "records/s": stats.mean([r[1] for r in rounds]),
                    "p50 ms": stats.quantile(taken, 0.50),
                    "p95 ms": stats.quantile(taken, 0.95),
                    "busy ms": stats.mean([r[2] for r in rounds]),
                }
            )
    finally:
        await store.close()
    return rows


def as_json(figure: stats.Figure) -> dict[str, float | None]:
    return {"value": figure.value, "low": figure.low, "high": figure.high, "n": figure.n}


def as_text(value: object) -> str:
    if isinstance(value, stats.Figure):
        return f"{value.value:.3g} [{value.low:.3g}, {value.high:.3g}]"
    return str(value)


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
        print(json.dumps(rows, default=as_json))
        return
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(as_text(value) for value in row.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
