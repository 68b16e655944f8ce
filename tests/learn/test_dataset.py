"""From recorded calls to examples: which are used, what is right, and that no split knows of another."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smallfirst.backends.specialist import PromptTemplate
from smallfirst.errors import ConfigError, DataError
from smallfirst.learn import card as cards
from smallfirst.learn.dataset import SPLITS, Dataset, Settings, belonging, build
from smallfirst.learn.near import near, shingles
from smallfirst.learn.scrub import ScrubbedAttempt, ScrubbedRecord
from smallfirst.learn.tasks import Task
from smallfirst.types import Json

BOOK: dict[str, Any] = {
    "type": "object",
    "properties": {"seats": {"type": "integer"}, "place": {"type": "string"}},
    "required": ["place"],
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "place", "schema": BOOK}}
PLACES = "Paris Berlin Rome Oslo Bern Prague Vienna Madrid Lisbon Dublin Athens Warsaw".split()
FEW = Settings(least=3)


def tools(schema: Json = BOOK) -> tuple[Json, ...]:
    return ({"type": "function", "function": {"name": "book", "description": "Books", "parameters": schema}},)


def calls(arguments: Any, name: str = "book", call_id: str = "c1") -> Json:
    """An assistant's message that calls one tool."""
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    made = {"id": call_id, "type": "function", "function": {"name": name, "arguments": text}}
    return {"role": "assistant", "content": None, "tool_calls": [made]}


def record(n: int, text: str, answer: Json | None, **changes: Any) -> ScrubbedRecord:
    """The n-th call: an episode of its own, answered by the large model with a valid answer."""
    made = ScrubbedRecord(
        id=f"r{n:04}",
        created_at=1_760_000_000.0 + n,
        task="t",
        episode=f"e{n}",
        model="big",
        messages=({"role": "system", "content": "You book."}, {"role": "user", "content": text}),
        tools=tools(),
        tool_choice=None,
        response_format=None,
        answer=answer,
        correct=None,
        input_tokens=10,
        output_tokens=5,
        cost_usd=0.1,
        valid=True,
    )
    return replace(made, **changes)


def plenty(count: int = 12, start: int = 100) -> list[ScrubbedRecord]:
    """Usable calls that are nothing like each other."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=7)) for _ in range(count * 6)]
    return [
        record(start + n, " ".join(words[6 * n : 6 * n + 6]), calls({"place": PLACES[n % 12]})) for n in range(count)
    ]


def made(*odd: ScrubbedRecord, how: Settings = FEW) -> Dataset:
    """The dataset of these calls among plenty of good ones."""
    return build("t", [*odd, *plenty()], how)


def removed(dataset: Dataset) -> dict[str, int]:
    """The filters that took something."""
    return {name: count for name, count in dataset.removed.items() if count}


def completion(dataset: Dataset, record_id: str = "r0001") -> tuple[str, str]:
    """The completion of a row and how it is known to be right."""
    row = next(row for row in dataset.rows if row.id == record_id)
    return row.completion, row.label


ROME = '{"name": "book", "arguments": {"place": "Rome", "seats": 2}}'
RIGHT, WRONG = calls({"seats": 2, "place": "Rome"}), calls({"place": "Oslo"})
SMALL: dict[str, Any] = {"small": True, "model": "tiny"}


@pytest.mark.parametrize(
    ("changes", "label"),
    [
        ({}, "large"),
        ({"answer": WRONG, "reference": {"name": "book", "arguments": {"place": "Rome", "seats": 2}}}, "feedback"),
        ({**SMALL, "correct": True}, "feedback"),
        ({**SMALL, "answer": WRONG, "attempts": (ScrubbedAttempt("big", False, True, RIGHT),)}, "large"),
        (
            {**SMALL, "answer": WRONG, "correct": False, "attempts": (ScrubbedAttempt("big", False, True, RIGHT),)},
            "large",
        ),
    ],
    ids=["large", "given", "confirmed", "audited", "corrected"],
)
def test_the_right_answer_is_taken_by_the_best_evidence(changes: dict[str, Any], label: str) -> None:
    """Feedback counts before the large model's answer; members stand in the order that the constraint asks for."""
    assert completion(made(replace(record(1, "two seats in Rome please", RIGHT), **changes))) == (ROME, label)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"answer": None}, "unlabelled"),
        (SMALL, "unlabelled"),
        ({"correct": False}, "wrong"),
        ({"valid": False}, "invalid"),
        ({"answer": calls({"seats": 2})}, "invalid"),
        ({"answer": calls('{"place": ')}, "invalid"),
        ({"answer": {"role": "assistant", "content": " "}}, "invalid"),
        ({"answer": {"role": "assistant", "content": "Rome"}, "tools": (), "response_format": FORMAT}, "invalid"),
        ({"answer": calls({"place": "Rome", "mood": "good"})}, "unwritable"),
        ({"messages": ({"role": "user", "content": "far " * 200_000},)}, "too_long"),
        ({"messages": ({"role": "nobody", "content": "x"},)}, "unreadable"),
        ({"messages": ({"role": "user", "content": "\ud800"},)}, "unreadable"),
    ],
)
def test_what_cannot_be_learned_from_is_left_out_and_counted(changes: dict[str, Any], why: str) -> None:
    """Each call without a known right answer in a form that a model could write falls to one filter."""
    assert removed(made(replace(record(1, "seats in Rome", RIGHT), **changes))) == {why: 1}


