"""How long the dashboard's pages take on a store of a million calls.

    python bench/dashboard.py                        makes a store in a temporary directory, times pages, removes it
    python bench/dashboard.py --store calls.db       makes it there, or takes the one that is there
    python bench/dashboard.py --calls 100000         fewer calls

The calls are those of 12 tasks and 3 keys over 90 days, busier by day than by night, by the store's own codec: messages
of about 600 characters, 6 in 10 answered by the small model, 1 in 50 of those audited, 1 in 20 labelled. The sums are
made by the migration's own rebuild, whose time is told. Then a gateway runs on that store in this process, and every
page is asked for over HTTP on the loopback, `--rounds` times after one that is not counted. Milliseconds from the
request to the last byte: the median with its 95 % interval, and the slowest.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
from rich.console import Console
from rich.table import Table

from smallfirst import stats
from smallfirst.config import parse
from smallfirst.dashboard import PATH, dashboard
from smallfirst.serve.server import serving
from smallfirst.store import open_store, rollups
from smallfirst.store.codec import ATTEMPT_COLUMNS, RECORD_COLUMNS, Codec
from smallfirst.store.crypto import Sealer
from smallfirst.store.database import Connection, Row, database, insert
from smallfirst.store.maintenance import load_secret
from smallfirst.types import Attempt, Choice, Completion, Origin, Record, Request, ToolCall, Usage

TASKS = [f"task-{n:02}" for n in range(12)]
KEYS = ("key-a", "key-b", "key-c")
DAYS = 90
_BATCH = 5000
_TEXT = "The traveller wants a quiet room near the station. " * 12
_RECORD = RECORD_COLUMNS.split(", ")
_ATTEMPT = ATTEMPT_COLUMNS.split(", ")
_CONFIG = """
[models.small]
backend = "fake"
small = true
[models.large]
backend = "fake"
small = false
price = {{input = 1.0, output = 2.0}}
[store]
url = "sqlite:///{path}"
"""
PAGES = (
    *(f"/dashboard?period={period}" for period in ("24h", "7d", "30d", "90d", "all")),
    "/dashboard?period=30d&key=key-a",
    "/dashboard/tasks?period=30d",
    "/dashboard/tasks?period=all",
    "/dashboard/tasks/task-00?period=30d",
    "/dashboard/tasks/task-00?period=all",
    "/dashboard/calls",
    "/dashboard/calls?task=task-03",
    "/dashboard/calls?decision=abstain",
    "/dashboard/calls?error=yes",
    "/dashboard/calls?usd=1",
    "/dashboard/calls?text=nowhere",
    "/dashboard/label",
    "/dashboard/releases",
    "/dashboard/compression",
    "/dashboard/system",
)


def template(kind: str) -> Record:
    """A call that went the way `kind` names."""
    messages = tuple({"role": role, "content": _TEXT} for role in ("system", "user"))
    request = Request("chat", {"model": "auto", "messages": list(messages)}, "auto", messages, origin=Origin("key-a"))
    small = _attempt("small", small=True, cost=2e-5)
    large = _attempt("large", small=False, cost=2e-3)
    attempts, served, decision = {
        "accepted": ((small,), 0, "accept"),
        "escalated": ((small, large), 1, "escalate"),
        "direct": ((large,), 0, "escalate"),
        "audited": ((small, _attempt("large", small=False, cost=2e-3, decision="audit")), 0, "accept"),
        "failed": ((), None, "abstain"),
    }[kind]
    status = 502 if served is None else 200
    return Record("", 0.0, request, "", "enforce", attempts, served, decision, "r", status, 0.0, "c")


def _attempt(stage: str, *, small: bool, cost: float, decision: str = "accept") -> Attempt:
    call = ToolCall("call_1", "book", '{"city": "Lyon", "nights": 2}')
    answer = Completion((Choice(tool_calls=(call,), finish_reason="tool_calls"),), Usage(700, 40), stage)
    reason, probability = ("same", 0.02) if decision == "audit" else ("valid", None)
    features = {f"feature{n}": 0.5 for n in range(12)}
    return Attempt(
        *(stage, "b", f"{stage}-model", "generate", decision, reason, answer),
        small=small,
        features=features,
        confidence=0.9 if small else None,
        probability=probability,
        cost_usd=cost,
        cost_usd_local_free=cost,
        seconds=0.3,
    )


def made(calls: int, connection: Connection, now: float) -> Iterator[tuple[list[Row], list[Row], list[Row]]]:
    """Batches of rows of records, attempts and feedback."""
    codec, dice = Codec(Sealer(None), load_secret(connection, Sealer(None))), random.Random(0)
    kinds = {kind: codec.record(template(kind), capture=True) for kind in ("accepted", "escalated", "direct", "failed")}
    kinds["audited"] = codec.record(template("audited"), capture=True)
    for rows in kinds.values():
        connection_rows = [row for _, row in sorted(rows.contents.items())]
        insert(connection, "contents (hash, last_hour, payload)", connection_rows, conflict="DO NOTHING")
    weights = {"accepted": 0.588, "audited": 0.012, "escalated": 0.25, "direct": 0.145, "failed": 0.005}
    for start in range(0, calls, _BATCH):
        records, attempts, feedback = [], [], []
        for n in range(start, min(start + _BATCH, calls)):
            [kind] = dice.choices(list(weights), list(weights.values()))
            day, hour = DAYS * n / calls, min(23.0, abs(dice.gauss(13, 4)))
            at = now - DAYS * 86400 + (int(day) * 24 + hour) * 3600 + dice.random() * 60
            record_id = f"{int(at * 1e6):020d}-{n:07d}"
            changed = {
                "id": record_id,
                "created_at": at,
                "task": dice.choices(TASKS, range(12, 0, -1))[0],
                "key_id": dice.choice(KEYS),
                "seconds": dice.lognormvariate(-1, 0.8),
                "episode_hash": f"{n // 8:032x}",
            }
            rows = kinds[kind]
            records.append(_changed(_RECORD, rows.record, changed))
            for attempt in rows.attempts:
                late = dice.random() < 0.05 and kind == "audited"
                more = {
                    "record_id": record_id,
                    "cost_usd": attempt[_ATTEMPT.index("cost_usd")] * dice.lognormvariate(0, 0.5),
                }
                attempts.append(_changed(_ATTEMPT, attempt, more | ({"reason": "different"} if late else {})))
            if dice.random() < 0.05:
                feedback.append((f"f{n}", record_id, at + 60, "correct", "user", float(dice.random() < 0.9), None))
        yield records, attempts, feedback


def _changed(names: list[str], row: Row, changes: dict[str, object]) -> Row:
    return tuple(changes.get(name, value) for name, value in zip(names, row, strict=True))


async def make_store(path: Path, calls: int) -> None:
    url = f"sqlite:///{path}"
    await (await open_store(url)).close()
    connection = database(url, durability="process", busy_timeout_s=3).connect()
    started = time.perf_counter()
    for records, attempts, feedback in made(calls, connection, time.time()):
        with connection.transaction():
            insert(connection, f"records ({RECORD_COLUMNS})", records, conflict="DO NOTHING")
            insert(connection, f"attempts ({ATTEMPT_COLUMNS})", attempts, conflict="DO NOTHING")
            into = "feedback (id, record_id, created_at, kind, source, number, payload)"
            insert(connection, into, feedback, conflict="DO NOTHING")
    filled = time.perf_counter()
    with connection.transaction():
        rollups.rebuild(connection)
    connection.close()
    rebuilt = time.perf_counter() - filled
    print(f"{calls:,} calls in {filled - started:.0f} s; their sums in {rebuilt:.0f} s", file=sys.stderr)


async def time_pages(path: Path, rounds: int) -> list[dict[str, object]]:
    config = parse(_CONFIG.format(path=path), {})
    rows: list[dict[str, object]] = []
    async with serving(config, {}, {PATH: dashboard}) as url, aiohttp.ClientSession(url) as http:
        for page in PAGES:
            await _timed(http, page)
            taken = [await _timed(http, page) for _ in range(rounds)]
            milliseconds = [seconds * 1000 for seconds, _ in taken]
            rows.append(
                {
                    "page": page,
                    "median ms": stats.quantile(milliseconds, 0.5),
                    "slowest ms": max(milliseconds),
                    "bytes": taken[0][1],
                }
            )
            print(page, round(rows[-1]["slowest ms"]), file=sys.stderr)  # type: ignore[call-overload]
    return rows


async def _timed(http: aiohttp.ClientSession, page: str) -> tuple[float, int]:
    started = time.perf_counter()
    async with http.get(page) as reply:
        body = await reply.read()
    if reply.status != 200:
        raise SystemExit(f"{page} answers {reply.status}: {body[:300]!r}")
    return time.perf_counter() - started, len(body)


def as_json(figure: stats.Figure) -> dict[str, float | None]:
    return {"value": figure.value, "low": figure.low, "high": figure.high, "n": figure.n}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, help="the SQLite file (default: in a temporary directory)")
    parser.add_argument("--calls", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        path = (arguments.store or Path(directory) / "calls.db").absolute()
        if not path.exists():
            asyncio.run(make_store(path, arguments.calls))
        rows = asyncio.run(time_pages(path, arguments.rounds))
    if arguments.json:
        print(json.dumps(rows, default=as_json))
        return
    table = Table("page", "median ms", "slowest ms", "KiB")
    for row in rows:
        median = row["median ms"]
        assert isinstance(median, stats.Figure)
        bounds = ("-" if bound is None else f"{bound:.0f}" for bound in (median.low, median.high))  # too few rounds
        shown = f"{median.value:.0f} [{', '.join(bounds)}]"
        table.add_row(str(row["page"]), shown, f"{row['slowest ms']:.0f}", f"{row['bytes'] / 1024:.0f}")  # type: ignore[operator]
    Console().print(table)


if __name__ == "__main__":
    main()
