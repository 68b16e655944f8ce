"""Stage: logs of other tools become records, as if the calls had come through the gateway.

Each call becomes a record that escalated for the reason "imported", with one attempt of the logged model, checked by
the same validators. Its id depends on the store's secret, the call's id in its log, its time and its content, in the
form of a UUIDv7 of that time: who imports the same again adds nothing. A call whose log tells no cost is priced by
list, as far as its model is on it and its tokens are told. Items are read and appended in batches, so memory does not
grow with the log.
"""

from __future__ import annotations

import asyncio
import hmac
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from smallfirst.errors import ConfigError, RequestError, SmallfirstError
from smallfirst.learn.logs import FORMATS, Entry, Format
from smallfirst.learn.logs.entry import Found
from smallfirst.learn.logs.files import Item, items
from smallfirst.prices import PriceList
from smallfirst.router import TASK_NAME, identify
from smallfirst.store import Store
from smallfirst.types import Attempt, Completion, Json, Origin, Record, Wire
from smallfirst.validators import check_schemas, validate
from smallfirst.wire import WIRES
from smallfirst.wire.accumulate import Accumulator

IMPORTED = "imported"
"""The reason, stage and key of imported calls."""
AUTO = "auto"
_BATCH = 512
_TOLD_EVERY = 100
_BATCH_BYTES = 8 * 2**20
_PROBLEMS = 100
_FOREIGN = re.compile(r"[^A-Za-z0-9_.:/-]+")


@dataclass(frozen=True, slots=True)
class Problem:
    """Why what stands at a line of a file was not kept; of a document, the item's number; 0 for the end."""

    file: str
    line: int
    reason: str


@dataclass(slots=True)
class Imported:
    """What an import came to: calls that were `added` and those `known` before; `others`, things that are no answered
    model calls; and how many were `bad`, the first 100 of them as `problems`."""

    added: int = 0
    known: int = 0
    others: int = 0
    bad: int = 0
    problems: list[Problem] = field(default_factory=list)

    def refuse(self, file: Path, line: int, reason: str) -> None:
        self.bad += 1
        if len(self.problems) < _PROBLEMS:
            self.problems.append(Problem(str(file), line, reason))


