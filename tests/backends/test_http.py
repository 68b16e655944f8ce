"""The upstream client: time limits, retries, cancellation, and that no secret gets out."""

from __future__ import annotations

import asyncio
import logging
import traceback
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recording import Handler, Loopback, answer, events, hang, page, slam, sse

from smallfirst.backends.http import Timeouts, Upstream, retry_after
from smallfirst.errors import (
    BackendError,
    BackendGarbage,
    BackendTimeout,
    BackendUnavailable,
    ConfigError,
    UpstreamError,
)

KEY = "sk-planted-5ecret"
QUICK = Timeouts(first_byte=0.05, idle=0.05)
GOOD = {"id": "x", "ok": True}


def client(upstream: Loopback, **options: object) -> Upstream:
    return Upstream("big", upstream.url, api_key=KEY, **options)  # type: ignore[arg-type]


async def ask(client: Upstream, *, stream: bool = False, timeout_s: float | None = None) -> bytes | dict[str, object]:
    await client.start()
    try:
        if not stream:
            return await client.json("/v1/x", b'{"a": 1}', timeout_s=timeout_s)
        async with client.stream("/v1/x", b'{"a": 1}', timeout_s=timeout_s) as reply:
            return await reply.all()
    finally:
        await client.close()


async def test_a_call_carries_key_and_body(upstream: Loopback) -> None:
    """A call arrives as a POST of the body with the bearer key, and its JSON answer comes back."""
    upstream.handlers = [answer(GOOD)]
    assert await ask(client(upstream)) == GOOD
    (seen,) = upstream.seen
    assert (seen.method, seen.path, seen.body) == ("POST", "/v1/x", {"a": 1})
    assert seen.headers["authorization"] == f"Bearer {KEY}"
    assert seen.headers["content-type"] == "application/json"


async def test_connections_are_reused(upstream: Loopback) -> None:
    """Calls one after the other, streamed ones too, share one connection."""
    upstream.handlers = [answer(GOOD), sse(b"data: 1\n\n"), answer(GOOD), sse(b"data: 1\n\n"), answer(GOOD)]
    backend = client(upstream)
    await backend.start()
    for streamed in (False, True, False, True, False):
        if streamed:
            async with backend.stream("/v1/x", b"{}") as reply:
                assert await reply.chunk()
        else:
            await backend.json("/v1/x", b"{}")
    await backend.close()
    assert len({seen.peer for seen in upstream.seen}) == 1


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 529])
async def test_passing_trouble_is_retried(upstream: Loopback, status: int) -> None:
    """A status that may pass is asked again after the wait that the upstream named, and the answer counts."""
    upstream.handlers = [answer({}, status, retry_after_ms="1"), answer(GOOD)]
    assert await ask(client(upstream)) == GOOD
    assert len(upstream.seen) == 2


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 413, 422])
async def test_lasting_trouble_is_not_retried(upstream: Loopback, status: int) -> None:
    """A status that will not pass is reported at once, with the upstream's status, body and sentence."""
    body = {"error": {"message": "max_tokens is too large", "code": "bad"}}
    upstream.handlers = [answer(body, status)]
    with pytest.raises(UpstreamError, match="max_tokens is too large") as caught:
        await ask(client(upstream))
    assert (caught.value.upstream_status, caught.value.body) == (status, body)
    assert len(upstream.seen) == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_retries_are_bounded(upstream: Loopback, stream: bool) -> None:
    """An upstream that keeps failing is asked once and twice more, then its last error is ours."""
    upstream.handlers = [answer({"error": "overloaded"}, 503, retry_after_ms="1")]
    with pytest.raises(UpstreamError, match="overloaded"):
        await ask(client(upstream, max_retries=2), stream=stream)
    assert len(upstream.seen) == 3


async def test_a_long_wait_is_reported_not_waited_for(upstream: Loopback) -> None:
    """A Retry-After beyond the cap is neither waited for nor cut short: the error carries it."""
    upstream.handlers = [answer({}, 429, retry_after="3600")]
    with pytest.raises(UpstreamError) as caught:
        await ask(client(upstream))
    assert caught.value.retry_after == 3600
    assert len(upstream.seen) == 1


async def test_no_wait_beyond_the_calls_own_time(upstream: Loopback) -> None:
    """A Retry-After longer than the call may still take ends the call at once."""
    upstream.handlers = [answer({}, 429, retry_after="15")]
    with pytest.raises(UpstreamError):
        await ask(client(upstream), timeout_s=14.0)
    assert len(upstream.seen) == 1


async def test_a_connection_cut_before_any_byte_is_retried(upstream: Loopback) -> None:
    """A connection that dies before the answer begins is opened again."""
    upstream.handlers = [slam, answer(GOOD)]
    assert await ask(client(upstream)) == GOOD


async def test_connection_refused_is_unavailable(unused_tcp_port: int) -> None:
    """A server that is not there is unavailable, and the error says where it was looked for."""
    with pytest.raises(BackendUnavailable, match=str(unused_tcp_port)):
        await ask(Upstream("big", f"http://127.0.0.1:{unused_tcp_port}", max_retries=0))