def test_what_became_of_a_tool_call_tells_whether_it_was_right() -> None:
    """A call that ran is right whoever made it, one that failed is wrong; the result stands in a later record."""

    def later(n: int, result: str) -> ScrubbedRecord:
        before = calls({"place": "Rome"}, call_id="c1")
        asked = {"role": "user", "content": f"{n} seats, number {n * 7919}"}
        given = {"role": "tool", "tool_call_id": "c1", "content": result}
        return record(n + 10, "", None, episode=f"e{n}", task="other", messages=(asked, before, given))

    ran, broke = (record(n, text, calls({"place": "Rome"}), **SMALL) for n, text in ((1, "in Rome"), (2, "to Rome")))
    dataset = made(ran, broke, later(1, "booked"), later(2, "Error: no such place"))
    assert completion(dataset)[1] == "execution"
    assert removed(dataset) == {"wrong": 1}


def test_wrong_answers_beside_right_ones_are_kept_for_preference() -> None:
    """What else was answered to a training request, and can be written, is a wrong answer; what is the same is none."""
    tried = (
        ScrubbedAttempt("tiny", True, True, WRONG),
        ScrubbedAttempt("tiny", True, True, calls({"seats": 2.0, "place": "Rome"})),
        ScrubbedAttempt("tiny", True, False, calls("{")),
        ScrubbedAttempt("tiny", True, False, {"role": "assistant", "content": "Which?"}),
    )
    rows = [record(n, f"{place} " * 3 + str(n), RIGHT, attempts=tried) for n, place in enumerate(PLACES)]
    dataset = build("t", rows, FEW)
    learned = {row.id for row in dataset.splits["train"]}
    oslo = '{"name": "book", "arguments": {"place": "Oslo"}}'
    assert Counter(wrong.completion for wrong in dataset.wrong) == {oslo: len(learned), "Which?": len(learned)}
    assert {wrong.id for wrong in dataset.wrong} == learned


