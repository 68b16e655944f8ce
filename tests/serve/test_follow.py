"""serve.follow: what a gateway follows goes on being followed."""

from __future__ import annotations

import asyncio

import pytest

from smallfirst.errors import StoreError
from smallfirst.serve.follow import follow


class Source:
    """Raises once, and then tells that it was asked again."""

    def __init__(self, error: Exception) -> None:
        self._errors = [error]
        self.asked_again = asyncio.Event()

    async def refresh(self) -> None:
        if self._errors:
            raise self._errors.pop()
        self.asked_again.set()


@pytest.mark.parametrize("error", [StoreError("locked"), ValueError("a defect")])
async def test_no_error_ends_the_following(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that cannot be read, or a defect, is told, and the source is asked again."""
    monkeypatch.setattr("smallfirst.serve.follow.REFRESH_S", 0.01)
    source = Source(error)
    following = asyncio.create_task(follow(source))
    async with asyncio.timeout(10):
        await source.asked_again.wait()
    following.cancel()
