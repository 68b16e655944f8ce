"""bfcl: the scorer's rules on hand-written calls, conversion to tools, and reading a wheel (no BFCL data here)."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallfirst import bfcl
from smallfirst.errors import ModelFileError
from smallfirst.models import Progress
from smallfirst.types import ToolCall

FUNCTION: dict[str, Any] = {
    "name": "trips.book",
    "description": "Book a trip.",
    "parameters": {
        "type": "dict",
        "required": ["city"],
        "properties": {
            "city": {"type": "string", "description": "Where to."},
            "days": {"type": "integer"},
            "budget": {"type": "float", "default": 10.0},
            "cheap": {"type": "boolean", "optional": True},
            "stops": {"type": "array", "items": {"type": "string"}},
            "weights": {"type": "tuple", "items": {"type": "float"}},
            "guest": {"type": "dict", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}},
            "guests": {"type": "array", "items": {"type": "dict", "properties": {"name": {"type": "string"}}}},
            "note": {"type": "any"},
        },
    },
}
OTHER: dict[str, Any] = {
    "name": "weather",
    "description": "Tell the weather.",
    "parameters": {"type": "dict", "required": ["city"], "properties": {"city": {"type": "string"}}},
}


def call(name: str, **arguments: Any) -> ToolCall:
    return ToolCall("1", name, json.dumps(arguments))


def fits(allowed: dict[str, list[Any]], **arguments: Any) -> bool:
    """Whether one call with city Rome and these arguments is right where gold allows these values."""
    gold = {"trips.book": {"city": ["Rome"], **allowed}}
    return bfcl.score([call("trips_book", city="Rome", **arguments)], [gold], [FUNCTION], "live_simple").correct


@pytest.mark.parametrize("text", ["New York", "new york", "NewYork", "new-york", "New_York.", "N.e/w,Y*o^rk"])
def test_text_is_compared_without_case_spaces_and_light_punctuation(text: str) -> None:
    """Case, spaces and , . / - _ * ^ do not matter in a text; quotes are all the same quote."""
    assert fits({"note": ["New York"]}, note=text)
    assert fits({"note": ["it's"]}, note='it"s')


@pytest.mark.parametrize("text", ["New York!", "York", "New\nYork", ""])
def test_text_is_otherwise_compared_exactly(text: str) -> None:
    """Any other difference makes a text wrong."""
    assert not fits({"note": ["New York"]}, note=text)


def test_an_allowed_empty_text_means_that_the_argument_may_be_left_out() -> None:
    """An argument whose allowed values include "" may be left out or be empty; another one may not."""
    assert fits({"days": [3, ""]})
    assert fits({"note": ["x", ""]}, note="")
    assert not fits({"days": [3]})


def test_an_argument_without_gold_values_is_wrong() -> None:
    """An argument that the function has but gold does not is unexpected, and so is one that the function lacks."""
    assert not fits({}, days=3)
    assert not fits({"unknown": [1]}, unknown=1)


def test_a_required_argument_must_be_there() -> None:
    """Leaving out a required argument is wrong even where gold would allow it."""
    gold = {"trips.book": {"city": ["Rome", ""]}}
    assert not bfcl.score([call("trips_book")], [gold], [FUNCTION], "live_simple").correct


@pytest.mark.parametrize(("value", "right"), [(3, True), (3.0, False), ("3", False), (True, False), (4, False)])
def test_integers_must_be_integers(value: Any, right: bool) -> None:
    """A number with a fraction part, a text or a boolean is no integer."""
    assert fits({"days": [3]}, days=value) is right


@pytest.mark.parametrize(("value", "right"), [(5, True), (5.0, True), ("5.0", False), (True, False), (5.5, False)])
def test_an_integer_does_for_a_float(value: Any, right: bool) -> None:
    """Where a float is declared an integer of the same value is right."""
    assert fits({"budget": [5.0]}, budget=value) is right


def test_booleans_are_not_numbers() -> None:
    """1 is not true."""
    assert fits({"cheap": [True]}, cheap=True)
    assert not fits({"cheap": [True]}, cheap=1)


def test_gold_of_another_type_admits_that_type_and_is_compared_exactly() -> None:
    """Where gold's values are not of the declared type, a value of gold's type is admitted, without leniency."""
    assert fits({"days": ["three days"]}, days="three days")
    assert not fits({"days": ["three days"]}, days="Three days")
    assert fits({"note": [7]}, note=7)
    assert fits({"note": [None, "None"]}, note=None)


def test_lists_are_compared_in_order_with_lenient_texts() -> None:
    """A list has its items in gold's order; texts in it are compared as texts are, numbers as numbers."""
    assert fits({"stops": [["San Marino", "Pisa"]]}, stops=["san marino", "pisa"])
    assert not fits({"stops": [["San Marino", "Pisa"]]}, stops=["Pisa", "San Marino"])
    assert not fits({"stops": [["Pisa"]]}, stops=["Pisa", "Pisa"])
    assert fits({"weights": [[1.5, 2.0]]}, weights=[1.5, 2.0])


