"""The stage: a stored record in, a record without personal data out."""

from __future__ import annotations

import base64
import json
import re
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from smallfirst.errors import ConfigError, DataError, StoreError
from smallfirst.learn.pii.patterns import Finding
from smallfirst.learn.scrub import ScrubbedRecord, Scrubber, decode, encode, leaks
from smallfirst.learn.scrubbed import write
from smallfirst.store import StoredRecord, open_store
from smallfirst.types import (
    Attempt,
    Choice,
    Completion,
    Feedback,
    Json,
    Origin,
    Record,
    Request,
    ToolCall,
    Usage,
    Verdict,
    Violation,
)

PEOPLE = {"Mia Li": "PERSON", "Will Stone": "PERSON", "Paris": "LOCATION", "Berlin": "LOCATION", "张伟": "PERSON"}


def tagger(text: str) -> list[Finding]:
    """Knows the names of this file, wherever they are written in full."""
    found = [
        Finding(m.start(), m.end(), kind, m.group()) for name, kind in PEOPLE.items() for m in re.finditer(name, text)
    ]
    return sorted(found)


SCRUBBER = Scrubber(b"0123456789abcdef", tagger)
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
TOOL = {
    "type": "function",
    "function": {
        "name": "find_user",
        "description": "Finds a user such as Mia Li in Paris, owner bob@acme.com.",
        "parameters": {
            "type": "object",
            "properties": {"user_id": {"type": "string"}, "city": {"type": "string", "enum": ["Berlin", "Rome"]}},
            "required": ["user_id"],
        },
    },
}


def record(*messages: Json, answer: Choice | None = None, **changes: Any) -> StoredRecord:
    answered = Attempt(
        "large",
        "b",
        "gpt-4o",
        "generate",
        "accept",
        "",
        Completion((answer or Choice("ok"),), Usage(10, 5)),
        cost_usd=0.5,
    )
    stored = StoredRecord(
        id="r1", created_at=7.0, task="t", mode="enforce", decision="accept", reason="", status=200, seconds=1.0,
        config_hash="", served=0, wire="chat", model="gpt-4o", key="tenant", user="u", episode="e1", captured=True,
        body={"model": "gpt-4o", "messages": list(messages), "tools": [TOOL], "user": "mia"}, messages=tuple(messages),
        attempts=(answered,),
    )  # fmt: skip
    return replace(stored, **changes)


def user(text: Any) -> Json:
    return {"role": "user", "content": text}


def scrubbed_text(text: str, **changes: Any) -> str:
    content: str = SCRUBBER.record(record(user(text), **changes)).messages[0]["content"]
    return content


def test_a_value_is_the_same_in_prompt_arguments_results_and_answer() -> None:
    """What an extraction task copies from the prompt stands in the answer as it stands in the prompt."""
    call = {"id": "c1", "type": "function", "function": {"name": "find_user", "arguments": '{"user_id":"mia_li_36"}'}}
    made = SCRUBBER.record(
        record(
            user("I'm Mia Li (mia.li@acme.com, +1 212-555-0187)."),
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": json.dumps({"name": "MIA LI", "tel": "(212) 555-0187"})},
            answer=Choice("Thanks Mia!", (ToolCall("c2", "find_user", '{"user_id": "mia_li_36"}'),)),
        )
    )
    name, mail, phone = re.fullmatch(r"I'm (\w+ \w+) \((\S+), (.+)\)\.", made.messages[0]["content"]).groups()  # type: ignore[union-attr]
    first, last = name.lower().split()
    assert mail.startswith(f"{first}.{last}@")
    assert made.messages[1]["tool_calls"][0]["function"]["arguments"] == f'{{"user_id":"{first}_{last}_36"}}'
    result = json.loads(made.messages[2]["content"])
    assert result["name"] == name.upper()
    assert re.sub(r"\D", "", phone).endswith(re.sub(r"\D", "", result["tel"]))
    assert made.answer is not None
    assert made.answer["content"] == f"Thanks {first.capitalize()}!"
    assert json.loads(made.answer["tool_calls"][0]["function"]["arguments"])["user_id"] == f"{first}_{last}_36"


