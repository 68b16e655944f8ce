"""What holds for every wire."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import BODIES, CALLS, CUT, SCHEMA, TEXT, USAGE, ask

from smallfirst.errors import BackendGarbage, NoAnswerError, RequestError, TooLargeError, UpstreamError
from smallfirst.types import Capabilities, Completion, Delta, Origin, Tool, ToolChoice, Usage, Wire
from smallfirst.wire import WIRES, sse
from smallfirst.wire.accumulate import Accumulator, split

ALL: tuple[Wire, ...] = get_args(Wire)
every_wire = pytest.mark.parametrize("wire", ALL)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
WORDS = """type role user assistant tool text image input_image message tool_use tool_result function function_call name
    function_call_output custom call_id id arguments input content tool_calls tool_call_id source url data"""
FIELDS = """messages model max_tokens input tools tool_choice response_format stream stop n temperature metadata text
    system functions function_call instructions include output_config top_logprobs logprobs user store"""
EVENTS = (None, "response.completed", "response.output_item.added", "content_block_delta", "message_delta", "error")
words = st.sampled_from(WORDS.split())
fields = st.sampled_from(FIELDS.split())
likely = st.recursive(
    words | st.none() | st.integers(-2, 300) | st.just("weather") | st.just({}),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=5),
    max_leaves=12,
)


def refused(wire: Wire, raw: bytes) -> RequestError:
    with pytest.raises(RequestError) as caught:
        WIRES[wire].parse(raw, Origin())
    return caught.value


def reread(wire: Wire, stream: bytes) -> Completion:
    reader, accumulator = WIRES[wire].Reader(), Accumulator()
    for name, data in sse.Decoder().feed(stream):
        deltas = reader.feed(name, data)
        assert sum(delta.native is not None for delta in deltas) == (data != b"[DONE]")
        for delta in deltas:
            accumulator.feed(delta)
    assert reader.done
    return accumulator.completion()


@every_wire
@settings(deadline=None)
@given(raw=st.binary(max_size=60) | anything.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_parse_or_are_refused(wire: Wire, raw: bytes) -> None:
    """Nothing that a client sends makes parse raise anything but RequestError."""
    with suppress(RequestError):
        WIRES[wire].parse(raw, Origin())


@every_wire
@settings(max_examples=150, deadline=None)
@given(changes=st.dictionaries(fields, likely | anything, min_size=1, max_size=2))
def test_a_request_with_any_wrong_field_parses_or_is_refused(wire: Wire, changes: dict[str, Any]) -> None:
    """A request that is nearly right is refused or understood; what is understood can be sent to every wire."""
    try:
        request = ask(wire, **changes)
    except RequestError:
        return
    assert request.body == {**BODIES[wire], **changes}
    for other in ALL:
        if f"native:{wire}" not in request.needs:
            sent = WIRES[other].body(request, model="x", stream=False, capabilities=Capabilities())
            json.dumps(sent)


@every_wire
@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[]", "not a JSON object"),
        (b'{"model": NaN}', "not JSON"),
        (b'{"model": "\xff"}', "not UTF-8"),
        (b'{"model": "\\ud800"}', "not JSON"),
    ],
)
def test_what_is_no_json_object_is_refused(wire: Wire, raw: bytes, says: str) -> None:
    """Malformed JSON and invalid UTF-8 are told apart."""
    assert says in refused(wire, raw).message


@every_wire
@pytest.mark.parametrize("depth", [101, 5000, 500_000])
def test_deep_nesting_is_refused(wire: Wire, depth: int) -> None:
    """A body nested too deep is TooLargeError, at any depth."""
    body = json.dumps(BODIES[wire]).encode()[:-1] + b', "x": ' + b"[" * depth + b"]" * depth + b"}"
    assert isinstance(refused(wire, body), TooLargeError)


@every_wire
def test_nesting_within_the_limit_is_kept(wire: Wire) -> None:
    """Ninety levels of a field that we do not know are passed on."""
    deep: Any = 1
    for _ in range(90):
        deep = [deep, {}]
    assert ask(wire, x=deep).body["x"] == deep


def with_schema(wire: Wire, schema: Any) -> bytes:
    flat = {"name": "weather", ("input_schema" if wire == "messages" else "parameters"): schema}
    tool = {
        "chat": {"type": "function", "function": flat},
        "responses": {"type": "function", **flat},
        "messages": flat,
    }[wire]
    return json.dumps({**BODIES[wire], "tools": [tool]}).encode()


@every_wire
@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"type": "object", "enum": [0] * 5001}, "nodes"),
        ({"type": "object", "description": "x" * 300_000}, "bytes"),
    ],
)
def test_huge_schemas_are_refused(wire: Wire, schema: Any, says: str) -> None:
    """A schema over the limits of size or nodes is TooLargeError that names it."""
    error = refused(wire, with_schema(wire, schema))
    assert isinstance(error, TooLargeError)
    assert says in error.message
    assert (error.param or "").startswith("tools[0].")


@every_wire
@pytest.mark.parametrize("schema", [{"type": "string"}, {"type": ["object"]}, [], "x", True])
def test_parameters_that_describe_no_object_are_refused(wire: Wire, schema: Any) -> None:
    """A tool's parameters are an object schema."""
    assert (refused(wire, with_schema(wire, schema)).param or "").endswith(("parameters", "input_schema"))