def test_contradictions_are_decided_or_dropped() -> None:
    """Of different answers to one request the better known one counts, then the more frequent one, else none."""

    def asked(*answers: Json) -> Dataset:
        return made(*(record(n, "seats in Rome", answer) for n, answer in enumerate(answers, 1)))

    undecided = asked(RIGHT, WRONG)
    assert (removed(undecided), undecided.resolved) == ({"contradictory": 2}, 0)
    voted = asked(RIGHT, WRONG, RIGHT)
    assert (removed(voted), voted.resolved) == ({"outvoted": 1, "duplicate": 1}, 1)
    assert completion(voted, "r0003") == (ROME, "large")
    said = made(record(1, "seats in Rome", RIGHT, correct=True), record(2, "seats in Rome", WRONG))
    assert (removed(said), completion(said)) == ({"outvoted": 1}, (ROME, "feedback"))
    equal = asked(RIGHT, calls('{"place":"Rome","seats":2.0}'))
    assert removed(equal) == {"duplicate": 1}


def test_texts_in_other_words_are_no_contradiction() -> None:
    """Two replies to the same request are not held against each other; the newest is kept."""
    replies = ({"role": "assistant", "content": text} for text in ("Where to?", "Which city?"))
    dataset = made(*(record(n, "a table", reply) for n, reply in enumerate(replies, 1)))
    assert (removed(dataset), completion(dataset, "r0002")) == ({"duplicate": 1}, ("Which city?", "large"))


def test_an_answer_that_todays_tools_do_not_take_is_outdated() -> None:
    """A tool that was changed leaves old answers behind, unless what differs is only what values are allowed."""
    old = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    enum = {**BOOK, "properties": {**BOOK["properties"], "place": {"type": "string", "enum": ["Rome", "Oslo"]}}}
    dataset = made(
        record(1, "in Rome please", calls({"city": "Rome"}), tools=tools(old)),
        record(2, "seats at Oslo harbour", WRONG, tools=tools(enum)),
    )
    assert removed(dataset) == {"outdated": 1}
    assert dataset.forms == 3


def test_a_json_answer_is_written_as_the_constraint_writes_it() -> None:
    """JSON text has the order and spaces of the constraint, so that it can be generated under it."""
    answer = {"role": "assistant", "content": '{\n"seats":2,\n"place":"Rome"}'}
    dataset = made(record(1, "two in Rome", answer, tools=(), response_format=FORMAT))
    assert completion(dataset)[0] == '{"place": "Rome", "seats": 2}'


def test_near_duplicates_with_the_same_answer_are_kept_once() -> None:
    """A request that differs by a letter adds nothing if its answer is the same, and goes along if it is not."""
    text = "Could you please book a table for the two of us at the harbour in the old town this evening"
    rows = [record(1, text, RIGHT), record(2, f"{text}!", RIGHT), record(3, f"{text}?", WRONG)]
    dataset = made(*rows)
    assert removed(dataset) == {"near_duplicate": 1}
    where = {row.id: split for split in SPLITS for row in dataset.splits[split]}
    assert where["r0002"] == where["r0003"]


def test_prompts_are_pruned_as_asked() -> None:
    """Full, pruned, and pruned to the last turns are what the specialist is asked with in service."""
    talk = [{"role": "user", "content": "a table"}, {"role": "assistant", "content": "Where?"}]
    messages = ({"role": "system", "content": "You book."}, *talk, {"role": "user", "content": "Rome"})
    odd = record(1, "", RIGHT, messages=messages)

    def prompt(template: PromptTemplate) -> Any:
        return next(row.prompt for row in made(odd, how=replace(FEW, prompt=template)).rows if row.id == odd.id)

    assert prompt(PromptTemplate("pruned")) == "user: a table\nassistant: Where?\nuser: Rome\n"
    assert prompt(PromptTemplate("pruned", turns=1)) == "user: Rome\n"
    assert prompt(PromptTemplate("pruned", turns=1, system=True)) == "system: You book.\nuser: Rome\n"
    full = prompt(PromptTemplate("full"))
    assert [m["role"] for m in full] == ["system", "user", "assistant", "user"]
    assert "book(place: string, seats?: integer)" in full[0]["content"]