def test_list_items_need_the_declared_type_or_gold_s() -> None:
    """An integer in a list of floats is right only where gold's list has integers too."""
    assert not fits({"weights": [[1.0, 2.0]]}, weights=[1, 2])
    assert fits({"weights": [[1, 2]]}, weights=[1, 2])
    assert not fits({"stops": [["1"]]}, stops=[1])


def test_an_empty_list_does_for_an_argument_that_may_be_left_out() -> None:
    """[] is taken for left out."""
    assert fits({"stops": [["Pisa"], ""]}, stops=[])
    assert not fits({"stops": [["Pisa"]]}, stops=[])


@pytest.mark.parametrize(
    ("guest", "right"),
    [
        ({"name": "ann lee", "age": 4}, True),
        ({"name": "Ann Lee"}, True),
        ({"age": 4}, False),
        ({"name": "Bob"}, False),
        ({"name": "Ann Lee", "age": 5}, False),
        ({"name": "Ann Lee", "size": 1}, False),
        ([{"name": "Ann Lee"}], False),
    ],
)
def test_dictionaries_are_compared_key_by_key(guest: Any, right: bool) -> None:
    """Every key must be known and have an allowed value; a key may be missing where its values include ""."""
    assert fits({"guest": [{"name": ["Ann Lee"], "age": [4, ""]}]}, guest=guest) is right


def test_lists_of_dictionaries_match_item_by_item() -> None:
    """Each dictionary matches the one at its place, and there are as many."""
    gold = {"guests": [[{"name": ["Ann"]}, {"name": ["Bob"]}]]}
    assert fits(gold, guests=[{"name": "ann"}, {"name": "bob"}])
    assert not fits(gold, guests=[{"name": "bob"}, {"name": "ann"}])
    assert not fits(gold, guests=[{"name": "ann"}])
    assert not fits({"guests": ["", [{"name": ["Ann"]}]]}, guests=["ann"])


def test_names_carry_underscores_for_dots() -> None:
    """The call must have the name that was offered."""
    gold = [{"trips.book": {"city": ["Rome"]}}]
    assert bfcl.score([call("trips_book", city="Rome")], gold, [FUNCTION], "live_simple").correct
    assert not bfcl.score([call("trips.book", city="Rome")], gold, [FUNCTION], "live_simple").correct


def test_several_functions_one_call() -> None:
    """In "multiple" the gold function must be called, once."""
    gold, functions = [{"weather": {"city": ["Rome"]}}], [FUNCTION, OTHER]
    right, wrong = call("weather", city="Rome"), call("trips_book", city="Rome")
    assert bfcl.score([right], gold, functions, "live_multiple").correct
    assert not bfcl.score([wrong], gold, functions, "live_multiple").correct
    assert not bfcl.score([right, right], gold, functions, "live_multiple").correct
    assert not bfcl.score([], gold, functions, "live_multiple").correct