@pytest.mark.parametrize(
    "handler",
    [hang, sse(b"data: 1\n\n", then="hang")],
    ids=["before the first byte", "between chunks"],
)
async def test_a_silent_stream_times_out_and_is_left(upstream: Loopback, handler: Handler) -> None:
    """An upstream that falls silent is a timeout, not retried, and the upstream sees that nobody listens."""
    upstream.handlers = [handler]
    with pytest.raises(BackendTimeout):
        await ask(client(upstream, timeouts=QUICK), stream=True)
    await asyncio.wait_for(upstream.left.wait(), 5)
    assert len(upstream.seen) == 1


async def test_a_whole_answer_has_only_its_total_time(upstream: Loopback) -> None:
    """An answer that is not streamed may be silent longer than a stream may, up to the call's own limit."""

    async def slow(request: object) -> object:
        await asyncio.sleep(0.15)
        return await answer(GOOD)(request)  # type: ignore[arg-type]

    upstream.handlers = [slow, hang]  # type: ignore[list-item]
    assert await ask(client(upstream, timeouts=QUICK)) == GOOD
    with pytest.raises(BackendTimeout):
        await ask(client(upstream), timeout_s=0.1)


async def test_a_stream_cut_in_the_middle_is_an_error(upstream: Loopback) -> None:
    """A stream whose connection is cut never ends as if it were complete, and is not asked for again."""
    upstream.handlers = [sse(b"data: 1\n\n", then="cut")]
    with pytest.raises(BackendError):
        await ask(client(upstream), stream=True)
    assert len(upstream.seen) == 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "handler",
    [
        page(b"<html>hello</html>", "text/html"),
        page(b"{broken", "application/json"),
        page(b"[1, 2]", "application/json"),
        page(b"\xff\xfe", "application/json"),
        page(b"", "application/json"),
    ],
    ids=["html", "broken", "array", "not utf-8", "empty"],
)
async def test_garbage_is_called_garbage(upstream: Loopback, handler: Handler, stream: bool) -> None:
    """An answer that is no JSON object, or no event stream where one was asked for, is BackendGarbage."""
    upstream.handlers = [handler]
    with pytest.raises(BackendGarbage):
        await ask(client(upstream), stream=stream)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_huge_answer_is_refused(upstream: Loopback, stream: bool) -> None:
    """An answer over the limit is an error, not memory."""
    huge = b"data: " + b"x" * 200_000
    upstream.handlers = [sse(huge) if stream else page(huge, "application/json")]
    with pytest.raises(BackendGarbage, match="larger than the limit"):
        await ask(client(upstream, max_bytes=100_000), stream=stream)


async def test_a_broken_error_page_is_still_an_upstream_error(upstream: Loopback) -> None:
    """An error that is no JSON keeps its status and is quoted briefly."""
    upstream.handlers = [page(b"<h1>Bad gateway</h1>" + b"x" * 9999, "text/html", 404)]
    with pytest.raises(UpstreamError, match="Bad gateway") as caught:
        await ask(client(upstream))
    assert caught.value.body is None
    assert len(str(caught.value)) < 600


