"""A task's response cache, and budgets of calls and keys, exact under concurrency."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest
from recording import Loopback, answer, events, hang, sse
from running import CHAT, Start, cascade, chunks, question, says, until, whole

CACHED = '[tasks.t]\nmode = "small_only"\ncache = {ttl_s = 60}'
COLD = {"temperature": 0}


async def test_a_repeated_call_is_a_hit(start: Start, small: Loopback) -> None:
    """At temperature 0 the same call is answered from the store, recorded as a hit that cost nothing."""
    gateway = await start(CACHED)
    first = await gateway.chat(COLD, x_smallfirst_task="t")
    again = await gateway.chat(COLD, x_smallfirst_task="t")
    assert (again.text, again.said("reason"), again.said("cost-usd")) == (first.text, "cache", "0.00000000")
    assert len(small.seen) == 1
    assert (await gateway.record(again)).attempts[0].kind == "cache"


async def test_a_hit_can_be_streamed(start: Start, small: Loopback) -> None:
    """A hit is streamed to a client that streams."""
    gateway = await start(CACHED)
    await gateway.chat(COLD, x_smallfirst_task="t")
    again = await gateway.chat({**COLD, "stream": True}, x_smallfirst_task="t")
    text = "".join(e["choices"][0]["delta"].get("content") or "" for e in again.events if e["choices"])
    assert (text, len(small.seen)) == ("small", 1)


@pytest.mark.parametrize(
    ("first", "second", "headers"),
    [
        ({}, {}, {}),
        (COLD, COLD, {"x_smallfirst_cache": "skip"}),
        (COLD, {**COLD, "seed": 1}, {}),
        (COLD, {**COLD, "model": "smallfirst"}, {}),
        (COLD, COLD, {"openai_organization": "other"}),
    ],
    ids=["warm", "skip", "other-field", "other-model", "other-organization"],
)
async def test_misses(
    start: Start, small: Loopback, first: dict[str, object], second: dict[str, object], headers: dict[str, str]
) -> None:
    """A call that is warm, skips the cache or differs in any field is asked anew."""
    gateway = await start(CACHED)
    await gateway.chat(first, x_smallfirst_task="t")
    await gateway.chat(second, x_smallfirst_task="t", **headers)
    assert len(small.seen) == 2


async def test_a_caller_can_ask_for_the_cache(start: Start, small: Loopback) -> None:
    """`x-smallfirst-cache: use` makes a warm call cacheable."""
    gateway = await start(CACHED)
    for _ in range(2):
        await gateway.chat(x_smallfirst_task="t", x_smallfirst_cache="use")
    assert len(small.seen) == 1


async def test_no_cache_without_a_policy(start: Start, small: Loopback) -> None:
    """A task without a `cache` has none, even when the caller asks."""
    gateway = await start(cascade("small_only"))
    for _ in range(2):
        await gateway.chat(COLD, x_smallfirst_cache="use")
    assert len(small.seen) == 2


async def test_keys_do_not_share_answers(start: Start, small: Loopback) -> None:
    """A hit is never shared between API keys."""
    gateway = await start(CACHED)
    keys = [await gateway.add_key(), await gateway.add_key()]
    for key in (*keys, *keys):
        await gateway.chat(COLD, x_smallfirst_task="t", authorization=f"Bearer {key}")
    assert len(small.seen) == 2


async def test_hits_end_with_their_time(start: Start, small: Loopback) -> None:
    """After its time limit an answer is asked for anew."""
    gateway = await start('[tasks.t]\nmode = "small_only"\ncache = {ttl_s = 0.0}')
    for _ in range(2):
        await gateway.chat(COLD, x_smallfirst_task="t")
    assert len(small.seen) == 2


async def test_other_settings_end_all_hits(start: Start, small: Loopback) -> None:
    """A changed configuration does not reuse answers made under the old one."""
    for repairs in (1, 2):
        gateway = await start(f"{CACHED}\nrepairs = {repairs}")
        await gateway.chat(COLD, x_smallfirst_task="t")
    assert len(small.seen) == 2


async def test_failures_are_not_kept(start: Start, small: Loopback) -> None:
    """An answer that did not meet the bar, or an error, is not kept."""
    small.handlers = [answer({"error": {"message": "x"}}, 500), says("fine")]
    gateway = await start(CACHED)
    assert (await gateway.chat(COLD, x_smallfirst_task="t")).status == 500
    assert (await gateway.chat(COLD, x_smallfirst_task="t")).text == "fine"


async def test_max_usd_of_a_call(start: Start, large: Loopback) -> None:
    """A call whose stage may cost more than it allows is refused before the model is asked, clearly."""
    gateway = await start(cascade(max_usd=0.02))
    done = await gateway.chat({"max_tokens": 1000})
    assert (done.status, done.said("reason"), large.seen) == (502, "budget", [])
    assert "max_usd" in done.body["error"]["message"]
    assert (await gateway.chat({"max_tokens": 10})).text == "large"


async def test_max_seconds_of_a_call(start: Start, small: Loopback, large: Loopback) -> None:
    """Time runs out once for the whole call, not once a stage."""
    small.handlers = [hang]
    gateway = await start(cascade(accept_uncalibrated=True, max_seconds=0.1))
    done = await gateway.chat()
    assert (done.status, large.seen) == (502, [])
    assert "max_seconds" in done.body["error"]["message"]
    record = await gateway.record(done)
    assert [a.reason for a in record.attempts] == ["error:timeout", "budget"]


async def test_a_keys_budget_is_exact_under_load(start: Start, large: Loopback) -> None:
    """Of 50 calls at once a key's daily budget admits exactly those that it can pay, whatever they end up costing."""
    gateway = await start(cascade("observe", shadow=False))
    key = await gateway.add_key(usd_per_day=0.02)  # a call costs 0.002; at most 0.0028
    large.handlers = [answer(whole("x"))]
    calls = [gateway.chat({"max_tokens": 5}, authorization=f"Bearer {key}") for _ in range(50)]
    done = await asyncio.gather(*calls)
    counts = Counter(d.status for d in done)
    spent = sum(float(d.said("cost-usd")) for d in done if d.status == 200)
    assert set(counts) == {200, 429}
    assert counts[200] == len(large.seen)
    assert spent <= 0.02 + 1e-9
    async with gateway.store() as store:
        [row] = await store.list_keys()
        day = (await gateway.records())[0].created_at // 86_400 * 86_400
        assert await store.spent(row.id, day) == pytest.approx(spent)
    assert all(int(d.headers["retry-after"]) > 0 for d in done if d.status == 429)


