from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from smallfirst.assignment import (
    Assigner,
    Cell,
    alike,
    cells_from_json,
    cells_to_json,
    prompt_of,
    prompt_of_request,
    shingles_of,
    words_of,
)
from smallfirst.types import Request, ResponseFormat, Tool

FIELDS = {"city": {"type": "string"}, "cuisine": {"enum": ["thai", "indian"]}, "stars": {"type": "integer"}}
FIND = Tool("find_restaurant", parameters={"type": "object", "properties": FIELDS})
PAY = Tool("pay", parameters={"type": "object", "properties": {"amount": {"type": "number"}, "to": {"type": "string"}}})
PLANNER = "You plan the evening of the user step by step before anything is booked, and you never book by yourself."
BOOKER = "You book exactly what the plan of the colleague says, with one call a step, and report each booking number."


def request(said: str = "hello", *, system: str = "", tools: tuple[Tool, ...] = (), schema: object = None) -> Request:
    messages = [{"role": "user", "content": said}]
    if system:
        messages.insert(0, {"role": "system", "content": system})
    form = ResponseFormat("json_schema", schema) if schema else ResponseFormat()
    return Request("chat", {}, "auto", tuple(messages), tools, response_format=form)


def cell(like: Request, name: str, *, template: bool = False, words: bool = False, least: float = 0.1) -> Cell:
    prompt = prompt_of_request(like)
    centroid = dict.fromkeys(prompt.words, 1.0) if words else None
    return Cell(name, prompt.slots, prompt.shingles if template else frozenset(), centroid, least if words else 0.0)


def test_the_tools_tell_the_task_in_any_order():
    """A call with the tools of a task is its, in whatever order they come and whatever the user says."""
    assigner = Assigner({"dine": [cell(request(tools=(FIND, PAY)), "c1")], "pay": [cell(request(tools=(PAY,)), "c2")]})
    assert assigner.assign(request("anything", tools=(PAY, FIND))) == "dine"
    assert assigner.assign(request("anything", tools=(PAY,))) == "pay"


def test_another_version_of_a_tool_is_the_same_task():
    """A parameter more or fewer, or one more value of an enum, leaves the call with its task."""
    assigner = Assigner({"dine": [cell(request(tools=(FIND,)), "c1")], "pay": [cell(request(tools=(PAY,)), "c2")]})
    fields = {**FIELDS, "cuisine": {"enum": ["thai", "indian", "greek"]}, "terrace": {"type": "boolean"}}
    newer = Tool("find_restaurant", parameters={"type": "object", "properties": fields})
    assert assigner.assign(request(tools=(newer,))) == "dine"


def test_the_same_field_with_other_values_is_another_task():
    """Two classifiers with one field each, whose enums differ, are told apart."""

    def schema(*values: str) -> dict[str, object]:
        return {"type": "object", "properties": {"intent": {"enum": list(values)}}}

    bank, home = request(schema=schema("pay", "transfer", "block")), request(schema=schema("alarm", "timer", "light"))
    assert alike(prompt_of_request(bank).slots, prompt_of_request(home).slots) == 0.0
    assigner = Assigner({"bank": [cell(bank, "c1")], "home": [cell(home, "c2")]})
    assert assigner.assign(home) == "home"
    assert assigner.assign(request(schema=schema("rain", "sun"))) is None


def test_unknown_tools_are_no_task():
    """A call that offers other tools belongs to none."""
    assigner = Assigner({"dine": [cell(request(tools=(FIND,)), "c1")]})
    assert assigner.assign(request(tools=(PAY,))) is None
    assert assigner.assign(request("find a restaurant")) is None


def test_instructions_tell_tasks_with_the_same_tools_apart():
    """Of two tasks with the same tools, the call belongs to that whose template its system text follows."""
    tools = (FIND, PAY)
    cells = {
        "plan": [cell(request(system=PLANNER, tools=tools), "c1", template=True)],
        "book": [cell(request(system=BOOKER, tools=tools), "c2", template=True)],
    }
    assigner = Assigner(cells)
    dated = f"Today is 2031-04-05 and the user is Kim. {BOOKER}"
    assert assigner.assign(request(system=dated, tools=tools)) == "book"
    assert assigner.assign(request(system=PLANNER, tools=tools)) == "plan"
    assert assigner.assign(request(system="Tell a joke about the sea.", tools=tools)) is None


