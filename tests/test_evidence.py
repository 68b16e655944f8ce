"""An answer leaves traces in the request's text: what is grounded, what is about it, what is left over."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallfirst.evidence import ANSWER_FEATURES, MAX_CHARS, REQUEST_FEATURES, answer_evidence, request_evidence
from smallfirst.types import Choice, Request, ResponseFormat, Tool, ToolCall, ToolChoice

HOTEL = Tool(
    "book_hotel",
    "Book a hotel room in a city.",
    {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "The city."},
            "nights": {"type": "integer"},
            "price_limit": {"type": "number", "description": "At most so much a night."},
            "class": {"enum": ["economy", "luxury"]},
        },
        "required": ["city", "nights"],
    },
)
AREA = Tool(
    "triangleArea", "Area of a triangle.", {"type": "object", "properties": {"sides": {"items": {"type": "number"}}}}
)
WEATHER_ZH = Tool(
    "get_weather",
    "查询城市的天气预报",
    {"type": "object", "properties": {"city": {"type": "string", "description": "城市名称"}}, "required": ["city"]},
)


def asked(text: str, *tools: Tool, **more: Any) -> Request:
    return Request("chat", {}, "m", ({"role": "user", "content": text},), tools=tools or (HOTEL, AREA), **more)


def called(*calls: tuple[str, Any], text: str = "") -> Choice:
    return Choice(text=text, tool_calls=tuple(ToolCall("1", name, json.dumps(given)) for name, given in calls))


def test_grounded_values() -> None:
    """A value that stands in the text has 1, a spelled number too, one from nowhere 0, a guess from a list half."""
    request = asked("Book a hotel in New York for three nights, at most 1,200.50 dollars")
    exact = answer_evidence(request, called(("book_hotel", {"city": "new york", "nights": 3, "price_limit": 1200.5})))
    assert (exact["grounded_min"], exact["optional_grounded_min"], exact["ungrounded"]) == (1, 1, 0)
    assert (exact["arguments"], exact["optional_arguments"], exact["optional_left"]) == (3, 1, 1)
    guessed = answer_evidence(request, called(("book_hotel", {"city": "Boston", "nights": 7, "class": "luxury"})))
    assert (guessed["grounded_min"], guessed["grounded_mean"], guessed["ungrounded"]) == (0, 0, 2)
    assert guessed["optional_grounded_min"] == 0.5
    partly = answer_evidence(request, called(("book_hotel", {"city": "New Orleans", "nights": 3})))
    assert partly["grounded_min"] == pytest.approx(0.45)


def test_percentages_and_signs_are_grounded() -> None:
    """0.07 is grounded by 7 %, -5 by 5."""
    request = asked("A loss of 5 at 7%", AREA)
    assert answer_evidence(request, called(("triangleArea", {"sides": [0.07, -5]})))["optional_grounded_min"] == 1


def test_numbers_beyond_floats_and_raised_digits_are_read() -> None:
    """An integer that no float can hold and a digit written small are no numbers of the text, and no error."""
    request = asked("5 m\u00b2 and " + "9" * 400, AREA)
    assert request_evidence(request)["numbers"] == 2
    assert answer_evidence(request, called(("triangleArea", {"sides": [10**400]})))["optional_grounded_min"] == 0


def test_what_was_asked_and_is_in_no_call() -> None:
    """Words and numbers of the request that neither the called tools nor the values have are left over."""
    request = asked("Book a hotel in Rome for 2 nights and rent a car for 3 days")
    found = answer_evidence(request, called(("book_hotel", {"city": "Rome", "nights": 2})))
    assert found["uncovered"] == 3
    assert (found["unused_numbers"], found["unused_numbers_share"]) == (1, 0.5)
    assert found["tools_used_share"] == 0.5
    assert found["name_about"] == 1


def test_a_tool_that_is_about_something_else() -> None:
    """The share of the tool's own words that the text has tells a call that fits from one that does not."""
    call = called(("triangleArea", {"sides": [3, 4, 5]}))
    about = answer_evidence(asked("What is the area of a triangle with sides 3, 4 and 5?"), call)
    astray = answer_evidence(asked("Who won the match of 3, 4 and 5 May?"), call)
    assert (about["name_about"], astray["name_about"]) == (1, 0)
    assert about["text_about"] > astray["text_about"]


def test_nothing_called_though_a_tool_fits() -> None:
    """uncalled_about is high where a tool's name is in the text, and only answers without calls have it."""
    assert answer_evidence(asked("Please book me a hotel"), called())["uncalled_about"] == 1
    assert answer_evidence(asked("Good morning"), called())["uncalled_about"] == 0
    assert "uncalled_about" not in answer_evidence(asked("Hi"), called(("book_hotel", {})))


