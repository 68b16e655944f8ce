"""`bench/loop.py` on made calls, with a model of two random layers."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest

import loop as bench
from callsites import read
from smallfirst.errors import ConfigError, DataError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

PLACES = "Oslo Bern Prague Rome Paris Berlin Vienna Dublin Lisbon Athens Madrid Warsaw".split()
DISHES = "soup pasta curry tacos sushi stew pie salad noodles dumplings".split()
TABLE = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "dish": {"type": "string"}},
    "required": ["city", "dish"],
}
FIND = {"name": "FindTable", "service": "Tables_1", "description": "Finds a table", "parameters": TABLE}


def rows(count: int) -> list[dict[str, Any]]:
    """Dialogues of two calls each, in SGD's form."""
    rng, made = random.Random(0), list[dict[str, Any]]()
    for n in range(count):
        history = [["U", f"I would like some {rng.choice(DISHES)} tonight, table {n} please"], ["S", "Where?"]]
        for turn in (3, 5):
            city, dish = rng.choice(PLACES), rng.choice(DISHES)
            history = [*history, ["U", f"rather {dish} number {rng.randrange(10**6)} in {city}"]]
            row = {"id": f"d/{n}/{turn}", "service": "Tables_1", "method": "FindTable", "history": history}
            made.append({**row, "arguments": {"city": city, "dish": dish}})
    return made


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of 80 calls, tools beside it; models are kept in a folder of their own."""
    monkeypatch.setenv("SMALLFIRST_HOME", str(tmp_path / "home"))
    path = tmp_path / "calls_made.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(40)))
    (tmp_path / "tools_made.json").write_text(json.dumps({"Tables_1.FindTable": FIND}))
    return path


def given(calls: Path, *more: str) -> Any:
    return bench.options().parse_args(["--calls", str(calls), "--work", str(calls.parent / "work"), *more])


def times(calls: Path) -> dict[Path, int]:
    """When the files of the measurement were written."""
    return {path: path.stat().st_mtime_ns for path in (calls.parent / "work" / "tasks").rglob("*")}


async def test_a_service_is_converted_and_measured_once(calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls become a task, a specialist and a row with intervals; run again, nothing is measured again. Their log is
    read as any log is."""
    for library in ("torch", "peft", "sklearn"):
        pytest.importorskip(library, reason="the loop needs pip install 'smallfirst[learn]'")
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "learn")
    import tiny

    base = tiny.write_model(calls.parent / "tiny.gguf")
    few = "--epochs 0.5 --limit 4 --labels 8 --arms B0 B1 B3 B4".split()
    options = given(calls, "--base", str(base), *few, "--zero-shot", str(base))
    [row, mean] = await bench.run(options)
    assert (row["task"], row["calls"], row["alpha"]) == ("Tables_1", 80, 0.05)
    assert row["train rows"] > 40
    assert row["tokens/s"] > 0
    assert row["exact"].keys() == {"value", "low", "high", "n"}
    assert row["exact"]["n"] == row["zero-shot"]["n"] == 4
    assert row["zero-shot tiny"] == row["zero-shot"]
    assert row["examples"] is None
    assert row["accuracy - B0"]["value"] == 0.0
    assert row["coverage"]["value"] == 0.0
    assert row["CPS / B0"]["value"] > 0
    assert "label" in row["outcome"]
    assert (mean["task"], mean["outcome"]) == ("mean of 1", "0 of 1 released")
    assert mean["ARI"] == 1.0
    assert row.keys() == mean.keys()
    kept = times(calls)
    assert json.loads(json.dumps(await bench.run(options))) == [row, mean]
    assert times(calls) == kept
    logged = given(calls.parent / "work" / "log.jsonl", "--most", "0")
    logged.work = calls.parent / "again"
    [none] = await bench.run(logged)
    assert (none["task"], none["ARI"]) == ("mean of 0", None)
    assert len((logged.work / "calls.jsonl").read_bytes().splitlines()) == 80