def paid(small: Loopback, usd: float) -> tuple[str, str]:
    """A hosted small model with a price, observed beside the large one."""
    table = (
        f'[models.paid]\nbackend = "openai"\npreset = "vllm"\nbase_url = "{small.url}/v1"\nmodel = "tiny"\nsmall = true'
    )
    price = f"price = {{input = {usd}, output = {usd}}}"
    return f"{table}\n{price}", cascade("observe", stages=["paid", "large"])


async def test_a_priced_shadow_counts_against_the_keys_budget(start: Start, small: Loopback) -> None:
    """What a hosted small model's shadow cost is spent by the key of the call."""
    gateway = await start(*paid(small, 100.0))
    key = await gateway.add_key(usd_per_day=1)
    record = await gateway.record(await gateway.chat({"max_tokens": 5}, x_api_key=key), attempts=2)
    async with gateway.store() as store:
        [row] = await store.list_keys()
        assert await store.spent(row.id, record.created_at // 86_400 * 86_400) == pytest.approx(0.002 + 0.0015)


async def test_a_shadow_that_the_budget_does_not_allow_is_left_out(start: Start, small: Loopback) -> None:
    """The call is answered, its shadow is not asked for, and the metrics say so."""
    gateway = await start(*paid(small, 1e5))
    key, viewer = await gateway.add_key(usd_per_day=1), await gateway.add_key("viewer")
    assert (await gateway.chat({"max_tokens": 5}, x_api_key=key)).text == "large"
    dropped = "smallfirst_shadow_dropped_total 1.0"
    await until(lambda: gateway.get("/metrics", x_api_key=viewer), lambda metrics: dropped in metrics.raw.decode())
    assert small.seen == []


async def test_a_reservation_outlasts_its_call(start: Start, small: Loopback, tmp_path: Path) -> None:
    """What a call may cost is held for as long as its stages and their repairs may take."""
    small.handlers = [hang]
    gateway = await start(cascade("small_only", repairs=5))
    key = await gateway.add_key(usd_per_day=1)
    call = asyncio.create_task(gateway.chat(authorization=f"Bearer {key}"))
    await small.asked.wait()
    with closing(sqlite3.connect(tmp_path / "calls.db")) as store:
        [(until_s,)] = store.execute("SELECT expires_at FROM reservations").fetchall()
    assert until_s - time.time() > 6 * 120
    call.cancel()


async def test_hanging_up_is_not_free(start: Start, large: Loopback) -> None:
    """A client that goes away before the end is charged what its call may have cost, so that no budget is evaded."""
    large.handlers = [sse(events(chunks("It is sunny")[:-1], done=False), then="hang")]
    gateway = await start(cascade("observe", shadow=False))
    key = await gateway.add_key(usd_per_day=1)
    async with gateway.http.post(CHAT, json=question(stream=True), headers={"x-api-key": key}) as reply:
        assert reply.status == 200
        await reply.content.readany()
        reply.close()
    [record] = await gateway.records()
    async with gateway.store() as store:
        [row] = await store.list_keys()
        spent = await until(lambda: store.spent(row.id, record.created_at // 86_400 * 86_400), bool)
    assert 0.2 < spent < 0.22  # 1,024 tokens of answer at 200 USD a million, and the bytes sent at 100
    assert (record.attempts[-1].cost_usd, record.attempts[-1].reason) == (None, "cancelled")
