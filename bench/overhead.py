"""What a gateway costs: added latency, requests a second and processor time, beside rivals, in one run.

    python bench/overhead.py                               all arms, then memory over 100,000 requests (15 minutes)
    python bench/overhead.py --only smallfirst --memory 0  some arms (direct is always measured)

Every arm forwards the same call (five tools, a number of its own in the message, answered by one tool call) to the
same loopback upstream, which answers at once. Load generator, upstreams and gateway are processes of their own on this
machine and share its cores. Arms take turns in rounds, so that noise hits all alike; a round is `--calls` calls in a
closed loop over kept-alive connections, cut off after `--seconds`.

`p50 ms`, `p95 ms` and `requests/s` are medians over rounds. `added` is the arm's quantile less that of `direct` in the
same round; `first byte` is the same of the first byte of a streamed answer. Their intervals are exact order-statistic
intervals over rounds (95 %). `CPU ms` is processor time of the arm's process tree for a call (BCa bootstrap over
rounds); `upstream calls` and `recorded` are per call answered. `failed` is the share of an arm's calls that were not
answered as they should be; they have no times, and an arm with more than one in 100 of them in a round is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sqlite3
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from loopback import gateways, wire
from loopback.gateways import ARMS, Arm, NotRunning, Server, Site
from loopback.load import Result, Round
from smallfirst.stats import Figure, quantile, ratio

MEMORY_STEP = 2000
Row = dict[str, Any]


class Load:
    """The load generator's process."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            gateways.own("load"), cwd=gateways.HERE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, wanted: Round) -> Result:
        """Raises NotRunning when a call is not answered as it should be."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(asdict(wanted)), file=self._process.stdin, flush=True)
        result = Result(**json.loads(self._process.stdout.readline()))
        if result.error:
            raise NotRunning(result.error)
        return result

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()


@dataclass
class Measured:
    """Rounds of one arm at one concurrency, one value each."""

    p50: list[float] = field(default_factory=list)
    p95: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    calls: list[int] = field(default_factory=list)


@dataclass
class Lane:
    """A running arm and the calls that it answered."""

    arm: Arm
    server: Server
    load: Load
    database: Path
    answered: int = 0
    failed: int = 0
    upstream_calls: int = 0
    measured: dict[int, Measured] = field(default_factory=lambda: defaultdict(Measured))

    def run(self, *, stream: bool, concurrency: int, calls: int, seconds: float, warm: int = 2) -> Result:
        """Calls to this arm, counted."""
        model = gateways.model_asked(self.arm)
        result = self.load.run(Round(self.server.port, model, stream, concurrency, calls, seconds, warm))
        self.answered += result.answered
        self.failed += result.failed
        return result

    def round(self, concurrency: int, calls: int, seconds: float) -> None:
        """One round of plain calls and a shorter one of streamed calls."""
        into, before = self.measured[concurrency], self.server.cpu_s()
        plain = self.run(stream=False, concurrency=concurrency, calls=calls, seconds=seconds)
        into.cpu_ms.append((self.server.cpu_s() - before) * 1000)
        into.calls.append(plain.answered)
        streamed = self.run(stream=True, concurrency=concurrency, calls=max(calls // 4, concurrency), seconds=seconds)
        into.p50.append(float(np.percentile(plain.last_ms, 50)))
        into.p95.append(float(np.percentile(plain.last_ms, 95)))
        into.rate.append(len(plain.last_ms) / plain.seconds)
        into.first.append(float(np.percentile(streamed.first_ms, 50)))

    def recorded(self) -> float | None:
        """Records in the arm's store for a call answered; None for an arm that keeps none."""
        if not self.database.exists():
            return None
        with closing(sqlite3.connect(self.database)) as connection:
            return float(connection.execute("SELECT count(*) FROM records").fetchone()[0] / self.answered)


class Bench:
    """Everything that runs: the upstreams, the load generator, and the arms that could be started."""

    def __init__(self, stack: ExitStack, directory: Path) -> None:
        self._stack, self._directory = stack, directory
        self._large = stack.enter_context(gateways.upstream(directory, wire.LARGE))
        self._small = stack.enter_context(gateways.upstream(directory, wire.SMALL))
        self._load = Load()
        stack.callback(self._load.close)
        self.lanes: dict[str, Lane] = {}
        self.skipped: dict[str, str] = {}

    def start(self, arm: Arm) -> None:
        """Install and start an arm and warm it up; note the reason when that fails."""
        place = self._directory / arm.name.replace(" ", "-")
        place.mkdir()
        try:
            gateways.install(arm)
            site = Site(place, gateways.free_port(), self._large.port, self._small.port)
            lane = Lane(arm, self._server(arm, site), self._load, place / "records.db")
            with self._counted(lane):
                for stream in (False, True):
                    lane.run(stream=stream, concurrency=8, calls=200, seconds=5)
            self.lanes[arm.name] = lane
        except NotRunning as reason:
            self.skipped[arm.name] = str(reason)

    def _server(self, arm: Arm, site: Site) -> Server:
        if arm.command is None:
            return self._large
        return self._stack.enter_context(gateways.running(arm.command(site), site.port, arm.health, site.directory))

    def round(self, lane: Lane, concurrency: int, calls: int, seconds: float) -> None:
        """A round of one arm; an arm that fails is left out from then on."""
        try:
            with self._counted(lane):
                lane.round(concurrency, calls, seconds)
        except NotRunning as reason:
            self.skipped[lane.arm.name] = str(reason)
            del self.lanes[lane.arm.name]

    @contextmanager
    def _counted(self, lane: Lane) -> Iterator[None]:
        before = gateways.calls(self._large) + gateways.calls(self._small)
        yield
        lane.upstream_calls += gateways.calls(self._large) + gateways.calls(self._small) - before


