"""A provider on loopback that records what it is asked and misbehaves on request."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from aiohttp import web

WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "get_weather", "description": "Weather", "parameters": WEATHER}}
CUSTOM = {"type": "custom", "custom": {"name": "shell", "description": "Runs a line."}}
CALLED = {"id": "t0", "type": "function", "function": {"name": "get_weather", "arguments": '{ "city" : "Paris" }'}}
CHAT_FIELDS: dict[str, Any] = {
    "messages": [
        {"role": "developer", "content": "Be brief.", "name": "dev"},
        {"role": "user", "content": [{"type": "text", "text": "Hi \u00e9\U0001f600", "cache_control": {"type": "x"}}]},
        {"role": "assistant", "content": None, "tool_calls": [CALLED], "later": 1},
        {"role": "tool", "tool_call_id": "t0", "content": "sunny"},
    ],
    "model": "gpt-5-mini",
    "audio": {"format": "wav", "voice": "alloy"},
    "frequency_penalty": 0.5,
    "function_call": "auto",
    "functions": [{"name": "get_weather", "parameters": WEATHER}],
    "logit_bias": {"50256": -100},
    "logprobs": True,
    "max_completion_tokens": 100,
    "max_tokens": 99,
    "metadata": {"team": "search"},
    "modalities": ["text"],
    "moderation": {"model": "omni-moderation-latest"},
    "n": 2,
    "parallel_tool_calls": False,
    "prediction": {"type": "content", "content": "sunny"},
    "presence_penalty": -0.25,
    "prompt_cache_key": "k",
    "prompt_cache_options": {"mode": "explicit"},
    "prompt_cache_retention": "24h",
    "reasoning_effort": "low",
    "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": WEATHER, "strict": True}},
    "safety_identifier": "s",
    "seed": 2**53 + 1,
    "service_tier": "flex",
    "stop": ["\n", "END"],
    "store": True,
    "stream": True,
    "stream_options": {"include_obfuscation": False, "include_usage": True},
    "temperature": 1.0,
    "tool_choice": {"type": "function", "function": {"name": "get_weather"}},
    "tools": [TOOL, CUSTOM],
    "top_logprobs": 3,
    "top_p": 0.9,
    "user": "u1",
    "verbosity": "low",
    "web_search_options": {"search_context_size": "low"},
    "a_field_of_2031": {"deep": [1, 2.50, None, {"x": "\u2028"}]},
}
"""A value for every field of OpenAI's chat request, and for one that it does not have."""
CHAT_NEEDS = {
    "function_call": ("functions",),
    "parallel_tool_calls": ("tools",),
    "stream_options": ("stream",),
    "tool_choice": ("tools",),
    "top_logprobs": ("logprobs",),
}
"""Fields of `CHAT_FIELDS` that make sense beside others only."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Seen:
    """A request as it arrived; `peer` tells connections apart."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any
    peer: object


@dataclass
class Loopback:
    """Answers with `handlers` in turn, the last of them for ever.

    `asked` is set by the first call, `left` once a caller went away early."""

    handlers: list[Handler]
    seen: list[Seen] = field(default_factory=list)
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    url: str = ""
    _runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application(client_max_size=2**26)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"

    async def close(self) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        headers = {name.lower(): value for name, value in request.headers.items()}
        peer = request.transport.get_extra_info("peername") if request.transport else None
        self.seen.append(Seen(request.method, request.path, headers, msgspec.json.decode(raw) if raw else None, peer))
        self.asked.set()
        handler = self.handlers.pop(0) if len(self.handlers) > 1 else self.handlers[0]
        try:
            return await handler(request)
        except (asyncio.CancelledError, ConnectionError):
            self.left.set()
            raise


def answer(payload: Any, status: int = 200, **headers: str) -> Handler:
    """A handler that answers JSON."""

    async def handle(request: web.Request) -> web.StreamResponse:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.json_response(payload, status=status, headers=names)

    return handle


def page(body: bytes, content_type: str, status: int = 200) -> Handler:
    """A handler that answers bytes of any kind."""

    async def handle(request: web.Request) -> web.StreamResponse:
        return web.Response(body=body, content_type=content_type, status=status)

    return handle


def sse(*chunks: bytes, then: str = "end") -> Handler:
    """A handler that streams chunks and then ends, hangs ("hang"), or cuts the connection ("cut")."""

    async def handle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for chunk in chunks:
            await response.write(chunk)
        if then == "hang":
            await asyncio.Event().wait()
        if then == "cut":
            assert request.transport is not None
            request.transport.abort()
        return response

    return handle


async def hang(request: web.Request) -> web.StreamResponse:
    """A handler that never answers."""
    await asyncio.Event().wait()
    raise AssertionError


async def slam(request: web.Request) -> web.StreamResponse:
    """A handler that cuts the connection before any byte."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


def events(payloads: Sequence[Any], *, named: bool = False, done: bool = True) -> bytes:
    """Payloads as server-sent events: named by their type (Anthropic, responses) or ended by [DONE] (chat)."""
    out = b""
    for payload in payloads:
        name = f"event: {payload['type']}\n".encode() if named else b""
        out += name + b"data: " + msgspec.json.encode(payload) + b"\n\n"
    return out + (b"data: [DONE]\n\n" if done and not named else b"")


def chat_body(field: str) -> dict[str, Any]:
    """The least body with `field` as `CHAT_FIELDS` has it."""
    return {name: CHAT_FIELDS[name] for name in ("model", "messages", field, *CHAT_NEEDS.get(field, ()))}