def test_what_cannot_be_measured_says_so(calls: Path) -> None:
    """A service that is not there, a tool that is not described, a path without calls and a log that is none."""
    with pytest.raises(ConfigError, match="Known: Tables_1"):
        asyncio.run(bench.run(given(calls, "--services", "Tables_2")))
    with pytest.raises(ConfigError, match="There are no calls at"):
        asyncio.run(bench.run(given(calls.parent / "nothing")))
    other = calls.with_name("other.jsonl")
    other.write_text('{"a": 1}\n')
    with pytest.raises(DataError, match="No call could be read"):
        asyncio.run(bench.run(given(other)))
    with pytest.raises(ConfigError, match="holds a measurement of other calls"):
        asyncio.run(bench.run(given(calls)))
    calls.write_text(json.dumps({**rows(1)[0], "method": "BookTable"}))
    with pytest.raises(DataError, match="no tool 'BookTable' of 'Tables_1'"):
        asyncio.run(bench.run(given(calls)))


def test_sets_are_read_as_call_sites(tmp_path: Path) -> None:
    """Intents of SNIPS are tools, those of a CLINC150 domain an enum, CrossWOZ's queries are calls when they change."""
    snips, clinc, woz = (tmp_path / name for name in ("snips", "clinc150", "woz"))
    for folder in (snips, clinc, woz):
        folder.mkdir()
    said = [{"text": "play "}, {"text": "jazz ", "entity": "genre"}]
    (snips / "train_PlayMusic_full.json").write_text(json.dumps({"PlayMusic": [{"data": said}]}))
    spoken = {part: [["what do I owe", "balance"], ["hi", "greeting"]] for part in ("train", "val", "test")}
    (clinc / "data_full.json").write_text(json.dumps(spoken))
    empty, wanted = {"餐馆": {"名称": ""}}, {"餐馆": {"名称": "全聚德", "selectedResults": []}}
    turns = [("usr", empty), ("sys", wanted), ("usr", empty), ("sys", wanted), ("usr", empty), ("sys", empty)]
    messages = [{"role": role, "content": "你好", "sys_state_init": s, "sys_state": s} for role, s in turns]
    with zipfile.ZipFile(woz / "val.json.zip", "w") as packed:
        packed.writestr("val.json", json.dumps({"7": {"messages": messages}}))
    found = {}
    for path in (snips, clinc / "banking", woz):
        found |= read(path) or {}
    made = {ask.site: ask for ask in bench.asks(found, 1, 0)}
    assert sum(len(site.calls) for site in found.values()) == 1 + 3 + 1
    assert made["clinc:banking"].gold["content"] == '{"intent":"balance"}'
    assert made["clinc:banking"].body["response_format"]["json_schema"]["name"] == "intent"
    calls = {name: made[name].gold["tool_calls"][0]["function"] for name in ("snips", "crosswoz")}
    assert calls["snips"] == {"name": "PlayMusic", "arguments": '{"genre":"jazz"}'}
    assert calls["crosswoz"] == {"name": "search_restaurant", "arguments": '{"名称":"全聚德"}'}
    assert [message["role"] for message in made["crosswoz"].body["messages"]] == ["system", "user"]
    assert len(made["crosswoz"].body["tools"]) == 5


def test_trajectories_are_read_as_they_were_recorded(tmp_path: Path) -> None:
    """Every turn of the agent is a call after its own prompt, replies too; the domain's tools must be there."""
    call = {"id": "c", "type": "function", "function": {"name": "FindTable", "arguments": '{"city":"Oslo"}'}}
    talk = [
        {"role": "system", "content": "Policy"},
        {"role": "user", "content": "A table"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "4"},
        {"role": "assistant", "content": "Table 4."},
    ]
    (tmp_path / "big-model-airline.json.gz").write_bytes(gzip.compress(json.dumps([{"traj": talk}] * 2).encode()))
    with pytest.raises(DataError, match="its tools are not there"):
        read(tmp_path)
    (tmp_path / "airline_tools.json").write_text(json.dumps([{"type": "function", "function": FIND}]))
    made = list(bench.asks(read(tmp_path) or {}, 0, 0))
    assert [ask.site for ask in made] == ["tau:big-model-airline"] * 4
    assert len({ask.episode for ask in made}) == 2
    assert [list(ask.body["messages"]) for ask in made[:2]] == [talk[:2], talk[:4]]
    assert [ask.gold for ask in made[:2]] == [talk[2], talk[4]]
    assert made[0].body["tool_choice"] == "auto"
