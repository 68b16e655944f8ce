"""Answers of live models, kept as they come: a run that was cut off goes on, and tables are made without a model.

A `Recorder` stands in the cascade for its model. Each answer is a line of a JSON lines file, known by a digest of what
was asked; whoever asks the same again gets it at once, with the seconds and joules that it took.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from msgspec.structs import replace

from smallfirst import errors
from smallfirst.errors import BackendError
from smallfirst.types import Backend, Capabilities, Completion, Delta, Request
from smallfirst.wire.accumulate import Accumulator, split

POWERCAP = Path("/sys/class/powercap")
FINAL = (errors.BackendTimeout, errors.BackendGarbage, errors.ContextLengthExceeded, errors.ConstraintUnsupported)
"""Errors that belong to the question: asked again, it would end the same way."""
SOONER = 0.95
"""The share of the time limit after which the model gives up by itself, so that its timeout is kept like an answer."""


class Unasked(LookupError):
    """A recorded answer was wanted of a question that the model has not answered."""


class _Kept(msgspec.Struct, omit_defaults=True):
    """A line of the file: an answer or the error in its place, and what it took."""

    question: str
    asked: str
    seconds: float
    joules: float | None = None
    completion: Completion | None = None
    error: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Taken:
    """What one answer took; `joules` is None where they were not measured."""

    stage: str
    seconds: float
    joules: float | None


@dataclass(slots=True)
class Meter:
    """A clock that only answers advance, by what each of them took, and the list of it.

    `turn` is held while a model answers: one at a time, so that each is measured alone.
    """

    seconds: float = 0.0
    log: list[Taken] = field(default_factory=list)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    def __call__(self) -> float:
        return self.seconds

    def add(self, taken: Taken) -> None:
        """Count an answer in."""
        self.seconds += taken.seconds
        self.log.append(taken)


class Recorder:
    """A `Backend` of one stage that keeps what `live` answers in `path`, and gives it again.

    Without `live` it answers from the file alone and raises `Unasked`, which is no BackendError and ends the cascade.
    An answer is read to its end before it is handed on: what is measured is the model's time, and nobody cuts it short.
    """

    def __init__(self, name: str, path: Path, capabilities: Capabilities, meter: Meter) -> None:
        self.name = name
        self.capabilities = capabilities
        self.live: Backend | None = None
        self._path, self._meter = path, meter
        self._known = {kept.asked: kept for kept in _read(path)}

    async def start(self) -> None:
        """Nothing to start: `live` is started by who sets it."""

    async def close(self) -> None:
        """Nothing to close."""

    async def generate(self, request: Request) -> AsyncGenerator[Delta]:
        """The recorded answer at once, or the live one."""
        asked = _digest(request)
        kept = self._known.get(asked)
        if kept is None:
            if self.live is None:
                raise Unasked(request.origin.episode)
            async with self._meter.turn:
                kept = await self._ask(self.live, request, asked)
        self._meter.add(Taken(self.name, kept.seconds, kept.joules))
        if kept.completion is None:
            raise _error(kept)
        for delta in split(kept.completion):
            yield delta

    async def _ask(self, live: Backend, request: Request, asked: str) -> _Kept:
        answer, energy, begin = Accumulator(), Energy(), time.perf_counter()
        completion, error = None, None
        try:
            limit = None if request.timeout_s is None else SOONER * request.timeout_s
            async for delta in live.generate(replace(request, timeout_s=limit)):
                answer.feed(delta)
            completion = answer.completion()
        except FINAL as err:
            error = err
        kept = _Kept(
            question=request.origin.episode or "",
            asked=asked,
            seconds=time.perf_counter() - begin,
            joules=energy.joules(),
            completion=completion,
            error=error.code if error else "",
            message=error.message if error else "",
        )
        self._known[asked] = kept
        with self._path.open("ab") as file:
            file.write(msgspec.json.encode(kept) + b"\n")
        return kept


class Energy:
    """Joules that the processor packages take from here on, by Intel's RAPL counters; None where they cannot be read.

    The whole machine's: work beside the model is in it.
    """

    def __init__(self, powercap: Path = POWERCAP) -> None:
        self._counters = dict(_counters(powercap))

    def joules(self) -> float | None:
        """Since this object was made; a counter may have wrapped around once."""
        spent = 0
        for domain, before in self._counters.items():
            try:
                now = int((domain / "energy_uj").read_text())
                spent += (
                    now - before if now >= before else now - before + int((domain / "max_energy_range_uj").read_text())
                )
            except (OSError, ValueError):
                return None
        return spent / 1e6 if self._counters else None


def _counters(powercap: Path) -> Iterator[tuple[Path, int]]:
    for domain in sorted(powercap.glob("intel-rapl:?")):
        try:
            yield domain, int((domain / "energy_uj").read_text())
        except (OSError, ValueError):
            return


def _read(path: Path) -> list[_Kept]:
    """The whole lines of the file; what a killed run left of another is cut off."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        return []
    raw = path.read_bytes()
    whole = raw[: raw.rfind(b"\n") + 1]
    if len(whole) < len(raw):
        path.write_bytes(whole)
    return [msgspec.json.decode(line, type=_Kept) for line in whole.splitlines()]


def _digest(request: Request) -> str:
    sampling = request.sampling
    asked = (request.messages, request.tools, request.tool_choice, request.constraint)
    limits = (sampling.max_tokens, sampling.temperature)
    return hashlib.sha256(msgspec.json.encode((asked, limits), order="deterministic")).hexdigest()[:20]


def _error(kept: _Kept) -> BackendError:
    kind = next((kind for kind in FINAL if kind.code == kept.error), BackendError)
    return kind(kept.message)
