"""The routes: each hands an `Exchange` to the gateway, and every error leaves in its wire's own shape."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

import msgspec
import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from smallfirst import __version__
from smallfirst.errors import (
    LimitError,
    MethodError,
    NotFoundError,
    RequestError,
    SmallfirstError,
    UpstreamError,
)
from smallfirst.serve.exchange import ClientGone, Exchange
from smallfirst.serve.feedback import parse_feedback
from smallfirst.serve.gateway import Failed, Gateway, new_id
from smallfirst.serve.openapi import description
from smallfirst.types import Wire
from smallfirst.wire import WIRES

Handler = Callable[[Gateway, Exchange], Awaitable[None]]
log = structlog.get_logger("smallfirst")
CREATED = int(time.time())
_NAMING = frozenset({b"host", b"origin"})
_OWN_NAME = re.compile(rb"(https?://)?(localhost|127\.0\.0\.1|\[::1\])(:\d+)?", re.IGNORECASE)
_KEPT_HEADERS = frozenset({"content-type", "retry-after", "x-request-id"})


class _Embeddings(msgspec.Struct):
    """What is read of a /v1/embeddings body; all of it is handed on."""

    model: str


class App:
    """The ASGI application of a running gateway: routes, and the one place where any exception becomes an answer.

    `keyless` restricts the Host and Origin headers to this machine's names, so that no web page can use a gateway that
    asks for no key: neither by a name of its own (DNS rebinding) nor from the browser of someone who visits it.
    `mounted` applications answer what is at and below their path, and make answers of their own errors.
    """

    def __init__(self, gateway: Gateway, *, keyless: bool, mounted: Mapping[str, ASGIApp] | None = None) -> None:
        self._gateway, self._keyless, self._mounted = gateway, keyless, mounted or {}
        self._write_timeout_s = gateway.config.server.write_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gateway = self._gateway
        exchange = Exchange(scope, receive, send, write_timeout_s=self._write_timeout_s)
        wire: Wire = "chat"
        try:
            if self._keyless:
                _check_names(scope["headers"])
            if (mounted := self._mounted.get("/" + scope["path"][1:].partition("/")[0])) is not None:
                await mounted(scope, receive, _noting(exchange, send))
                return
            wire, handler = _route(scope["method"], scope["path"])
            await handler(gateway, exchange)
        except ClientGone:
            return
        except Failed as err:
            await _error(wire, exchange, err.error, err.headers)
        except SmallfirstError as err:
            gateway.telemetry.refused(err.code)
            await _error(wire, exchange, err, {})
        except Exception:
            log.exception("defect", path=scope["path"])
            await _error(wire, exchange, SmallfirstError("The gateway failed.", hint="Its log says why."), {})


def _noting(exchange: Exchange, send: Send) -> Send:
    """`send` for an application that sends by itself: once it has begun, no other answer may follow."""

    async def noting(message: Message) -> None:
        exchange.started = True
        await send(message)

    return noting


async def _error(wire: Wire, exchange: Exchange, err: SmallfirstError, headers: Mapping[str, str]) -> None:
    if exchange.started:
        log.warning("answer broken off", error=str(err))
        return
    more = dict(headers)
    if isinstance(err, LimitError | UpstreamError) and err.retry_after is not None:
        more["retry-after"] = str(max(1, math.ceil(err.retry_after)))
    if isinstance(err, MethodError):
        more["allow"] = ", ".join(err.allowed)
    await exchange.reply(err.status, msgspec.json.encode(WIRES[wire].error(err)), more)


def _check_names(headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Refuse calls that name another host, or that a page of another host makes in a browser of this machine."""
    for name, value in headers:
        if name in _NAMING and not _OWN_NAME.fullmatch(value):
            what = f"The {name.decode().title()} header is {value.decode('latin-1')!r}."
            hint = "Without API keys only localhost is served; `smallfirst keys add` and a restart lift that."
            raise RequestError(what, hint=hint)


def _answer(wire: Wire) -> Handler:
    return lambda gateway, exchange: gateway.answer(wire, exchange)