def test_a_rewritten_prompt_stays_with_the_only_task_of_its_tools():
    """Where one task alone has the tools, a system text that follows no template is a new version of its own."""
    assigner = Assigner({"plan": [cell(request(system=PLANNER, tools=(FIND,)), "c1", template=True)]})
    assert assigner.assign(request(system="Be brief.", tools=(FIND,))) == "plan"


@pytest.mark.parametrize(
    ("weather", "money"),
    [
        ("will it rain in the north tomorrow and how cold is it", "transfer the rent from savings to checking"),
        ("明天北京会下雨吗温度是多少", "请把房租从储蓄账户转到支票账户"),
    ],
)
def test_words_tell_calls_without_structure_apart(weather, money):
    """A call with neither tools nor instructions goes to the nearest centroid, in English and in Chinese."""
    cells = [cell(request(said), name, words=True) for said, name in ((weather, "c1"), (money, "c2"))]
    assigner = Assigner({"weather": cells[:1], "money": cells[1:]})
    assert assigner.assign(request(weather[: len(weather) * 2 // 3])) == "weather"
    assert assigner.assign(request(money[len(money) // 3 :])) == "money"


def test_words_far_from_every_centroid_are_no_task():
    """Words below the least cosine of the nearest cell, and a call without words, belong to none."""
    assigner = Assigner({"weather": [cell(request("will it rain tomorrow"), "c1", words=True, least=0.5)]})
    assert assigner.assign(request("my cat will not eat its food since the move to another flat")) is None
    assert assigner.assign(request("")) is None
    assert Assigner({}).assign(request("hello")) is None


def test_cells_survive_json():
    """What is kept as JSON gives the same cells again."""
    cells = (
        cell(request(system=PLANNER, tools=(FIND,)), "c1", template=True),
        cell(request("明天 will it rain"), "c2", words=True),
    )
    assert cells_from_json(json.loads(json.dumps(cells_to_json(cells)))) == cells


def test_numbers_and_dates_leave_no_trace_in_a_template():
    """Instructions that differ in digits only have the same shingles."""
    assert shingles_of("Ticket 4711 of 2024-05-06: answer it") == shingles_of("Ticket 12 of 2025-11-30: answer it")


@given(st.text(max_size=300))
def test_any_text_has_shingles_and_words(text):
    """Every text, lone surrogates and all, is hashed; shingles fit into a signed 64-bit integer."""
    assert all(0 <= shingle < 1 << 60 for shingle in shingles_of(text))
    assert all(count > 0 for count in words_of(text).values())


def test_a_huge_prompt_is_read_in_part_only():
    """Of a prompt of millions of characters only the start of the instructions and the end of what was said count."""
    long = "lorem ipsum dolor sit amet " * 50_000
    short = prompt_of([{"role": "system", "content": PLANNER}, {"role": "user", "content": "book a table"}], (), None)
    system = {"role": "system", "content": PLANNER.ljust(3000) + long}
    huge = prompt_of([system, {"role": "user", "content": long + "book a table".rjust(4000)}], (), None)
    assert (huge.slots, huge.shingles, huge.words) == (short.slots, short.shingles, short.words)
    assert len(huge.said) == 4000


@pytest.mark.parametrize("content", [None, 7, [], [{"type": "image_url"}], [None, {"text": 3}], {"text": "a"}])
def test_content_of_other_kinds_is_no_text(content):
    """Messages without text make an empty prompt instead of an error."""
    prompt = prompt_of(
        [{"role": "user", "content": content}, {"content": "x"}, {}], [("f", "no schema")], ["no schema"]
    )
    assert not prompt.words
    assert len(prompt.slots) == 1


def test_text_parts_count_as_text():
    """A message in parts means the same as one string."""
    parts = replace(request(), messages=({"role": "user", "content": [{"type": "text", "text": "hello there"}]},))
    assert prompt_of_request(parts) == prompt_of_request(request("hello there"))
