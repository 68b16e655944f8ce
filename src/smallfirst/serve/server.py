"""The gateway as a running server: assembled, listening, and stopped in order."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from random import SystemRandom

import structlog
import uvicorn
from starlette.types import ASGIApp
from uvicorn.loops.auto import auto_loop_factory

from smallfirst.assemble import assemble
from smallfirst.config import Config, Server
from smallfirst.errors import ConfigError, StoreError
from smallfirst.serve.access import LOOPBACK, Access, Admission
from smallfirst.serve.app import App
from smallfirst.serve.audit import Audits
from smallfirst.serve.cache import ResponseCache
from smallfirst.serve.calibrations import Calibrations
from smallfirst.serve.follow import follow
from smallfirst.serve.gateway import Gateway
from smallfirst.serve.releases import Releases
from smallfirst.serve.shadow import Shadows
from smallfirst.serve.tasks import Tasks
from smallfirst.serve.telemetry import Telemetry, configure_logging

Mounts = Mapping[str, Callable[[Gateway, Callable[[], bool]], ASGIApp]]
"""By path, what makes an application of the gateway and of what tells that the server is stopping, which the streams
that the application keeps open have to look at."""

log = structlog.get_logger("smallfirst")
DAY_S = 86_400
PRUNE_EVERY_S = 3600


@asynccontextmanager
async def open_gateway(config: Config, env: Mapping[str, str]) -> AsyncIterator[Gateway]:
    """Start everything that `config` names and yield the gateway; stop it all afterwards."""
    async with assemble(config, env) as parts:
        telemetry = Telemetry(config.telemetry)
        shadows = Shadows(parts.store, telemetry)
        calibrations = Calibrations(parts.store, config, parts.candidates, telemetry)
        await calibrations.refresh()
        tasks = Tasks(parts.store)
        await tasks.refresh()
        releases = Releases(parts.store, parts.versions, telemetry)
        await releases.refresh()
        await releases.loaded()
        random = SystemRandom()
        gateway = Gateway(
            config=config,
            config_hash=config.hash,
            candidates=parts.candidates,
            cascades=parts.cascades,
            known_model=parts.pricing.known,
            store=parts.store,
            access=Access(parts.store, host=config.server.host),
            admission=Admission(config.server.max_concurrent),
            cache=ResponseCache(parts.store, config.hash),
            shadows=shadows,
            tasks=tasks,
            calibrations=calibrations,
            releases=releases,
            audits=Audits(calibrations, random),
            telemetry=telemetry,
            random=random,
        )
        await shadows.start()
        background = [
            asyncio.create_task(work) for work in (_prune(gateway), follow(calibrations, tasks), follow(releases))
        ]
        try:
            yield gateway
        finally:
            for task in background:
                task.cancel()
            await releases.close()
            await shadows.close()
            await asyncio.to_thread(telemetry.close)  # it waits for the collector


def run(config: Config, mounts: Mounts | None = None) -> None:
    """Serve until interrupted (SIGINT, SIGTERM): open calls are finished, then everything is closed.

    `mounts` are applications that this process serves below paths of their own ("/dashboard").
    """
    configure_logging(config.telemetry)
    with asyncio.Runner(loop_factory=auto_loop_factory()) as runner:
        runner.run(_serve(config, os.environ, mounts))


async def _serve(config: Config, env: Mapping[str, str], mounts: Mounts | None) -> None:
    async with open_gateway(config, env) as gateway:
        server = await _server(gateway, mounts)
        with _listener(config.server, config.server.port) as listener:
            _spare_the_collector()
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, _stopped)
            await server.serve(sockets=[listener])


def _spare_the_collector() -> None:
    """Keep what was loaded out of every collection, and collect less often: at the defaults, going through all of it
    again and again takes a tenth of each call's time, and stops the world for 70 ms at a time (bench/overhead.py)."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)


def _stopped(*_: object) -> None:
    """uvicorn handles signals while it serves, and raises them again afterwards: then there is still all to close."""


@asynccontextmanager
async def serving(config: Config, env: Mapping[str, str], mounts: Mounts | None = None) -> AsyncIterator[str]:
    """Serve in this event loop on a free port of the configured host; yields the base URL."""
    async with open_gateway(config, env) as gateway:
        server = await _server(gateway, mounts)
        with _listener(config.server, 0) as listener:
            task = asyncio.create_task(server.serve(sockets=[listener]))
            try:
                while not server.started:  # noqa: ASYNC110 - uvicorn tells it by this flag alone
                    await asyncio.sleep(0.01)
                yield f"http://{config.server.host}:{listener.getsockname()[1]}"
            finally:
                server.should_exit = True
                await task


async def _server(gateway: Gateway, mounts: Mounts | None) -> uvicorn.Server:
    """uvicorn for the gateway's app. Raises ConfigError for an address that others can reach without any key."""
    host = gateway.config.server.host
    keyless = not any(key.revoked_at is None for key in await gateway.store.list_keys())
    if keyless and host not in LOOPBACK:
        raise ConfigError(
            f"server.host is {host!r}, which other machines can reach, and there is no API key.",
            hint="`smallfirst keys add NAME` makes one; or listen on 127.0.0.1.",
        )
    mounted = {path: mount(gateway, lambda: server.should_exit) for path, mount in (mounts or {}).items()}
    settings = uvicorn.Config(
        App(gateway, keyless=keyless, mounted=mounted),
        log_level="warning",
        access_log=False,
        http="httptools",
        lifespan="off",
        ws="none",
        proxy_headers=False,
        timeout_graceful_shutdown=30,
        server_header=False,
        date_header=False,
    )
    server = uvicorn.Server(settings)
    return server


def _listener(settings: Server, port: int) -> socket.socket:
    """A listening socket whose connections send at once (a reply's head and body would else wait 40 ms for an ACK), and
    end when their client takes nothing for `write_timeout_s` (where the system can do that)."""
    host = settings.host
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=2048)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(settings.write_timeout_s * 1000))
        return listener
    except OSError as err:
        hint = "Another process may use it: choose another with --port."
        raise ConfigError(f"Cannot listen on {host}:{port}: {err.strerror}.", hint=hint) from None


async def _prune(gateway: Gateway) -> None:
    """Remove expired responses and what is older than the retention (0 days: for ever), every hour."""
    days = gateway.config.store.retention_days
    while True:
        try:
            removed = await gateway.store.prune(time.time() - days * DAY_S if days else 0.0)
            log.debug("retention", removed=removed)
        except StoreError as err:
            log.warning("retention failed", error=str(err))
        await asyncio.sleep(PRUNE_EVERY_S)