async def _embeddings(gateway: Gateway, exchange: Exchange) -> None:
    """Pass through to a server that makes embeddings: one that hands on the model's name, else the large one first."""
    caller = await gateway.access.authenticate(exchange.headers)
    raw = await _body(gateway, exchange)
    backend = _embedder(gateway, raw)

    async def work() -> None:
        status, headers, body = await backend.embeddings(raw)
        await exchange.reply(status, body, {k: v for k, v in headers.items() if k in _KEPT_HEADERS})

    with gateway.admission.admit(caller):
        await exchange.while_connected(work)


def _embedder(gateway: Gateway, raw: bytes) -> Any:
    try:
        model = msgspec.json.decode(raw, type=_Embeddings).model
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
        raise RequestError(
            f"The body cannot be read: {err}.", hint="Send a JSON object with model and input."
        ) from None
    able = [c for c in gateway.candidates.values() if c.stage.backend.capabilities.embeddings]
    if not able:
        hint = "Configure a server with preset 'openai'."
        raise NotFoundError("No configured model makes embeddings.", hint=hint, param="model")
    return min(able, key=lambda c: (not (c.named(model) or c.hands_on(model)), c.stage.small)).stage.backend


async def _models(gateway: Gateway, exchange: Exchange) -> None:
    """The names that a call may use; patterns of names that are handed on are listed as they are."""
    await gateway.access.authenticate(exchange.headers)
    names: dict[str, str] = {"auto": "smallfirst"}
    for name, candidate in gateway.candidates.items():
        for model in (candidate.stage.model or name, *candidate.patterns):
            names.setdefault(model, candidate.stage.backend.name)
    data = [{"id": n, "object": "model", "created": CREATED, "owned_by": owner} for n, owner in names.items()]
    await exchange.reply(200, msgspec.json.encode({"object": "list", "data": data}))


async def _feedback(gateway: Gateway, exchange: Exchange) -> None:
    """A later label of a record."""
    await gateway.access.authenticate(exchange.headers)
    raw = await _body(gateway, exchange)
    feedback = parse_feedback(raw, new_id())
    await gateway.store.add_feedback(feedback)
    await exchange.reply(201, msgspec.json.encode({"id": feedback.id, "record_id": feedback.record_id}))


async def _healthz(_: Gateway, exchange: Exchange) -> None:
    """Alive: the process answers."""
    await exchange.reply(200, msgspec.json.encode({"status": "ok", "version": __version__}))


async def _readyz(gateway: Gateway, exchange: Exchange) -> None:
    """Ready: a record could be made durable now."""
    await gateway.store.ping()
    await exchange.reply(200, b'{"status":"ready"}')


async def _metrics(gateway: Gateway, exchange: Exchange) -> None:
    await gateway.access.authenticate(exchange.headers, "viewer")
    kind = "text/plain; version=0.0.4; charset=utf-8"
    await exchange.reply(200, gateway.telemetry.exposition(), media_type=kind)


async def _openapi(_: Gateway, exchange: Exchange) -> None:
    await exchange.reply(200, msgspec.json.encode(description()))


async def _body(gateway: Gateway, exchange: Exchange) -> bytes:
    server = gateway.config.server
    return await exchange.body(limit=int(server.max_body_mb * 2**20), timeout_s=server.body_timeout_s)


_GET, _POST = ("GET", "HEAD"), ("POST",)
_ROUTES: Mapping[str, tuple[tuple[str, ...], Wire, Handler]] = {
    "/v1/chat/completions": (_POST, "chat", _answer("chat")),
    "/v1/responses": (_POST, "responses", _answer("responses")),
    "/v1/messages": (_POST, "messages", _answer("messages")),
    "/v1/embeddings": (_POST, "chat", _embeddings),
    "/v1/models": (_GET, "chat", _models),
    "/v1/feedback": (_POST, "chat", _feedback),
    "/healthz": (_GET, "chat", _healthz),
    "/readyz": (_GET, "chat", _readyz),
    "/metrics": (_GET, "chat", _metrics),
    "/openapi.json": (_GET, "chat", _openapi),
}


def _route(method: str, path: str) -> tuple[Wire, Handler]:
    """The wire and the handler of a call. Raises NotFoundError, MethodError."""
    route = _ROUTES.get(path)
    if route is None:
        raise NotFoundError(f"There is no {path!r:.200} here.", hint="See /openapi.json for what there is.")
    methods, wire, handler = route
    if method not in methods:
        raise MethodError(f"{path} does not take {method}.", methods)
    return wire, handler