@every_wire
def test_tools_arrive_in_domain_words(wire: Wire) -> None:
    """Every wire's tools become the same Tool, and the first user message the same message."""
    request = ask(wire)
    assert request.tools == (Tool("weather", "d", SCHEMA),)
    assert request.messages == ({"role": "user", "content": "Weather?"},)
    assert request.needs == {"tools"}
    assert request.tool_choice == ToolChoice()


@every_wire
def test_tools_need_distinct_and_proper_names(wire: Wire) -> None:
    """A name given twice, or with characters that no model may use, is refused."""
    tool = BODIES[wire]["tools"][0]
    raw = json.dumps({**BODIES[wire], "tools": [tool, tool]}).encode()
    assert "two tools are named 'weather'" in refused(wire, raw).message
    raw = json.dumps(BODIES[wire]).replace('"weather"', '"we ather"').encode()
    error = refused(wire, raw)
    assert "'we ather'" in error.message
    assert (error.param or "").endswith("name")


@every_wire
def test_origin_is_filled_from_the_body_where_headers_are_silent(wire: Wire) -> None:
    """Headers win; then metadata of ours; then the wire's own user field. Our metadata is not sent on."""
    metadata = {"smallfirst_task": "t", "smallfirst_episode": "e", "user_id": "u", "kept": "k"}
    user: dict[str, Any] = {} if wire == "messages" else {"user": "u"}
    request = ask(wire, Origin(key="k1", task="header"), metadata=metadata, **user)
    assert request.origin == Origin("k1", "header", "e", "u")
    sent = WIRES[wire].body(request, model="x", stream=False, capabilities=Capabilities())
    assert sent["metadata"] == {"user_id": "u", "kept": "k"}
    error = refused(wire, json.dumps({**BODIES[wire], "metadata": {"smallfirst_task": 1}}).encode())
    assert error.param == "metadata.smallfirst_task"


@every_wire
def test_body_of_the_same_wire_changes_model_and_stream_only(wire: Wire) -> None:
    """The client's body goes upstream with unknown fields, and is not itself changed."""
    request = ask(wire, unknown={"a": [1]}, stream=True)
    before = json.dumps(request.body)
    sent = WIRES[wire].body(request, model="x", stream=False, capabilities=Capabilities(stream_usage=False))
    assert sent == {**request.body, "model": "x", "stream": False}
    sent = WIRES[wire].body(request, model="x", stream=True, capabilities=Capabilities(stream_usage=False))
    assert sent == {**request.body, "model": "x", "stream": True}
    assert json.dumps(request.body) == before


