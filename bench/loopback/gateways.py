"""The servers that are compared: how each is installed, configured and started, and what it does for a call.

Rivals live in virtual environments of their own under `.bench/` (made here by `peers.environments`).
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from loopback import wire
from peers import environments

HERE = Path(__file__).parent.parent
START_S = 90.0
QUIET = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "CASCADEFLOW_LOG_LEVEL": "ERROR"}


class NotRunning(Exception):
    """A server that could not be installed or started, and why."""


@dataclass(frozen=True)
class Site:
    """Where an arm runs: a directory for its files, its port, and the ports of the two upstreams."""

    directory: Path
    port: int
    large: int
    small: int


@dataclass(frozen=True)
class Arm:
    """One row's server. `does` says what it does for each call; `requirement` is what pip installs for a rival."""

    name: str
    does: str
    command: Callable[[Site], list[str]] | None = None
    health: str = "/healthz"
    requirement: str = ""

    @property
    def records(self) -> bool:
        return self.name.startswith("smallfirst")


def own(module: str, *arguments: str) -> list[str]:
    """The command of one of the servers here; it has to run in `HERE`."""
    return [sys.executable, "-m", f"loopback.{module}", *arguments]


def _bare(client: str) -> Callable[[Site], list[str]]:
    return lambda site: own("bare", str(site.port), str(site.large), client)


def _model(name: str, port: int, more: str) -> str:
    return (
        f'[models.{name}]\nbackend = "openai"\nbase_url = "http://127.0.0.1:{port}/v1"\n{more}\n'
        "price = { input = 0.25, output = 2.0 }\n"
    )


def _smallfirst(settings: Callable[[Site], str]) -> Callable[[Site], list[str]]:
    def command(site: Site) -> list[str]:
        file = site.directory / "smallfirst.toml"
        file.write_text(f'[store]\nurl = "sqlite:///{site.directory}/records.db"\n{settings(site)}')
        program = Path(sys.executable).parent / "smallfirst"
        return [str(program), "serve", "-c", str(file), "--port", str(site.port)]

    return command


def _large_only(site: Site) -> str:
    large = _model("large", site.large, f'preset = "compatible"\nmodel = "{wire.LARGE}"')
    return f'{large}[cascade]\nstages = ["large"]\n'


def _small_first(site: Site) -> str:
    large = _model("large", site.large, f'preset = "compatible"\nmodel = "{wire.LARGE}"\nmodels = ["large-*"]')
    small = _model("small", site.small, f'preset = "vllm"\nmodel = "{wire.SMALL}"\nsmall = true')
    return f'{small}{large}[cascade]\nstages = ["small", "large"]\nconstraint = "free"\naccept_uncalibrated = true\n'


def _litellm(site: Site) -> list[str]:
    url = f"http://127.0.0.1:{site.large}/v1"
    model = {"model": f"openai/{wire.LARGE}", "api_base": url, "api_key": "none"}
    config = {
        "model_list": [{"model_name": wire.LARGE, "litellm_params": model}],
        "general_settings": {"dangerously_permit_weak_or_unset_master_key": True},  # no key, as everywhere here
    }
    file = site.directory / "litellm.yaml"
    file.write_text(json.dumps(config))  # JSON is YAML
    program = environments.HOME / "litellm" / "bin" / "litellm"
    return [str(program), "--config", str(file), "--host", "127.0.0.1", "--port", str(site.port), "--num_workers", "1"]


def _cascadeflow(site: Site) -> list[str]:
    program = str(environments.HOME / "cascadeflow" / "bin" / "python")
    sides = [str(site.small), wire.SMALL, str(site.large), wire.LARGE]
    return [program, "-m", "loopback.cascadeflow_gateway", str(site.port), *sides]


ARMS = (
    Arm("direct", "the loopback upstream itself"),
    Arm(
        "bare aiohttp", "hands bodies on: Starlette, uvicorn with uvloop and httptools, aiohttp", _bare("aiohttp"), "/"
    ),
    Arm("bare httpx", "the same with httpx as the client", _bare("httpx"), "/"),
    Arm(
        "smallfirst",
        "checks the request's schemas and the answer, prices and records every call",
        _smallfirst(_large_only),
    ),
    Arm(
        "smallfirst cascade",
        "the same, small-first: a small model's answer with log-probabilities is checked and accepted",
        _smallfirst(_small_first),
    ),
    Arm(
        "litellm",
        "LiteLLM proxy, one worker, no database: records nothing",
        _litellm,
        "/health/liveliness",
        "litellm[proxy]==1.106.2",
    ),
    Arm(
        "cascadeflow",
        "its gateway, small-first by its defaults: records nothing; a stream's first event is empty and sent at once",
        _cascadeflow,
        "/health",
        "cascadeflow==1.2.0",
    ),
)


@dataclass(frozen=True)
class Server:
    """A running process and the processes below it."""

    port: int
    process: psutil.Process

    def tree(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]

    def cpu_s(self) -> float:
        """Seconds of processor time so far."""
        return sum(sum(p.cpu_times()[:2]) for p in self.tree())

    def rss_mib(self) -> float:
        """Resident memory."""
        return float(sum(p.memory_info().rss for p in self.tree())) / 2**20


@contextmanager
def running(command: list[str], port: int, health: str, directory: Path) -> Iterator[Server]:
    """Start `command`, wait until `health` is answered, and end it afterwards. Raises NotRunning."""
    with (directory / "log").open("wb") as log:
        environment = {**os.environ, **QUIET}
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=HERE, env=environment)
    try:
        _wait(process, f"http://127.0.0.1:{port}{health}", directory / "log")
        yield Server(port, psutil.Process(process.pid))
    finally:
        process.terminate()
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    end = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < end:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.1)
    raise NotRunning(f"did not start: {log.read_text(errors='replace')[-600:]}")


@contextmanager
def upstream(directory: Path, model: str) -> Iterator[Server]:
    """A loopback model server."""
    port = free_port()
    place = directory / model
    place.mkdir()
    with running(own("upstream", str(port), model), port, "/calls", place) as server:
        yield server


def calls(server: Server) -> int:
    """How many completions an upstream was asked for."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/calls", timeout=10) as answer:
        return int(answer.read())


def install(arm: Arm) -> None:
    """Make the arm's virtual environment unless it is there. Raises NotRunning when pip fails."""
    if arm.requirement:
        try:
            environments.install(arm.name, arm.requirement)
        except environments.NotInstalled as reason:
            raise NotRunning(str(reason)) from reason


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def model_asked(arm: Arm) -> str:
    """The model name that a client sends to the arm."""
    return "auto" if arm.records else wire.LARGE