def test_episodes_and_tenants_do_not_share_surrogates() -> None:
    """Records of an episode agree, those of other episodes, tenants and secrets do not."""
    text = "I'm Mia Li, mia@acme.com"
    here = scrubbed_text(text)
    assert scrubbed_text(text, id="r2") == here
    others = [scrubbed_text(text, episode="e2"), scrubbed_text(text, key="other"), SCRUBBER.text(text, "e1")]
    others += [scrubbed_text(text, episode=None), Scrubber(b"another secret..", tagger).text(text, "e1")]
    assert len({here, *others}) == 6


@pytest.mark.parametrize("apart", [True, False])
async def test_an_export_that_links_tenants_leaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, apart: bool) -> None:
    """An address that two tenants' calls have must be another one in each; were it not, the export would say so."""
    store = await open_store(f"sqlite:///{tmp_path}/calls.db")
    asked = user("Write to mia.lindgren@acme.com")
    for key in ("one", "two"):
        request = Request("chat", {"model": "m", "messages": [asked]}, "m", (asked,), origin=Origin(key=key))
        await store.append(Record(key, 1.0, request, "t", "observe", (), None, "abstain", "", 200, 1.0, "c"))
    if not apart:
        monkeypatch.setattr(Scrubber, "surrogates_of", lambda self, _: self._surrogates("", ""))
    with tempfile.TemporaryFile() as made:
        written = await write(store, made, SCRUBBER)
    await store.close()
    assert written.records == 2
    assert written.leaked == ([] if apart else [("one", None)])


def test_tools_keep_names_arguments_and_enumerations() -> None:
    """A task is still known by its tools: people and identifiers in descriptions go, enumerated places stay."""
    made = SCRUBBER.record(record(user("Mia Li flies to Berlin, then Paris")))
    function = made.tools[0]["function"]
    assert function["name"] == "find_user"
    assert function["parameters"] == TOOL["function"]["parameters"]
    assert "Mia Li" not in function["description"]
    assert "bob@" not in function["description"]
    assert " in Paris, " in function["description"]
    assert "Berlin" in made.messages[0]["content"]
    assert "Paris" not in made.messages[0]["content"]


def test_small_words_are_not_taken_for_parts_of_names() -> None:
    """Where the record writes a word small, the word alone is no name."""
    assert scrubbed_text("Will Stone asks. Will you come? you will").endswith("Will you come? you will")
    assert "Stone" not in scrubbed_text("Will Stone asks. Mr Stone came")


def test_keys_encodings_and_chinese_are_reached() -> None:
    """JSON keys, base64, percent-encoding and escapes hide nothing, and come out well formed."""
    inner = json.dumps({"mia@acme.com": "张伟", "deep": json.dumps({"x": "Mia Li"})})
    text = f"{base64.b64encode(inner.encode()).decode()} q=mia%40acme.com {inner}"
    made = scrubbed_text(text)
    assert leaks(made, ["mia@acme.com", "张伟", "Mia Li"]) == []
    assert leaks(text, ["mia@acme.com", "张伟", "Mia Li"]) == ["mia@acme.com", "张伟", "Mia Li"]
    blob, query, rest = made.split(" ", 2)
    assert json.loads(base64.b64decode(blob)) == json.loads(rest)
    assert re.fullmatch(r"q=[a-z]+%40[a-z]+\.example", query)


