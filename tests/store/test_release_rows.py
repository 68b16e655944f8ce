"""Versions, releases and the audit trail, on SQLite and on PostgreSQL; as a program: releases for ever."""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
from dataclasses import replace
from functools import partial

import pytest
from store_samples import make_record

from smallfirst.errors import ConfigError
from smallfirst.registry import Release, Target, Version, released, withdrawn
from smallfirst.rollout import Rules
from smallfirst.store import Keyring, RecordFilter, Store, open_store
from smallfirst.types import Trial

FIRST = Version("trips@1", "trips", 1.0, {"backend": "llamacpp", "weights": "smollm2-135m"}, base_sha256="b")
SECOND = Version(
    "trips@2",
    "trips",
    2.0,
    {"backend": "llamacpp", "weights": "smollm2-135m"},
    base_sha256="b",
    adapter="/versions/2/adapter.gguf",
    adapter_sha256="a",
    prompt={"kind": "pruned", "turns": 3, "system": False},
    recipe={"training": {"rank": 16}},
    parents=("d",),
    evaluation={"accuracy": 0.9},
)


def put(to: Target, version: str = "trips@2", now: float = 5.0):
    """A change that releases by hand, as `learn.release` makes it."""

    def change(before: Release, _: frozenset[str]) -> tuple[Release, str]:
        name = f"{version}-{to}"
        after = released(before, version, to, share=None, rules=Rules(), rollout_id=name, now=now, by="ann")
        return after, "by hand"

    return change


def back(before: Release, _: frozenset[str]) -> tuple[Release, str]:
    return withdrawn(before, now=9.0, by="bob"), "wrong"


async def test_versions_are_kept_whole(store):
    """They come back as they were saved, oldest first, by task or by id; saved again they keep their age."""
    await store.save_version(SECOND)
    await store.save_version(FIRST)
    other = await store.save_version(replace(FIRST, id="cars@1", task="cars"))
    assert await store.versions("trips") == [FIRST, SECOND]
    assert await store.versions(ids=["cars@1", "cars@2"]) == [other]
    assert await store.versions(ids=[]) == []
    assert len(await store.versions()) == 3
    again = await store.save_version(replace(SECOND, created_at=7.0, evaluation=None))
    assert again.created_at == 2.0
    assert (await store.versions("trips"))[1].evaluation is None


async def test_versions_are_sealed_and_rotate(opener):
    """What a version says of files and servers cannot be read without the key, and follows a new one."""
    old, new = os.urandom(32), os.urandom(32)
    store = await opener(keyring=Keyring("k1", {"k1": old}))
    await store.save_version(SECOND)
    store = await opener(keyring=Keyring("k2", {"k1": old, "k2": new}))
    assert await store.rotate() >= 1
    store = await opener(keyring=Keyring("k2", {"k2": new}))
    assert await store.versions() == [SECOND]
    with pytest.raises(ConfigError):
        await opener()


async def test_a_release_and_its_trail(store):
    """Pointers, the rollout and who moved it change together, and every move stands in the trail, oldest first."""
    assert await store.release("trips") == Release("trips")
    assert (await store.aliases("trips"), await store.rollout("trips")) == ({}, None)
    for to in ("shadow", "canary", "live"):
        await store.change_release("trips", put(to))
    done = await store.change_release("trips", put("canary", "trips@3", now=7.0))
    assert await store.releases() == [done]
    assert (done.changes, done.changed_by, done.changed_at) == (4, "ann", 7.0)
    assert await store.aliases("trips") == {"live": "trips@2", "candidate": "trips@3"}
    rollout = await store.rollout("trips")
    assert rollout is not None
    assert (rollout.candidate, rollout.incumbent, rollout.step) == ("trips@3", "trips@2", "canary")
    await store.change_release("trips", back)
    assert await store.aliases("trips") == {"live": "trips@2"}
    moves = await store.moves("trips")
    assert [(m.version, m.step, m.by, m.reason) for m in moves] == [
        ("trips@2", "shadow", "ann", "by hand"),
        ("trips@2", "canary", "ann", "by hand"),
        ("trips@2", "live", "ann", "by hand"),
        ("trips@3", "canary", "ann", "by hand"),
        ("trips@3", "rolled_back", "bob", "wrong"),
    ]
    assert await store.moves() == moves
    assert await store.moves("cars") == []
    assert await store.release_changes() == {"trips": 5}