WORDS = [f"{a}{b}{a}" for a in "ba de gi lo mu".split() for b in "ka ne ri so tu".split()]
CALLS = st.lists(
    st.tuples(
        st.integers(0, 15), st.lists(st.sampled_from(WORDS), min_size=1, max_size=8), st.sampled_from(PLACES[:3])
    ),
    min_size=5,
    max_size=60,
)


def records_of(drawn: Sequence[tuple[int, list[str], str]]) -> list[ScrubbedRecord]:
    return [
        record(n, " ".join(words), calls({"place": place}), episode=f"e{episode}")
        for n, (episode, words, place) in enumerate(drawn)
    ]


@settings(max_examples=40)
@given(CALLS, st.randoms(use_true_random=False), st.integers(0, 3))
def test_no_split_knows_of_another(drawn: list[Any], shuffle: random.Random, seed: int) -> None:
    """No episode and no near-duplicate stands in two splits, counts add up, and order and repetition change nothing."""
    records = records_of(drawn)
    seeded = replace(FEW, seed=seed)
    try:
        dataset = build("t", records, seeded)
    except DataError:
        return
    assert dataset.calls == len(records) == sum(dataset.removed.values()) + len(list(dataset.rows))
    places = [(split, row) for split in SPLITS for row in dataset.splits[split]]
    assert all(dataset.splits[split] for split in SPLITS)
    for split, row in places:
        for other, second in places:
            if split != other:
                assert row.episode != second.episode
                assert row.prompt != second.prompt
                if len(drawn) < 10:
                    assert similarity(str(row.prompt), str(second.prompt)) < seeded.near
    shuffle.shuffle(records)
    again = build("t", records, seeded)
    assert (again.splits, again.parent) == (dataset.splits, dataset.parent)


def similarity(one: str, other: str) -> float:
    """Jaccard similarity of the shingles."""
    a, b = set(shingles(one).tolist()), set(shingles(other).tolist())
    return len(a & b) / len(a | b)


@given(st.lists(st.text("ab ", max_size=14), min_size=1, max_size=9), st.sampled_from([0.3, 0.5, 0.8, 1.0]))
def test_the_join_finds_every_near_pair(texts: list[str], least: float) -> None:
    """Two texts are in one cluster exactly when a chain of near ones connects them."""
    found = near(texts, [str(n) for n in range(len(texts))], least)
    groups = [{n} for n in range(len(texts))]
    for n, text in enumerate(texts):
        for m in range(n):
            if similarity(text, texts[m]) >= least - 1e-9:
                joined = groups[n] | groups[m]
                for member in joined:
                    groups[member] = joined
    assert list(found.cluster) == [min(group) for group in groups]
    assert found.repeats == frozenset()


def test_a_form_that_all_requests_share_does_not_make_them_near() -> None:
    """What the application writes around the user's words is no reason to put calls together."""
    form = "Read the message below and extract the booking as the schema says, leave out what is not there. Message: "
    found = near([form + row.messages[1]["content"] for row in plenty(40)], [""] * 40, 0.8)
    assert (len(set(found.cluster)), found.repeats) == (40, frozenset())


@pytest.mark.parametrize("rows", [0, 1], ids=["empty", "one call"])
def test_too_few_calls_are_a_clear_error(rows: int) -> None:
    """An empty log and a task of one call say what is there, and what is needed."""
    records = [record(n, "x", RIGHT) for n in range(rows)] + [record(9, "y", None, task="other")]
    with pytest.raises(DataError) as error:
        build("t", records)
    said = f"{error.value} {error.value.hint}"
    assert ("1 usable calls of 1; 20 are needed" if rows else "Tasks here: other (1)") in said


def test_calls_of_one_episode_cannot_be_split() -> None:
    """Where all hangs together, there is nothing independent to test on."""
    rows = [replace(row, episode="same") for row in plenty()]
    with pytest.raises(DataError, match="12 of them hang together"):
        build("t", rows, FEW)


