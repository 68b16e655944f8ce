"""Models that answer a dataset's calls by its own answers, as well as they are told to, and an assembly of them."""

from __future__ import annotations

import asyncio
import hashlib
import io
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import helpdesk

from smallfirst.assemble import Assembly, StagePricing
from smallfirst.backends.fake import FakeBackend, Script
from smallfirst.backends.toolprompt import constraint_schema
from smallfirst.cascade import Cascade
from smallfirst.config import Config, parse
from smallfirst.learn import card
from smallfirst.learn.card import Folder
from smallfirst.learn.dataset import Settings, build
from smallfirst.learn.scrub import decode
from smallfirst.learn.scrubbed import write
from smallfirst.learn.usable import choice_of
from smallfirst.router import Candidate
from smallfirst.store import Store, open_store
from smallfirst.types import Capabilities, Choice, Completion, Request, Stage, TokenLogprob, ToolCall, Usage, Verdict
from smallfirst.validators import validate

CAPABILITIES = Capabilities(native=frozenset({"chat"}), top_logprobs=20, constraint=True)
CONFIG = """
[models.desk]
backend = "llamacpp"
weights = "none.gguf"
adapters = { desk = "none.gguf" }
adapter = "desk"
[cascade]
repairs = 0
"""


async def desk(folder: Path, count: int = 400, **settings: float) -> tuple[Store, Folder]:
    """The help desk's records in a store, and the dataset of them."""
    store = await open_store(f"sqlite:///{folder}/calls.db")
    await asyncio.gather(*(store.append(record) for record in helpdesk.records(count)))
    lines = io.BytesIO()
    await write(store, lines)
    records = [decode(line) for line in lines.getvalue().splitlines()]
    card.save(build("desk", records, Settings(**settings)), folder / "data", source="test", scrubbing={})
    return store, card.load(folder / "data")


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
        tokens = [TokenLogprob(raw[n : n + 4], -low, ((raw[n : n + 4], -low), ("x", -3.0))) for n in range(0, len(raw), 4)]
        choice = Choice(tool_calls=(made,), finish_reason="tool_calls", logprobs=tuple(tokens))
        return Completion((choice,), Usage(200, 20, busy_seconds=seconds), "tiny")

    return answer


def said(messages: object) -> str:
    """The last message of a user."""
    return [str(m["content"]) for m in messages if m["role"] == "user"][-1]  # type: ignore[attr-defined]


def by_adapter(with_adapter: Script, without: Script) -> Script:
    """One model with its adapter and another without."""
    return lambda request: (with_adapter if request.adapter else without)(request)


@asynccontextmanager
async def assembly(store: Store, scripts: dict[str, Script], text: str = CONFIG) -> AsyncIterator[Assembly]:
    """An assembly of models that answer by script; `desk` is small and has an adapter."""
    config = parse(text, {})
    stages = [
        Stage(
            name,
            FakeBackend(name, script, CAPABILITIES),
            name,
            small=name != "large",
            adapter="desk" if name == "desk" else None,
        )
        for name, script in scripts.items()
    ]
    for stage in stages:
        await stage.backend.start()
    yield _assembly(config, stages, store)


def _assembly(config: Config, stages: list[Stage], store: Store) -> Assembly:
    pricing = StagePricing(config)
    cascade = Cascade(_check, constraint_schema, pricing, time.monotonic)
    return Assembly(config, {s.name: Candidate(s) for s in stages}, {"": cascade}, pricing, store)


def _check(request: Request, completion: Completion) -> Verdict:
    return validate(completion, request)
