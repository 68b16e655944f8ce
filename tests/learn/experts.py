"""Models that answer a dataset's calls by its own answers, as well as they are told to, and an assembly of them."""

from __future__ import annotations

import asyncio
import hashlib
import io
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import helpdesk
from msgspec.structs import replace

from smallfirst.assemble import Assembly, StagePricing
from smallfirst.backends.fake import FakeBackend, Script
from smallfirst.backends.toolprompt import constraint_schema
from smallfirst.cascade import Cascade
from smallfirst.config import ModelConfig, parse
from smallfirst.learn import card
from smallfirst.learn.card import Folder
from smallfirst.learn.dataset import Settings, build
from smallfirst.learn.scrub import decode
from smallfirst.learn.scrubbed import scrubber_of, write
from smallfirst.learn.usable import choice_of
from smallfirst.registry import Version
from smallfirst.router import Candidate
from smallfirst.store import Store, open_store
from smallfirst.types import (
    Capabilities,
    Choice,
    Completion,
    Record,
    Request,
    Stage,
    TokenLogprob,
    ToolCall,
    Usage,
    Verdict,
)
from smallfirst.validators import validate

CAPABILITIES = Capabilities(native=frozenset({"chat"}), top_logprobs=20, constraint=True)
CONFIG = """
[models.small]
backend = "llamacpp"
weights = "none.gguf"
[cascade]
repairs = 0
"""


async def desk(folder: Path, count: int = 400, **settings: float) -> tuple[Store, Folder]:
    """The help desk's records in a store, and the dataset of them."""
    store = await open_store(f"sqlite:///{folder}/calls.db")
    await asyncio.gather(*(store.append(_priced(record)) for record in helpdesk.records(count)))
    lines = io.BytesIO()
    await write(store, lines, await scrubber_of(store))
    records = [decode(line) for line in lines.getvalue().splitlines()]
    card.save(build("desk", records, Settings(**settings)), folder / "data", source="test", scrubbing={})
    return store, card.load(folder / "data")


def desk_folder(folder: Path, count: int, calibration: float) -> Path:
    """`folder` with the help desk's store and dataset, that share of it to calibrate on."""

    async def make() -> None:
        store, _ = await desk(folder, count, calibration=calibration)
        await store.close()

    asyncio.run(make())
    return folder


def _priced(record: Record) -> Record:
    [attempt] = record.attempts
    return replace(record, attempts=(replace(attempt, cost_usd=0.01, cost_usd_local_free=0.01, seconds=2.0),))


def expert(data: Folder, skill: float, *, seconds: float = 0.5) -> Script:
    """Right on a share `skill` of the calls, which is always the same calls; sure where it is right, unsure elsewhere,
    but sometimes sure of what is wrong."""
    answers = {said(row.request["messages"]): choice_of(row.answer) for rows in data.splits.values() for row in rows}

    def answer(request: Request) -> Completion:
        text = said(request.messages)
        draw = int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 16**8
        right = draw < skill
        [call] = answers[text].tool_calls
        made = call if right else ToolCall("", "open_ticket", '{"about": "billing", "urgent": true}')
        made = ToolCall(f"call_{draw}", made.name, made.arguments)
        wide = draw * 997 % 1
        low = 0.02 * wide if right else 0.5 + wide
        raw = f'{{"name": "{made.name}", "arguments": {made.arguments}}}'
        tokens = [
            TokenLogprob(raw[n : n + 4], -low, ((raw[n : n + 4], -low), ("x", -3.0))) for n in range(0, len(raw), 4)
        ]
        choice = Choice(tool_calls=(made,), finish_reason="tool_calls", logprobs=tuple(tokens))
        return Completion((choice,), Usage(200, 20, busy_seconds=seconds), "tiny")

    return answer


def said(messages: object) -> str:
    """The last message of a user."""
    return [str(m["content"]) for m in messages if m["role"] == "user"][-1]  # type: ignore[attr-defined]


def by_adapter(with_adapter: Script, without: Script) -> Script:
    """One model with its adapter and another without."""
    return lambda request: (with_adapter if request.adapter else without)(request)


def version(data: Folder, **more: Any) -> Version:
    """A version of the help desk's model with an adapter that was trained on `data`."""
    given = {"task": "desk", "adapter": "a.gguf", "adapter_sha256": "a", "base_sha256": "b", "parents": (data.sha256,)}
    return Version("desk@1", created_at=0.0, model={"backend": "llamacpp", "weights": "tiny"}, **{**given, **more})


@dataclass
class Loaded:
    """Stands in for `assemble.Versions`: each version answers by the script."""

    script: Script
    pricing: StagePricing

    async def load(self, wanted: Version) -> Candidate:
        backend = FakeBackend("engine", self.script, CAPABILITIES)
        await backend.start()
        self.pricing.add(wanted.id, ModelConfig(backend="llamacpp", weights="tiny"))
        return Candidate(
            Stage(wanted.id, backend, wanted.id, small=True, adapter=wanted.id if wanted.adapter else None)
        )


@asynccontextmanager
async def assembly(
    store: Store, small: Script, large: Script | None = None, text: str = CONFIG
) -> AsyncIterator[Assembly]:
    """An assembly whose versions and model `small` answer by a script, and `large` by another if there is one."""
    config = parse(text, {})
    pricing = StagePricing(config)
    scripts = {"small": small} | ({} if large is None else {"large": large})
    candidates = {}
    for name, script in scripts.items():
        backend = FakeBackend(name, script, CAPABILITIES)
        await backend.start()
        candidates[name] = Candidate(Stage(name, backend, name, small=name == "small"))
    cascade = Cascade(_check, constraint_schema, pricing, time.monotonic)
    yield Assembly(config, candidates, {"": cascade}, pricing, store, Loaded(small, pricing))  # type: ignore[arg-type]


def _check(request: Request, completion: Completion) -> Verdict:
    return validate(completion, request)
