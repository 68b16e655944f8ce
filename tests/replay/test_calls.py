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


def _broken(change: Any) -> list[dict[str, Any]]:
    rows = lines(3)
    change(rows)
    return rows


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: rows[1].update(id="call-0"), "line 2: id 'call-0' occurs twice"),
        (lambda rows: rows[2]["answers"].pop("tiny"), "line 3: answers.tiny is missing"),
        (lambda rows: rows[1]["answers"]["tiny"].pop("correct"), r"line 2: .*correct.*answers"),
        (lambda rows: rows[1]["answers"]["tiny"].update(correct="yes"), r"line 2: Expected `bool`.*correct"),
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
    [(b"", "no calls"), (b"{\n", "line 1"), (b"\x1f\x8bxx", "Cannot read"), (b'{"id": "\xff"}', "line 1")],
)
def test_a_file_that_is_no_jsonl_is_refused(tmp_path: Path, raw: bytes, said: str) -> None:
    """Empty, cut off and unreadable files get an error that says so."""
    path = tmp_path / "calls.jsonl"
    path.write_bytes(raw)
    with pytest.raises(DataError, match=said):
        load(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    """A path that does not exist is an error, not a traceback."""
    with pytest.raises(DataError, match="Cannot read"):
        load(tmp_path / "none.jsonl")


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