async def test_what_changes_nothing_is_no_move(store):
    """A change that leaves the release as it is leaves its count and its trail."""
    await store.change_release("trips", put("live"))
    await store.change_release("trips", put("canary"))
    assert await store.release_changes() == {"trips": 1}
    assert len(await store.moves()) == 1


async def test_outcomes_are_taken_once(opener):
    """Of records that two gateways take at once each goes to one of them; the order is that of the calls."""
    stores = [await opener(), await opener()]
    records = [make_record(created_at=float(n), trial=Trial("r", "canary", 0.1)) for n in range(20)]
    for record in reversed(records):
        await stores[0].append(record)
    await stores[0].append(make_record(trial=Trial("other", "incumbent", 0.1)))
    await stores[0].append(make_record())
    ids = [record.id for record in records]
    found = await stores[1].pending("r")
    assert [record.id for record in found] == ids
    assert found[3].trial == Trial("r", "canary", 0.1)
    assert [record.id for record in await stores[1].pending("r", limit=3)] == ids[:3]
    taken: list[str] = []

    def change(before: Release, new: frozenset[str]) -> tuple[Release, str]:
        taken.extend(new)
        return replace(before, evidence=f"{before.evidence}x"), ""

    await asyncio.gather(*(stores[n % 2].change_release("trips", change, ids[n : n + 10]) for n in range(11)))
    assert sorted(taken) == sorted(ids)
    assert await stores[0].pending("r") == []
    assert (await stores[0].release("trips")).evidence == "x" * 11
    [*summaries] = await stores[0].list_records(RecordFilter())
    assert {summary.trial for summary in summaries} == {
        Trial("r", "canary", 0.1),
        Trial("other", "incumbent", 0.1),
        None,
    }


async def test_changes_of_two_gateways_follow_each_other(opener):
    """Each sees what the other made: no change is lost."""
    stores = [await opener(), await opener()]

    def grown(by: str, before: Release, _: frozenset[str]) -> tuple[Release, str]:
        return replace(before, evidence=before.evidence + by), ""

    await asyncio.gather(*(stores[n % 2].change_release("trips", partial(grown, "x")) for n in range(20)))
    assert (await stores[0].release("trips")).evidence == "x" * 20


async def test_a_killed_process_leaves_no_half_release(url):
    """Whenever a process dies that moves versions about, pointers, rollout and trail agree."""
    env = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    child = await asyncio.create_subprocess_exec(sys.executable, __file__, url, stdout=asyncio.subprocess.PIPE, env=env)
    assert child.stdout is not None
    assert await child.stdout.readline()
    await asyncio.sleep(0.05)
    child.kill()
    await child.wait()
    store = await open_store(url)
    release, moves = await store.release("trips"), await store.moves("trips")
    await store.close()
    assert release.rollout is not None
    rollout, last = release.rollout, moves[-1]
    assert (last.version, last.step, last.at) == (rollout.candidate, rollout.step, release.changed_at)
    assert release.candidate == (rollout.candidate if rollout.step in {"shadow", "canary"} else "")
    assert (release.live == rollout.candidate) == (rollout.step == "live")
    assert len(moves) == release.changes >= 3


async def _release_for_ever(url: str) -> None:
    store: Store = await open_store(url)
    for n in itertools.count():
        version = f"trips@{n}"
        for k, to in enumerate(("shadow", "canary", "live")):
            await store.change_release("trips", put(to, version, now=10.0 * n + k))  # type: ignore[arg-type]
        print(version, flush=True)


if __name__ == "__main__":
    asyncio.run(_release_for_ever(sys.argv[1]))
