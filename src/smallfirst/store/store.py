"""The durable store: what the gateway writes, and what reports and learning read."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

from smallfirst.errors import ConfigError, NotFoundError
from smallfirst.registry import Alias, Move, Release, Version
from smallfirst.rollout import Rollout
from smallfirst.store import calibrations, jobs, keys, ledger, maintenance, queries, releases
from smallfirst.store.calibrations import CalibrationRow, Versions
from smallfirst.store.codec import Codec, insert_later
from smallfirst.store.crypto import Hasher, Keyring, Sealer
from smallfirst.store.database import Connection, Database, Durability, database, insert
from smallfirst.store.keys import KeyLimits, KeyRow
from smallfirst.store.ledger import Reservation
from smallfirst.store.migrations import migrate
from smallfirst.store.readers import Readers
from smallfirst.store.releases import Change
from smallfirst.store.rows import RecordFilter, RecordSummary, StoredRecord
from smallfirst.store.tasks import TaskRow, replace_tasks, select_tasks, select_tasks_version
from smallfirst.store.writer import Writer
from smallfirst.types import Attempt, Feedback, Record, Role

T = TypeVar("T")

_EVERYTHING = RecordFilter()
_EXPORT_PAGE = 50
_SUMMARY_PAGE = 1000


async def open_store(
    url: str,
    *,
    keyring: Keyring | None = None,
    durability: Durability = "process",
    busy_timeout_s: float = 3.0,
    max_waiting: int = 4096,
) -> Store:
    """Open the store at `url` ("sqlite:///path" or "postgresql://..."), bringing its schema up to date.

    What is acknowledged survives the end of this process (durability "process") or a power cut too ("power"). A lock
    held by another process is waited for at most `busy_timeout_s`; `max_waiting` writes may wait, more are refused.
    Raises ConfigError for a wrong URL, a schema newer than this code, or a missing key; StoreError when the database
    cannot be reached.
    """
    where = database(url, durability=durability, busy_timeout_s=busy_timeout_s)
    sealer = Sealer(keyring)
    hasher = await asyncio.to_thread(_prepare, where, sealer)
    return Store(Writer(where, max_waiting=max_waiting), Readers(where), Codec(sealer, hasher))


def _prepare(where: Database, sealer: Sealer) -> Hasher:
    connection = where.connect()
    try:
        migrate(connection)
        return maintenance.load_secret(connection, sealer)
    finally:
        connection.close()


class Store:
    """Records, feedback, keys, budgets and cached responses in one database. Belongs to one event loop.

    Every write returns when it is durable. Every method raises StoreError when the database cannot do its part, and
    recovers by itself when the database does.
    """

    def __init__(self, writer: Writer, readers: Readers, codec: Codec) -> None:
        self._writer = writer
        self._readers = readers
        self._codec = codec

    async def append(self, record: Record, *, capture: bool = True) -> None:
        """Keep `record`; without `capture` only its numbers and names. The same id again changes nothing."""
        rows = self._codec.record(record, capture=capture)
        await self._writer.append(rows)
        self._codec.learn(rows)

    async def add_attempts(self, record_id: str, attempts: Sequence[Attempt], *, capture: bool = True) -> None:
        """Add attempts made after the answer (shadow, audit). Raises NotFoundError for an unknown record."""
        first = time.time_ns()  # sorts after the call's own attempts, which count from 0
        rows = [self._codec.attempt(record_id, first + n, a, capture=capture) for n, a in enumerate(attempts)]
        if not await self._writer.run(partial(insert_later, record_id=record_id, attempts=rows)):
            raise _no_record(record_id)

    async def add_feedback(self, feedback: Feedback) -> None:
        """Keep a label of a record. Raises NotFoundError for an unknown record."""
        row = self._codec.feedback(feedback)
        if not await self._writer.run(partial(insert_later, record_id=feedback.record_id, feedback=[row])):
            raise _no_record(feedback.record_id)

    async def feedback(self, record_id: str) -> tuple[Feedback, ...]:
        """The feedback of a record, oldest first; empty when there is none."""
        return tuple(await self._readers.run(lambda c: queries.feedback_of(c, self._codec, [record_id])))

    async def known(self, record_ids: Sequence[str]) -> set[str]:
        """Those of the ids, at most some hundreds, that records have."""
        return await self._readers.run(lambda c: queries.known(c, record_ids))

    async def get(self, record_id: str) -> StoredRecord:
        """The whole record. Raises NotFoundError, or ConfigError when the key of its payload is missing."""
        found = await self._readers.run(lambda c: queries.records(c, self._codec, [record_id]))
        if not found:
            raise _no_record(record_id)
        return found[0]

    async def list_records(
        self, wanted: RecordFilter = _EVERYTHING, *, limit: int = 50, after: str | None = None
    ) -> list[RecordSummary]:
        """A page of summaries, newest first; `after` is the id of the last record of the page before."""
        return await self._readers.run(lambda c: queries.summaries_page(c, self._codec, wanted, limit, after))

    async def summaries(self, wanted: RecordFilter = _EVERYTHING) -> AsyncIterator[RecordSummary]:
        """Every summary, newest first, in bounded memory."""
        after = None
        while page := await self.list_records(wanted, limit=_SUMMARY_PAGE, after=after):
            for summary in page:
                yield summary
            after = page[-1].id

    async def count(self, wanted: RecordFilter = _EVERYTHING) -> int:
        """How many records there are."""
        return await self._readers.run(lambda c: queries.count(c, self._codec, wanted))

    async def export(self, wanted: RecordFilter = _EVERYTHING) -> AsyncIterator[StoredRecord]:
        """Every record in full, newest first, in bounded memory."""
        after: str | None = None
        while page := await self._readers.run(partial(self._records_page, wanted, after)):
            for record in page:
                yield record
            after = page[-1].id

    def _records_page(self, wanted: RecordFilter, after: str | None, connection: Connection) -> list[StoredRecord]:
        return queries.records_page(connection, self._codec, wanted, _EXPORT_PAGE, after)

    async def prune(self, older_than: float) -> int:
        """Remove the records made before `older_than` (seconds since the epoch) with all that only they used.

        Returns how many. Messages that no record uses any more follow within the hour of their last use.
        """
        removed = await maintenance.prune(self._writer, older_than)
        self._codec.forget()
        return removed

    async def rotate(self) -> int:
        """Encrypt under the active key every payload that is not; returns how many. Raises ConfigError without keys."""
        if not self._codec.sealer.encrypts:
            raise ConfigError("The store was opened without keys, so there is none to rotate to.")
        return await maintenance.rotate(self._writer, self._readers, self._codec.sealer)

    async def add_key(self, name: str, role: Role, limits: KeyLimits | None = None) -> tuple[KeyRow, str]:
        """Make an API key. The text of the second value is the key itself, which cannot be read again."""
        key, text = keys.new_key(name, role, limits or KeyLimits(), time.time())
        await self._writer.run(lambda c: keys.insert_key(c, key))
        return key, text

    async def list_keys(self) -> list[KeyRow]:
        """All keys, revoked ones too, oldest first. Check a caller's secret with `KeyRow.accepts`."""
        return await self._readers.run(keys.select_keys)

    async def revoke_key(self, key_id: str) -> None:
        """Revoke a key from now on. Raises NotFoundError for an unknown one."""
        now = time.time()
        if not await self._writer.run(lambda c: keys.revoke(c, key_id, now)):
            raise NotFoundError(f"There is no key {key_id!r}.", hint="List the keys for their ids.")

    async def reserve(
        self, key_id: str, usd: float, limit_usd: float, period_start: float, *, ttl_s: float = 600.0
    ) -> Reservation | None:
        """Set `usd` aside if what the key spent and reserved in the period, and this, stay within `limit_usd`.

        None when they would not. The reservation counts for `ttl_s` seconds at most. Raises RequestError for an
        amount that is negative or not finite.
        """
        ledger.check_usd("usd", usd)
        ledger.check_usd("limit_usd", limit_usd)
        now = time.time()
        wanted = Reservation(uuid.uuid4().hex, key_id, usd, period_start, now + ttl_s)
        kept = await self._writer.run(lambda c: ledger.reserve(c, wanted, limit_usd, now), order=f"spend:{key_id}")
        return wanted if kept else None

    async def settle(self, reservation: Reservation, actual_usd: float) -> None:
        """Count `actual_usd` as spent instead of the reservation. A second time changes nothing."""
        ledger.check_usd("actual_usd", actual_usd)
        order = f"spend:{reservation.key_id}"
        await self._writer.run(lambda c: ledger.settle(c, reservation, actual_usd), order=order)

    async def spent(self, key_id: str, period_start: float) -> float:
        """What the key has spent in the period, in USD."""
        return await self._readers.run(lambda c: ledger.spent_usd(c, key_id, period_start))

    async def cache_get(self, key_hash: str, now: float) -> bytes | None:
        """The response kept under `key_hash`, None when there is none or it has expired."""
        sql = "SELECT payload FROM responses WHERE key_hash = ? AND expires_at > ?"
        rows = await self._readers.run(lambda c: c.query(sql, (key_hash, now)))
        return self._codec.sealer.open(rows[0][0], f"response:{key_hash}") if rows else None

    async def cache_put(self, key_hash: str, task: str, payload: bytes, expires_at: float) -> None:
        """Keep a response until `expires_at`, in place of an older one. The caller's hash includes its API key's id."""
        row = (key_hash, task, expires_at, self._codec.sealer.seal(payload, f"response:{key_hash}"))
        replaced = "task = excluded.task, expires_at = excluded.expires_at, payload = excluded.payload"
        conflict = f"(key_hash) DO UPDATE SET {replaced}"
        into = "responses (key_hash, task, expires_at, payload)"
        await self._writer.run(lambda c: insert(c, into, [row], conflict=conflict), order=f"response:{key_hash}")

    async def cache_clear(self, task: str) -> None:
        """Remove the kept responses of a task."""
        await self._writer.run(lambda c: c.execute("DELETE FROM responses WHERE task = ?", (task,)))

    async def tasks(self) -> list[TaskRow]:
        """The tasks that were found, oldest first."""
        return await self._readers.run(lambda c: select_tasks(c, self._codec.sealer))

    async def recorded_tasks(self) -> list[str]:
        """The tasks of the records, in the order of their names."""
        return await self._readers.run(queries.tasks)

    async def replace_tasks(self, tasks: Sequence[TaskRow]) -> None:
        """Keep exactly these tasks."""
        await self._writer.run(lambda c: replace_tasks(c, self._codec.sealer, tasks), order="tasks")

    async def tasks_version(self) -> bytes:
        """What tells whether the tasks were replaced; b"" before there were any. Cheap enough to be asked for often."""
        return await self._readers.run(select_tasks_version)

    async def save_calibration(self, task: str, stage: str, payload: str) -> CalibrationRow:
        """Put a calibration (JSON text) in force for a task and stage; the older ones are kept."""
        row = CalibrationRow(uuid.uuid4().hex, task, stage, time.time(), payload)
        await self._writer.run(lambda c: calibrations.insert_calibration(c, row))
        return row

    async def calibrations(self) -> list[CalibrationRow]:
        """The calibrations in force: the newest of each task and stage."""
        return await self._readers.run(calibrations.select_calibrations)

    async def change_monitor(self, task: str, change: Callable[[str], str]) -> str:
        """The new state of a task's monitor: what `change` makes of the old one, "" when there is none.

        Exact whichever processes do so at once. `change` may run twice; it runs in the writer's thread.
        """
        work = partial(calibrations.change_monitor, task=task, change=change)
        return await self._writer.run(work, order=f"monitor:{task}")

    async def monitors(self, tasks: Sequence[str] | None = None) -> dict[str, str]:
        """The monitors' states by task, those of `tasks` or all."""
        return await self._readers.run(lambda c: calibrations.select_monitors(c, tasks))

    async def calibration_versions(self) -> Versions:
        """What tells whether calibrations or monitors have changed."""
        return await self._readers.run(calibrations.select_versions)

    async def save_version(self, version: Version) -> Version:
        """Keep a version; one of the same id is replaced, its age kept. What is kept."""
        return await self._writer.run(lambda c: releases.save_version(c, self._codec.sealer, version))

    async def versions(self, task: str | None = None, *, ids: Sequence[str] | None = None) -> list[Version]:
        """The versions of a task, of these ids, or all, oldest first."""
        return await self._readers.run(lambda c: releases.select_versions(c, self._codec.sealer, task=task, ids=ids))

    async def release(self, task: str) -> Release:
        """What of a task is in service."""
        found = await self._readers.run(lambda c: releases.select_releases(c, task))
        return found[0] if found else Release(task)

    async def releases(self) -> list[Release]:
        """What is in service of every task that ever had a release."""
        return await self._readers.run(releases.select_releases)

    async def aliases(self, task: str) -> Mapping[Alias, str]:
        """The versions that a task's aliases name: those of "live", "previous" and "candidate" that there are."""
        return (await self.release(task)).aliases

    async def rollout(self, task: str) -> Rollout | None:
        """A task's last rollout, None before there was any."""
        return (await self.release(task)).rollout

    async def moves(self, task: str | None = None) -> list[Move]:
        """The audit trail of a task's versions, or of all, oldest first."""
        return await self._readers.run(lambda c: releases.select_moves(c, task))

    async def release_changes(self) -> dict[str, int]:
        """What tells whether a task's release has changed."""
        return await self._readers.run(releases.select_changes)

    async def change_release(self, task: str, change: Change, records: Sequence[str] = ()) -> Release:
        """A task's release after `change`, with a move in the audit trail where a version moved.

        Exact whichever processes do so at once. Those of `records` whose outcome was not taken yet are taken with it,
        and handed to `change`. It may run twice, in the writer's thread; when it raises ValueError nothing changes, and
        that is a StoreError.
        """
        work = partial(releases.change_release, task=task, records=records, change=change)
        return await self._writer.run(work, order=f"release:{task}")

    async def pending(self, rollout: str, limit: int = 200) -> list[StoredRecord]:
        """A rollout's first records whose outcome was not taken yet, in the order of their calls."""
        return await self._readers.run(
            lambda c: queries.records(c, self._codec, releases.select_pending(c, rollout, limit))
        )

    async def claim_job(self, task: str, owner: str, gone: Callable[[str], bool]) -> str | None:
        """The state of a task's job ("" when it has none), which is `owner`'s from now on; None while another has it.

        Another has it as long as that one's last sign of life is young and `gone` does not know it to be dead.
        """
        return await self._writer.run(lambda c: jobs.claim_job(c, task, owner, time.time(), gone), order=f"job:{task}")

    async def beat_job(self, task: str, owner: str, state: str | None = None) -> bool:
        """Show that the job's owner lives, with a new state if given; False when it is not the owner's any more."""
        return await self._writer.run(lambda c: jobs.beat_job(c, task, owner, time.time(), state), order=f"job:{task}")

    async def leave_job(self, task: str, owner: str) -> None:
        """Let others have the job."""
        await self._writer.run(lambda c: jobs.leave_job(c, task, owner), order=f"job:{task}")

    async def jobs(self) -> dict[str, str]:
        """The states of all jobs by task."""
        return await self._readers.run(jobs.select_jobs)

    def secret(self, purpose: str) -> bytes:
        """A secret of 32 bytes for one purpose that nobody can know without the store, always the same."""
        return self._codec.hasher.key(purpose)

    async def read(self, work: Callable[[Connection], T]) -> T:
        """What `work` makes of queries of its own: read-only, on one state of the database, in another thread."""
        return await self._readers.run(work)

    async def attempts(self, record_ids: Sequence[str]) -> dict[str, list[Attempt]]:
        """The attempts of those records, some hundreds, without the messages that they answered."""
        return await self._readers.run(lambda c: queries.attempts(c, self._codec, record_ids))

    @property
    def encrypts(self) -> bool:
        """Whether payloads are encrypted."""
        return self._codec.sealer.encrypts

    async def ping(self) -> None:
        """Returns when the database takes a transaction; raises StoreError when it does not."""
        await self._writer.run(lambda c: c.query("SELECT 1"))

    async def close(self) -> None:
        """Finish what waits and close every connection."""
        await self._writer.close()
        await self._readers.close()


def _no_record(record_id: str) -> NotFoundError:
    return NotFoundError(f"There is no record {record_id!r}.", hint="It may have been removed by age.")
