"""What is replaced in a record: equal text stays equal, what was found is left nowhere."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smallfirst.learn.pii.patterns import Finding
from smallfirst.learn.pii.surrogates import TOKEN, identifying
from smallfirst.learn.scrub import ScrubbedRecord, Scrubber, leaks
from smallfirst.store import StoredRecord
from smallfirst.types import Attempt, Choice, Completion, Json, ToolCall

FRAGMENTS = """Mia Li|mia|Li|Will Stone|will you|The Girl & The Fig|Chinese|Chinese Garden|pizza|12 Elm Street, Bath|12
B-037|order B-037|mia.li@acme.com|acme.com|+1 212-555-0187|555-0187|phone 6469381234|6469381234|4111 1111 1111 1111|1
DE89370400440532013000|81.2.69.142|password: hunter22|博德凌爆肚|爆肚|华讯科技有限公司|科技|大街道|街道|给王晓丽打电话
half|1小时|1小时 |Müller's "Bar"|Ünal|50% off|a_b-c|Straße|STRASSE|two\nlines|10:30|sk-abcdefghijklmnop1234|1e5|é"""
PIECES = [line for row in FRAGMENTS.split("\n") for line in row.split("|")]
GAPS = [" ", ", ", ". ", " - ", "\n", "", '"', "_", "，"]


def moody(text: str) -> list[Finding]:
    """A tagger that finds other things in every text: the same value here and not there, more of it or less."""
    rng = random.Random(text)
    tokens = list(TOKEN.finditer(text))
    found, at = [], 0
    while at < len(tokens):
        last = min(at + rng.choice((0, 0, 1, 2)), len(tokens) - 1)
        start, end = tokens[at].start(), tokens[last].end()
        if rng.random() < 0.25 and not re.search(r'["{}:\\\[\]]', text[start:end]):
            kind = rng.choice(("PERSON", "ADDRESS", "ORG", "LOCATION"))
            found.append(Finding(start, end, kind, text[start:end]))
        at = last + 1
    return found


KEY = b"0123456789abcdef"
SCRUBBER = Scrubber(KEY, moody)


def finding(pattern: str, kind: str) -> Scrubber:
    """A scrubber whose tagger finds what matches."""
    return Scrubber(KEY, lambda text: [Finding(*m.span(), kind, m.group()) for m in re.finditer(pattern, text)])


@st.composite
def contents(draw: st.DrawFn) -> str:
    pieces = draw(st.lists(st.tuples(st.sampled_from(PIECES), st.sampled_from(GAPS)), min_size=1, max_size=8))
    return "".join(piece + gap for piece, gap in pieces)


@st.composite
def calls(draw: st.DrawFn) -> tuple[list[str], list[str], list[str]]:
    """Messages, values taken from them between edges of words, and which of these a schema enumerates."""
    messages = draw(st.lists(contents(), min_size=1, max_size=4))
    values = []
    for _ in range(draw(st.integers(1, 5))):
        text = draw(st.sampled_from(messages))
        edges = sorted({0, len(text), *(edge for match in TOKEN.finditer(text) for edge in match.span())})
        start, end = sorted(draw(st.lists(st.sampled_from(edges), min_size=2, max_size=2)))
        values.append(text[start:end])
    return messages, values, draw(st.lists(st.sampled_from(values), max_size=2, unique=True))


def call(messages: list[str], arguments: Any, enum: list[str], *, ascii_only: bool = False) -> StoredRecord:
    """A call that was answered twice with the arguments, by a tool and as plain JSON."""
    asked: list[Json] = [
        {"role": ("user", "assistant")[n % 2], "content": text or "-"} for n, text in enumerate(messages)
    ]
    properties = {"v": {"type": "string", "enum": enum}} if enum else {}
    function = {"name": "act", "parameters": {"type": "object", "properties": properties}}
    text = json.dumps(arguments, ensure_ascii=ascii_only)
    by_tool, plain = Choice("", (ToolCall("c", "act", text),)), Choice(text)
    return StoredRecord(
        id="r", created_at=0.0, task="t", mode="observe", decision="accept", reason="", status=200, seconds=1.0,
        config_hash="", served=0, wire="chat", model="m", key="k", user=None, episode="e", captured=True,
        body={"model": "m", "messages": asked, "tools": [{"type": "function", "function": function}]},
        messages=tuple(asked), attempts=tuple(
            Attempt("m", "b", "m", "generate", "accept", "", Completion((choice,))) for choice in (by_tool, plain)
        ),
    )  # fmt: skip


def said(made: ScrubbedRecord) -> list[str]:
    return [message["content"] for message in made.messages]


def answers(made: ScrubbedRecord) -> list[Any]:
    assert made.answer is not None
    texts = [made.answer["tool_calls"][0]["function"]["arguments"], made.attempts[0].answer["content"]]
    return [json.loads(text) for text in texts]


@settings(deadline=None, max_examples=150)
@given(calls(), st.booleans())
def test_a_value_of_the_answer_stays_where_it_was_asked(
    drawn: tuple[list[str], list[str], list[str]], ascii_only: bool
) -> None:
    """Each string of an answer that stood word for word in a message does so afterwards, in every attempt alike."""
    messages, values, enum = drawn
    made = SCRUBBER.record(call(messages, values, enum, ascii_only=ascii_only))
    first, second = answers(made)
    assert first == second
    for value, after in zip(values, first, strict=True):
        assert any(after in text for text in said(made)), (value, after)
        if value in enum and not re.search(r"\d\d|@|hunter|sk-", value):
            assert after == value


