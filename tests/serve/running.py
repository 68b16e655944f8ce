"""A gateway in this process with two providers on loopback behind it, and what tests say to it."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import anthropic
import msgspec
import openai
from aiohttp import web
from recording import WEATHER, Handler, Loopback, answer, events, sse

from smallfirst.assemble import open_configured_store
from smallfirst.config import Config, parse
from smallfirst.serve.server import serving
from smallfirst.store import KeyLimits, Store
from smallfirst.store.rows import StoredRecord

PROVIDER_KEY = "sk-provider-9f3a7c"
CITY_FORMAT = {"type": "json_schema", "json_schema": {"name": "city", "schema": WEATHER}}
CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
MODELS = """
[models.small]
backend = "openai"
preset = "vllm"
base_url = "{small}/v1"
model = "tiny"
small = true
max_retries = 0
price = {{input = 0.0, output = 0.0}}
[models.large]
backend = "openai"
preset = "openai"
base_url = "{large}/v1"
api_key_env = "PROVIDER_KEY"
model = "big"
models = ["gpt-*", "claude-*"]
max_retries = 0
price = {{input = 100.0, output = 200.0}}
[store]
url = "sqlite:///{folder}/calls.db"
"""
T = TypeVar("T")
Start = Callable[..., Awaitable["Running"]]


@dataclass(frozen=True)
class Answer:
    """An HTTP answer, read to its end."""

    status: int
    headers: Mapping[str, str]
    raw: bytes

    @property
    def body(self) -> Any:
        return msgspec.json.decode(self.raw)

    @property
    def text(self) -> str:
        """What the assistant said (chat)."""
        return self.body["choices"][0]["message"]["content"]

    @property
    def events(self) -> list[Any]:
        """The stream's data, without comments and [DONE]."""
        lines = [line[6:] for line in self.raw.splitlines() if line.startswith(b"data: ")]
        return [msgspec.json.decode(line) for line in lines if line != b"[DONE]"]

    def said(self, name: str) -> str:
        """The value of x-smallfirst-<name>."""
        return self.headers[f"x-smallfirst-{name}"]


