"""`smallfirst evaluate` and `select`: what they print, keep and refuse, with the embedded engine."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import experts
import pytest
import tiny
from typer.testing import CliRunner

from smallfirst.cli import app, main
from smallfirst.store import open_store

CLI = CliRunner()
ENGINE = """
[cascade]
repairs = 0
[models.small]
backend = "llamacpp"
weights = "{weights}"
slots = 1
threads = 1
batch_threads = 1
"""


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the help desk's store and dataset, and a configuration."""
    folder = tmp_path_factory.mktemp("desk")

    async def make() -> None:
        store, _ = await experts.desk(folder, 80)
        await store.close()

    asyncio.run(make())
    (folder / "smallfirst.toml").write_text(f'[store]\nurl = "sqlite:///{folder}/calls.db"\n')
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, and an empty home of models."""
    monkeypatch.setenv("SMALLFIRST_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(desk: Path, *args: object, config: Path | None = None) -> Any:
    """What a command on the desk's dataset prints as JSON."""
    common = ("--data", desk / "data", "--config", config or desk / "smallfirst.toml", "--json")
    done = CLI.invoke(app, [str(arg) for arg in (*args, *common)])
    assert done.exit_code == 0, f"{done.output}{done.exception!r}"
    return json.loads(done.stdout)


@pytest.mark.engine
def test_a_model_is_evaluated_and_kept_as_a_version(desk: Path, here: Path) -> None:
    """The embedded model answers through the gateway's cascade; report and version are kept, a dry run keeps none."""
    weights = tiny.write_model(here / "tiny.gguf")
    config = here / "engine.toml"
    config.write_text((desk / "smallfirst.toml").read_text() + ENGINE.format(weights=weights))
    args = ("evaluate", "desk", "--untrained", "--base", weights, "--arms", "B0,B1,B4", "--limit", 2, "--labels", 2)

    async def versions() -> list[Any]:
        store = await open_store(f"sqlite:///{desk}/calls.db")
        found = await store.versions("desk")
        await store.close()
        return list(found)

    made = run(desk, *args, "--dry-run", config=config)
    assert asyncio.run(versions()) == []
    assert made["arms"]["B0"]["accuracy"] == {"value": 1.0, "low": pytest.approx(0.34, abs=0.01), "high": 1.0, "n": 2}
    assert made["arms"]["B1"]["p50"]["value"] > 0
    assert made["arms"]["B1"]["tokens in"]["value"] > 100
    assert made["arms"]["B4"]["coverage"]["value"] == 0
    assert made["refused"]
    assert json.loads((here / "adapters/desk/evaluation.json").read_text())["small"] == made["small"]
    kept = run(desk, *args, config=config)
    [version] = asyncio.run(versions())
    assert version.id == kept["small"] == made["small"]
    assert version.evaluation["arms"].keys() == {"B0", "B1", "B4"}


@pytest.mark.engine
def test_selection_tries_a_model_of_the_machine(desk: Path, here: Path) -> None:
    """A random model is no reason to leave the large one; the report, its memory and the next step are told."""
    weights = tiny.write_model(here / "tiny.gguf")
    made = run(desk, "select", "desk", "--candidates", weights, "--limit", 2)
    assert made["chosen"] is None
    assert made["why"].startswith("Stay with the large model")
    assert [trial["prompting"] for trial in made["trials"]] == ["zero-shot", "examples"]
    if sys.platform == "linux":
        assert made["trials"][0]["memory"] > 1_000_000
    args = ["select", "desk", "--candidates", str(weights), "--limit", "2", "--data", str(desk / "data")]
    done = CLI.invoke(app, [*args, "--config", str(desk / "smallfirst.toml")], env={"COLUMNS": "200"})
    assert "smallfirst train desk" in done.stdout
    assert "examples" in done.stdout


def test_candidates_that_are_not_there_are_a_failure(desk: Path, here: Path) -> None:
    """When none of the models named can be tried, the report tells why and the command fails."""
    args = ["select", "desk", "--candidates", "gone.gguf", "--data", str(desk / "data")]
    done = CLI.invoke(app, [*args, "--config", str(desk / "smallfirst.toml"), "--json"])
    assert done.exit_code == 1
    assert "No weights" in json.loads(done.stdout)["excluded"]["gone.gguf"]
    assert json.loads((here / "selections/desk/selection.json").read_text())["excluded"].keys() == {"gone.gguf"}
    said = CLI.invoke(app, [*args, "--config", str(desk / "smallfirst.toml")]).stdout
    assert "Not tried: gone.gguf: No weights" in " ".join(said.split())


def test_without_candidates_nothing_is_selected(desk: Path, here: Path) -> None:
    """No model on the machine and no server that lists any: the large model stays."""
    made = run(desk, "select", "desk")
    assert made["trials"] == []
    assert "no candidate could be tried" in made["why"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("evaluate", "unknown"), "There is no task 'unknown'. Tasks here: desk."),
        (("select", "unknown"), "There is no task 'unknown'. Tasks here: desk."),
        (("evaluate", "desk", "--arms", "B0,B7"), "--arms names 'B7'"),
        (("evaluate", "desk", "--alpha", "2"), "--alpha is 2.0"),
        (("evaluate", "desk", "--arms", "B3"), "no adapter at"),
        (("evaluate", "other", "--untrained", "--data", "{desk}/data"), "of the task 'desk', not of 'other'"),
        (("evaluate", "desk", "--untrained", "--large", "huge"), "--large is 'huge'"),
        (("select", "other", "--data", "{desk}/data"), "not of 'other'"),
        (("select", "desk", "--margin", "0"), "--margin is 0.0"),
    ],
)
def test_what_cannot_be_done_says_so(
    args: tuple[str, ...],
    said: str,
    desk: Path,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Wrong options, missing files and other tasks end with one clear error."""
    tiny.write_model(here / "tiny.gguf")
    (here / "datasets").mkdir()
    (here / "datasets/desk").symlink_to(desk / "data")
    base = ["--base", "tiny.gguf"] if args[0] == "evaluate" else []
    given = [arg.format(desk=desk) for arg in args]
    monkeypatch.setattr(sys, "argv", ["smallfirst", *given, *base, "--config", str(desk / "smallfirst.toml")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (1, 2)
    assert said in " ".join(capsys.readouterr().err.split())
