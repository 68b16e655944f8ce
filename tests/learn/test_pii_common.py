"""Values that many episodes share stay as they are; people and addresses never do."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from smallfirst.learn.pii.common import ASKING, EPISODES, LEAST_ANSWERS, CommonValues
from smallfirst.learn.pii.patterns import Finding
from smallfirst.learn.scrub import Scrubber
from smallfirst.learn.scrubbed import scrubber_of
from smallfirst.store import open_store
from smallfirst.types import Attempt, Choice, Completion, Origin, Record, Request, ToolCall

KINDS = {"Rome": "LOCATION", "Oslo": "LOCATION", "Turin": "LOCATION", "Ann": "PERSON", "Bob": "PERSON"}
SEVERAL = 2 * LEAST_ANSWERS


def tagger(text: str) -> list[Finding]:
    """Knows the places and people of this file."""
    return [Finding(*m.span(), KINDS[m.group()], m.group()) for m in re.finditer("|".join(KINDS), text)]


def call(name: str, value: object) -> Choice:
    return Choice(tool_calls=(ToolCall("c", "book", json.dumps({name: value})),))


def common(values: Sequence[str], name: str = "city", tenant: str = "t", episodes: int = SEVERAL) -> frozenset[str]:
    """What is common of values that were answered in turn, by so many episodes."""
    found = CommonValues(tagger)
    for n in range(SEVERAL):
        value = values[n % len(values)]
        found.add(tenant, f"e{n % episodes}", [f"user: {value}, please"], call(name, value))
    return frozenset(" ".join(tokens) for tokens in found.found().get("t", frozenset()))


def test_what_many_episodes_answer_is_common() -> None:
    """Such values in tokens, whatever the tagger takes them for, as long as it is not people."""
    assert common(["Rome", "Oslo", "new york"]) == {"rome", "oslo", "new york"}


def test_people_are_never_common() -> None:
    """A customer who comes back is still a customer, though few have come."""
    assert common(["Ann", "Bob"], "customer") == frozenset()
    assert common(["Ann", "Rome"], "who") == frozenset()


def test_few_episodes_and_many_values_are_not_common() -> None:
    """One user's own words, however often they recur, and an argument that is different in each call."""
    assert common(["Rome"], episodes=EPISODES - 1) == frozenset()
    assert common([f"flat {n}" for n in range(SEVERAL)]) == frozenset()


def asked(texts: Sequence[str], episodes: int = ASKING) -> tuple[frozenset[str], frozenset[str]]:
    """The names that are common and the words that are ordinary where each episode asks one of the texts in turn, after
    a prompt that all have."""
    found = CommonValues(tagger)
    for n in range(max(episodes, len(texts))):
        found.add("t", f"e{n % episodes}", ["You help Ann.", f"{texts[n % len(texts)]}, {n}"], Choice())
    names = frozenset(" ".join(tokens) for tokens in found.found().get("t", frozenset()))
    return names, found.ordinary()["t"]


def test_a_name_that_many_ask_for_is_common_but_for_people() -> None:
    """A place stays in any case, and a person does not, however often one is named, nor what few episodes write."""
    names, _ = asked(["To Rome, or to SFO", "To Oslo or to New York"], 2 * ASKING)
    assert names >= {"rome", "oslo", "sfo", "new york"}
    assert not asked(["Call Ann Bee.", "call Bob"], 2 * ASKING)[0] & {"ann", "ann bee", "bee", "bob"}
    assert "rome" not in asked(["To Rome."], ASKING - 1)[0]


def test_a_name_that_the_tagger_hardly_saw_is_not_common() -> None:
    """Many episodes say it, in one and the same long text: that is one place, which tells too little."""
    found = CommonValues(tagger)
    for n in range(ASKING):
        found.add("t", f"e{n}", ["word " * 1000 + "Turin"], Choice())
    assert found.found() == {}


def test_a_word_that_is_often_written_small_is_no_name() -> None:
    """One that nearly always has a capital is, and so is one that the tagger takes for a person."""
    small = [f"ramen, {n}" for n in range(EPISODES)]
    capital = ["Ramen, please", "Ramen!", "A Ramen"]
    assert "ramen" in asked([*small, *capital], EPISODES + 3)[1]
    assert "ramen" not in asked([*small[1:], *capital], EPISODES + 2)[1]
    assert "ramen" not in asked([*small, *capital * 10], EPISODES + 30)[1]
    assert not asked([*(f"ann, {n}" for n in range(EPISODES)), "Call Ann.", "Ask Ann."], EPISODES + 2)[1] & {"ann"}


def test_identifiers_are_never_common() -> None:
    """What identifies by its form does so however many write it."""
    assert common(["ann@acme.com", "Rome", "Oslo"]) == {"rome", "oslo"}


def test_tenants_have_common_values_of_their_own() -> None:
    """What one tenant's episodes share says nothing of another's."""
    assert common(["Rome"], tenant="other") == frozenset()


def test_answers_that_are_json_count_and_others_do_not() -> None:
    """Members of a JSON answer are values; plain text, damaged JSON and members that are no texts are none."""
    found = CommonValues(tagger)
    for n in range(SEVERAL):
        for text in ('{"city": "Rome"}', "Oslo", '{"city": "Oslo"', '{"seats": 4, "tags": ["Oslo"]}', '["Oslo"]'):
            found.add("t", f"e{n}", [], Choice(text))
    assert found.found() == {"t": frozenset({("rome",)})}


@pytest.mark.parametrize("shared", [True, False])
async def test_a_store_is_scrubbed_but_for_its_common_values(tmp_path: Path, shared: bool) -> None:
    """The city that all episodes name stays in prompt and answer, and the name beside it does not."""
    store = await open_store(f"sqlite:///{tmp_path}/calls.db")
    for n in range(LEAST_ANSWERS if shared else 1):
        asked = {"role": "user", "content": "I am John Smith. A hotel in Paris, please"}
        body = {"model": "m", "messages": [asked]}
        request = Request("chat", body, "m", (asked,), origin=Origin(episode=f"e{n}"))
        answer = Attempt("large", "b", "m", "generate", "accept", "", Completion((call("city", "Paris"),)))
        await store.append(Record(f"r{n}", 1.0, request, "t", "observe", (answer,), 0, "accept", "", 200, 1.0, "c"))
    scrubber = await scrubber_of(store)
    made = scrubber.record(await store.get("r0"))
    await store.close()
    said = made.messages[0]["content"]
    assert made.answer is not None
    assert ("Paris" in said) == ("Paris" in str(made.answer)) == shared
    assert "Smith" not in said
    assert isinstance(scrubber, Scrubber)