async def run(
    store: Store,
    files: Sequence[Path],
    *,
    form: str = AUTO,
    task: str | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Imported:
    """Import `files` in their order; `task` names the task of every call. `progress` is told the bytes read so far.

    Raises ConfigError for an unknown format, a task's name that is not allowed or a file that cannot be opened, and
    StoreError when the store cannot keep what was read; a second import goes on from there.
    """
    if form != AUTO and form not in FORMATS:
        raise ConfigError(f"The format is {form!r}.", hint=f"Allowed: {', '.join([AUTO, *FORMATS])}.")
    if task is not None and not TASK_NAME.fullmatch(task):
        raise ConfigError(f"The task is {task!r}.", hint="Use up to 128 letters, digits and the characters _ . : / -")
    result = Imported()
    reader = _Reader([make() for name, make in FORMATS.items() if form in (AUTO, name)], store.secret(IMPORTED), task)
    batch, done = _Batch(store, result), 0
    for path in files:
        for item in items(path):
            for record in reader.records(path, item, result):
                await batch.add(record, item.size)
            if item.line % _TOLD_EVERY == 0:
                progress(done + item.at)
        done += path.stat().st_size
        progress(done)
        for record in reader.rest(path, result) if path is files[-1] else ():
            await batch.add(record, 0)
    await batch.keep()
    return result


class _Batch:
    """Records on their way into the store, appended at once so that they share commits."""

    def __init__(self, store: Store, result: Imported) -> None:
        self._store, self._result = store, result
        self._records: dict[str, Record] = {}
        self._bytes = 0

    async def add(self, record: Record, size: int) -> None:
        if record.id in self._records:
            self._result.known += 1
            return
        self._records[record.id] = record
        self._bytes += size
        if len(self._records) >= _BATCH or self._bytes >= _BATCH_BYTES:
            await self.keep()

    async def keep(self) -> None:
        known = await self._store.known(list(self._records))
        new = [record for record in self._records.values() if record.id not in known]
        await asyncio.gather(*(self._store.append(record) for record in new))
        self._result.known += len(known)
        self._result.added += len(new)
        self._records, self._bytes = {}, 0


class _Reader:
    """Makes records of items by the first of `formats` that recognises them; what cannot be read is noted."""

    def __init__(self, formats: Sequence[Format], secret: bytes, task: str | None) -> None:
        self._formats, self._secret, self._task = formats, secret, task
        self._prices = PriceList()

    def records(self, path: Path, item: Item, result: Imported) -> Iterator[Record]:
        if item.wrong:
            result.refuse(path, item.line, item.wrong)
            return
        yield from self._made(path, item.line, self._entries(item.value), result)

    def rest(self, path: Path, result: Imported) -> Iterator[Record]:
        for form in self._formats:
            yield from self._made(path, 0, form.rest(), result)

    def _entries(self, value: Any) -> Iterator[Found]:
        for form in self._formats:
            if isinstance(value, dict) and form.recognises(value):
                yield from form.entries(value)
                return
        shown = f"an object with {list(value)[:8]!r}" if isinstance(value, dict) else type(value).__name__
        yield RequestError(f"No entry of a log that is known here: {shown:.300}.")

    def _made(self, path: Path, line: int, entries: Iterator[Found], result: Imported) -> Iterator[Record]:
        try:
            for entry in entries:
                if entry is None:
                    result.others += 1
                elif isinstance(entry, RequestError):
                    result.refuse(path, line, str(entry))
                elif isinstance(record := self._record(entry), str):
                    result.refuse(path, line, record)
                else:
                    yield record
        except RequestError as error:
            result.refuse(path, line, str(error))
        except RecursionError:
            result.refuse(path, line, "It nests too deep.")

    def _record(self, entry: Entry) -> Record | str:
        try:
            return record_of(entry, self._secret, self._prices, self._task)
        except SmallfirstError as error:
            return str(error)


def record_of(entry: Entry, secret: bytes, prices: PriceList, task: str | None = None) -> Record:
    """The record of a logged call; without a time in the log, of this moment.

    Raises SmallfirstError for what the gateway would have refused: a body or schema that cannot be, a broken answer.
    """
    asked, answered = _wires(entry)
    word = task or (_FOREIGN.sub("-", entry.task)[:128] if entry.task else None)
    origin = Origin(IMPORTED, word, entry.episode, entry.user)
    request = WIRES[asked].parse(msgspec.json.encode(entry.request), origin)
    check_schemas(request)
    completion = _completion(answered, entry.response)
    cost, usage = entry.cost_usd, completion.usage
    if cost is None and usage.input_tokens:
        cost = prices.cost(completion.model or request.model, None, usage)
    attempt = Attempt(
        stage=IMPORTED,
        backend=IMPORTED,
        model=completion.model or request.model,
        kind="generate",
        decision="escalate",
        reason=IMPORTED,
        completion=completion,
        verdict=validate(completion, request),
        cost_usd=cost,
        cost_usd_local_free=cost,
        seconds=entry.seconds,
    )
    return Record(
        id=_id(entry, secret),
        created_at=time.time() if entry.created_at is None else entry.created_at,
        request=request,
        task=task or identify(request, {}),
        mode="observe",
        attempts=(attempt,),
        served=0,
        decision="escalate",
        reason=IMPORTED,
        status=200,
        seconds=entry.seconds,
        config_hash="",
    )


def _wires(entry: Entry) -> tuple[Wire, Wire]:
    """The wires of the request and of the answer; a gateway may have answered on another than it was asked on."""
    request, response = entry.request, entry.response
    answered: Wire = "chat"
    if "choices" not in response:
        answered = "messages" if response.get("type") == "message" else "responses" if "output" in response else "chat"
    if "messages" not in request and "input" in request:
        return "responses", answered
    return ("messages" if answered == "messages" or "system" in request else "chat"), answered


def _completion(wire: Wire, response: Json) -> Completion:
    whole = Accumulator()
    for delta in WIRES[wire].read(response):
        whole.feed(delta)
    return whole.completion()


def _id(entry: Entry, secret: bytes) -> str:
    """A UUIDv7 (RFC 9562) of the log's time whose random bits are a keyed hash."""
    said = msgspec.json.encode((entry.source, entry.created_at, entry.request, entry.response), order="deterministic")
    value = int.from_bytes(hmac.digest(secret, said, "sha256")[:16], "big") & (1 << 80) - 1
    value |= (int((entry.created_at or 0.0) * 1000) & (1 << 48) - 1) << 80
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
