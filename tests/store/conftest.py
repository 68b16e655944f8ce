"""Stores on `url`, the empty database of a test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from smallfirst.store import Store, open_store

Opener = Callable[..., Awaitable[Store]]


@pytest.fixture
async def opener(url: str) -> AsyncIterator[Opener]:
    """Opens stores on `url`, which are closed after the test."""
    stores: list[Store] = []

    async def open_one(**options: object) -> Store:
        stores.append(await open_store(url, **options))
        return stores[-1]

    yield open_one
    for store in stores:
        await store.close()


@pytest.fixture
async def store(opener: Opener) -> Store:
    """A new store without keys."""
    return await opener()
