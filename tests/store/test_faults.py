from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import sys
from pathlib import Path

import psycopg
import pytest
from store_samples import make_record

from smallfirst.errors import ConfigError, NotFoundError, StoreError
from smallfirst.store import RecordFilter, open_store
from smallfirst.store.migrations import MIGRATIONS

HOUR = 3600.0
CHILD = Path(__file__).with_name("store_samples.py")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "records.db"


async def kept(store, record) -> bool:
    try:
        await store.get(record.id)
    except NotFoundError:
        return False
    return True


async def append_all(store, count: int) -> list[tuple[object, object]]:
    """(record, error or None) of `count` concurrent appends."""
    records = [make_record(f"{n} " + "long text " * 200) for n in range(count)]
    outcomes = await asyncio.gather(*map(store.append, records), return_exceptions=True)
    return list(zip(records, outcomes, strict=True))


async def test_a_killed_process_loses_no_acknowledged_record(url):
    """Every id that a process printed before SIGKILL, under load, is found afterwards, whole."""
    child = await asyncio.create_subprocess_exec(sys.executable, str(CHILD), url, stdout=asyncio.subprocess.PIPE)
    acknowledged = [(await child.stdout.readline()).decode().strip() for _ in range(300)]
    os.kill(child.pid, signal.SIGKILL)
    rest = (await child.stdout.read()).decode()
    acknowledged += rest[: rest.rfind("\n") + 1].split()
    await child.wait()
    store = await open_store(url)
    found = {record.id: record async for record in store.export()}
    await store.close()
    assert set(acknowledged) <= found.keys()
    assert all(len(record.attempts) == 2 and len(record.messages) == 2 for record in found.values())


async def test_two_processes_may_start_at_once(url):
    """Several stores opened together on an empty database all work, and share one schema and one secret."""
    stores = await asyncio.gather(*(open_store(url) for _ in range(4)))
    for store in stores:
        await store.append(make_record(origin=make_record().request.origin))
    assert len({store._codec.hasher.secret for store in stores}) == 1
    assert len(await stores[0].list_records()) == 4
    for store in stores:
        await store.close()


async def test_a_newer_schema_is_refused(opener):
    """A database written by a newer version is not touched, and the error says what to do."""
    store = await opener()
    newer = len(MIGRATIONS) + 1
    await store._writer.run(lambda c: c.execute("INSERT INTO schema_version (version) VALUES (?)", (newer,)))
    with pytest.raises(ConfigError, match=rf"version {newer}.*Upgrade"):
        await opener()


async def test_a_full_disk_fails_what_was_not_committed_and_nothing_else(path):
    """When the disk is full appends raise StoreError; each either raised or is there; space lets them succeed again."""
    store = await open_store(f"sqlite:///{path}")
    await store._writer.run(lambda c: c.query("PRAGMA max_page_count = 120"))
    outcomes = await append_all(store, 20) + await append_all(store, 60)
    failed = [error for _, error in outcomes if error is not None]
    assert 0 < len(failed) < len(outcomes)
    assert all(isinstance(error, StoreError) and error.status == 503 and "full" in str(error) for error in failed)
    for record, error in outcomes:
        assert await kept(store, record) == (error is None)
    await store._writer.run(lambda c: c.query("PRAGMA max_page_count = 100000"))
    await store.append(make_record())
    await store.close()


async def test_a_locked_database_fails_in_bounded_time_and_recovers(path):
    """While another process holds the write lock appends raise StoreError; reads go on; later appends succeed."""
    store = await open_store(f"sqlite:///{path}", busy_timeout_s=0.1)
    before = make_record()
    await store.append(before)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    during = make_record()
    with pytest.raises(StoreError, match="locked"):
        await store.append(during)
    assert await kept(store, before)
    with pytest.raises(StoreError):
        await store.ping()
    other.execute("ROLLBACK")
    other.close()
    await store.append(make_record())
    await store.ping()
    assert not await kept(store, during)
    await store.close()


async def test_a_full_queue_refuses_at_once(path):
    """No more than `max_waiting` writes wait; one more is refused, and those that wait are written."""
    store = await open_store(f"sqlite:///{path}", max_waiting=10)
    outcomes = await append_all(store, 30)
    refused = [error for _, error in outcomes if error is not None]
    assert 0 < len(refused) <= 20
    assert all("wait" in str(error) for error in refused)
    for record, error in outcomes:
        assert await kept(store, record) == (error is None)
    await store.close()


