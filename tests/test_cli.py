"""The command line: what commands print, write and exit with."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from smallfirst import __version__
from smallfirst.cli import app, main
from smallfirst.config import parse
from smallfirst.store import open_store
from smallfirst.types import Attempt, Choice, Completion, Origin, Record, Request, Usage

CLI = CliRunner()


@pytest.fixture
def config(tmp_path: Path) -> str:
    """A configuration file with a store beside it."""
    path = tmp_path / "smallfirst.toml"
    path.write_text(f'[models.m]\nbackend = "fake"\n[store]\nurl = "sqlite:///{tmp_path}/calls.db"\n')
    return str(path)


@pytest.fixture
def records(config: str) -> list[str]:
    """Two recorded calls, of the tasks "a" and "b"; their ids."""

    def record(task: str) -> Record:
        said = {"role": "user", "content": f"hello {task}"}
        request = Request("chat", {"model": "auto", "messages": [said]}, "auto", (said,), origin=Origin(task=task))
        answered = Completion((Choice("hi"),), Usage(3, 1), "tiny")
        attempt = Attempt("m", "m", "tiny", "generate", "accept", "small_only", answered, small=True)
        return Record(
            f"0199-{task}",
            1_700_000_000.0,
            request,
            task,
            "small_only",
            (attempt,),
            0,
            "accept",
            "small_only",
            200,
            0.1,
            "c",
        )

    async def write() -> list[str]:
        store = await open_store(f"sqlite:///{Path(config).parent}/calls.db")
        made = [record("a"), record("b")]
        for one in made:
            await store.append(one)
        await store.close()
        return [one.id for one in made]

    return asyncio.run(write())


def run(*args: str) -> str:
    """What a command that succeeds prints."""
    done = CLI.invoke(app, args)
    assert done.exit_code == 0, done.output
    return done.stdout


def fail(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str]:
    """Exit code and error text of a command that fails."""
    monkeypatch.setattr(sys, "argv", ["smallfirst", *args])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0), " ".join(capsys.readouterr().err.split())


def test_version() -> None:
    """--version prints the version alone."""
    assert run("--version").strip() == __version__


@pytest.mark.parametrize(
    "command",
    ["init", "serve", "demo", "report", "records list", "records show", "records export", "records rotate",
     "keys add", "keys list", "keys revoke", "models pull", "models list", "models rm"],
)  # fmt: skip
def test_every_command_explains_itself(command: str) -> None:
    """--help of every command says what it does, with an example."""
    text = run(*command.split(), "--help")
    assert f"smallfirst {command}" in text
    assert "Example" in text


def test_init(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`init` writes a configuration that works, and overwrites only when told."""
    monkeypatch.chdir(tmp_path)
    assert json.loads(run("init", "--json")) == {"path": "smallfirst.toml"}
    assert parse(Path("smallfirst.toml").read_text(), {}).models
    Path("smallfirst.toml").write_text("mine")
    assert fail(monkeypatch, capsys, "init") == (
        2,
        "error: 'smallfirst.toml' exists. Use --force to overwrite it, or give another name.",
    )
    assert Path("smallfirst.toml").read_text() == "mine"
    assert "smallfirst serve" in run("init", "--force")
    assert Path("smallfirst.toml").read_text() == run("init", "--print")