def measure(bench: Bench, arguments: argparse.Namespace, progress: Progress) -> None:
    """All rounds; the arms' order turns from round to round."""
    task = progress.add_task("rounds", total=arguments.rounds * len(arguments.concurrency) * len(bench.lanes))
    for number in range(arguments.rounds):
        for concurrency in arguments.concurrency:
            lanes = list(bench.lanes.values())
            start = number % len(lanes)
            for lane in lanes[start:] + lanes[:start]:
                progress.update(task, advance=1, refresh=True, description=f"round {number + 1}: {lane.arm.name}")
                bench.round(lane, concurrency, arguments.calls, arguments.seconds)


def overhead_rows(bench: Bench) -> list[Row]:
    """The table: one row for each arm and concurrency."""
    direct = bench.lanes["direct"]
    return [
        {
            "arm": lane.arm.name,
            "concurrency": concurrency,
            "p50 ms": quantile(found.p50, 0.5),
            "p95 ms": quantile(found.p95, 0.5),
            "added p50 ms": _added(lane, direct, found.p50, direct.measured[concurrency].p50),
            "added p95 ms": _added(lane, direct, found.p95, direct.measured[concurrency].p95),
            "added first byte ms": _added(lane, direct, found.first, direct.measured[concurrency].first),
            "requests/s": quantile(found.rate, 0.5),
            "CPU ms": ratio(found.cpu_ms, found.calls),
            "upstream calls": lane.upstream_calls / lane.answered,
            "recorded": lane.recorded(),
            "failed": lane.failed / (lane.failed + lane.answered),
        }
        for lane in bench.lanes.values()
        for concurrency, found in lane.measured.items()
    ]


def _added(lane: Lane, direct: Lane, values: list[float], base: list[float]) -> Figure | None:
    return None if lane is direct else quantile(np.subtract(values, base), 0.5)


def memory_row(lane: Lane, requests: int, progress: Progress) -> Row:
    """Resident memory of the arm's process tree while it answers `requests` more calls at concurrency 8."""
    task = progress.add_task(f"memory: {lane.arm.name}", total=requests)
    done, samples = 0, list[tuple[int, float]]()
    while done < requests:
        calls = min(MEMORY_STEP, requests - done)
        done += len(lane.run(stream=False, concurrency=8, calls=calls, seconds=600).last_ms)
        samples.append((done, lane.server.rss_mib()))
        progress.update(task, completed=done, refresh=True)
    counts, sizes = np.array(samples).T
    late = counts >= requests / 10
    return {
        "arm": lane.arm.name,
        "requests": done,
        "MiB at 10 %": float(sizes[late][0]),
        "MiB at 100 %": float(sizes[-1]),
        "MiB more per 100,000 requests": float(np.polyfit(counts[late], sizes[late], 1)[0] * 1e5),
    }


def show(rows: list[Row]) -> None:
    table = Table(*rows[0], header_style="bold")
    for row in rows:
        table.add_row(*map(_text, row.values()))
    Console().print(table)


def _text(value: object) -> str:
    if isinstance(value, Figure):
        low, high = ("?" if bound is None else f"{bound:.3g}" for bound in (value.low, value.high))
        return f"{value.value:.3g} [{low}, {high}]"
    return "-" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def _json(value: object) -> object:
    assert isinstance(value, Figure)
    return {"value": value.value, "low": value.low, "high": value.high, "n": value.n}


def notes(bench: Bench) -> str:
    """What is needed to read the table: the machine, what each arm does, and what is missing."""
    cores = f"{os.cpu_count()} cores, shared by load generator, upstreams and gateway"
    lines = [
        f"{platform.machine()}, {cores}; load average {os.getloadavg()[0]:.1f}; Python {platform.python_version()}"
    ]
    lines += [f"{lane.arm.name}: {lane.arm.does}" for lane in bench.lanes.values()]
    return "\n".join(lines + [f"{name}: SKIPPED, {reason}" for name, reason in bench.skipped.items()])


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [arm.name for arm in ARMS]
    parser.add_argument("--calls", type=int, default=400, help="calls in a round")
    parser.add_argument("--seconds", type=float, default=1.0, help="a round's end, however few calls were answered")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32], metavar="N")
    parser.add_argument("--memory", type=int, default=100_000, metavar="N", help="requests; 0 leaves this out")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="ARM", help=", ".join(names))
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    return parser.parse_args()


def main() -> None:
    arguments, console = parse(), Console(stderr=True)
    wanted = [arm for arm in ARMS if arm.name in {"direct", *arguments.only}]
    memory: list[Row] = []
    with (
        tempfile.TemporaryDirectory() as directory,
        ExitStack() as stack,
        Progress(console=console, auto_refresh=False) as progress,
    ):
        bench = Bench(stack, Path(directory))
        task = progress.add_task("starting", total=len(wanted))
        for arm in wanted:
            progress.update(task, advance=1, refresh=True, description=f"starting {arm.name}")
            bench.start(arm)
        measure(bench, arguments, progress)
        rows = overhead_rows(bench)
        if arguments.memory and "smallfirst" in bench.lanes:
            memory.append(memory_row(bench.lanes["smallfirst"], arguments.memory, progress))
    console.print(notes(bench), highlight=False)
    if arguments.json:
        print(json.dumps(rows + memory, default=_json))
        return
    for table in filter(None, (rows, memory)):
        show(table)


if __name__ == "__main__":
    main()
