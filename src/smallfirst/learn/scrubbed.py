"""Stage: the records of a store as JSON lines without personal data, each line checked for leaks before it counts.

A leak is a canary (a value that somebody planted or names) or an identifier of the record itself that still stands in
its line, in any letter case or encoding (`scrub.leaks`), or an identifier that is replaced as another tenant's is: that
would link the two.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

from smallfirst.errors import DataError, RequestError, StoreError
from smallfirst.evidence import message_texts
from smallfirst.learn.pii.common import CommonValues
from smallfirst.learn.pii.patterns import structured
from smallfirst.learn.pii.tagger import Tagger
from smallfirst.learn.scrub import ScrubbedRecord, Scrubber, decode, encode, leaks
from smallfirst.store import RecordFilter, Store, StoredRecord

_PURPOSE = "scrub"
_LEAST_IDENTIFYING = 8
_LINKING = frozenset({"CARD", "CN_IDENTITY", "EMAIL", "IBAN", "PHONE", "SECRET"})
"""Kinds of identifiers that have so many surrogates that two tenants do not get the same one by chance."""
_MOST_COMPARED = 100_000
NEWEST = 50_000
"""Records in which values are looked for that many episodes share."""
_EVERYTHING = RecordFilter()


@dataclass(slots=True)
class Scrubbed:
    """What was written: `records`; how many were `refused`, by reason; and of each leak the record's id and the value's
    number among the canaries, or None for an identifier."""

    records: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    leaked: list[tuple[str, int | None]] = field(default_factory=list)

    def check(self) -> None:
        """Raises DataError when anything leaked."""
        if self.leaked:
            where = ", ".join(dict.fromkeys(record for record, _ in self.leaked[:5]))
            raise DataError(f"Scrubbing left identifiers in {len(self.leaked)} places, in {where}, ...")


async def scrubber_of(store: Store, progress: Callable[[int], None] = lambda _: None) -> Scrubber:
    """The scrubber that belongs to this store: its surrogates are the same in every run and unknown without the store;
    values that many of the newest episodes share stay (`pii.common`), for which up to `NEWEST` records are read;
    `progress` gets how many were. Raises StoreError when the store cannot be read.
    """
    tagger = Tagger.load()
    common, read = CommonValues(tagger), 0
    async for stored in store.export(_EVERYTHING):
        asked = [text for message in stored.messages for text in message_texts(message)]
        for attempt in stored.attempts:
            for choice in attempt.completion.choices[:1] if attempt.completion else ():
                common.add(stored.key, stored.episode or stored.id, asked, choice)
        read += 1
        progress(read)
        if read == NEWEST:
            break
    return Scrubber(store.secret(_PURPOSE), tagger, common.found(), common.ordinary())


async def write(
    store: Store,
    to: IO[bytes],
    scrubber: Scrubber,
    wanted: RecordFilter = _EVERYTHING,
    *,
    limit: int | None = None,
    canaries: Sequence[str] = (),
    show: Callable[[ScrubbedRecord], None] = lambda _: None,
    progress: Callable[[int], None] = lambda _: None,
) -> Scrubbed:
    """Write the wanted records to `to`, newest first, at most `limit` of them, in bounded memory.

    `show` gets each record written; `progress` how many were read. Nothing must be
    used of what was written when the result tells of a leak. Raises StoreError when the store cannot be read.
    """
    result, tenants, read = Scrubbed(), _Tenants(scrubber), 0
    async for stored in store.export(wanted):
        if read == limit:
            break
        read += 1
        try:
            record = scrubber.record(stored)
        except (StoreError, RequestError) as error:
            result.refused["kept without its content" if not stored.captured else f"no request: {error}"] += 1
            continue
        own = {identifier for text in _texts(stored) for identifier in _identifiers(text)}
        places = [*_leaked(record, own, canaries), *([None] * tenants.alike(stored, own))]
        result.leaked += [(record.id, place) for place in places]
        to.write(encode(record) + b"\n")
        result.records += 1
        show(record)
        progress(read)
    return result


class Lines:
    """The scrubbed records of a file; each iteration reads it anew. Raises DataError at a line that is none."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __iter__(self) -> Iterator[ScrubbedRecord]:
        with self._path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    record = decode(line)
                except DataError as error:
                    raise DataError(f"{self._path}, line {number}: {error.message}", hint=error.hint) from error
                yield record


class _Tenants:
    """The identifiers of an export, the first `_MOST_COMPARED`, with whose they are and what stands in for them."""

    def __init__(self, scrubber: Scrubber) -> None:
        self._scrubber = scrubber
        self._known: dict[str, tuple[str, str]] = {}

    def alike(self, stored: StoredRecord, identifiers: Collection[tuple[str, str]]) -> int:
        """How many of a record's identifiers, as (kind, text), are replaced as another tenant's are."""
        surrogates = self._scrubber.surrogates_of(stored)
        found = 0
        for kind, text in identifiers:
            if kind in _LINKING and (len(self._known) < _MOST_COMPARED or text in self._known):
                made = surrogates(kind, text)
                tenant, before = self._known.setdefault(text, (stored.key, made))
                found += tenant != stored.key and before == made
        return found


def _leaked(
    record: ScrubbedRecord, identifiers: Collection[tuple[str, str]], canaries: Sequence[str]
) -> list[int | None]:
    """The numbers of the canaries that stand in the record's line, and None for each of its identifiers that does."""
    own = sorted({text for _, text in identifiers} - set(canaries))
    line = encode(replace(record, id="", episode=None)).decode()
    found = leaks(line, [*canaries, *own])
    return [canaries.index(value) if value in canaries else None for value in found]


def _identifiers(text: str) -> Iterator[tuple[str, str]]:
    """The identifiers and secrets of a text that are too long to be met by chance, as (kind, text)."""
    return ((f.kind, f.text) for f in structured(text) if sum(c.isalnum() for c in f.text) >= _LEAST_IDENTIFYING)


def _texts(stored: StoredRecord) -> Iterator[str]:
    """What was said and answered: contents of messages, answers, arguments of tool calls."""
    for message in stored.messages:
        yield from message_texts(message)
    for attempt in stored.attempts:
        for choice in attempt.completion.choices if attempt.completion else ():
            yield choice.text
            yield from (call.arguments for call in choice.tool_calls)