def test_errors_are_printed_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Brackets in a message are no markup."""
    monkeypatch.chdir(tmp_path)
    code, said = fail(monkeypatch, capsys, "serve", "-c", "[red][/blue].toml")
    assert (code, "[red][/blue].toml" in said) == (2, True)


def test_records_list(config: str, records: list[str]) -> None:
    """`records list` shows the newest first, by task and as JSON."""
    rows = json.loads(run("records", "list", "-c", config, "--json"))
    assert [row["id"] for row in rows] == records[::-1]
    assert [r["id"] for r in json.loads(run("records", "list", "-c", config, "--task", "a", "--json"))] == records[:1]
    assert json.loads(run("records", "list", "-c", config, "--since", "1h", "--json")) == []
    assert records[0] in run("records", "list", "-c", config)


def test_records_are_listed_whole_on_80_columns(config: str, tmp_path: Path) -> None:
    """Ids stand whole on a line; of names that are too long the rest is on the next line, and nothing is cut off."""
    request = {"model": "gpt-4o-2024-08-06", "messages": [{"role": "user", "content": "hello"}]}
    response = {"model": "gpt-4o-2024-08-06", "choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}]}
    log = tmp_path / "log.jsonl"
    log.write_text(json.dumps({"request": request, "response": response}))
    run("import", str(log), "--task", "helpdesk/answer-with-a-long-name", "-c", config)
    [row] = json.loads(run("records", "list", "-c", config, "--json"))
    said = run("records", "list", "-c", config)
    assert row["id"] in said.split()
    assert len(row["id"]) == 36
    assert "…" not in said
    assert max(map(len, said.splitlines())) <= 80
    [head] = [line for line in said.splitlines() if "decision" in line]
    names = [line[head.index("task") : head.index("decision")].strip() for line in said.splitlines()]
    assert "helpdesk/answer-with-a-long-name" in "".join(names)


def test_records_show_and_export(config: str, records: list[str]) -> None:
    """`records show` prints one whole record, `records export` each on a line."""
    shown = json.loads(run("records", "show", records[0], "-c", config))
    assert (shown["id"], shown["messages"]) == (records[0], [{"role": "user", "content": "hello a"}])
    lines = run("records", "export", "-c", config, "--task", "b").splitlines()
    assert [json.loads(line)["id"] for line in lines] == records[1:]


def test_keys(config: str) -> None:
    """A key is shown once, listed without its secret, and revoked."""
    made = json.loads(run("keys", "add", "ci", "--role", "viewer", "--usd-per-day", "5", "-c", config, "--json"))
    assert made["key"].startswith(f"sf-{made['id']}-")
    [row] = json.loads(run("keys", "list", "-c", config, "--json"))
    assert (row["name"], row["role"], row["limits"]["usd_per_day"], row["revoked_at"]) == ("ci", "viewer", 5, None)
    assert made["key"] not in str(row)
    assert "secret_hash" not in row
    assert "usd_per_day 5" in run("keys", "list", "-c", config)
    assert json.loads(run("keys", "revoke", made["id"], "-c", config, "--json")) == {"id": made["id"]}
    assert json.loads(run("keys", "list", "-c", config, "--json"))[0]["revoked_at"] is not None


def test_rotate(config: str, records: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """`records rotate` says how many payloads it encrypted."""
    monkeypatch.setenv("SMALLFIRST_ENCRYPTION_KEY", f"k1:{base64.b64encode(bytes(32)).decode()}")
    assert json.loads(run("records", "rotate", "-c", config, "--json"))["payloads"] > 0
    assert "Encrypted 0 payloads" in run("records", "rotate", "-c", config)


def test_models_rm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`models rm` names what it removed."""
    monkeypatch.setenv("SMALLFIRST_HOME", str(tmp_path))
    weights = tmp_path / "models" / "smollm2-135m.gguf"
    weights.parent.mkdir()
    weights.touch()
    assert json.loads(run("models", "rm", "smollm2-135m", "--json")) == {"name": "smollm2-135m"}
    assert not weights.exists()


def test_report(config: str, records: list[str]) -> None:
    """`report` gives figures with intervals, as a table and as rows."""
    rows = json.loads(run("report", "-c", config, "--json"))
    figures: list[Any] = [value for row in rows for value in row.values() if isinstance(value, dict)]
    assert rows
    assert any(set(figure) >= {"value", "low", "high", "n"} for figure in figures)
    assert run("report", "-c", config).strip()


def test_report_of_nothing(config: str) -> None:
    """Where nothing is recorded, a report and a list say what to do; as JSON they stay data."""
    run("keys", "add", "ci", "-c", config)
    assert "smallfirst serve" in run("report", "-c", config)
    assert "smallfirst serve" in run("records", "list", "-c", config)
    assert json.loads(run("report", "-c", config, "--json"))
    assert json.loads(run("records", "list", "-c", config, "--json")) == []


