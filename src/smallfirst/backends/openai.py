"""OpenAI, and the servers that speak its API: vLLM, SGLang, llama-server, Ollama.

What they do differently is in `PRESETS`; there is no branch on a server's name. LoRA adapters of such servers are
models by name (vLLM: the adapter's name, SGLang: "base:adapter"), so a request's adapter goes into `model`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

from smallfirst.backends.exchange import ask
from smallfirst.backends.http import Timeouts, Upstream
from smallfirst.types import Capabilities, Constraint, Delta, Request
from smallfirst.wire import chat, responses

BASE_URL = "https://api.openai.com/v1"
_HEADERS = ("openai-organization", "openai-project", "idempotency-key")

# What the servers' own documentation and request models say (2026-11). Modalities of open servers depend on the model
# they serve, so "text" is the safe word there and the configuration may say more.
PRESETS: Mapping[str, Capabilities] = {
    "openai": Capabilities(
        modalities=frozenset({"text", "image", "audio", "file"}),
        native=frozenset({"chat", "responses"}),
        custom_tools=True,
        constraint=False,  # strict schemas are a subset, and others are not enforced
        top_logprobs=20,
        max_tokens_field="max_completion_tokens",
        embeddings=True,
    ),
    # any other server: what most of them can, and no more
    "compatible": Capabilities(native=frozenset({"chat"}), many=False, embeddings=True),
    # --max-logprobs is 20 by default
    "vllm": Capabilities(native=frozenset({"chat"}), constraint=True, top_logprobs=20, embeddings=True),
    "sglang": Capabilities(
        native=frozenset({"chat"}),
        constraint=True,
        top_logprobs=20,
        max_tokens_field="max_completion_tokens",
        embeddings=True,
    ),
    # one choice a request in all but the newest builds; log-probabilities not while it streams tool calls
    "llama-server": Capabilities(
        native=frozenset({"chat"}),
        constraint=True,
        top_logprobs=20,
        many=False,
        embeddings=True,
    ),
    # `n` is not read, log-probabilities only by new versions
    "ollama": Capabilities(
        native=frozenset({"chat"}),
        constraint=True,
        top_logprobs=0,
        many=False,
        embeddings=True,
    ),
}


class OpenAIBackend:
    """A server at `base_url` (which ends in /v1) that speaks the OpenAI API.

    Chat goes through as the client sent it; so do responses where `capabilities.native` names them; everything else is
    asked as chat. The model asked for is `request.model`. Raises BackendError only, once started.
    """

    def __init__(
        self,
        name: str,
        base_url: str = BASE_URL,
        api_key: str | None = None,
        capabilities: Capabilities = PRESETS["openai"],
        *,
        timeouts: Timeouts | None = None,
        max_retries: int = 2,
        connections: int = 256,
    ) -> None:
        self.name = name
        self.capabilities = capabilities
        self._upstream = Upstream(
            name, base_url, api_key=api_key, timeouts=timeouts, max_retries=max_retries, connections=connections
        )

    async def start(self) -> None:
        """Open the connection pool."""
        await self._upstream.start()

    async def close(self) -> None:
        """Close all connections. May be called twice."""
        await self._upstream.close()

    def generate(self, request: Request) -> AsyncIterator[Delta]:
        """The answer to `request`, piece by piece when it streams; closing the iterator stops the upstream."""
        model, sampling = request.adapter or request.model, request.sampling
        if request.wire == "responses" and "responses" in self.capabilities.native:
            body = responses.body(request, model=model, stream=request.stream, capabilities=self.capabilities)
            return ask(self._upstream, "/responses", body, request, wire=responses, keep=_HEADERS)
        top = min(sampling.top_logprobs, self.capabilities.top_logprobs) if sampling.logprobs else 0
        body = chat.body(request, model=model, stream=request.stream, capabilities=self.capabilities, top_logprobs=top)
        if request.constraint is not None and self.capabilities.constraint and not request.callable_tools:
            _constrain(body, request.constraint)
        return ask(self._upstream, "/chat/completions", body, request, wire=chat, keep=_HEADERS)

    async def embeddings(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Pass a /v1/embeddings body through: status, headers (lower case) and body exactly as the upstream answers."""
        return await self._upstream.raw("/embeddings", body)


def _constrain(body: dict[str, Any], constraint: Constraint) -> None:
    """Hold the answer's text to the schema by `response_format`, the one field that vLLM, SGLang, llama-server and
    Ollama all enforce while decoding. Servers that know where a model's reasoning ends bind only what follows, so
    "late" needs no field of its own. Not with tools: a schema over the text would stand in the way of the server's own
    tool calls."""
    schema = {"name": "answer", "schema": constraint.schema, "strict": True}
    body["response_format"] = {"type": "json_schema", "json_schema": schema}
