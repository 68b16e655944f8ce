"""The tasks that were found, to which calls are assigned; read from the store and followed while the gateway runs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from smallfirst.assignment import Assigner, cells_from_json, prompt_of_request
from smallfirst.store import Store, TaskRow
from smallfirst.types import Request

_REMEMBERED = 10_000


class Tasks:
    """Assigns calls to found tasks. A change of the tasks counts within `follow.REFRESH_S` seconds."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._version = b""
        self._assigner = Assigner({})
        self._known: dict[str, str | None] = {}

    def assign(self, request: Request, mark: str) -> str | None:
        """The id of the call's task; None when it looks like none. `mark` is the call's fingerprint.

        Where tools, response schema and system text alone decide, the calls of a fingerprint are looked at once.
        """
        if mark in self._known:
            return self._known[mark]
        prompt = prompt_of_request(request)
        task = self._assigner.task(prompt)
        if self._assigner.decided_by_form(prompt):
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[mark] = task
        return task

    async def refresh(self) -> None:
        """Read the tasks if they were replaced. Raises StoreError."""
        version = await self._store.tasks_version()
        if version != self._version:
            rows = await self._store.tasks()
            self._assigner = await asyncio.to_thread(_assigner, rows)
            self._known.clear()
            self._version = version


def _assigner(rows: Sequence[TaskRow]) -> Assigner:
    return Assigner({row.id: cells_from_json(row.model) for row in rows})