def stands(value: str, text: str) -> bool:
    """Whether `value` is in `text` between edges of words."""
    edges = {edge for match in TOKEN.finditer(text) for edge in match.span()}
    return any(match.start() in edges and match.end() in edges for match in re.finditer(re.escape(value), text))


def telling(value: str) -> bool:
    """Whether a value tells something on its own: no generic word, single letter or short number."""
    words = [word for word, one in zip(TOKEN.findall(value), identifying(value), strict=True) if one]
    return any(len(word) > 1 and not word.isdecimal() for word in words) or len("".join(words)) >= 4


@settings(deadline=None, max_examples=150)
@given(calls())
def test_what_was_found_is_left_nowhere(drawn: tuple[list[str], list[str], list[str]]) -> None:
    """What any text of the record gave away stands in none of its texts: names and identifiers, found here or there."""
    messages, values, _ = drawn
    texts: list[str] = []

    def noted(text: str) -> list[Finding]:
        texts.append(text)
        return moody(text)

    made = Scrubber(KEY, noted).record(call(messages, values, []))
    found = {finding.text for text in texts for finding in SCRUBBER.findings(text)}
    after = [*said(made), *(value for each in answers(made) for value in each)]
    assert not [value for value in found for text in after if telling(value) and stands(value, text)]


@pytest.mark.parametrize(
    ("message", "value"),
    [
        ("Dinner at Ikaros Greek Restaurant, please", "Ikaros Greek"),
        ("I like chinese food, Chinese Garden say", "Chinese"),
        ("我想吃博德凌爆肚", "爆肚"),
        ("my mail is mia.li@acme.com", "acme.com"),
        ("card 4111 1111 1111 1111, yes", "1111"),
    ],
)
def test_part_of_something_longer_stays_a_part(message: str, value: str) -> None:
    """A value that stands only within a name or an identifier is replaced as it is in there."""
    longer = message.split(", ")[0].rpartition("at ")[2].rpartition("吃")[2]
    made = finding(re.escape(longer), "ORG").record(call([message], [value], []))
    [after] = answers(made)[0]
    assert after in said(made)[0]
    assert leaks(said(made)[0], [longer, "mia.li@acme.com", "4111 1111 1111 1111"]) == []


def test_a_value_that_overlaps_itself_is_settled() -> None:
    """Places of one value that overlap each other are marked alike, and the marking ends."""
    made = SCRUBBER.record(call(["Mia Mia Mia Mia Li Mia", "Mia Mia Li", "Li Mia Mia"], ["Mia Mia", "Mia Mia Mia"], []))
    assert all(any(value in text for text in said(made)) for value in answers(made)[0])


def test_a_value_that_stands_alone_is_not_part_of_another() -> None:
    """A word of an address or telephone number stays where it stands alone, and so does the answer's."""
    text = "A table for 2 people, from 2 Elm Street, call +1 212-555-0187"
    made = finding("2 Elm Street", "ADDRESS").record(call([text], ["2"], []))
    assert answers(made) == [["2"], ["2"]]
    assert re.fullmatch(r"A table for 2 people, from [^2] \w+ Street, call \+1 \d{3}-\d{3}-\d{4}", said(made)[0])
    assert "Elm" not in said(made)[0]


def test_a_day_is_left_beside_a_street_of_its_name() -> None:
    """The street goes; the day that is written alike stays where it stands alone, and so does the answer's."""
    text = "Meet me on 12th Street, the 12th of March"
    made = finding("12th Street", "ADDRESS").record(call([text], ["12th"], []))
    assert re.fullmatch(r"Meet me on (?!12th)\w+ Street, the 12th of March", said(made)[0])


def test_words_of_the_vocabulary_stay_in_names_but_for_people() -> None:
    """An enumerated kitchen tells nobody apart, in the name of a restaurant either; in a person's name it goes."""
    text = "Siam Thai is run by Ann Thai"
    kept = finding("Siam Thai", "ORG").record(call([text], [], ["Thai"]))
    assert re.fullmatch(r"(?!Siam)\w+ Thai is run by Ann Thai", said(kept)[0])
    gone = finding("Ann Thai", "PERSON").record(call([text], [], ["Thai"]))
    assert re.fullmatch(r"Siam Thai is run by (?!Ann)\w+ (?!Thai)\w+", said(gone)[0])


def test_a_large_record_takes_no_longer_than_its_length() -> None:
    """Repeated names and values, and thousands of them, pass."""
    repeated = call(["Mia Li " * 20_000, "Mia Li Mia " * 5_000], ["Mia " * 300, "Li"], [])
    names = [f"Nam{n:05}" for n in range(3_000)]
    scrubber = finding("Mia Li|Nam\\d+", "PERSON")
    assert "Mia" not in "".join(said(scrubber.record(repeated)))
    made = scrubber.record(call([", ".join(names)], names[:1_000], []))
    assert said(made)[0].split(", ")[:1_000] == answers(made)[0]


def test_an_ordinary_word_stays_alone_and_goes_with_a_name() -> None:
    """It is left where nothing but it was found; as a part of a name it goes, where that was asked and answered."""
    kinds = {"Young": "LOCATION", "Will Young": "PERSON"}

    def finds(text: str) -> list[Finding]:
        return [Finding(*m.span(), kinds[m.group()], m.group()) for m in re.finditer("Will Young|Young", text)]

    scrubber = Scrubber(b"0" * 16, finds, ordinary={"k": frozenset({"young", "will"})})
    alone = scrubber.record(call(["Young, please"], {"v": "Young"}, []))
    assert (said(alone), answers(alone)) == (["Young, please"], [{"v": "Young"}] * 2)
    named = scrubber.record(call(["I am Will Young"], {"v": "Young", "first": "Will"}, []))
    assert not re.search("Will|Young", str((said(named), answers(named))))
