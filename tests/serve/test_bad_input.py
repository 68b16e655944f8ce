"""Bad input gets a clear error of the right status in its wire's shape, at once, and the gateway answers on."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recording import TOOL, Loopback, answer, events, sse
from running import (
    CHAT,
    CITY_FORMAT,
    MESSAGES,
    RESPONSES,
    Answer,
    Running,
    Start,
    cascade,
    chunks,
    every,
    question,
    says,
    whole,
)

PATHS = [CHAT, RESPONSES, MESSAGES]


def check_shape(path: str, done: Answer) -> None:
    """The error's shape is the wire's."""
    assert done.headers["content-type"] == "application/json"
    error = done.body["error"]
    assert error["message"]
    assert error["type"]
    if path == MESSAGES:
        assert done.body["type"] == "error"
    else:
        assert set(error) == {"message", "type", "param", "code"}


def deep(depth: int) -> Any:
    value: Any = {}
    for _ in range(depth):
        value = {"properties": {"x": value}}
    return value


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("raw", "status"),
    [
        pytest.param(b"", 400, id="empty"),
        pytest.param(b"{", 400, id="cut"),
        pytest.param(b"[1,2]", 400, id="list"),
        pytest.param(b'"text"', 400, id="string"),
        pytest.param(b"null", 400, id="null"),
        pytest.param(b"\xff\xfe{}", 400, id="utf-16"),
        pytest.param(b'{"model":"auto","x":"\xff"}', 400, id="not-utf-8"),
        pytest.param(b'{"model":"auto","x":"\\ud800"}', 400, id="half-surrogate"),
        pytest.param(b"[" * 100_000, 413, id="unclosed"),
        pytest.param(b'{"model":"auto","x":' + b"[" * 200 + b"]" * 200 + b"}", 413, id="deep"),
        pytest.param(b"{}", 400, id="no-fields"),
        pytest.param(b'{"model":1,"messages":1,"input":1,"max_tokens":"x"}', 400, id="types"),
    ],
)
async def test_unreadable_bodies(gateway: Running, path: str, raw: bytes, status: int) -> None:
    """What is no JSON object of the wire is refused and not sent to any model."""
    done = await gateway.post(path, raw)
    assert done.status == status
    check_shape(path, done)
    assert (await gateway.chat()).status == 200


@pytest.mark.parametrize("path", PATHS)
async def test_unknown_models(gateway: Running, path: str) -> None:
    """A model that nobody knows is 404 and the message lists those that are known."""
    done = await gateway.post(path, every(path, "x") | {"model": "no-such-model"})
    assert done.status == 404
    assert "'no-such-model'" in done.body["error"]["message"]
    assert "'tiny'" in done.body["error"]["message"]
    check_shape(path, done)


LOOP = {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}


@pytest.mark.parametrize(
    ("schema", "status"),
    [
        ({"type": "objekt"}, 400),
        ({"type": "object", "properties": []}, 400),
        ({"$ref": "#/$defs/nowhere"}, 400),
        ({"$ref": "https://example.com/schema.json"}, 400),
        ({"type": "string", "pattern": "("}, 400),
        ({"enum": [str(n) for n in range(60_000)]}, 413),
        (deep(60), 413),
    ],
    ids=["type", "properties", "dangling", "remote", "pattern", "huge", "deep"],
)
@pytest.mark.parametrize("where", ["response_format", "tool"])
async def test_wrong_schemas(gateway: Running, large: Loopback, schema: Any, status: int, where: str) -> None:
    """A schema that is invalid, points outside itself or is over the limits is refused, and its place is named."""
    if where == "tool":
        schema = {"type": "object", "properties": {"x": schema}, "$defs": schema.get("$defs", {})}
        fields: Any = {"tools": [{"type": "function", "function": {"name": "t", "parameters": schema}}]}
    else:
        fields = {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}}
    done = await gateway.chat(fields)
    assert (done.status, large.seen) == (status, [])
    check_shape(CHAT, done)


@pytest.mark.parametrize("recursive", [LOOP, {"$ref": "#"}], ids=["loop", "self"])
async def test_schemas_that_refer_to_themselves_forever(gateway: Running, recursive: Any) -> None:
    """A schema whose references never end does not hang or kill the gateway."""
    done = await gateway.chat({"response_format": {"type": "json_schema", "json_schema": {"schema": recursive}}})
    assert done.status < 500 or done.status == 502
    assert (await gateway.chat()).status == 200


async def test_recursive_schemas_are_good(gateway: Running, start: Start) -> None:
    """A tree's schema, which is recursive and has an end, is a schema like any other."""
    tree = {"type": "object", "properties": {"left": {"$ref": "#"}, "value": {"type": "integer"}}}
    done = await gateway.chat({"tools": [{"type": "function", "function": {"name": "t", "parameters": tree}}]})
    assert done.status == 200


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        ([{"role": "wizard", "content": "x"}], "messages[0].role"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "tool", "tool_call_id": "t9", "content": "x"}], "messages[0].tool_call_id"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "messages[0].content[0].image_url"),
        ([{"role": "assistant", "tool_calls": [{"id": "1"}]}], "messages[0].tool_calls[0].function"),
        ("hi", "messages"),
    ],
    ids=["none", "role", "content", "result-without-call", "part", "call", "string"],
)
async def test_wrong_messages(gateway: Running, messages: Any, param: str) -> None:
    """A message that makes no sense is refused with the path of what is wrong."""
    done = await gateway.chat({"messages": messages})
    assert (done.status, done.body["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    "fields",
    [
        {"tool_choice": "required"},
        {"tool_choice": {"type": "function", "function": {"name": "other"}}, "tools": [TOOL]},
        {"tools": [TOOL, TOOL]},
        {"tools": [{"type": "function", "function": {"name": "a b"}}]},
        {"temperature": 9},
        {"temperature": "hot"},
        {"n": 0},
        {"max_tokens": -1},
        {"top_logprobs": 3},
        {"stop": {"a": 1}},
        {"response_format": {"type": "yaml"}},
        {"response_format": {"type": "json_schema"}},
        {"metadata": {"smallfirst_task": 3}},
        {"stream": "yes"},
        {"seed": 1.5},
    ],
    ids=msgspec.json.encode,
)
async def test_wrong_fields(gateway: Running, large: Loopback, fields: dict[str, Any]) -> None:
    """A field with a value that it cannot have is refused, named in `param`, before any model is asked."""
    done = await gateway.chat(fields)
    assert (done.status, large.seen) == (400, [])
    field = next(iter(fields))
    assert done.body["error"]["param"].startswith(field) or field in done.body["error"]["message"]


@pytest.mark.parametrize("task", ["a\r\nx-evil: 1", "a\nb", "\u00e9t\u00e9", "a b", "x" * 200, "\x00", "'; drop table"])
async def test_header_injection(gateway: Running, task: str) -> None:
    """A task that would break or add a header is refused; it is never in the answer's headers."""
    done = await gateway.chat({"metadata": {"smallfirst_task": task}})
    assert done.status == 400
    assert "x-evil" not in done.headers
    assert [v for v in done.headers.values() if task in v] == []


async def test_names_of_users_may_be_anything(gateway: Running) -> None:
    """Episode and user are free text, hashed and never echoed."""
    name = "\u00e9\r\nx-evil: 1\x00\U0001f600"
    done = await gateway.chat({"metadata": {"smallfirst_episode": name, "smallfirst_user": name}})
    assert done.status == 200
    assert "x-evil" not in done.headers
    latin = await gateway.send("POST", CHAT, msgspec.json.encode(question()), {"x-smallfirst-user": "\u00e9"})
    assert latin.status == 200


@pytest.mark.parametrize("stream", [True, False])
async def test_model_names_that_inject_headers(gateway: Running, large: Loopback, stream: bool) -> None:
    """A model's name with a line break, foreign letters or no end does no harm, whether client or provider gives it."""
    evil = "gpt-\r\nx-evil: 1\n\ndata: evil \u00df\u4e2d" + "x" * 100_000
    one = sse(events(chunks("x", model=evil))) if stream else answer(whole("x", model=evil))
    large.handlers = [one, says("x")]
    for model in ("auto", evil):
        done = await gateway.chat({"model": model, "stream": stream})
        assert done.status == 200
        assert "x-evil" not in done.headers
        assert b"\ndata: evil" not in done.raw


@pytest.mark.parametrize("path", PATHS)
async def test_ten_megabytes_are_fine(gateway: Running, large: Loopback, path: str) -> None:
    """A valid body of 10 MB is answered."""
    done = await gateway.post(path, every(path, "x" * 10_000_000))
    assert done.status == 200
    assert len(str(large.seen[0].body)) > 10_000_000


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("told", [True, False])
async def test_too_large_bodies(start: Start, path: str, told: bool) -> None:
    """A body over the limit is 413, whether its length is told beforehand or not."""
    gateway = await start("[server]\nmax_body_mb = 0.1")

    async def pieces() -> Any:
        for _ in range(20):
            yield b"x" * 10_000

    data: Any = b"x" * 200_000 if told else pieces()
    done = await gateway.send("POST", path, data)
    assert done.status == 413
    check_shape(path, done)
    assert (await gateway.chat()).status == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/nothing", 404),
        ("POST", "/", 404),
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/models", 405),
        ("POST", "/v1/chat/completions/../../x", 404),
    ],
)
async def test_unknown_paths_and_methods(gateway: Running, method: str, path: str, status: int) -> None:
    """An unknown path is 404 and a wrong method 405, in OpenAI's shape."""
    done = await gateway.send(method, path)
    assert done.status == status
    check_shape(CHAT, done)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b'{"record_id":"x","kind":"odd","value":1}',
        b'{"record_id":"x","kind":"correct","value":"yes"}',
        b"\xff",
    ],
)
async def test_wrong_feedback(gateway: Running, body: bytes) -> None:
    """Feedback that is none is 400."""
    assert (await gateway.post("/v1/feedback", body)).status == 400


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"model":3}', b"\xff"])
async def test_wrong_embeddings(gateway: Running, large: Loopback, body: bytes) -> None:
    """A body for embeddings without a model's name is 400."""
    assert ((await gateway.post("/v1/embeddings", body)).status, large.seen) == (400, [])


