"""firstpass's gates and calibration, driven: its proxy answers the recorded calls, its program calibrates on them.

firstpass (a Rust program in a wheel) serves the first rung whose gates pass, or, once calibrated, whose score reaches
`serve_threshold`; the score is the mean of the gates' numbers, 1 where none gave one and none failed. `firstpass
calibrate --method ltt` walks the observed scores from the highest down and keeps the last at which the exact binomial
test rejects a failure rate above alpha at level delta; infinite (serve nothing) where the first already fails.

Its gates read an answer's text, never its tool calls, so the answers are given to it as JSON text. Of the gates that
it has, these can judge recorded calls: `non-empty`, a program of one's own (here: the calls are valid for the request's
tools), and `consistency`: the share of samples whose last run of digits is the candidate's (whose whole text is, where
it has none), else their common words. Its samples are the second model's answer; it wants at least two of them, gets
the recorded one twice, and is charged for one.

The first run over a set of calls stands for the shadow phase: the small model is the only rung, so it is served and
recorded whatever the gates say. Labels then go where its feedback endpoint puts them, in its table of late verdicts.
"""

from __future__ import annotations

import http.client
import json
import math
import os
import re
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

from . import Floats, Sample, environments, views

REQUIREMENT = "firstpass==0.9.0"
GATE = Path(__file__).parent / "elsewhere" / "tool_gate.py"
AT_ONCE = 4
START_S = 30.0
WRITE_S = 60.0
PROMPT_TOKENS = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}


class Firstpass:
    """The score that firstpass recorded for the small model's answer, and the threshold that it calibrates."""

    name = "firstpass"
    pre_generation = False
    asks_second = False
    threshold = np.inf

    def __init__(self) -> None:
        self._known: dict[str, dict[str, Any]] = {}

    @property
    def settings(self) -> str:
        consistency = ", consistency with the second model" if self.asks_second else ""
        return f"driven: {REQUIREMENT}, gates non-empty, calls valid for the tools{consistency}; calibrate --method ltt"

    def fit(
        self,
        samples: Sequence[Sample],
        correct: Sequence[Mapping[str, bool]],
        *,
        small: str,
        second: str | None,
        large: str,  # noqa: ARG002
        alpha: float,
        delta: float,
        costs: Sequence[Mapping[str, float]],  # noqa: ARG002
    ) -> None:
        self._small, self._second = small, second
        self.asks_second = second is not None
        traces = self._traces(samples)
        verdicts = ["pass" if row[small] else "fail" for row in correct]
        self.threshold = calibrated(traces, verdicts, alpha, delta)

    def score(self, samples: Sequence[Sample]) -> Floats:
        return np.array([_score(trace) for trace in self._traces(samples)], dtype=np.float64)

    def _traces(self, samples: Sequence[Sample]) -> list[dict[str, Any]]:
        models = [self._small] if self._second is None else [self._small, self._second]
        keys = [views.fingerprint(sample, models) for sample in samples]
        unknown = {key: sample for key, sample in zip(keys, samples, strict=True) if key not in self._known}
        if unknown:
            traces = recorded(list(unknown.values()), self._small, self._second)
            self._known.update(zip(unknown, traces, strict=True))
        return [self._known[key] for key in keys]


def recorded(samples: Sequence[Sample], small: str, second: str | None) -> list[dict[str, Any]]:
    """firstpass's trace of each call, in order, with the small model as the only rung.

    Raises environments.NotInstalled when the package cannot be installed, RuntimeError when the proxy does not start
    or loses a call.
    """
    program = environments.install("firstpass", REQUIREMENT) / "firstpass"
    with tempfile.TemporaryDirectory() as scratch, _upstream(samples, small, second) as upstream:
        folder = Path(scratch)
        (folder / "firstpass.toml").write_text(_configuration(second is not None))
        with _proxy(program, folder, upstream) as port, ThreadPoolExecutor(AT_ONCE) as pool:
            sessions = list(pool.map(lambda place: _ask(port, place, samples[place]), range(len(samples))))
            traces = _written(folder / "firstpass.db", sessions)
    for gate in (gate for trace in traces for gate in trace["attempts"][0]["gates"]):
        if "reason" in gate:
            raise RuntimeError(f"firstpass could not run its gate {gate['gate_id']!r}: {gate}")
    return traces


def calibrated(traces: Sequence[Mapping[str, Any]], verdicts: Sequence[str], alpha: float, delta: float) -> float:
    """The threshold that `firstpass calibrate` finds for recorded traces and late verdicts ("pass" or "fail"): one of
    the traces' scores, of which it prints four decimals, or infinity."""
    program = environments.install("firstpass", REQUIREMENT) / "firstpass"
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "firstpass.db"
        _store(path, traces, verdicts)
        command = [str(program), "calibrate", "--method", "ltt", "--alpha", str(alpha), "--delta", str(delta)]
        environment = {**os.environ, "FIRSTPASS_DB": str(path)}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found = re.search(rf"pairs: {len(traces)} .*\nthreshold: (\S+)", done.stdout)
    if found is None:
        raise RuntimeError(f"firstpass calibrate did not read {len(traces)} traces: {done.stdout!r}")
    printed = float(found[1])
    return min(map(_score, traces), key=lambda score: abs(score - printed)) if math.isfinite(printed) else printed


