"""Many tasks at once: a function of one task, called for each, in this process, in several, or on a Ray cluster.

    None          one after the other, here
    "local"       on a Ray cluster of this machine's cores, started for it
    "auto", ...   on the Ray cluster at that address (`ray.init`)
    an integer    in so many processes of this machine, without Ray

What the processes of a cluster share is the store and a folder that all of its machines see.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import TypeVar

from smallfirst.assemble import open_configured_store
from smallfirst.config import Config
from smallfirst.errors import ConfigError
from smallfirst.extra import need
from smallfirst.learn.loop import Loop, Rounds, Settings, TaskReport
from smallfirst.learn.rounds import Conversion, Recipe

T = TypeVar("T")
R = TypeVar("R")
Where = str | int | None


def run_many(work: Callable[[T], R], items: Iterable[T], where: Where = None) -> list[R]:
    """`work` of each item, in their order; `work` and what it takes and gives must be picklable.

    Raises ConfigError when Ray is asked for and not installed, or no cluster answers at the address, and whatever
    `work` raises.
    """
    if where is None:
        return [work(item) for item in items]
    if isinstance(where, int):
        with ProcessPoolExecutor(where, mp_context=get_context("spawn")) as pool:
            return list(pool.map(work, items))
    return list(_on_ray(work, items, where))


def _on_ray(work: Callable[[T], R], items: Iterable[T], address: str) -> Iterator[R]:
    ray = need("ray", "ray")
    started = not ray.is_initialized()
    try:
        if started:
            ray.init(address=None if address == "local" else address, log_to_driver=False, include_dashboard=False)
    except (ConnectionError, ValueError) as error:
        raise ConfigError(
            f"No Ray cluster can be used at {address!r}: {error}.", hint="Allowed: local, auto, HOST:PORT."
        ) from error
    try:
        remote = ray.remote(work)
        yield from ray.get([remote.remote(item) for item in items])
    finally:
        if started:
            ray.shutdown()


def elsewhere(config: Config, settings: Settings, recipe: Recipe, where: Where) -> Rounds:
    """What a `Loop` takes to have its rounds done at `where`: datasets, training, evaluation and release of each task
    in a process of its own. `settings.folder` and files that `config` names must be the same everywhere."""

    async def rounds(tasks: Sequence[str]) -> Sequence[TaskReport]:
        return await asyncio.to_thread(run_many, partial(_round, config, settings, recipe), tasks, where)

    return rounds


def _round(config: Config, settings: Settings, recipe: Recipe, task: str) -> TaskReport:
    """The round of one task, in a process that has nothing open."""

    async def work() -> TaskReport:
        store = await open_configured_store(config, os.environ)
        try:
            return await Loop(store, Conversion(store, config, os.environ, recipe), settings).go_on(task)
        finally:
            await store.close()

    return asyncio.run(work())
