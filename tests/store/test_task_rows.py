from __future__ import annotations

import os

import pytest

from smallfirst.errors import ConfigError
from smallfirst.store import Keyring, TaskRow

ROWS = [
    TaskRow("t-1", "triage", False, {"cells": [{"slots": [1, (1 << 63) - 1], "least": 0.25}]}, 1.0),
    TaskRow("t-2", "订单", True, {"cells": []}, 2.0),
]


async def test_tasks_are_kept_and_replaced_together(store):
    """What is kept comes back oldest first; the next set takes its place whole."""
    assert await store.tasks() == []
    await store.replace_tasks(ROWS[::-1])
    assert await store.tasks() == ROWS
    await store.replace_tasks(ROWS[1:])
    assert await store.tasks() == ROWS[1:]
    await store.replace_tasks([])
    assert await store.tasks() == []


async def test_models_are_sealed(opener):
    """With keys, models are encrypted, rotate like every payload, and cannot be read without their key."""
    old, new = os.urandom(32), os.urandom(32)
    store = await opener(keyring=Keyring("k1", {"k1": old}))
    await store.replace_tasks(ROWS)
    store = await opener(keyring=Keyring("k2", {"k1": old, "k2": new}))
    assert await store.rotate() >= len(ROWS)
    store = await opener(keyring=Keyring("k2", {"k2": new}))
    assert await store.tasks() == ROWS
    with pytest.raises(ConfigError):
        await opener()