async def raw(gateway: Running, *pieces: bytes, pause_s: float = 0.0) -> bytes:
    """What the gateway answers to these bytes on a connection of their own."""
    host, port = gateway.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause_s)
        async with asyncio.timeout(5):
            head = await reader.readuntil(b"\r\n\r\n")
            return head + await reader.read(65_536)
    finally:
        writer.close()


def head(*lines: str, length: int | None = None) -> bytes:
    told = [f"content-length: {length}"] if length is not None else []
    return "\r\n".join([f"POST {CHAT} HTTP/1.1", "host: 127.0.0.1", *told, *lines, "", ""]).encode()


@pytest.mark.parametrize("sent", [b"", b'{"model":'])
async def test_a_body_that_never_ends(start: Start, sent: bytes) -> None:
    """A client that does not finish its body gets 408 in time."""
    gateway = await start("[server]\nbody_timeout_s = 0.1")
    answered = await raw(gateway, head(length=1000), sent)
    assert answered.startswith(b"HTTP/1.1 408")
    assert b'"request_timeout"' in answered
    assert (await gateway.chat()).status == 200


@pytest.mark.parametrize(
    "request_", [head("content-length: x"), head("content-length: 2", "content-length: 3"), b"NONSENSE\r\n\r\n"]
)
async def test_broken_http(gateway: Running, request_: bytes) -> None:
    """What is no HTTP is 400 and ends the connection."""
    assert (await raw(gateway, request_ + b"{}")).startswith(b"HTTP/1.1 400")
    assert (await gateway.chat()).status == 200