def test_parallel_calls_match_in_any_order_each_once() -> None:
    """In "parallel" every gold call needs a call of its own, whatever the order."""
    gold = [{"weather": {"city": ["Rome"]}}, {"weather": {"city": ["Pisa"]}}]
    rome, pisa = call("weather", city="Rome"), call("weather", city="Pisa")
    assert bfcl.score([pisa, rome], gold, [OTHER], "live_parallel").correct
    for calls in ([rome, rome], [rome], [rome, pisa, pisa]):
        assert not bfcl.score(calls, gold, [OTHER], "live_parallel").correct


@pytest.mark.parametrize(
    ("calls", "called"), [([], False), ([call("weather", city="Rome")], True), ([ToolCall("1", "weather", "{")], False)]
)
def test_irrelevance_wants_no_call_and_relevance_any(calls: list[ToolCall], called: bool) -> None:
    """Without gold only whether something was called counts; a call that cannot be read is none."""
    assert bfcl.score(calls, (), [OTHER], "live_irrelevance").correct is not called
    assert bfcl.score(calls, (), [OTHER], "live_relevance").correct is called


@pytest.mark.parametrize("arguments", ["", "{", "[]", "null", '"Rome"'])
def test_unreadable_arguments_are_wrong(arguments: str) -> None:
    """Arguments that are not a JSON object are wrong, with a reason."""
    score = bfcl.score([ToolCall("1", "weather", arguments)], [{"weather": {"city": ["Rome"]}}], [OTHER], "live_simple")
    assert not score.correct
    assert score.error == "the arguments of a call are not a JSON object"


def test_a_wrong_score_says_why() -> None:
    """The reason names the argument, what it is and what is allowed."""
    score = bfcl.score([call("weather", city="Pisa")], [{"weather": {"city": ["Rome"]}}], [OTHER], "live_simple")
    assert score.error == "argument 'city' is 'Pisa', allowed are ['Rome']"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(-2, 2) | st.text("aB .", max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["name", "age"]), inner, max_size=2),
    max_leaves=4,
)


@given(st.sampled_from(sorted(FUNCTION["parameters"]["properties"])), json_values)
def test_any_json_value_gets_a_verdict(argument: str, value: Any) -> None:
    """Whatever a model writes for an argument, the scorer decides and does not fail."""
    gold = {"city": ["Rome"], "days": [3], "budget": [1.0], "cheap": [True], "stops": [["a"], ""], "note": ["a"]}
    gold |= {"weights": [[1.0]], "guest": [{"name": ["a"], "age": [1, ""]}], "guests": [[{"name": ["a"]}], ""]}
    answer = call("trips_book", **{"city": "Rome", argument: value})
    score = bfcl.score([answer], [{"trips.book": gold}], [FUNCTION], "live_simple")
    assert score.correct is (score.error is None)


def test_tools_are_openai_tools_with_valid_schemas() -> None:
    """Python's type names become JSON Schema's at every depth, "any" no type, dots underscores; the rest is kept."""
    (tool,) = bfcl.tools([FUNCTION])
    parameters = tool["function"]["parameters"]
    assert (tool["type"], tool["function"]["name"]) == ("function", "trips_book")
    assert parameters["type"] == "object"
    assert parameters["required"] == ["city"]
    properties = parameters["properties"]
    assert properties["city"] == {"type": "string", "description": "Where to."}
    assert properties["budget"] == {"type": "number", "default": 10.0}
    assert properties["cheap"] == {"type": "boolean"}
    assert properties["weights"] == {"type": "array", "items": {"type": "number"}}
    assert properties["guests"]["items"] == {"type": "object", "properties": {"name": {"type": "string"}}}
    assert properties["note"] == {}
    jsonschema_rs.meta.validate(parameters)
    assert FUNCTION["parameters"]["type"] == "dict"


