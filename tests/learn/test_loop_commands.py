"""`smallfirst import`, `scrub` and `tasks`: what they print, write and exit with."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from smallfirst.cli import app
from smallfirst.errors import ConfigError, NotFoundError

CLI = CliRunner()
TOPICS = {
    "weather": "rain sun snow wind storm cloud forecast degrees cold hot umbrella tomorrow humid fog",
    "money": "transfer account savings checking rent balance bank statement card payment loan deposit fee credit",
}
EMAIL, CARD = "mia.li@acme-corp.com", "4012888888881881"


def call(n: int, tool: str, words: str) -> dict[str, Any]:
    """A logged call that offers and gets a call of one tool."""
    schema = {"type": "object", "properties": {"about": {"type": "string"}}, "required": ["about"]}
    made = {"id": "c", "type": "function", "function": {"name": tool, "arguments": json.dumps({"about": words})}}
    return {
        "id": f"{tool}-{n}",
        "created_at": 1_760_000_000 + n * 3600,
        "cost_usd": 0.01,
        "metadata": {"session_id": f"s{n // 2}"},
        "request": {
            "model": "gpt-4o",
            "messages": [{"role": "user", "content": f"please tell me about {words}"}],
            "tools": [{"type": "function", "function": {"name": tool, "parameters": schema}}],
        },
        "response": {
            "model": "gpt-4o",
            "choices": [{"message": {"content": None, "tool_calls": [made]}, "finish_reason": "tool_calls"}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 10},
        },
    }


def log() -> list[dict[str, Any]]:
    """Thirty calls of each of two tools, about two topics; one of them names a person's address and card."""
    rng = random.Random(0)
    said = [" ".join(rng.sample(TOPICS[rng.choice(list(TOPICS))].split(), 5)) for _ in range(60)]
    calls = [call(n % 30, ("find_bus", "book_room")[n // 30], words) for n, words in enumerate(said)]
    calls[0]["request"]["messages"][0]["content"] += f" and write to {EMAIL}, card {CARD}"
    return calls


class Shop:
    """A store in a folder and the command line on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._config = folder / "smallfirst.toml"
        self._config.write_text(f'[models.m]\nbackend = "fake"\n[store]\nurl = "sqlite:///{folder}/calls.db"\n')

    def run(self, *args: object, code: int = 0) -> Result:
        done = CLI.invoke(app, [*map(str, args), "--config", str(self._config)])
        if isinstance(done.exception, Exception) and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == code, done.output
        return done

    def json(self, *args: object, code: int = 0) -> Any:
        return json.loads(self.run(*args, "--json", code=code).stdout)

    def write(self, name: str, *lines: object) -> Path:
        path = self.folder / name
        path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
        return path


@pytest.fixture
def empty(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


@pytest.fixture
def shop(empty: Shop) -> Shop:
    empty.run("import", empty.write("log.jsonl", *log()))
    return empty


def test_import_tells_what_it_did(empty: Shop):
    """Counts, the number and reason of a bad line, that nothing changed; and 1 when nothing could be read."""
    path = empty.write("log.jsonl", log()[0], "{bad")
    done = empty.run("import", path)
    assert "1 calls imported; 1 could not be read." in done.stdout
    assert f"{path}:2: It is not JSON" in done.stderr
    assert "nothing changed" in empty.run("import", path).stdout
    assert empty.json("import", path, "--task", "t")["known"] == 1
    assert empty.json("import", empty.write("none.jsonl"), code=1)["added"] == 0
    with pytest.raises(ConfigError, match="format"):
        empty.run("import", path, "--format", "csv")


def test_import_says_a_thing_once(empty: Shop):
    """What is wrong in the same way at several lines, or several times in one, is one line with a count."""
    path = empty.write("log.jsonl", log()[0], *["{bad"] * 3, "[]", *["{bad"] * 30)
    [line] = [line for line in empty.run("import", path).stderr.splitlines() if "not JSON" in line]
    assert line.startswith(f"{path}:2,3,4,6,7,")
    assert line.endswith("(33 times)")


def test_a_task_that_its_callers_name_is_listed_by_one_word(empty: Shop):
    """Where id and name are the same, the list shows it once."""
    empty.run("import", empty.write("log.jsonl", *log()), "--task", "trips")
    assert [one["task"] for one in empty.json("tasks", "find")] == ["trips"]
    assert empty.run("tasks", "list").stdout.count("trips") == 1


def test_scrub_writes_records_without_personal_data(shop: Shop):
    """Every record becomes a line; what identifies is gone, the same again in a second run; --show shows some."""
    out = shop.folder / "scrubbed.jsonl"
    told = shop.json("scrub", "--out", out, "--canaries", shop.write("planted", EMAIL, "4012 8888 8888 1881"))
    assert told == {"records": 60, "refused": {}, "leaked": []}
    first = out.read_text()
    assert EMAIL not in first
    assert CARD not in first
    assert "find_bus" in first
    done = shop.run("scrub", "--show", 1, "--limit", 60)
    assert done.stdout == first
    assert "user: please tell me about" in done.stderr
    assert len(shop.run("scrub", "--limit", 7).stdout.splitlines()) == 7


def test_a_leak_leaves_no_file(shop: Shop):
    """A value that remains is told by its line and record, the command fails and writes nothing."""
    out, planted = shop.folder / "scrubbed.jsonl", shop.write("planted", EMAIL, "find_bus")
    told = shop.json("scrub", "--out", out, "--canaries", planted, code=1)
    assert {place for _, place in told["leaked"]} == {1}
    assert len(told["leaked"]) == 30
    assert not list(shop.folder.glob("scrubbed*"))
    done = shop.run("scrub", "--canaries", planted, code=1)
    assert done.stdout == ""
    assert "canaries of lines [2]" in done.stderr


def test_scrub_refuses_what_it_cannot_do(shop: Shop, empty: Shop):
    """JSON needs a file for the records; a task without records leaves nothing to write."""
    with pytest.raises(ConfigError, match="--json"):
        shop.run("scrub", "--json")
    assert shop.json("scrub", "--out", shop.folder / "x", "--task", "none", code=1)["records"] == 0


def test_tasks_are_found_listed_and_shown(shop: Shop):
    """Both tools are tasks with figures and a suggested schema; a second search keeps ids; a list needs no search."""
    found = shop.json("tasks", "find")
    assert [(one["name"], one["calls"], one["episodes"]) for one in found] == [
        ("book-room", 30, 15),
        ("find-bus", 30, 15),
    ]
    assert found[0]["cost_usd"] == pytest.approx(0.3)
    assert found[0]["share_cost"] == pytest.approx(0.5)
    assert found[0]["cost_month_usd"] > 5
    assert shop.json("tasks", "list") == found
    assert {one["task"] for one in shop.json("tasks", "find")} == {one["task"] for one in found}
    shown = shop.json("tasks", "show", "find-bus")
    assert shown["schemas"]["find_bus"]["required"] == ["about"]
    assert "find-bus" in shop.run("tasks", "list").stdout
    assert "about" in shop.run("tasks", "show", found[1]["task"]).stdout
    with pytest.raises(NotFoundError):
        shop.run("tasks", "show", "none")


def test_a_task_goes_by_its_name_or_id(shop: Shop):
    """Commands take a found task's name and its id; for another name they tell which there are."""
    [first, _] = shop.json("tasks", "find")
    for said in (first["name"], first["task"]):
        assert shop.json("releases", said)["task"] == first["task"]
    with pytest.raises(NotFoundError, match=r"There is no task 'none'\. Tasks here: .*find-bus.*, auto:"):
        shop.run("calibrate", "none")


def test_tasks_are_corrected(shop: Shop):
    """A person's names, mergers and splits are kept with their figures, also over the next search."""
    shop.run("tasks", "find")
    shop.run("tasks", "name", "find-bus", "buses")
    merged = shop.json("tasks", "merge", "buses", "book-room")
    assert (merged["name"], merged["merged"]) == ("buses", 2)
    [whole] = shop.json("tasks", "list")
    assert (whole["name"], whole["calls"], whole["share_calls"]) == ("buses", 60, 1.0)
    assert {one["name"] for one in shop.json("tasks", "find")} == {"buses"}
    parts = shop.json("tasks", "split", "buses")
    assert sorted(one["calls"] for one in parts) == [30, 30]
    assert "buses" in {one["name"] for one in parts}
    assert shop.json("tasks", "list") == parts


def test_without_records_there_are_no_tasks(empty: Shop):
    """An empty store has no tasks, and says so."""
    (empty.folder / "calls.db").touch()
    assert empty.json("tasks", "find", code=1) == []
    assert empty.json("tasks", "list") == []
    assert "tasks find" in empty.run("tasks", "list").stdout