def test_odd_calls_are_counted() -> None:
    """Unknown arguments and tools, repeated calls, integers where numbers are asked in a list, named but left out."""
    request = asked("Hotel with a price limit")
    found = answer_evidence(request, called(("book_hotel", {"city": "x", "stars": 5}), ("nowhere", {"a": 1})))
    assert (found["unknown_arguments"], found["optional_left_named"]) == (3, 1)
    twice = called(("triangleArea", {"sides": [3, 4.5]}), ("triangleArea", {"sides": [3, 4.5]}))
    counted = answer_evidence(request, twice)
    assert (counted["repeated_calls"], counted["inexact_numbers"], counted["lists"], counted["calls"]) == (1, 2, 2, 2)


def test_chinese_is_compared_by_pairs_of_characters() -> None:
    """A city that stands in a Chinese text is grounded; a tool described in Chinese is about it, another is not."""
    request = asked("请问明天北京的天气预报怎么样？", WEATHER_ZH)
    found = answer_evidence(request, called(("get_weather", {"city": "北京"})))
    assert found["grounded_min"] == 1
    assert found["description_about"] > 0.4
    assert answer_evidence(request, called(("get_weather", {"city": "上海"})))["grounded_min"] == 0
    assert (
        answer_evidence(asked("帮我订一张机票", WEATHER_ZH), called(("get_weather", {"city": "北京"})))[
            "description_about"
        ]
        == 0
    )
    assert request_evidence(request)["questions"] == 1


def test_the_request_s_own_features() -> None:
    """Different words, numbers and questions of the user's text; without tools nothing is said of tools."""
    found = request_evidence(asked("Hotels in Rome? Or hotel rooms in Oslo for 2?"))
    assert (found["numbers"], found["questions"]) == (1, 2)
    assert found["words"] == 5
    assert found["tools_named"] == 0.5
    plain = request_evidence(asked("Hello", tool_choice=ToolChoice("none")))
    assert not plain.keys() & {"tools_named", "tools_about"}


def test_only_what_was_said_to_the_model_counts() -> None:
    """The system's and the assistant's own words ground nothing; of a long talk its end is looked at."""
    messages = (
        {"role": "system", "content": "Rome"},
        {"role": "assistant", "content": "Rome"},
        {"role": "user", "content": "ok"},
    )
    call = called(("book_hotel", {"city": "Rome", "nights": 1}))
    assert answer_evidence(Request("chat", {}, "m", messages, tools=(HOTEL,)), call)["grounded_min"] == 0
    tool = Request("chat", {}, "m", ({"role": "tool", "content": "Rome 1"},), tools=(HOTEL,))
    assert answer_evidence(tool, call)["grounded_min"] == 1
    assert answer_evidence(asked("Rome 1 " + "x " * MAX_CHARS), call)["grounded_min"] == 0


def test_an_answer_without_tools_is_grounded_by_its_values() -> None:
    """JSON has the least and the mean of its values' grounds; other text has none."""
    form = ResponseFormat("json_schema", {})
    request = Request("chat", {}, "m", ({"role": "user", "content": "Ann is 7"},), response_format=form)
    found = answer_evidence(request, Choice(text='{"name": "Ann", "age": 8}'))
    assert found == {"grounded_min": 0, "grounded_mean": 0.5}
    assert answer_evidence(request, Choice(text="Ann")) == {}
    assert answer_evidence(request, Choice(text="{}")) == {}


@given(
    st.text(max_size=60),
    st.dictionaries(
        st.sampled_from(["city", "nights", "class", "other"]),
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers()
            | st.floats(allow_nan=False, allow_infinity=False)
            | st.text(max_size=9),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
            max_leaves=6,
        ),
    ),
)
def test_any_text_and_any_values_are_measured(text: str, given_values: Any) -> None:
    """Whatever is asked and answered, features are declared, shares lie in [0, 1] and counts are whole."""
    request = asked(text)
    choice = called(("book_hotel", given_values), ("triangleArea", {}))
    for name, value in {**request_evidence(request), **answer_evidence(request, choice)}.items():
        kind = {**REQUEST_FEATURES, **ANSWER_FEATURES}[name]
        assert value == int(value) >= 0 if kind == "count" else 0 <= value <= 1


def test_tools_of_one_name_are_not_mixed_up() -> None:
    """Each request's own schema decides, though another request's tool has the same name."""
    call = called(("f", {"a": "x"}))
    first = answer_evidence(asked("x", Tool("f", parameters={"properties": {"a": {}}})), call)
    second = answer_evidence(asked("x", Tool("f", parameters={"properties": {"b": {}}})), call)
    assert (first["unknown_arguments"], second["unknown_arguments"]) == (0, 1)
