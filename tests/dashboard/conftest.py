from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from filled import fill, write_comparison
from site_under_test import Open, Site

from smallfirst.dashboard.assets import made_bundle
from smallfirst.store import open_store

_BUNDLE: list[bytes] = []


@pytest.fixture(autouse=True)
def brisk(brisk_server: None) -> None:
    """All tests here stop servers."""


@pytest.fixture(autouse=True)
def bundle_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Making Vega's bundle takes seconds, so all tests share one."""

    async def made() -> bytes:
        if not _BUNDLE:
            _BUNDLE.append(await made_bundle())
        return _BUNDLE[0]

    monkeypatch.setattr("smallfirst.dashboard.assets.made_bundle", made)


@pytest.fixture
async def open_site(tmp_path: Path) -> AsyncIterator[Open]:
    """Opens gateways with a dashboard, on a store of the test's own, and stops them after the test."""
    async with AsyncExitStack() as stack:

        async def open_site(*tables: str, **env: str) -> Site:
            return await stack.enter_async_context(Site.open(tmp_path, tables, **env))

        yield open_site


@pytest.fixture
async def empty(open_site: Open) -> Site:
    """A dashboard of which nothing was recorded."""
    return await open_site()


@pytest.fixture(scope="session")
def used(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a store after some weeks of use."""
    path = tmp_path_factory.mktemp("used") / "calls.db"

    async def work() -> None:
        store = await open_store(f"sqlite:///{path}")
        await fill(store)
        await store.close()

    asyncio.run(work())
    return path


@pytest.fixture(autouse=True)
def compared(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measurements of compressors for tests of a dashboard in use; for others there are none."""
    if {"site", "shared"} & set(request.fixturenames):
        write_comparison(tmp_path / "compared")
    monkeypatch.setattr("smallfirst.dashboard.pages.COMPARED", tmp_path / "compared")


@pytest.fixture
async def site(used: Path, tmp_path: Path, open_site: Open) -> Site:
    """A dashboard after some weeks of use."""
    shutil.copy(used, tmp_path)
    return await open_site()