@dataclass(frozen=True)
class Running:
    """A gateway that runs; `api_key` is sent with every call when it is set."""

    url: str
    config: Config
    env: Mapping[str, str]
    http: aiohttp.ClientSession

    @classmethod
    @asynccontextmanager
    async def open(
        cls, folder: Path, small: str, large: str, tables: Sequence[str], given: Mapping[str, str]
    ) -> AsyncIterator[Running]:
        """Serve with two models and `tables` of further settings."""
        env = {"PROVIDER_KEY": PROVIDER_KEY, **given}
        text = MODELS.format(small=small, large=large, folder=folder) + "\n".join(tables)
        config = parse(text, env)
        timeout = aiohttp.ClientTimeout(total=10)
        async with serving(config, env) as url, aiohttp.ClientSession(url, timeout=timeout) as http:
            yield cls(url, config, env, http)

    async def send(
        self,
        method: str,
        path: str,
        data: bytes | AsyncIterator[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        sent = io.BytesIO(data) if isinstance(data, bytes) else data
        async with self.http.request(method, path, data=sent, headers=headers) as reply:
            headers = {name.lower(): value for name, value in reply.headers.items()}
            return Answer(reply.status, headers, await reply.read())

    async def post(self, path: str, body: Any, **headers: str) -> Answer:
        """POST `body`, as JSON unless it is bytes; in the names of headers, underscores are dashes."""
        data = body if isinstance(body, bytes) else msgspec.json.encode(body)
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.send("POST", path, data, {"content-type": "application/json", **names})

    async def chat(self, body: Mapping[str, Any] | None = None, **headers: str) -> Answer:
        """A chat call: `body` laid over one question."""
        return await self.post(CHAT, question(**(body or {})), **headers)

    async def get(self, path: str, **headers: str) -> Answer:
        return await self.send("GET", path, headers={n.replace("_", "-"): v for n, v in headers.items()})

    def openai(self, key: str = "none") -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0)

    def anthropic(self, key: str = "none") -> anthropic.AsyncAnthropic:
        return anthropic.AsyncAnthropic(base_url=self.url, api_key=key, max_retries=0)

    @asynccontextmanager
    async def store(self) -> AsyncIterator[Store]:
        """The gateway's store, opened beside it."""
        store = await open_configured_store(self.config, self.env)
        try:
            yield store
        finally:
            await store.close()

    async def record(self, of: Answer | str, *, attempts: int = 1) -> StoredRecord:
        """The record of an answer, once it has so many attempts."""
        record_id = of if isinstance(of, str) else of.said("record")
        async with self.store() as store:
            return await until(lambda: store.get(record_id), lambda record: len(record.attempts) >= attempts)

    async def records(self, least: int = 1) -> list[StoredRecord]:
        """All records, newest first, once there are `least`."""
        async with self.store() as store:
            return await until(lambda: _all(store), lambda records: len(records) >= least)

    async def add_key(self, role: Any = "agent", **limits: Any) -> str:
        async with self.store() as store:
            return (await store.add_key("test", role, KeyLimits(**limits)))[1]


async def until(read: Callable[[], Awaitable[T]], enough: Callable[[T], bool]) -> T:
    """What `read` gives once it is enough; TimeoutError when that takes 5 s."""
    async with asyncio.timeout(5):
        while not enough(found := await read()):  # noqa: ASYNC110 - another connection writes
            await asyncio.sleep(0.01)
    return found


async def _all(store: Store) -> list[StoredRecord]:
    return [record async for record in store.export()]


def question(**fields: Any) -> dict[str, Any]:
    """A chat body: one question, to whichever model."""
    return {"model": "auto", "messages": [{"role": "user", "content": "Where am I?"}], **fields}


def cascade(mode: str = "enforce", **more: Any) -> str:
    """A [cascade] table."""
    lines = [f"{name} = {msgspec.json.encode(value).decode()}" for name, value in {"mode": mode, **more}.items()]
    return "\n".join(["[cascade]", *lines])


def message(text: str | None, *calls: tuple[str, str]) -> dict[str, Any]:
    """An assistant's message with text and calls of (tool, arguments)."""
    made = [
        {"id": f"call_{n}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for n, (name, arguments) in enumerate(calls)
    ]
    return {"role": "assistant", "content": text, **({"tool_calls": made} if made else {})}


def whole(text: str | None, *calls: tuple[str, str], **more: Any) -> dict[str, Any]:
    """A chat completion."""
    finish = "tool_calls" if calls else "stop"
    choice = {"index": 0, "message": message(text, *calls), "finish_reason": finish, "logprobs": None}
    head = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "big-2026"}
    return {**head, "choices": [choice], "usage": USAGE, **more}


def chunks(text: str | None, *calls: tuple[str, str], **more: Any) -> list[dict[str, Any]]:
    """The same as chunks of a stream: a word or ten characters of arguments each."""
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "big-2026", **more}

    def chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        return {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}

    pieces: list[dict[str, Any]] = [{"role": "assistant", "content": None if calls else ""}]
    pieces += [{"content": word} for word in (text or "").split(" ") if word]
    for n, (name, arguments) in enumerate(calls):
        made = {"index": n, "id": f"call_{n}", "type": "function", "function": {"name": name, "arguments": ""}}
        pieces.append({"tool_calls": [made]})
        cut = (arguments[at : at + 10] for at in range(0, len(arguments), 10))
        pieces += [{"tool_calls": [{"index": n, "function": {"arguments": piece}}]} for piece in cut]
    usage = {**head, "choices": [], "usage": USAGE}
    return [*map(chunk, pieces), chunk({}, "tool_calls" if calls else "stop"), usage]


def a_response(text: str) -> dict[str, Any]:
    """A whole answer of the responses API."""
    part = {"type": "output_text", "text": text, "annotations": []}
    item = {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": [part]}
    usage = {
        "input_tokens": 10,
        "output_tokens": 5,
        "total_tokens": 15,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 0},
    }
    head = {"id": "resp_1", "object": "response", "created_at": 1, "status": "completed", "model": "big-2026"}
    rest = {"parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "error": None}
    return {**head, **rest, "output": [item], "usage": usage}


def says(text: str | None, *calls: tuple[str, str]) -> Handler:
    """A handler that gives one answer: as a chat, streamed when that is asked for, or as a whole response."""

    async def handle(request: web.Request) -> web.StreamResponse:
        body = msgspec.json.decode(await request.read())
        if request.path.endswith("/responses"):
            return await answer(a_response(text or ""))(request)
        handler = sse(events(chunks(text, *calls))) if body.get("stream") else answer(whole(text, *calls))
        return await handler(request)

    return handle


@asynccontextmanager
async def started(server: Loopback) -> AsyncIterator[Loopback]:
    await server.start()
    try:
        yield server
    finally:
        await server.close()


def every(path: str, text: str) -> dict[str, Any]:
    """The least body of each wire that asks `text`."""
    said = [{"role": "user", "content": text}]
    return {
        CHAT: {"model": "auto", "messages": said},
        RESPONSES: {"model": "auto", "input": text},
        MESSAGES: {"model": "auto", "max_tokens": 100, "messages": said},
    }[path]