@every_wire
def test_extend_appends_to_messages_and_body(wire: Wire) -> None:
    """A repair's exchange reaches upstreams of the same wire and of others alike."""
    said = (
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "c", "type": "function", "function": {"name": "weather", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "c", "content": "wrong"},
        {"role": "user", "content": "again"},
    )  # fmt: skip
    request = WIRES[wire].extend(ask(wire), said)
    assert request.messages == ({"role": "user", "content": "Weather?"}, *said)
    parsed = WIRES[wire].parse(json.dumps(request.body).encode(), Origin())
    assert parsed.messages == request.messages


@pytest.mark.parametrize("to", ALL)
@every_wire
def test_a_conversation_survives_translation(wire: Wire, to: Wire) -> None:
    """Text, images, parallel calls and their results say the same after being sent to another wire and read there."""
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD", "detail": "auto"}}
    calls = [
        {"id": f"c{i}", "type": "function", "function": {"name": "weather", "arguments": f'{{"city":"{i}"}}'}}
        for i in range(2)
    ]
    said = (
        {"role": "user", "content": [{"type": "text", "text": "See"}, image]},
        {"role": "assistant", "content": "I call", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c0", "content": "cold"},
        {"role": "tool", "tool_call_id": "c1", "content": "warm"},
        {"role": "user", "content": "Thanks"},
    )
    request = WIRES[wire].extend(ask(wire, **({"max_tokens": 7} if wire != "responses" else {})), said)
    sent = WIRES[to].body(request, model="x", stream=False, capabilities=Capabilities())
    again = WIRES[to].parse(json.dumps(sent).encode(), Origin())
    assert "image" in again.needs
    assert again.tools == request.tools
    if to == "messages":
        image["image_url"] = {"url": "data:image/png;base64,QUJD"}
        merged = [{"type": "text", "text": "Weather?"}, *said[0]["content"]]  # type: ignore[misc]
        expected = said[1:] if wire == "messages" else ({"role": "user", "content": merged}, *said[1:])
        assert again.messages[-len(expected) :] == expected
    else:
        assert again.messages == request.messages


@pytest.mark.parametrize("completion", [TEXT, CALLS, CUT], ids=["text", "calls", "cut"])
@every_wire
def test_what_is_streamed_reads_back_the_same(wire: Wire, completion: Completion) -> None:
    """An answer of any backend, written as this wire's stream and read again, is the same Completion."""
    writer = WIRES[wire].Writer(ask(wire, stream=True, **_usage_asked(wire)), id="r1", created=1.0)
    stream = b"".join(map(writer.feed, split(completion))) + writer.finish(completion.usage)
    assert reread(wire, stream) == completion


@pytest.mark.parametrize("completion", [TEXT, CALLS, CUT], ids=["text", "calls", "cut"])
@every_wire
def test_what_is_rendered_reads_back_the_same(wire: Wire, completion: Completion) -> None:
    """An answer of any backend, rendered and read again, is the same Completion but for native."""
    payload = WIRES[wire].render(completion, ask(wire), id="r1", created=1.0)
    accumulator = Accumulator()
    for delta in WIRES[wire].read(payload):
        accumulator.feed(delta)
    again = accumulator.completion()
    assert (again.choices, again.usage, again.model) == (completion.choices, completion.usage, completion.model)


@every_wire
def test_native_answers_are_rendered_unchanged(wire: Wire) -> None:
    """What an upstream of the same wire answered reaches the client as it was, unknown fields included."""
    payload = {**WIRES[wire].render(CALLS, ask(wire), id="up", created=1.0), "unknown": [1]}
    accumulator = Accumulator()
    for delta in WIRES[wire].read(payload):
        accumulator.feed(delta)
    assert WIRES[wire].render(accumulator.completion(), ask(wire), id="r1", created=2.0) == payload


@pytest.mark.parametrize("seen_by", ALL)
@every_wire
def test_streams_are_forwarded_or_translated(wire: Wire, seen_by: Wire) -> None:
    """An upstream's stream reaches a client of the same wire byte for byte, and any other in its own words."""
    request = ask(seen_by, stream=True, **_usage_asked(seen_by))
    upstream = WIRES[wire].Writer(ask(wire, stream=True, **_usage_asked(wire)), id="up", created=1.0)
    sent = b"".join(map(upstream.feed, split(CALLS))) + upstream.finish(USAGE)
    reader, writer, out = WIRES[wire].Reader(), WIRES[seen_by].Writer(request, id="r1", created=1.0), b""
    for name, data in sse.Decoder().feed(sent):
        out += b"".join(map(writer.feed, reader.feed(name, data)))
    out += writer.finish(USAGE)
    assert reread(seen_by, out) == CALLS
    assert (out == sent) == (wire == seen_by)


def _usage_asked(wire: Wire) -> dict[str, Any]:
    return {"stream_options": {"include_usage": True}} if wire == "chat" else {}


@every_wire
def test_calls_in_pieces_are_put_together(wire: Wire) -> None:
    """Calls whose pieces come mixed arrive whole."""
    pieces = [
        Delta(tool_calls=split(CALLS)[0].tool_calls[:1]),
        Delta(tool_calls=split(CALLS)[0].tool_calls[1:]),
        Delta(finish_reason="tool_calls"),
    ]
    writer = WIRES[wire].Writer(ask(wire, stream=True), id="r1", created=1.0)
    stream = b"".join(map(writer.feed, pieces)) + writer.finish(Usage())
    assert reread(wire, stream).choices[0].tool_calls == CALLS.choices[0].tool_calls


@every_wire
@pytest.mark.parametrize("payload", [{}, {"choices": [{}]}, {"content": 1}, {"output": [1]}, {"choices": "x"}])
def test_an_unreadable_answer_is_garbage(wire: Wire, payload: dict[str, Any]) -> None:
    """An answer of the wrong shape is BackendGarbage, never a crash or an empty answer."""
    with pytest.raises(BackendGarbage):
        WIRES[wire].read(payload)


@every_wire
@pytest.mark.parametrize("data", [b"", b"[]", b"<html>", b'{"type": "message_start"}'[:9], b"\xff", b'"x"'])
def test_an_unreadable_event_is_garbage(wire: Wire, data: bytes) -> None:
    """A stream event that is no JSON object is BackendGarbage."""
    with pytest.raises(BackendGarbage):
        WIRES[wire].Reader().feed(None, data)


@every_wire
@settings(deadline=None)
@given(payload=st.dictionaries(words | fields, likely | anything, max_size=4))
def test_any_answer_is_read_or_is_a_backend_error(wire: Wire, payload: dict[str, Any]) -> None:
    """Whatever JSON an upstream sends, whole or as an event, only backend errors come of it."""
    for name in EVENTS:
        event = {**payload, "type": name} if name else payload
        with suppress(BackendGarbage, UpstreamError):
            WIRES[wire].read(event)
        with suppress(BackendGarbage, UpstreamError):
            WIRES[wire].Reader().feed(name, json.dumps(event).encode())


@every_wire
def test_an_error_in_a_stream_is_read_as_an_upstream_error(wire: Wire) -> None:
    """What Writer.error writes, Reader reads as UpstreamError with its message."""
    writer = WIRES[wire].Writer(ask(wire, stream=True), id="r1", created=1.0)
    stream = writer.feed(Delta(text="Hel")) + writer.error(NoAnswerError("nothing valid"))
    with pytest.raises(UpstreamError, match="nothing valid"):
        reread(wire, stream)


@every_wire
def test_an_upstream_error_of_the_same_shape_is_passed_as_it_is(wire: Wire) -> None:
    """The provider's own words reach a client that speaks to it; another wire's are put into this one's shape."""
    bodies: dict[Wire, dict[str, Any]] = {
        "chat": {"error": {"message": "busy", "type": "t", "param": None, "code": "c", "x": 1}},
        "messages": {"type": "error", "error": {"type": "overloaded_error", "message": "busy"}, "request_id": "r"},
    }
    own, other = ("messages", "chat") if wire == "messages" else ("chat", "messages")
    assert WIRES[wire].error(UpstreamError("m", upstream_status=529, body=bodies[own])) == bodies[own]  # type: ignore[index]
    said = WIRES[wire].error(UpstreamError("m", upstream_status=529, body=bodies[other]))  # type: ignore[index]
    assert said["error"]["message"] == "m"
    assert (said.get("type") == "error") == (wire == "messages")
