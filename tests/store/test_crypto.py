from __future__ import annotations

import asyncio
import base64
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from store_samples import make_record

from smallfirst.errors import ConfigError
from smallfirst.store import Keyring, RecordFilter
from smallfirst.store.crypto import Sealer
from smallfirst.types import Feedback, Origin

OLD = Keyring("old", {"old": b"o" * 32})
NEW = Keyring("new", {"new": b"n" * 32, "old": b"o" * 32})
ONLY_NEW = Keyring("new", {"new": b"n" * 32})


def encoded(byte: bytes, count: int = 32) -> str:
    return base64.b64encode(byte * count).decode()


def test_a_keyring_is_read_from_text_and_its_first_key_is_active():
    """ "id:base64,id:base64" gives both keys."""
    keyring = Keyring.parse(f"new:{encoded(b'n')}, old:{encoded(b'o')}")
    assert keyring == NEW


@pytest.mark.parametrize(
    "text",
    [
        "",
        "k",
        "k:",
        "k:???",
        "k:ü",
        f"k:{encoded(b's', 16)}",
        f":{encoded(b's')}",
        f"k:{encoded(b's')},k:{encoded(b's')}",
    ],
)
def test_a_wrong_keyring_is_refused_without_showing_keys(text):
    """Missing ids, bad base64, wrong lengths and repeated ids are configuration errors that show no key material."""
    with pytest.raises(ConfigError) as caught:
        Keyring.parse(text)
    assert encoded(b"s")[:8] not in str(caught.value)


def test_a_keyring_does_not_print_its_keys():
    """The representation of a keyring is safe to log."""
    assert "ooo" not in repr(OLD)


@given(st.binary(max_size=200), st.text(max_size=20))
def test_what_is_sealed_opens_for_its_own_row_only(data, row):
    """An envelope opens to what was sealed, under any keyring with its key, and for no other row."""
    envelope = Sealer(OLD).seal(data, row)
    assert Sealer(NEW).open(envelope, row) == data
    with pytest.raises(ConfigError, match="altered"):
        Sealer(OLD).open(envelope, row + "x")
    assert Sealer(None).open(Sealer(None).seal(data, row), row) == data


def test_an_envelope_under_a_missing_or_other_key_says_which():
    """Without the key, or with other bytes under its id, the error names the key and the row."""
    envelope = Sealer(OLD).seal(b"text", "record:1")
    with pytest.raises(ConfigError, match=r"record:1 is encrypted under the key 'old'.*\['new'\]"):
        Sealer(ONLY_NEW).open(envelope, "record:1")
    with pytest.raises(ConfigError, match="another one"):
        Sealer(Keyring("old", {"old": os.urandom(32)})).open(envelope, "record:1")


async def everything(store) -> bytes:
    """Every byte of every payload in the database."""
    found = b""
    for table in ("records", "attempts", "contents", "feedback", "responses", "meta"):
        sql = f"SELECT payload FROM {table} WHERE payload IS NOT NULL"
        rows = await store._readers.run(lambda c, sql=sql: c.query(sql))
        found += b"".join(bytes(payload) for (payload,) in rows)
    return found


async def fill(store, number: int = 1):
    """A record with every kind of payload, all of which hold the word Lyon."""
    record = make_record(f"Lyon {number}", origin=Origin(user="ann", episode="e"))
    await store.append(record)
    await store.add_feedback(Feedback(f"f{number}", record.id, 1.0, "comment", "not Lyon", "user"))
    await store.cache_put(f"hash{number}", "trips", b"to Lyon", 9e9)
    return record


async def test_with_a_key_no_text_is_readable_in_the_database(opener):
    """Messages, tools, bodies, completions, feedback and cached responses are encrypted; without a key they are not."""
    store = await opener(keyring=OLD)
    record = await fill(store)
    kept = await everything(store)
    for word in (b"Lyon", b"You plan trips", b"book", b"temperature"):
        assert word not in kept
    assert (await store.get(record.id)).body == record.request.body
    assert await store.cache_get("hash1", 0.0) == b"to Lyon"


async def test_a_store_with_a_key_is_refused_without_it(opener):
    """Nothing plain can slip into an encrypted store: opening it without its key is a configuration error."""
    await fill(await opener(keyring=OLD))
    with pytest.raises(ConfigError, match="'old'"):
        await opener()
    with pytest.raises(ConfigError, match="'old'"):
        await opener(keyring=ONLY_NEW)


async def test_rotation_lets_an_old_key_go(opener):
    """After rotate() the new key alone reads everything, and filters by user still find what was kept before."""
    store = await opener(keyring=OLD)
    records = await asyncio.gather(*(fill(store, n) for n in range(250)))
    store = await opener(keyring=NEW)
    assert (await store.get(records[0].id)).body == records[0].request.body
    assert await store.rotate() > 1000
    assert await store.rotate() == 0
    store = await opener(keyring=ONLY_NEW)
    for record in records[:3]:
        kept = await store.get(record.id)
        assert kept.body == record.request.body
        assert kept.feedback[0].value == "not Lyon"
    assert len([s async for s in store.summaries(RecordFilter(user="ann"))]) == 250
    assert await store.cache_get("hash7", 0.0) == b"to Lyon"


async def test_a_plain_store_can_be_encrypted_later(opener):
    """Opening with a first key and rotating encrypts what was plain."""
    store = await opener()
    record = await fill(store)
    assert b"Lyon" in await everything(store)
    with pytest.raises(ConfigError, match="without keys"):
        await store.rotate()
    store = await opener(keyring=OLD)
    await store.rotate()
    assert b"Lyon" not in await everything(store)
    assert (await store.get(record.id)).messages == record.request.messages
