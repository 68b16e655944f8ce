"""The file of a replay: what is read, and what is refused with which words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from recorded import answer, lines, write

from smallfirst.errors import DataError
from smallfirst.replay.calls import judge, load
from smallfirst.types import ToolCall


@pytest.mark.parametrize("name", ["calls.jsonl", "calls.jsonl.gz"])
def test_a_file_is_read_gzipped_or_not(tmp_path: Path, name: str) -> None:
    """Every call comes with its request and the answers of every model."""
    calls = load(write(tmp_path / name, lines(3)), ("tiny", "gpt-4o"))
    assert [call.id for call in calls] == ["call-0", "call-1", "call-2"]
    assert calls[0].request.tools[0].name == "get_weather"
    assert calls[0].answers["gpt-4o"].usage is not None
    assert calls[0].answers["tiny"].usage is None


def _tool(parameters: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "parameters": parameters}}


def _broken(change: Any) -> list[dict[str, Any]]:
    rows = lines(3)
    change(rows)
    return rows


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: rows[1].update(id="call-0"), "line 2: id 'call-0' occurs twice"),
        (lambda rows: rows[2]["answers"].pop("tiny"), "line 3: answers.tiny is missing"),
        (lambda rows: rows[1]["answers"]["tiny"].pop("correct"), r"line 2: answers\.tiny\.correct: is missing"),
        (
            lambda rows: rows[1]["answers"]["tiny"].update(correct="yes"),
            r"line 2: answers\.tiny\.correct: expected `bool`",
        ),
        (
            lambda rows: rows[1]["answers"]["tiny"].update(correct=None),
            r"line 2: answers\.tiny\.correct: expected `bool`",
        ),
        (lambda rows: rows[0]["answers"]["tiny"].update(input_tokens=-1), r"line 1: answers\.tiny\.input_tokens: "),
        (
            lambda rows: rows[0]["answers"]["tiny"].update(tool_calls=[{}]),
            r"line 1: answers\.tiny\.tool_calls\[0\]\.name",
        ),
        (lambda rows: rows[0]["answers"].update(tiny=3), r"line 1: answers\.tiny: "),
        (lambda rows: rows[0]["request"].update(tools=[_tool({"$ref": "#/nowhere"})]), r"line 1: request: .*nowhere"),
        (lambda rows: rows[0].pop("request"), r"line 1: .*request"),
        (lambda rows: rows[0]["request"].update(messages="hello"), r"line 1: request: "),
    ],
)
def test_what_is_wrong_in_a_file_is_named_by_line_and_field(tmp_path: Path, change: Any, said: str) -> None:
    """A call that cannot be used is refused with its line and the field."""
    with pytest.raises(DataError, match=said):
        load(write(tmp_path / "calls.jsonl", _broken(change)), ("tiny",))


@pytest.mark.parametrize(
    ("raw", "said"),
    [(b"", "no calls"), (b"{\n", "line 1"), (b"\x1f\x8bxx", "cannot be read"), (b'{"id": "\xff"}', "line 1")],
)
def test_a_file_that_is_no_jsonl_is_refused(tmp_path: Path, raw: bytes, said: str) -> None:
    """Empty, cut off and unreadable files get an error that says so."""
    path = tmp_path / "calls.jsonl"
    path.write_bytes(raw)
    with pytest.raises(DataError, match=said):
        load(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    """A path that does not exist is an error, not a traceback."""
    with pytest.raises(DataError, match=r"There is no file '.*none\.jsonl'"):
        load(tmp_path / "none.jsonl")


def test_nan_is_no_json(tmp_path: Path) -> None:
    """What Python writes for a figure that is none is refused, with its line."""
    row = lines(1)[0]
    row["answers"]["tiny"]["input_tokens"] = float("nan")
    with pytest.raises(DataError, match="line 1: JSON is malformed"):
        load(write(tmp_path / "calls.jsonl", [row]))


def test_only_the_models_asked_for_are_read(tmp_path: Path) -> None:
    """What another model answered may be unjudged or missing."""
    rows = lines(2)
    rows[0]["answers"]["other"]["correct"] = None
    del rows[1]["answers"]["other"]
    calls = load(write(tmp_path / "calls.jsonl", rows), ("tiny",))
    assert [list(call.answers) for call in calls] == [["tiny"], ["tiny"]]


@pytest.mark.parametrize(
    "made",
    [
        {"name": "get_weather", "arguments": '{"city": "Oslo", "days": 1}'},
        {"id": "x", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Oslo", "days": 1}}},
        {"type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Oslo", "days": 1}'}},
    ],
)
def test_a_call_may_be_written_as_openai_writes_it(tmp_path: Path, made: dict[str, Any]) -> None:
    """Arguments as JSON text or as an object, under "function" or not: the same call."""
    row = lines(1)[0]
    row["answers"]["tiny"]["tool_calls"] = [made]
    (called,) = load(write(tmp_path / "c.jsonl", [row]))[0].answers["tiny"].choice.tool_calls
    assert (called.name, json.loads(called.arguments)) == ("get_weather", {"city": "Oslo", "days": 1})


def test_log_probabilities_are_read(tmp_path: Path) -> None:
    """In OpenAI's form, alternatives best first."""
    row = lines(1)[0]
    top = [{"token": "b", "logprob": -3.0}, {"token": "a", "logprob": -0.1}]
    row["answers"]["tiny"]["logprobs"] = {"content": [{"token": "a", "logprob": -0.1, "top_logprobs": top}]}
    (token,) = load(write(tmp_path / "c.jsonl", [row]))[0].answers["tiny"].choice.logprobs
    assert (token.token, token.logprob, token.top) == ("a", -0.1, (("a", -0.1), ("b", -3.0)))