async def test_one_impossible_record_does_not_fail_the_others(opener):
    """A record that the database refuses fails alone, whatever shares its commit."""
    store = await opener()
    good = [make_record(str(n)) for n in range(5)]
    bad = make_record(status=2**70)
    worse = make_record(request=make_record("\ud800").request)
    outcomes = await asyncio.gather(*map(store.append, [*good[:2], bad, worse, *good[2:]]), return_exceptions=True)
    assert [type(o) for o in outcomes] == [type(None)] * 2 + [StoreError] * 2 + [type(None)] * 3
    assert {s.id async for s in store.summaries(RecordFilter())} == {r.id for r in good}


async def test_an_abandoned_append_is_still_written(store):
    """A caller that goes away does not stop its record, nor the others of its commit."""
    abandoned, other = make_record(), make_record()
    task = asyncio.create_task(store.append(abandoned))
    await asyncio.sleep(0)
    task.cancel()
    await store.append(other)
    await store.ping()
    assert await kept(store, abandoned)
    assert await kept(store, other)


async def test_close_writes_what_waits_and_then_refuses(url):
    """Closing finishes every append that was begun; a later one raises StoreError."""
    store = await open_store(url)
    records = [make_record(str(n)) for n in range(50)]
    appends = [asyncio.create_task(store.append(record)) for record in records]
    await asyncio.sleep(0)
    await store.close()
    await asyncio.gather(*appends)
    with pytest.raises(StoreError, match="closed"):
        await store.append(make_record())
    store = await open_store(url)
    assert len(await store.list_records(limit=100)) == 50
    await store.close()


@pytest.mark.postgres
@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
async def test_a_lost_server_connection_is_replaced(opener, postgres_server):
    """When the server ends its connections in the middle of load, each append is kept or raises; later ones succeed."""
    store = await opener()
    await append_all(store, 4)
    await store.list_records()
    load = asyncio.create_task(append_all(store, 200))
    await asyncio.sleep(0.01)
    with psycopg.connect(postgres_server, autocommit=True) as admin:
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'smallfirst'")
    for record, error in await load:
        assert error is None or isinstance(error, StoreError)
        assert await kept(store, record) == (error is None)
    await store.append(make_record())


@pytest.mark.postgres
@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
async def test_a_row_locked_elsewhere_fails_in_bounded_time(opener, url):
    """A lock that another client holds in PostgreSQL is waited for no longer than the busy timeout."""
    store = await opener(busy_timeout_s=0.1)
    with psycopg.connect(url) as other:
        other.execute("LOCK TABLE records IN EXCLUSIVE MODE")
        with pytest.raises(StoreError, match="lock"):
            await store.append(make_record())
        other.rollback()
    await store.append(make_record())


@pytest.mark.postgres
@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
async def test_pruning_spares_what_another_process_is_about_to_use_again(opener, url):
    """A content that another process's transaction uses once more is kept, though it was old when pruning began."""
    store = await opener()
    await store.append(make_record(created_at=1.0))
    with psycopg.connect(url) as other:
        other.execute("UPDATE contents SET last_hour = 500000")
        pruning = asyncio.create_task(store.prune(HOUR * 10))
        while not other.execute("SELECT 1 FROM pg_locks WHERE NOT granted").fetchall():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        other.commit()
        assert await pruning == 1
        [(left,)] = other.execute("SELECT count(*) FROM contents").fetchall()
    assert left == 3


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("mysql://host/db", "'mysql'"),
        ("sqlite:///", "must be a file"),
        ("sqlite:///:memory:", "must be a file"),
        ("postgresql://u:s3cret@host:port:x/db?nonsense=1", "cannot be read"),
    ],
)
async def test_a_wrong_url_is_a_configuration_error(url, said):
    """A URL that names no usable database says what is allowed, and never shows a password."""
    with pytest.raises(ConfigError, match=said) as caught:
        await open_store(url)
    assert "s3cret" not in str(caught.value)


async def test_a_database_that_cannot_be_reached_says_so(tmp_path):
    """A file in the way and a server that is not there are StoreErrors, soon."""
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="file"):
        await open_store(f"sqlite:///{tmp_path}/file/records.db")
    with pytest.raises(StoreError, match="reached"):
        await open_store(f"postgresql://u@/db?host={tmp_path}")
    (tmp_path / "text.db").write_text("this is not a database" * 100)
    with pytest.raises(StoreError, match="not a database"):
        await open_store(f"sqlite:///{tmp_path}/text.db")


async def test_the_database_file_is_its_owner_s_alone(path):
    """Records hold private text, so a new file is readable by its owner only."""
    store = await open_store(f"sqlite:///{path}")
    await store.append(make_record())
    assert {p.stat().st_mode & 0o077 for p in path.parent.glob("records.db*")} == {0}
    await store.close()