def write_wheel(path: Path, categories: dict[str, int]) -> Path:
    """A wheel with invented questions, laid out as BFCL's."""
    with zipfile.ZipFile(path, "w") as archive:
        for category, count in categories.items():
            rows = [
                {"id": f"{category}_{i}", "question": [[{"role": "user", "content": "Rome?"}]], "function": [OTHER]}
                for i in range(count)
            ]
            answers = [{"id": row["id"], "ground_truth": [{"weather": {"city": ["Rome"]}}]} for row in rows]
            archive.writestr(f"bfcl_eval/data/BFCL_v4_{category}.json", "\n".join(map(json.dumps, rows)))
            if "relevance" not in category:
                name = f"bfcl_eval/data/possible_answer/BFCL_v4_{category}.json"
                archive.writestr(name, "\n".join(map(json.dumps, answers)))
    return path


COUNTS = {
    "live_simple": 30,
    "live_multiple": 30,
    "live_parallel": 2,
    "live_parallel_multiple": 3,
    "live_irrelevance": 30,
}


def test_questions_are_read_with_their_gold(tmp_path: Path) -> None:
    """Every question of the wheel has its messages, functions and, where there is one, its gold answer."""
    questions = bfcl.load(write_wheel(tmp_path / "w.whl", COUNTS))
    assert Counter(q.category for q in questions) == COUNTS
    assert questions[0].messages == ({"role": "user", "content": "Rome?"},)
    assert questions[0].gold == ({"weather": {"city": ["Rome"]}},)
    assert questions[-1].gold == ()


def test_a_file_that_is_not_the_wheel_is_a_clear_error(tmp_path: Path) -> None:
    """No zip file, no file and a wheel without the category all say which wheel is wanted."""
    (tmp_path / "text.whl").write_text("not a wheel")
    write_wheel(tmp_path / "w.whl", {"live_simple": 1})
    for name in ("text.whl", "missing.whl", "w.whl"):
        with pytest.raises(ModelFileError, match="bfcl-eval=="):
            bfcl.load(tmp_path / name)


def test_a_sample_is_balanced_seeded_and_without_repeats(tmp_path: Path) -> None:
    """A sample takes equal numbers of each kind as far as they last, the same ones for the same seed."""
    questions = bfcl.load(write_wheel(tmp_path / "w.whl", COUNTS))
    drawn = bfcl.sample(questions, 12, seed=4)
    kinds = Counter("parallel" if "parallel" in q.category else q.category for q in drawn)
    assert kinds == {"live_simple": 3, "live_multiple": 3, "parallel": 3, "live_irrelevance": 3}
    assert drawn == bfcl.sample(questions, 12, seed=4) != bfcl.sample(questions, 12, seed=5)
    assert len({q.id for q in bfcl.sample(questions, 1000)}) == len(questions)


def test_the_wheel_is_fetched_once_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wheel is kept in the user's cache and downloaded again only when it is not what it should be."""
    downloads = []

    def download(requirement: str, into: Path, _progress: Progress | None) -> Path:
        downloads.append(requirement)
        return Path(shutil.copy(wheel, into))

    wheel = write_wheel(tmp_path / "w.whl", {"live_simple": 1})
    monkeypatch.setenv("SMALLFIRST_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(bfcl, "download_wheel", download)
    monkeypatch.setattr(bfcl, "SHA256", "0" * 64)
    with pytest.raises(ModelFileError, match="sha256"):
        bfcl.fetch()
    monkeypatch.setattr(bfcl, "SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    kept = bfcl.fetch()
    assert bfcl.fetch() == kept
    kept.write_text("damaged")
    assert bfcl.load(bfcl.fetch(), ["live_simple"])
    assert downloads == [bfcl.REQUIREMENT] * 3