def test_the_record_keeps_what_later_stages_need() -> None:
    """Labels, tokens, cost, model, validity and the other tries come along; user and participants' names do not."""
    small = Attempt(
        "small", "s", "tiny", "generate", "escalate", "", Completion((Choice("no, Mia Li"),), Usage(3, 2)), small=True,
        verdict=Verdict((Violation("x", "y"),)), cost_usd=0.25,
    )  # fmt: skip
    base = record({"role": "user", "name": "mia", "content": [{"type": "text", "text": "hi"}, IMAGE]})
    feedback = (
        Feedback("f1", "r1", 1.0, "correct", False, "x"),
        Feedback("f2", "r1", 2.0, "correct", True, "x"),
        Feedback("f3", "r1", 3.0, "answer", {"Mia Li": ["mia@acme.com", 1]}, "x"),
    )
    made = SCRUBBER.record(replace(base, attempts=(small, *base.attempts), served=1, feedback=feedback))
    assert made.messages[0] == {"role": "user", "content": [{"type": "text", "text": t} for t in ("hi", "[image_url]")]}
    assert (made.model, made.small, made.valid, made.correct) == ("gpt-4o", False, True, True)
    assert (made.input_tokens, made.output_tokens, made.cost_usd) == (13, 7, 0.75)
    assert [(a.model, a.small, a.valid) for a in made.attempts] == [("tiny", True, False)]
    assert "Mia" not in repr(made)
    assert next(iter(made.reference.values()))[1] == 1
    assert made.episode not in (None, "e1")
    assert decode(encode(made)) == made


def test_without_content_or_secret_it_says_so() -> None:
    """A record that was kept without content and a short secret are refused with a hint."""
    with pytest.raises(StoreError, match="without its content"):
        SCRUBBER.record(record(user("hi"), captured=False))
    with pytest.raises(ConfigError, match="8 bytes"):
        Scrubber(b"12345678", tagger)
    with pytest.raises(DataError, match="no scrubbed record"):
        decode(b'{"id": 1}')


@pytest.mark.parametrize("wire", ["responses", "messages"])
def test_calls_of_other_wires_become_chat_records(wire: str) -> None:
    """Responses and Anthropic calls come out as OpenAI chat objects."""
    bodies = {
        "responses": {"model": "m", "input": "I'm Mia Li", "instructions": "Be kind."},
        "messages": {"model": "m", "max_tokens": 9, "system": "Be kind.", "messages": [user("I'm Mia Li")]},
    }
    made = SCRUBBER.record(record(user("x"), wire=wire, body=bodies[wire], messages=()))
    assert made.messages[0] == {"role": "system", "content": "Be kind."}
    assert made.messages[1]["role"] == "user"
    assert "Mia" not in made.messages[1]["content"]


def test_scrubbing_twice_stays_well_formed() -> None:
    """A scrubbed text can be scrubbed again: identifiers stay valid identifiers."""
    once = SCRUBBER.text("card 4111 1111 1111 1111, IBAN DE89370400440532013000, a@b.com", "e")
    twice = SCRUBBER.text(once, "e")
    kinds = [[f.kind for f in SCRUBBER.findings(text)] for text in (once, twice)]
    assert kinds == [["CARD", "IBAN", "EMAIL"]] * 2


def test_long_and_deep_texts_pass() -> None:
    """A text of 50,000 words and JSON nested 50,000 deep are scrubbed, not choked on."""
    long = "Mia Li wrote to mia@acme.com about the order. " * 5_000
    assert "Mia" not in SCRUBBER.text(long, "e")
    deep = "[" * 50_000 + '"mia@acme.com"' + "]" * 50_000
    assert leaks(scrubbed_text(deep), ["mia@acme.com"]) == []


def test_numbers_leak_with_any_separators() -> None:
    """The leak test knows a number in other groups, and letters in other cases."""
    exported = json.dumps({"a": "4111-1111-1111 1111", "b": base64.b64encode(b"say hello MIA").decode()})
    assert leaks(exported, ["4111111111111111", "say hello mia", "absent", "5500000000000004"]) == [
        "4111111111111111",
        "say hello mia",
    ]


def test_a_scrubbed_record_is_made_by_this_stage_only() -> None:
    """Its constructor is named in scrub.py and nowhere else in the package."""
    import smallfirst

    sources = Path(smallfirst.__file__).parent.rglob("*.py")
    makers = {path.name for path in sources if f"{ScrubbedRecord.__name__}(" in path.read_text()}
    assert makers == {"scrub.py"}