def _made(*arguments: dict[str, Any]) -> list[ToolCall]:
    return [ToolCall(str(n), "get_weather", json.dumps(a)) for n, a in enumerate(arguments)]


def test_gold_is_read_in_each_of_its_forms(tmp_path: Path) -> None:
    """No call, allowed values by argument (numbered for several calls), and exact calls; anything else is unknown."""
    request = load(write(tmp_path / "c.jsonl", lines(1)))[0].request
    oslo, lima = {"city": "Oslo", "days": 1}, {"city": "Lima", "days": 2}
    allowed = [{"city": [a["city"]], "days": [a["days"]]} for a in (oslo, lima)]
    assert judge([], None, request) is True
    assert judge(_made(oslo), None, request) is False
    assert judge(_made(oslo), {"get_weather": allowed[0]}, request) is True
    assert judge(_made(lima), {"get_weather": allowed[0]}, request) is False
    assert judge(_made(lima, oslo), {"get_weather_1": allowed[0], "get_weather_2": allowed[1]}, request) is True
    assert judge(_made({"days": 1.0, "city": "Oslo"}), [{"name": "get_weather", "arguments": oslo}], request) is True
    openai = [{"function": {"name": "get_weather", "arguments": json.dumps(oslo)}}]
    assert judge(_made(oslo), openai, request) is True
    assert judge([], [], request) is True
    assert judge(_made(oslo), ["get_weather"], request) is None
    assert judge(_made(oslo), "Oslo", request) is None
    assert judge(_made(oslo), {"unheard_of": allowed[0]}, request) is None


def test_an_answer_that_was_mended_is_judged_by_gold(tmp_path: Path) -> None:
    """As recorded where it is the recorded answer, by gold where it is not."""
    row = lines(1)[0]
    gold = row["gold"]["get_weather"]
    city, days = gold["city"][0], gold["days"][0]
    row["answers"]["tiny"] = answer(city, days, False)
    call = load(write(tmp_path / "c.jsonl", [row]))[0]
    recorded = call.answers["tiny"].choice
    assert call.right("tiny", recorded) is False
    mended = recorded.__class__(tool_calls=tuple(_made({"days": days, "city": city})))
    assert call.right("tiny", mended) is True


def test_without_gold_an_answer_that_was_mended_counts_as_recorded(tmp_path: Path) -> None:
    """A gold that is absent is not a gold of no call."""
    row = lines(1)[0]
    del row["gold"]
    call = load(write(tmp_path / "c.jsonl", [row]))[0]
    recorded = call.answers["tiny"]
    mended = recorded.choice.__class__(tool_calls=tuple(_made({"city": "Oslo", "days": 1.0})))
    assert call.right("tiny", mended) is recorded.correct