def test_only_the_newest_calls_are_used() -> None:
    """Memory is bounded by a number of calls; the oldest are left out and counted."""
    dataset = build("t", plenty(), replace(FEW, most=8))
    assert (removed(dataset), len(list(dataset.rows))) == ({"older": 4}, 8)
    assert min(row.id for row in dataset.rows) == "r0104"


def test_impossible_settings_say_so() -> None:
    """Shares that leave nothing to train on, and a similarity out of range, are refused."""
    with pytest.raises(ConfigError, match="shares"):
        Settings(calibration=0.5, test=0.5)
    with pytest.raises(ConfigError, match="near"):
        Settings(near=0.0)


def test_calls_belong_to_a_found_task_by_name_or_by_their_prompt() -> None:
    """The caller's word or a found task's id and name decide; other words are other tasks."""
    one = Task("t-1", "booking", (), 0.0)
    belongs = belonging([one], "booking")
    assert [belongs(record(1, "x", None, task=task)) for task in ("booking", "t-1", "other", "auto:12")] == [
        True,
        True,
        False,
        False,
    ]
    assert belonging([], "own")(record(1, "x", None, task="own"))


def test_a_folder_holds_all_of_a_dataset(tmp_path: Path) -> None:
    """What is read back is what was made; the card has its counts in JSON and in words."""
    dataset = made(record(1, "in Rome", RIGHT, correct=False), record(2, "to Rome", RIGHT, correct=True))
    written = cards.save(dataset, tmp_path / "d", source="test", scrubbing={"secret": "none"})
    found = cards.load(tmp_path / "d")
    assert (found.card, found.splits, found.wrong) == (written, dataset.splits, dataset.wrong)
    assert found.examples("train") == [row.example for row in dataset.splits["train"]]
    assert written.leakage["split_near"] == 0
    text = (tmp_path / "d" / "card.md").read_text()
    assert "13 of 14 calls, from 2025-10-09 to 2025-10-09" in text
    assert "| wrong | 1 |" in text
    assert "0 pairs of near-duplicates cross them" in text
    again = cards.save(dataset, tmp_path / "d", source="test", scrubbing={"secret": "none"})
    assert cards.load(tmp_path / "d").sha256 == found.sha256
    assert again == written


def test_pairs_are_right_and_wrong_answers_to_one_request(tmp_path: Path) -> None:
    """Preference tuning gets the prompt with the right completion and with a wrong one."""
    tried = (ScrubbedAttempt("tiny", True, True, WRONG),)
    dataset = build("t", [replace(row, attempts=tried) for row in plenty()], FEW)
    cards.save(dataset, tmp_path, source="test", scrubbing={})
    pairs = cards.load(tmp_path).pairs()
    assert len(pairs) == len(dataset.wrong) > 0
    assert all(p.right.prompt == p.wrong.prompt and p.right.completion != p.wrong.completion for p in pairs)


def test_a_folder_that_is_none_or_was_changed_says_so(tmp_path: Path) -> None:
    """Nothing there, something else there, a changed file and a full disk are clear errors, and nothing is lost."""
    with pytest.raises(DataError, match="no dataset"):
        cards.load(tmp_path)
    (tmp_path / "else.txt").write_text("mine")
    with pytest.raises(DataError, match="something else"):
        cards.save(made(), tmp_path, source="", scrubbing={})
    folder = tmp_path / "d"
    cards.save(made(), folder, source="", scrubbing={})
    (folder / "test.jsonl").write_text("")
    with pytest.raises(DataError, match="not what its card says"):
        cards.load(folder)
    (folder / "train.jsonl").unlink()
    (folder / "train.jsonl").symlink_to("/dev/full")
    with pytest.raises(DataError, match="No space left"):
        cards.save(made(), folder, source="", scrubbing={})
    with pytest.raises(DataError, match="no dataset"):
        cards.load(folder)
