"""Server-sent events."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smallfirst.errors import BackendGarbage
from smallfirst.wire import sse

STREAM = (
    b": hello\n\nevent: ping\ndata: {}\n\ndata: a\ndata: b\n\nid: 7\r\nevent: end\r\ndata:x: y\r\n\r\n"
    b"event: lost\n\ndata:\r\rdata: \xc3\xa9\r\n\r\n"
)
EVENTS = [("ping", b"{}"), (None, b"a\nb"), ("end", b"x: y"), (None, b""), (None, b"\xc3\xa9")]


@settings(deadline=None)
@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_events_do_not_depend_on_where_chunks_are_cut(cuts: list[int]) -> None:
    """Comments, every kind of line end and several data lines are read the same however the bytes are cut."""
    edges = [0, *sorted(cuts), len(STREAM)]
    decoder = sse.Decoder()
    found = [event for a, b in pairwise(edges) for event in decoder.feed(STREAM[a:b])]
    assert found == EVENTS


def test_one_byte_at_a_time_gives_the_same_events() -> None:
    """The smallest chunks are no special case."""
    decoder = sse.Decoder()
    assert [event for i in range(len(STREAM)) for event in decoder.feed(STREAM[i : i + 1])] == EVENTS


@settings(deadline=None)
@given(st.text(), st.one_of(st.none(), st.from_regex(r"[a-z._]+", fullmatch=True)))
def test_what_is_encoded_is_decoded(data: str, event: str | None) -> None:
    """Encode and Decoder are each other's inverse, up to the kind of line end."""
    lines = data.encode().splitlines() or [b""]
    assert sse.Decoder().feed(sse.encode(data.encode(), event)) == [(event, b"\n".join(lines))]


@pytest.mark.parametrize("chunk", [b"x" * 40, b"data: x\n"])
def test_an_endless_event_is_refused(chunk: bytes) -> None:
    """Neither a line nor an event without end can fill the memory."""
    decoder = sse.Decoder(max_bytes=1000)
    with pytest.raises(BackendGarbage, match="more than 1000 bytes"):
        list(map(decoder.feed, [chunk] * 1000))