def _score(trace: Mapping[str, Any]) -> float:
    """The score that firstpass thresholds: the mean of its gates' numbers (calibrate.rs, gate_score)."""
    attempt = trace["attempts"][0]
    numbers = [gate["score"] for gate in attempt["gates"] if "score" in gate]
    return float(np.mean(numbers)) if numbers else float(attempt["verdict"] == "pass")


def _configuration(consistency: bool) -> str:
    gates = ["non-empty", "tools", *(["consistency"] if consistency else [])]
    models = ["small", *(["second"] if consistency else [])]
    prices = (f'[[price]]\nmodel = "openai/{m}"\ninput_per_mtok = 0.0\noutput_per_mtok = 0.0\n' for m in models)
    sampled = '[[gate]]\nid = "consistency"\nconsistency = { model = "openai/second", k = 2, threshold = 0.6 }\n'
    return (
        f'[[route]]\nmatch = {{}}\nmode = "enforce"\nladder = ["openai/small"]\ngates = {json.dumps(gates)}\n'
        f'[[gate]]\nid = "tools"\ncmd = {json.dumps([sys.executable, "-I", str(GATE)])}\ntimeout_ms = 20000\n'
        f"{sampled if consistency else ''}{''.join(prices)}[escalation]\nmax_rungs_per_request = 1\n"
    )


def _store(path: Path, traces: Sequence[Mapping[str, Any]], verdicts: Sequence[str]) -> None:
    """A database as firstpass keeps it, as far as its calibration reads it."""
    with closing(sqlite3.connect(path)) as database, database:
        database.executescript(
            "CREATE TABLE traces (seq INTEGER PRIMARY KEY, trace_id, tenant, body);"
            "CREATE TABLE deferred_verdicts (id INTEGER PRIMARY KEY, trace_id, gate_id, verdict, score, reported_at,"
            " reporter);"
        )
        database.executemany(
            "INSERT INTO traces (trace_id, tenant, body) VALUES (?, ?, ?)",
            [(trace["trace_id"], trace["tenant_id"], json.dumps(trace)) for trace in traces],
        )
        database.executemany(
            "INSERT INTO deferred_verdicts (trace_id, gate_id, verdict, reported_at, reporter)"
            " VALUES (?, 'label', ?, ?, 'bench')",
            [(trace["trace_id"], verdict, trace["ts"]) for trace, verdict in zip(traces, verdicts, strict=True)],
        )


@contextmanager
def _upstream(samples: Sequence[Sample], small: str, second: str | None) -> Iterator[int]:
    """A server of the recorded answers, on the port that is given."""
    models = {"small": small, "second": second}

    class Recorded(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            sample = samples[json.loads(body["messages"][0]["content"])["place"]]
            text = views.calls(sample.answers[models[body["model"]] or ""])
            message = {"role": "assistant", "content": text}
            choice = {"index": 0, "finish_reason": "stop", "message": message}
            reply = json.dumps({"id": "x", "model": body["model"], "choices": [choice], "usage": PROMPT_TOKENS})
            head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(reply.encode())}\r\n\r\n"
            self.wfile.write(f"{head}{reply}".encode())

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Recorded)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def _proxy(program: Path, folder: Path, upstream: int) -> Iterator[int]:
    """A running proxy, on the port that is given."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = int(listener.getsockname()[1])
    environment = {
        **os.environ,
        "FIRSTPASS_MODE": "enforce",
        "FIRSTPASS_BIND": f"127.0.0.1:{port}",
        "FIRSTPASS_CONFIG": str(folder / "firstpass.toml"),
        "FIRSTPASS_DB": str(folder / "firstpass.db"),
        "FIRSTPASS_UPSTREAM_OPENAI": f"http://127.0.0.1:{upstream}",
        "FIRSTPASS_PROMPT_SALT": "bench",
        "OPENAI_API_KEY": "none",
        "HOME": str(folder),
    }
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([program, "up"], stdout=log, stderr=log, cwd=folder, env=environment)
    try:
        _wait(process, port, folder / "log")
        yield port
    finally:
        process.terminate()
        process.wait()


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    end = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError(f"firstpass did not start: {log.read_text(errors='replace')[-600:]}")


def _written(path: Path, sessions: Sequence[str]) -> list[dict[str, Any]]:
    """The traces of these sessions, in order, once the proxy has written them all, which it does behind its answers."""
    end = time.monotonic() + WRITE_S
    while time.monotonic() < end:
        with closing(sqlite3.connect(path)) as database:
            traces = {row[0]: json.loads(row[1]) for row in database.execute("SELECT session, body FROM traces")}
        if len(traces) == len(sessions):
            return [traces[session] for session in sessions]
        time.sleep(0.2)
    raise RuntimeError(f"firstpass recorded {len(traces)} of {len(sessions)} calls")


def _ask(port: int, place: int, sample: Sample) -> str:
    """Send one call; the session by which its trace is found."""
    opening = json.dumps({"place": place, "tools": list(sample.request.get("tools") or ())})
    messages = [{"role": "system", "content": opening}, {"role": "user", "content": views.question(sample.request)}]
    headers = {"content-type": "application/json", "x-firstpass-session": f"call-{place}"}
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request("POST", "/v1/chat/completions", json.dumps({"model": "m", "messages": messages}), headers)
        answer = connection.getresponse()
        body = answer.read()
    if answer.status != 200:
        raise RuntimeError(f"firstpass answered {answer.status} to call {sample.id!r}: {body[:300]!r}")
    return f"call-{place}"
