"""The gateway as a running server: assembled, listening, and stopped in order."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import structlog
import uvicorn

from smallfirst.assemble import assemble, open_configured_store
from smallfirst.config import Config
from smallfirst.errors import ConfigError, StoreError
from smallfirst.serve.access import LOOPBACK, Access, Admission
from smallfirst.serve.app import create_app
from smallfirst.serve.cache import ResponseCache
from smallfirst.serve.gateway import Gateway
from smallfirst.serve.shadow import Shadows
from smallfirst.serve.telemetry import Telemetry, configure_logging

log = structlog.get_logger("smallfirst")
DAY_S = 86_400
PRUNE_EVERY_S = 3600


@asynccontextmanager
async def open_gateway(config: Config, env: Mapping[str, str]) -> AsyncIterator[Gateway]:
    """Start everything that `config` names and yield the gateway; stop it all afterwards."""
    async with assemble(config, env) as parts:
        telemetry = Telemetry(config.telemetry)
        shadows = Shadows(parts.store, telemetry)
        gateway = Gateway(
            config=config,
            candidates=parts.candidates,
            cascades=parts.cascades,
            known_model=parts.pricing.known,
            store=parts.store,
            access=Access(parts.store, host=config.server.host),
            admission=Admission(config.server.max_concurrent),
            cache=ResponseCache(parts.store, config.hash),
            shadows=shadows,
            telemetry=telemetry,
        )
        await shadows.start()
        pruning = asyncio.create_task(_prune(gateway)) if config.store.retention_days else None
        try:
            yield gateway
        finally:
            if pruning is not None:
                pruning.cancel()
            await shadows.close()
            telemetry.close()


async def check_bind(config: Config, env: Mapping[str, str]) -> bool:
    """Whether the gateway will ask for no key. Raises ConfigError for a public bind without any key."""
    store = await open_configured_store(config, env)
    try:
        keyless = not any(k.revoked_at is None for k in await store.list_keys())
    finally:
        await store.close()
    if keyless and config.server.host not in LOOPBACK:
        raise ConfigError(
            f"server.host is {config.server.host!r}, which other machines can reach, and there is no API key.",
            hint="`smallfirst keys add NAME` makes one; or listen on 127.0.0.1.",
        )
    return keyless


def run(config: Config) -> None:
    """Serve until interrupted (SIGINT, SIGTERM): open calls are finished, then everything is closed."""
    configure_logging(config.telemetry)
    keyless = asyncio.run(check_bind(config, os.environ))
    uvicorn.Server(_settings(config, os.environ, keyless=keyless)).run()


@asynccontextmanager
async def serving(config: Config, env: Mapping[str, str]) -> AsyncIterator[str]:
    """Serve in this event loop on a free port of the configured host; yields the base URL."""
    keyless = await check_bind(config, env)
    with socket.create_server((config.server.host, 0)) as listener:
        port = listener.getsockname()[1]
        server = uvicorn.Server(_settings(config, env, keyless=keyless))
        task = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            while not server.started:
                if task.done():
                    task.result()
                    raise ConfigError("The gateway did not start.", hint="Its log says why.")
                await asyncio.sleep(0.01)
            yield f"http://{config.server.host}:{port}"
        finally:
            server.should_exit = True
            await task


def _settings(config: Config, env: Mapping[str, str], *, keyless: bool) -> uvicorn.Config:
    server = config.server
    app = create_app(lambda: open_gateway(config, env), keyless=keyless, write_timeout_s=server.write_timeout_s)
    return uvicorn.Config(
        app,
        host=server.host,
        port=server.port,
        log_level="warning",
        access_log=False,
        http="httptools",
        lifespan="on",
        timeout_graceful_shutdown=30,
        server_header=False,
        date_header=False,
    )


async def _prune(gateway: Gateway) -> None:
    """Remove what is older than the retention, every hour."""
    while True:
        try:
            removed = await gateway.store.prune(time.time() - gateway.config.store.retention_days * DAY_S)
            log.info("retention", removed=removed)
        except StoreError as err:
            log.warning("retention failed", error=str(err))
        await asyncio.sleep(PRUNE_EVERY_S)