async def test_cancelling_a_stream_tells_the_upstream(upstream: Loopback) -> None:
    """Cancelling the reader of a stream closes the connection, so that the provider stops generating."""
    upstream.handlers = [sse(b"data: 1\n\n", then="hang")]
    backend = Upstream("big", upstream.url)
    await backend.start()
    got = asyncio.Event()

    async def read() -> None:
        async with backend.stream("/v1/x", b"{}") as reply:
            while await reply.chunk():
                got.set()

    task = asyncio.create_task(read())
    await asyncio.wait_for(got.wait(), 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(upstream.left.wait(), 5)
    await backend.close()


async def test_cancelling_before_the_answer_tells_the_upstream(upstream: Loopback) -> None:
    """Cancelling a call that waits for its answer closes the connection too."""
    upstream.handlers = [hang]
    backend = Upstream("big", upstream.url)
    await backend.start()
    task = asyncio.create_task(backend.json("/v1/x", b"{}"))
    await asyncio.wait_for(upstream.asked.wait(), 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(upstream.left.wait(), 5)
    await backend.close()


async def test_a_stream_that_will_not_end_costs_only_its_connection(upstream: Loopback) -> None:
    """A complete answer whose connection the upstream leaves open is complete all the same."""
    upstream.handlers = [sse(events([GOOD]), then="hang")]
    backend = client(upstream)
    await backend.start()
    async with backend.stream("/v1/x", b"{}") as reply:
        assert b"[DONE]" in await reply.chunk()
    await backend.close()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "handler",
    [
        answer({"error": {"message": f"Incorrect API key provided: {KEY}", "key": [KEY]}}, 401),
        page(f"<p>{KEY}</p>".encode(), "text/html", 401),
        page(f"not json {KEY}".encode(), "application/json"),
        page(f"not a stream {KEY}".encode(), "text/plain"),
        answer({"error": KEY}, 500, retry_after_ms="1"),
        slam,
        hang,
        sse(b"data: 1\n\n", then="cut"),
    ],
    ids=["echoed", "page", "garbage", "plain", "retried", "slammed", "hung", "cut"],
)
async def test_the_api_key_never_gets_out(
    upstream: Loopback, handler: Handler, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever goes wrong, the key is in no error, traceback, repr or log record, even if the upstream echoes it."""
    caplog.set_level(logging.DEBUG)
    upstream.handlers = [handler]
    backend = client(upstream, max_retries=1)
    with pytest.raises(BackendError) as caught:
        await ask(backend, stream=stream, timeout_s=0.5)
    error = caught.value
    told = [repr(error), str(error), repr(vars(error)), repr(backend), caplog.text]
    told += [repr(record.__dict__) for record in caplog.records]
    told.append("".join(traceback.format_exception(error)))
    context: BaseException | None = error
    while context is not None:
        told += [repr(context), repr(context.args)]
        context = context.__cause__ or context.__context__
    assert not [text for text in told if KEY in text]


async def test_headers_of_bad_http_do_not_leak(caplog: pytest.LogCaptureFixture) -> None:
    """A server that speaks no HTTP is an error that holds neither its bytes nor our headers."""

    async def nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"SSH-2.0-OpenSSH\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(nonsense, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(BackendGarbage) as caught:
        await ask(Upstream("big", f"http://127.0.0.1:{port}", api_key=KEY, max_retries=0))
    assert caught.value.__context__ is None
    assert KEY not in repr(vars(caught.value)) + caplog.text
    server.close()
    await server.wait_closed()


async def test_raw_answers_pass_through(upstream: Loopback) -> None:
    """A pass-through call returns status, headers and bytes as they came, refusals included."""
    upstream.handlers = [answer({"error": {"message": "no such model"}}, 404, x_request_id="r1")]
    backend = client(upstream)
    await backend.start()
    status, headers, body = await backend.raw("/v1/embeddings", b"{}")
    await backend.close()
    assert (status, headers["x-request-id"], body) == (404, "r1", b'{"error": {"message": "no such model"}}')


async def test_a_client_that_is_not_open_is_unavailable(upstream: Loopback) -> None:
    """Before start and after close calls fail as unavailable; start and close may be repeated."""
    backend = client(upstream)
    with pytest.raises(BackendUnavailable):
        await backend.json("/v1/x", b"{}")
    await backend.start()
    await backend.start()
    await backend.close()
    await backend.close()
    with pytest.raises(BackendUnavailable):
        await backend.json("/v1/x", b"{}")


@pytest.mark.parametrize(
    "url",
    ["", "api.openai.com", "ftp://x", "http://", "https://host?x=1", "http://[::1", "http://h:99999"],
)
def test_wrong_base_urls_are_refused(url: str) -> None:
    """A base URL that cannot work is a configuration error that shows it."""
    with pytest.raises(ConfigError, match="base URL"):
        Upstream("big", url)


@pytest.mark.parametrize("key", [KEY + "\n", f"Bearer {KEY}", KEY + "é"])
def test_keys_that_no_header_carries_are_refused_unseen(key: str) -> None:
    """A key with white space or other characters is refused without being shown."""
    with pytest.raises(ConfigError) as caught:
        Upstream("big", "https://host", api_key=key)
    assert KEY not in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        Upstream("big", f"https://user:{KEY}@host")
    assert KEY not in str(caught.value)


def test_retry_after_reads_seconds_milliseconds_and_dates() -> None:
    """All three forms are read; the finer one wins; a date in the past means now."""
    assert retry_after({"retry-after": "7"}) == 7
    assert retry_after({"retry-after": "7", "retry-after-ms": "1500"}) == 1.5
    future = format_datetime(datetime.now(tz=UTC) + timedelta(seconds=60), usegmt=True)
    assert 50 < (retry_after({"retry-after": future}) or 0) <= 60
    assert retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert retry_after({}) is None


@given(st.text(max_size=40))
def test_any_retry_after_is_read_or_ignored(value: str) -> None:
    """No Retry-After of an upstream, however strange, raises or yields a negative or endless wait."""
    seconds = retry_after({"retry-after": value})
    assert seconds is None or 0 <= seconds < float("inf")


async def test_pauses_are_jittered_and_bounded(monkeypatch: pytest.MonkeyPatch, unused_tcp_port: int) -> None:
    """Without Retry-After a pause is drawn uniformly below a bound that doubles up to eight seconds."""
    drawn: list[tuple[float, float]] = []

    def nothing(low: float, high: float) -> float:
        drawn.append((low, high))
        return 0.0

    monkeypatch.setattr("random.uniform", nothing)
    with pytest.raises(BackendUnavailable):
        await ask(Upstream("big", f"http://127.0.0.1:{unused_tcp_port}", max_retries=6))
    assert drawn == [(0, 0.5), (0, 1.0), (0, 2.0), (0, 4.0), (0, 8.0), (0, 8.0)]
