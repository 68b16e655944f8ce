"""The official openai client, through which the demo calls the gateway as any application does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smallfirst.errors import ConfigError

if TYPE_CHECKING:
    from openai import AsyncOpenAI

TIMEOUT_S = 120.0


def connected(base_url: str, api_key: str) -> AsyncOpenAI:
    """A client of the gateway at `base_url`, up to and with /v1. Raises ConfigError when `openai` is not installed."""
    try:
        from openai import AsyncOpenAI
    except ImportError as error:
        raise ConfigError(
            "The demo calls the gateway through the official openai client, which is not installed.",
            hint="Run `pip install 'smallfirst[demo]'`.",
        ) from error
    return AsyncOpenAI(base_url=base_url, api_key=api_key, max_retries=0, timeout=TIMEOUT_S)