def test_models_list() -> None:
    """`models list` shows what can be pulled, with licences."""
    rows = json.loads(run("models", "list", "--json"))
    assert {"name", "summary", "licence", "format", "here"} == set(rows[0])
    assert rows[0]["name"] in run("models", "list")


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["records", "list", "-c", "no.toml"], 2, "There is no file 'no.toml'."),
        (["records", "list", "--decision", "maybe"], 2, "Allowed: accept, escalate, abstain."),
        (["records", "list", "--since", "yesterday"], 2, "as in 12h"),
        (["calibrate", "no-such-task"], 1, "There is no task 'no-such-task'. Tasks here: none."),
        (["dataset", "no-such-task"], 1, "There is no task 'no-such-task'. Tasks here: none."),
        (["releases", "no-such-task"], 1, "There is no task 'no-such-task'. Tasks here: none."),
        (["evaluate", "no-such-task"], 1, "There is no task 'no-such-task'. Tasks here: none."),
        (["select", "no-such-task"], 1, "There is no task 'no-such-task'. Tasks here: none."),
        (["records", "show", "no-such-record"], 1, "no-such-record"),
        (["keys", "revoke", "no-such-key"], 1, "no-such-key"),
        (["models", "rm", "no-such-model"], 2, "no-such-model"),
        (["keys", "add", ""], 2, "The key's name is ''"),
        (["keys", "add", " "], 2, "Say what the key is for"),
        (["keys", "add", "x", "--role", "king"], 2, "king"),
        (["no-such-command"], 2, "no-such-command"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_errors(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    args: list[str],
    code: int,
    said: str,
) -> None:
    """A wrong command exits with 2, a failed one with 1; the error says what was given, without a traceback."""
    monkeypatch.chdir(tmp_path)
    Path("smallfirst.db").touch()
    got, text = fail(monkeypatch, capsys, *args)
    assert got == code
    assert said in text
    assert "Traceback" not in text


@pytest.mark.parametrize(
    "command",
    ["report", "records list", "records show x", "tasks list", "dataset x", "calibrate x", "releases", "scrub",
     "whatif --policy policy.toml", "loop --once", "evaluate x", "select x", "keys list",
     "records list --store typo.db", "report --store sqlite:///typo.db"],
)  # fmt: skip
def test_a_store_is_made_only_where_records_come_from(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str
) -> None:
    """A command that only reads refuses a store that is not there, and leaves no file behind."""
    monkeypatch.chdir(tmp_path)
    Path("policy.toml").write_text("[cascade]\nthreshold = 0.9\n")
    code, said = fail(monkeypatch, capsys, *command.split())
    assert code == 2
    assert "There is no store at" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["policy.toml"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[server]\nprot = 1", "prot"),
        ("[server]\nport = 70000", "70000"),
        ("x = [", "not valid TOML"),
        ('[models.a]\nbackend = "openai"', "names no model"),
        ('[models.a]\nbackend = "fake"\n[server]\nhost = "0.0.0.0"', "no API key"),
    ],
)
def test_serve_refuses_wrong_settings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, said: str
) -> None:
    """`serve` with settings that cannot work exits with 2 and says which."""
    monkeypatch.chdir(tmp_path)
    Path("smallfirst.toml").write_text(text)
    code, error = fail(monkeypatch, capsys, "serve")
    assert code == 2
    assert said in error


def test_serve_on_a_taken_port(config: str) -> None:
    """A port in use is a clear error with exit code 2."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        done = subprocess.run(
            [str(Path(sys.executable).with_name("smallfirst")), "serve", "-c", config, "--port", port],
            capture_output=True,
            text=True,
            timeout=60,
            env={"PATH": os.environ["PATH"], "HOME": str(Path(config).parent)},
        )
    assert done.returncode == 2
    assert f":{port}" in done.stderr
    assert "Traceback" not in done.stderr
