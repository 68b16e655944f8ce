from __future__ import annotations


async def test_a_response_is_kept_until_it_expires_or_is_replaced(store):
    """A kept response is found by its hash until its time; a second one replaces it."""
    await store.cache_put("h", "trips", b"one", 100.0)
    assert await store.cache_get("h", 99.0) == b"one"
    assert await store.cache_get("h", 100.0) is None
    assert await store.cache_get("other", 0.0) is None
    await store.cache_put("h", "trips", b"two", 200.0)
    assert await store.cache_get("h", 150.0) == b"two"


async def test_clearing_a_task_leaves_the_others(store):
    """A release of one task invalidates its responses only."""
    await store.cache_put("a", "trips", b"1", 9e9)
    await store.cache_put("b", "mail", b"2", 9e9)
    await store.cache_clear("trips")
    assert await store.cache_get("a", 0.0) is None
    assert await store.cache_get("b", 0.0) == b"2"


async def test_pruning_removes_expired_responses(store):
    """Retention removes responses whose time is over from the database itself."""
    await store.cache_put("a", "trips", b"1", 100.0)
    await store.cache_put("b", "trips", b"2", 9e12)
    await store.prune(200.0)
    assert await store._readers.run(lambda c: c.query("SELECT key_hash FROM responses")) == [("b",)]
