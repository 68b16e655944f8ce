"""One upstream server over HTTP: kept-alive connections, time limits, bounded retries, and errors of ours only.

Knows nothing of what is asked or answered. The API key lives in the session's headers; it is in no message, repr or
log, and it is cut out of whatever an upstream echoes in an error.
"""

from __future__ import annotations

import asyncio
import random
import string
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from io import BytesIO
from typing import Any, Literal
from urllib.parse import urlsplit

import aiohttp
import msgspec

from smallfirst import __version__
from smallfirst.deadline import Deadline
from smallfirst.errors import (
    BackendError,
    BackendGarbage,
    BackendTimeout,
    BackendUnavailable,
    ConfigError,
    UpstreamError,
)

_decode_object = msgspec.json.Decoder(dict[str, Any]).decode
_NO_HEADERS: Mapping[str, str] = {}
_BASE_DELAY_S = 0.5  # of the first retry; doubles with each
_LONGEST_DELAY_S = 8.0
_LONGEST_WAIT_S = 20.0  # that an upstream may ask for
_DRAIN_S = 1.0  # what an upstream gets to end a stream that is complete, so that its connection can be used again
_LARGE = 2**20  # bytes of a body that is sent piece by piece, so that other calls go on meanwhile
_QUOTE = 300  # characters of an unreadable answer that an error quotes
_HOPELESS = (aiohttp.SocketTimeoutError, aiohttp.ClientSSLError)  # a slow server or a wrong certificate stays so
_HINTS = {
    401: "Check the API key of this backend.",
    403: "Check what the API key of this backend may do.",
    404: "Check the backend's base_url and the model's name.",
}


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Limits in seconds. `first_byte` and `idle` bound the gaps of a streamed answer; an answer that comes at once
    has no bytes until it is complete, so only `total` bounds it. A request's own `timeout_s` replaces `total`.
    """

    connect: float = 5.0
    first_byte: float = 120.0
    idle: float = 60.0
    total: float = 600.0


class Upstream:
    """A client of one server at `base_url`, which paths are appended to.

    A call whose answer has not begun is repeated at most `max_retries` times: after a failed connection and after
    statuses 408, 409, 429 and 5xx. An upstream that asks for a wait longer than 20 s, or than the call may still take,
    is not asked again early: the error carries its `retry_after`, and another model can answer meanwhile.
    `auth` is how the key travels: "bearer" (Authorization) or the name of a header of its own. `connections` bounds
    those open at once; calls beyond it wait their turn within their own time. `max_bytes` bounds one answer.
    Raises ConfigError for a base URL or key that cannot work; every other error is a BackendError.
    """

    def __init__(
        self,
        name: str,
        base_url: str,
        *,
        api_key: str | None = None,
        auth: Literal["bearer", "x-api-key"] = "bearer",
        headers: Mapping[str, str] = _NO_HEADERS,
        timeouts: Timeouts | None = None,
        max_retries: int = 2,
        connections: int = 256,
        max_bytes: int = 32 * 2**20,
    ) -> None:
        self.name = name
        self.base_url = _checked_url(base_url)
        self._key = _checked_key(name, api_key)
        self._headers = {
            "content-type": "application/json",
            "accept-encoding": "identity",  # unpacking costs more than it saves, and packers hold streams back
            "user-agent": f"smallfirst/{__version__}",
            **headers,
        }
        if self._key:
            header, value = ("authorization", f"Bearer {self._key}") if auth == "bearer" else (auth, self._key)
            self._headers[header] = value
        self._timeouts = timeouts or Timeouts()
        self._connecting = aiohttp.ClientTimeout(total=None, sock_connect=self._timeouts.connect)
        self._max_retries = max_retries
        self._connections = connections
        self._max_bytes = max_bytes
        self._session: aiohttp.ClientSession | None = None

    def __repr__(self) -> str:
        return f"Upstream({self.name!r}, {self.base_url!r})"

    async def start(self) -> None:
        """Open the session; connections are made as calls need them."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._connections, ttl_dns_cache=300, keepalive_timeout=30),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers=self._headers,
            )

    async def close(self) -> None:
        """Close all connections; calls in flight fail. May be called twice."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def json(
        self,
        path: str,
        body: bytes,
        *,
        headers: Mapping[str, str] = _NO_HEADERS,
        timeout_s: float | None = None,
    ) -> dict[str, Any]:
        """POST `body` and return the JSON object that answers."""
        reply, data = await self._whole(path, body, headers, timeout_s)
        if reply.status >= 300:
            raise self._refusal(reply, data)
        return self._object(reply, data)

    async def raw(
        self, path: str, body: bytes, *, headers: Mapping[str, str] = _NO_HEADERS, timeout_s: float | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """POST `body` and return status, headers (lower case) and bytes as the upstream sent them, refusals too."""
        reply, data = await self._whole(path, body, headers, timeout_s)
        return reply.status, reply.headers, data

    async def _whole(
        self, path: str, body: bytes, headers: Mapping[str, str], timeout_s: float | None
    ) -> tuple[Reply, bytes]:
        """An answer that is read to its end."""
        total_s = timeout_s or self._timeouts.total
        try:
            with Deadline(total_s):
                response = await self._open(path, body, headers, total_s, stream=False)
                reply = Reply(self, response, self._max_bytes)
                try:
                    return reply, await reply.all()
                finally:
                    response.close()
        except TimeoutError as error:
            raise self.failure(error) from None

    @asynccontextmanager
    async def stream(
        self, path: str, body: bytes, *, headers: Mapping[str, str] = _NO_HEADERS, timeout_s: float | None = None
    ) -> AsyncIterator[Reply]:
        """POST `body` and read the event stream that answers.

        Leaving the block normally means the answer is complete and keeps the connection; leaving it by an exception
        or a cancellation closes the connection, which tells the upstream to stop generating.
        """
        response = await self._open(path, body, headers, timeout_s or self._timeouts.total, stream=True)
        reply = Reply(self, response, self._max_bytes)
        try:
            if reply.status >= 300:
                raise self._refusal(reply, await reply.all())
            if reply.content_type != "text/event-stream":
                data = await reply.all()
                raise BackendGarbage(
                    f"{self.name}: a stream was asked for and {reply.content_type!r} came: {self._quote(data)}",
                    hint="Check that base_url is an API's, and that this server streams.",
                )
            yield reply
            await reply.drain()
        finally:
            response.close()  # keeps the connection if the answer was read to its end

    async def _open(
        self, path: str, body: bytes, headers: Mapping[str, str], total_s: float, stream: bool
    ) -> aiohttp.ClientResponse:
        """Send until an answer begins that is not worth a retry, or retries or time are used up."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + total_s
        for attempt in range(self._max_retries + 1):
            left = deadline - clock()
            outcome = await self._send(path, body, headers, left, stream)
            pause = self._pause(outcome, attempt, deadline - clock())
            if pause is None:
                break
            if isinstance(outcome, aiohttp.ClientResponse):
                outcome.release()
            await asyncio.sleep(pause)
        if isinstance(outcome, aiohttp.ClientResponse):
            return outcome
        raise self.failure(outcome)

    async def _send(
        self, path: str, body: bytes, headers: Mapping[str, str], left_s: float, stream: bool
    ) -> aiohttp.ClientResponse | OSError | aiohttp.ClientError:
        """One try: the begun answer, or the error that kept it from beginning."""
        if self._session is None:
            raise BackendUnavailable(f"{self.name} is not started, or is closed.")
        limits = self._timeouts
        timeout = self._connecting  # and all of it within `_whole`'s limit
        if stream:
            total = max(left_s, 0.001)
            timeout = aiohttp.ClientTimeout(total=total, sock_connect=limits.connect, sock_read=limits.first_byte)
        try:
            response = await self._session.request(
                "POST",
                self.base_url + path,
                data=BytesIO(body) if len(body) > _LARGE else body,
                headers=headers,
                timeout=timeout,
                allow_redirects=False,
            )
        except (aiohttp.ClientError, OSError) as error:
            return error
        if stream and response.connection is not None and response.connection.protocol is not None:
            response.connection.protocol.read_timeout = limits.idle
        return response

    def _pause(self, outcome: object, attempt: int, left_s: float) -> float | None:
        """Seconds to wait before the next try, or None when there should be none.

        Full jitter: uniform on [0, min(longest, base x 2^attempt)], so that clients that failed together do not come
        back together.
        """
        if attempt >= self._max_retries:
            return None
        asked: float | None = None
        if isinstance(outcome, aiohttp.ClientResponse):
            if outcome.status not in (408, 409, 429) and outcome.status < 500:
                return None
            asked = retry_after(outcome.headers)
        elif isinstance(outcome, _HOPELESS) or not isinstance(outcome, aiohttp.ClientConnectionError):
            return None
        pause = asked if asked is not None else random.uniform(0, min(_LONGEST_DELAY_S, _BASE_DELAY_S * 2**attempt))
        return pause if pause < min(_LONGEST_WAIT_S, left_s) else None

    def failure(self, error: OSError | aiohttp.ClientError) -> BackendError:
        """Our error for one of the client library's."""
        if isinstance(error, TimeoutError):
            return BackendTimeout(
                f"{self.name}: {self.base_url} did not answer in time.",
                hint="Give the stage a longer timeout_s, or see why the server is slow.",
            )
        if isinstance(error, aiohttp.ClientSSLError):
            return BackendUnavailable(
                f"{self.name}: no secure connection to {self.base_url}: {self._text(error)}",
                hint="Check the server's certificate and the https in base_url.",
            )
        if isinstance(error, aiohttp.ClientPayloadError | aiohttp.ClientResponseError):
            return BackendGarbage(f"{self.name}: the answer broke off or is not HTTP: {type(error).__name__}.")
        return BackendUnavailable(
            f"{self.name}: no connection to {self.base_url}: {self._text(error)}",
            hint="Check that the server runs and that base_url names it.",
        )

    def _refusal(self, reply: Reply, data: bytes) -> UpstreamError:
        try:
            body = _decode_object(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            body = None
        hint = _HINTS.get(reply.status, "Check the backend's base_url." if reply.status < 400 else "")
        return UpstreamError(
            f"{self.name}: the upstream answered {reply.status}: {_message(body) or self._quote(data)}",
            upstream_status=reply.status,
            body=body,
            retry_after=retry_after(reply.headers),
            hint=hint,
        )

    def _object(self, reply: Reply, data: bytes) -> dict[str, Any]:
        try:
            return _decode_object(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            pass
        raise BackendGarbage(
            f"{self.name}: expected a JSON object, got {reply.content_type!r}: {self._quote(data)}",
            hint="Check that base_url is an API's, not a web page's.",
        )

    def _quote(self, data: bytes) -> str:
        return repr(data[: 4 * _QUOTE].decode("utf-8", "replace")[:_QUOTE])

    def _text(self, error: Exception) -> str:
        text = f"{type(error).__name__}: {error}"
        return text.replace(self._key, "[key]") if self._key else text

    def without_key(self, data: bytes) -> bytes:
        """`data` without the API key, should the upstream have echoed it."""
        return data.replace(self._key.encode(), b"[key]") if self._key else data


class Reply:
    """An answer that has begun. `headers` have lower-case names."""

    __slots__ = ("_left", "_response", "_upstream")

    def __init__(self, upstream: Upstream, response: aiohttp.ClientResponse, max_bytes: int) -> None:
        self._upstream = upstream
        self._response = response
        self._left = max_bytes

    @property
    def status(self) -> int:
        return self._response.status

    @property
    def content_type(self) -> str:
        return self._response.content_type

    @property
    def headers(self) -> dict[str, str]:
        return {name.lower(): value for name, value in self._response.headers.items()}

    async def chunk(self) -> bytes:
        """The next bytes, as many as have come; b"" at the end. Raises a BackendError when it does not end well."""
        return self._upstream.without_key(await self._next())

    async def all(self) -> bytes:
        """All bytes that are left."""
        chunks = [await self._next()]
        while not self._response.content.at_eof():
            chunks.append(await self._next())
        return self._upstream.without_key(b"".join(chunks))

    async def _next(self) -> bytes:
        try:
            data = await self._response.content.readany()
        except (aiohttp.ClientError, OSError) as error:
            failure: BackendError = self._upstream.failure(error)
        else:
            self._left -= len(data)
            if self._left >= 0:
                return data
            failure = BackendGarbage(f"{self._upstream.name}: the answer is larger than the limit for answers.")
        raise failure

    async def drain(self) -> None:
        """Read past what ends the stream, briefly: an upstream that will not end it loses the connection only."""
        with suppress(BackendError, TimeoutError):
            async with asyncio.timeout(_DRAIN_S):
                await self.all()


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a Retry-After header asks for: a number or an HTTP date (RFC 9110, 10.2.3); None if there is none.

    `retry-after-ms`, which OpenAI and Azure send, is finer and goes first.
    """
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        with suppress(ValueError):
            return max(float(value) * unit, 0.0) if float(value) < float("inf") else None
        with suppress(ValueError):
            date = parsedate_to_datetime(value)
            return max((date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(tz=UTC)).total_seconds(), 0.0)
    return None


def _message(body: Mapping[str, Any] | None) -> str:
    """The sentence in an error body of the known shapes: {"error": {"message"}}, {"error": "..."}, {"message"}."""
    if body is None:
        return ""
    error = body.get("error", body)
    text = error.get("message") if isinstance(error, Mapping) else error
    return text[:_QUOTE] if isinstance(text, str) else ""


def _checked_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        good = False
    else:
        if parts.username or parts.password:
            raise ConfigError("A base_url holds a user name or password.", hint="Give the key as api_key instead.")
        good = good and not parts.query and not parts.fragment
    if not good:
        raise ConfigError(f"Not a base URL: {url!r}.", hint='Give it as "https://host/v1", without query.')
    return url.rstrip("/")


def _checked_key(name: str, key: str | None) -> str:
    """The key, or "" for none. What cannot stand in a header is refused here, unseen."""
    allowed = string.ascii_letters + string.digits + string.punctuation
    if key and any(character not in allowed for character in key):
        raise ConfigError(
            f"The API key of {name!r} holds white space or characters that no header can carry.",
            hint="Set it again; a line break at its end is the usual reason.",
        )
    return key or ""
