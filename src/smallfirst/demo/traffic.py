"""The agent's calls, sent through a running gateway with the official client, and what came of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from smallfirst import report
from smallfirst.demo.client import connected
from smallfirst.helpdesk.sites import Ask
from smallfirst.report import Report
from smallfirst.store import RecordFilter, Store

LABEL = "help-desk gold"


@dataclass(slots=True)
class Sent:
    """The calls that were sent: by record the call site, and how many failed."""

    records: dict[str, str] = field(default_factory=dict)
    failed: int = 0
    since: float = field(default_factory=time.time)


class Traffic:
    """Sends calls one after the other, as an agent does, and posts whether their answers were right."""

    def __init__(self, base_url: str, store: Store) -> None:
        """`base_url` is up to and with /v1, of the gateway that records in `store`. Raises ConfigError without the
        `openai` client."""
        self._client = connected(base_url, "unused")
        self._store = store

    async def close(self) -> None:
        await self._client.close()

    async def send(self, asks: Iterable[Ask], sent: Sent, done: Callable[[], None] = lambda: None) -> Sent:
        """Send them all; `done` is called after each."""
        for ask in asks:
            await self.one(ask, sent)
            done()
        return sent

    async def one(self, ask: Ask, sent: Sent) -> str | None:
        """Send a call and label its answer; returns the record, None when the call failed."""
        import openai

        body: Any = dict(ask.body)
        about = {"x-smallfirst-episode": ask.episode}
        try:
            response = await self._client.chat.completions.with_raw_response.create(**body, extra_headers=about)
        except openai.APIError:
            sent.failed += 1
            return None
        record: str = response.headers["x-smallfirst-record"]
        right = ask.right(response.parse().choices[0].message.model_dump())
        verdict = {"record_id": record, "kind": "correct", "value": right, "source": LABEL}
        await self._client.post("/feedback", cast_to=object, body=verdict)
        sent.records[record] = ask.site
        return record

    async def settled(self, rollout: str, most: int) -> None:
        """Returns when at most so many calls of a rollout wait to be judged."""
        while len(await self._store.pending(rollout, most + 1)) > most:  # noqa: ASYNC110 - another connection writes
            await asyncio.sleep(0.1)

    async def report(self, sent: Sent) -> Report:
        """What came of the calls sent, by call site."""
        found = self._store.summaries(RecordFilter(since=sent.since - 1))
        ours = [replace(one, task=sent.records[one.id]) async for one in found if one.id in sent.records]
        return report.summarise(ours, label=LABEL)