async def test_more_body_than_told(gateway: Running) -> None:
    """Bytes beyond the content-length are not read as part of the body."""
    body = msgspec.json.encode(question())
    assert (await raw(gateway, head("connection: close", length=len(body)) + body + b"GARBAGE")).startswith(
        b"HTTP/1.1 200"
    )
    assert (await gateway.chat()).status == 200


async def test_a_client_that_hangs_up_in_its_body(gateway: Running, large: Loopback) -> None:
    """A client that goes away before its body is whole is forgotten."""
    host, port = gateway.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(head(length=1000) + b'{"mod')
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    assert (await gateway.chat()).status == 200
    assert len(large.seen) == 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
NAMES = (
    *(
        "messages",
        "input",
        "tools",
        "tool_choice",
        "response_format",
        "stop",
        "n",
        "metadata",
        "user",
        "system",
        "text",
    ),
    *("instructions", "stream", "stream_options", "logprobs", "top_logprobs", "functions", "function_call"),
    *("include", "stop_sequences", "thinking", "temperature", "reasoning", "previous_response_id"),
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool", "system", "developer", "function"]) | JSON},
    optional={
        "content": JSON | st.lists(st.fixed_dictionaries({"type": st.sampled_from(["text", "image", "tool_use"])})),
        "tool_calls": JSON,
        "tool_call_id": JSON,
        "name": JSON,
    },
)
BODY = st.fixed_dictionaries(
    {"model": st.just("auto"), "max_tokens": st.just(5)},
    optional={
        **dict.fromkeys(NAMES, JSON),
        "messages": st.lists(MESSAGE, max_size=3),
        "input": st.text() | st.lists(MESSAGE, max_size=3),
        "tools": st.lists(st.just(TOOL) | JSON, max_size=2),
        "response_format": st.just(CITY_FORMAT) | JSON,
    },
)


@pytest.mark.parametrize("path", PATHS)
async def test_random_objects_never_break_the_gateway(start: Start, path: str) -> None:
    """Whatever JSON object is posted, the gateway answers it or refuses it; it never fails."""
    gateway = await start(cascade("small_only"))
    loop = asyncio.get_running_loop()

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(BODY)
    def posted(body: dict[str, Any]) -> None:
        done = asyncio.run_coroutine_threadsafe(gateway.post(path, body), loop).result(10)
        assert done.status != 500
        assert done.status in {200, 400, 404, 413, 502}, done.raw

    await asyncio.to_thread(posted)
