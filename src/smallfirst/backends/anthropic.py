"""Anthropic's Messages API, as itself."""

from __future__ import annotations

from collections.abc import AsyncIterator

from smallfirst.backends.exchange import ask
from smallfirst.backends.http import Timeouts, Upstream
from smallfirst.types import Capabilities, Delta, Request
from smallfirst.wire import messages

BASE_URL = "https://api.anthropic.com"
VERSION = "2023-06-01"
CAPABILITIES = Capabilities(
    modalities=frozenset({"text", "image", "file"}),
    native=frozenset({"messages"}),
    top_logprobs=0,
    many=False,
)
_HEADERS = ("anthropic-version", "anthropic-beta")


class AnthropicBackend:
    """Anthropic, or a server with its API, at `base_url` (without /v1).

    Messages go through as the client sent them, with the client's anthropic-version and anthropic-beta headers; chat
    and responses are translated. The model asked for is `request.model`. Raises BackendError only, once started.
    """

    def __init__(
        self,
        name: str,
        base_url: str = BASE_URL,
        api_key: str | None = None,
        capabilities: Capabilities = CAPABILITIES,
        *,
        timeouts: Timeouts | None = None,
        max_retries: int = 2,
        connections: int = 256,
    ) -> None:
        self.name = name
        self.capabilities = capabilities
        self._upstream = Upstream(
            name,
            base_url,
            api_key=api_key,
            auth="x-api-key",
            headers={"anthropic-version": VERSION},
            timeouts=timeouts,
            max_retries=max_retries,
            connections=connections,
        )

    async def start(self) -> None:
        """Open the connection pool."""
        await self._upstream.start()

    async def close(self) -> None:
        """Close all connections. May be called twice."""
        await self._upstream.close()

    def generate(self, request: Request) -> AsyncIterator[Delta]:
        """The answer to `request`, piece by piece when it streams; closing the iterator stops the upstream."""
        body = messages.body(request, model=request.model, stream=request.stream, capabilities=self.capabilities)
        return ask(self._upstream, "/v1/messages", body, request, wire=messages, keep=_HEADERS)
