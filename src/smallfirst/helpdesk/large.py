"""A server that stands in for a large model: right answers by construction, but for a small share.

It is no model. It answers the agent's calls and no others, at once, under a name that says what it is; what a call
costs is the list price of a real model for as many tokens (four bytes each).
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from aiohttp import web

from smallfirst.helpdesk.sites import Ask
from smallfirst.prices import PriceList
from smallfirst.types import Json, Usage

NAME = "simulated-large"
PRICED_AS = "gpt-4o"
MISTAKES = 0.01
"""Share of its answers that are wrong, though valid."""
_BYTES_A_TOKEN = 4


class Large:
    """Answers those calls that it was taught; `mistakes` is the share answered wrong, the same ones every time."""

    def __init__(self, *, mistakes: float = MISTAKES) -> None:
        self._mistakes = mistakes
        self._known: dict[bytes, Ask] = {}
        self._prices = PriceList()

    def teach(self, asks: Iterable[Ask]) -> None:
        """Make these calls known."""
        self._known |= {_key(ask.body): ask for ask in asks}

    def answer(self, ask: Ask) -> Json:
        """The assistant's message."""
        rng = random.Random(_key(ask.body))
        return _mistaken(ask, rng) if rng.random() < self._mistakes else ask.gold

    def cost(self, ask: Ask) -> float | None:
        """USD of the call at the list price of `PRICED_AS`."""
        asked, said = self._tokens(ask)
        return self._prices.cost(PRICED_AS, None, Usage(asked, said))

    def completion(self, ask: Ask) -> dict[str, Any]:
        """The answer as OpenAI's chat API gives it."""
        message = self.answer(ask)
        finish = "tool_calls" if message.get("tool_calls") else "stop"
        asked, said = self._tokens(ask)
        return {
            "id": f"chatcmpl-{_key(ask.body).hex()[:24]}",
            "object": "chat.completion",
            "created": 0,
            "model": NAME,
            "choices": [{"index": 0, "message": message, "finish_reason": finish, "logprobs": None}],
            "usage": {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said},
        }

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        """Serve on a free port of this machine; yields the base URL, up to and with /v1."""
        app = web.Application(client_max_size=2**24)
        app.router.add_post("/v1/chat/completions", self._chat)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        finally:
            await runner.cleanup()

    async def _chat(self, request: web.Request) -> web.Response:
        ask = self._known.get(_key(await request.json()))
        if ask is None:
            said = "This stands in for a large model and answers the simulated agent's calls only."
            return web.json_response({"error": {"message": said, "type": "invalid_request_error"}}, status=400)
        return web.json_response(self.completion(ask))

    def _tokens(self, ask: Ask) -> tuple[int, int]:
        asked = {name: ask.body[name] for name in ("messages", "tools", "response_format") if name in ask.body}
        message = self.answer(ask)
        said = message.get("tool_calls") or message.get("content")
        return len(msgspec.json.encode(asked)) // _BYTES_A_TOKEN, len(msgspec.json.encode(said)) // _BYTES_A_TOKEN


def _key(body: Json) -> bytes:
    return hashlib.sha256(msgspec.json.encode(body["messages"], order="deterministic")).digest()


def _mistaken(ask: Ask, rng: random.Random) -> Json:
    """A wrong answer that breaks no rule of the request: one value is another, or a fact is missing."""
    if ask.facts:
        return {**ask.gold, "content": str(ask.gold["content"]).replace(ask.facts[-1], "a few days")}
    if not ask.gold.get("tool_calls"):
        schema = ask.body["response_format"]["json_schema"]["schema"]
        return {**ask.gold, "content": json.dumps(_other(json.loads(ask.gold["content"]), schema, rng))}
    [call] = ask.gold["tool_calls"]
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in ask.body["tools"]}
    name, arguments = call["function"]["name"], json.loads(call["function"]["arguments"])
    if arguments:
        arguments = _other(arguments, schemas[name], rng)
    else:
        name = rng.choice([other for other, schema in schemas.items() if not schema["required"] and other != name])
    function = {"name": name, "arguments": json.dumps(arguments)}
    return {**ask.gold, "tool_calls": [{**call, "function": function}]}


def _other(value: Json, schema: Json, rng: random.Random) -> dict[str, Any]:
    """The object with one of its values changed."""
    field = rng.choice(list(value))
    changed, rule = value[field], schema["properties"][field]
    if "enum" in rule:
        changed = rng.choice([one for one in rule["enum"] if one != changed])
    elif isinstance(changed, bool):
        changed = not changed
    elif isinstance(changed, list):
        changed = changed[:-1]
    else:
        changed = f"{changed or 'unknown'}"[:-1]
    return {**value, field: changed}
