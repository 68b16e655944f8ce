"""`smallfirst dataset` and `train`: from records to an adapter that the gateway serves."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
import helpdesk
import msgspec
import pytest
import tiny
from typer.testing import CliRunner

from smallfirst.cli import app, main
from smallfirst.config import parse
from smallfirst.errors import ConfigError, TrainError
from smallfirst.learn import base, card, export, specialise, train
from smallfirst.learn.curve import Point
from smallfirst.learn.dataset import WrongRow
from smallfirst.learn.packing import Example
from smallfirst.learn.prefer import Pair, PreferConfig, Preferred
from smallfirst.models import file_sha256
from smallfirst.serve.server import serving
from smallfirst.store import open_store

CLI = CliRunner()


def run(*args: str) -> Any:
    """What a command that succeeds prints as JSON."""
    done = CLI.invoke(app, [*args, "--json"])
    assert done.exit_code == 0, f"{done.output}{done.exception}"
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the store of a help desk's calls and its scrubbed dataset."""
    folder = tmp_path_factory.mktemp("desk")

    async def write() -> None:
        store = await open_store(f"sqlite:///{folder}/calls.db")
        await asyncio.gather(*(store.append(record) for record in helpdesk.records()))
        await store.close()

    asyncio.run(write())
    run("dataset", "desk", "--store", f"{folder}/calls.db", "--out", f"{folder}/data")
    return folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where dense models are kept, and the working directory."""
    monkeypatch.setenv("SMALLFIRST_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_dataset_comes_from_the_store_or_from_an_export(desk: Path, tmp_path: Path) -> None:
    """Scrubbed now or before, the same records make the same splits; nobody's name is in them."""
    exported = tmp_path / "desk.jsonl"
    done = CLI.invoke(app, ["scrub", "--store", f"{desk}/calls.db", "--task", "desk", "--out", str(exported)])
    assert done.exit_code == 0, done.output
    made = run("dataset", "desk", "--from", str(exported), "--out", str(tmp_path / "data"))
    found = card.load(desk / "data")
    assert made["card"]["source"] == "desk.jsonl"
    assert made["card"]["parents"] == found.card.parents
    assert card.load(tmp_path / "data").splits == found.splits
    assert found.card.removed["invalid"] > 0
    assert set(found.card.splits["train"].labels) == {"large", "execution"}
    text = "".join(path.read_text() for path in (desk / "data").iterdir())
    assert [name for name in helpdesk.PEOPLE if name in text] == []


def test_a_dataset_tells_people_what_was_done(desk: Path, tmp_path: Path) -> None:
    """Without --json, the splits, what was left out, the check for leaks and the next step are printed."""
    args = ["dataset", "desk", "--store", f"{desk}/calls.db", "--out", str(tmp_path / "d"), "--turns", "1"]
    done = CLI.invoke(app, args, env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    assert "calibration" in done.stdout
    assert "invalid" in done.stdout
    assert "0 pairs of near-duplicates cross them" in done.stdout
    assert f"smallfirst train --data {tmp_path}/d" in done.stdout
    assert card.load(tmp_path / "d").card.prompt.turns == 1


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("dataset", "desk", "--prompt", "short"), "Allowed: pruned, full"),
        (("dataset", "desk", "--from", "nothing.jsonl"), "There is no file 'nothing.jsonl'"),
        (("dataset", "desk", "--from", "calls.db"), "calls.db, line 1: It is no scrubbed record"),
        (("dataset", "else", "--store", "calls.db"), "There is no task 'else'. Tasks here: desk."),
        (("train",), "TASK or --data"),
        (("train", "unknown"), "no dataset"),
    ],
)
def test_what_cannot_be_done_says_so(
    args: tuple[str, ...],
    said: str,
    desk: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Wrong options, missing files and unknown tasks end with one clear error."""
    monkeypatch.chdir(desk)
    monkeypatch.setattr(sys, "argv", ["smallfirst", *args])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (1, 2)
    assert said in " ".join(capsys.readouterr().err.split())


class Trainer:
    """Stands in for training and export: notes what it was given, and writes what they would."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.given: list[tuple[list[Example], list[Example], train.TrainConfig]] = []
        monkeypatch.setattr(specialise, "need", lambda _: _Library())
        monkeypatch.setattr(specialise, "find_base", lambda path: base.Base(path, file_sha256(path)))
        monkeypatch.setattr(specialise, "train", self._train)
        monkeypatch.setattr(export, "read_factors", lambda *_: export.Factors({}, 4, 8.0))

    def _train(
        self, _: Any, examples: Any, validation: Any, folder: Path, config: train.TrainConfig, *, report: Any
    ) -> train.Trained:
        self.given.append((examples, validation, config))
        folder.mkdir(parents=True, exist_ok=True)
        report(train.Progress(1, 0.5, 1.0, 100, 50.0, 2.0, None))
        return train.Trained(folder, 1, 100, 2.0, -0.5, "patience", (Point(1, 100, 2.0, 1.0, -0.5),), 3)


class _Library:
    def __getattr__(self, _: str) -> Any:
        return self

    def __call__(self) -> None:
        return None


def test_training_gets_the_splits_and_tells_how_to_serve(
    desk: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Train and calibration splits go in, options arrive, and the printed configuration is one; done is done."""
    trainer = Trainer(monkeypatch)
    weights = tiny.write_model(home / "tiny.gguf")
    args = ("train", "--data", f"{desk}/data", "--base", str(weights), "--rank", "4", "--minutes", "2", "--lr", "0.01")
    made = run(*args)
    [(examples, validation, config)] = trainer.given
    data = card.load(desk / "data")
    assert (examples, validation) == (data.examples("train"), data.examples("calibration"))
    assert (config.rank, config.alpha, config.max_minutes, config.learning_rate) == (4, 8, 2.0, 0.01)
    assert (made["trained"]["calibration_loss"], made["trained"]["left_out"]) == (0.5, 3)
    assert made["manifest"]["parents"] == [data.sha256]
    assert made["manifest"]["recipe"]["task"] == "desk"
    large = '\n[models.large]\nbackend = "fake"\nsmall = false\n'
    served = parse(made["config"] + large, {})
    assert served.tasks["desk"].stages == ("desk", "large")
    assert served.models["desk"].adapters["desk"] == str((home / "adapters/desk/adapter.gguf").resolve())
    assert run(*args)["trained"] is None
    assert len(trainer.given) == 1
    assert run(*args, "--seed", "1")["merged"] is None
    assert len(trainer.given) == 2
    merged = run(*args, "--seed", "1", "--merged")["merged"]
    assert merged == "adapters/desk/merged.gguf"
    assert Path(merged).exists()


def test_what_was_tuned_by_preference_is_exported_and_merged(
    desk: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tuning takes the trained adapter and the dataset's wrong answers; export and merging take what it made."""
    Trainer(monkeypatch)
    exported: list[Path] = []
    monkeypatch.setattr(export, "read_factors", lambda at, _: exported.append(at) or export.Factors({}, 4, 8.0))

    def prefer(_: base.Base, start: Path, pairs: Sequence[Pair], folder: Path, config: PreferConfig) -> Preferred:
        assert (start, len(pairs), config.beta) == (home / "a/training", 1, 0.2)
        return Preferred(folder, 0.5, 1.0)

    monkeypatch.setattr(specialise, "prefer", prefer)
    weights = tiny.write_model(home / "tiny.gguf")
    data = card.load(desk / "data")
    wrong = WrongRow(data.splits["train"][0].id, "No.")
    data, tuning = msgspec.structs.replace(data, wrong=(wrong,)), PreferConfig(beta=0.2)
    made = specialise.specialise(data, weights, home / "a", train.TrainConfig(), preference=tuning)
    assert made.preferred is not None
    assert made.manifest is not None
    assert made.manifest.recipe["preference"]["beta"] == 0.2
    again = specialise.specialise(data, weights, home / "a", train.TrainConfig(), preference=tuning)
    assert (again.trained, again.manifest) == (None, made.manifest)
    assert specialise.merge(weights, home / "a").exists()
    assert exported == [home / "a/preferred"] * 2
    other = specialise.specialise(data, weights, home / "a", train.TrainConfig())
    assert (other.trained is None, other.preferred) == (False, None)
    specialise.merge(weights, home / "a")
    assert exported[2:] == [home / "a/training"] * 2


def test_there_is_nothing_to_prefer_without_wrong_answers(
    desk: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dataset that knows no wrong answer is refused before anything is trained, and so is DoRA."""
    trainer = Trainer(monkeypatch)
    args = ["train", "--data", f"{desk}/data", "--base", str(tiny.write_model(home / "tiny.gguf"))]
    assert isinstance(CLI.invoke(app, [*args, "--prefer"]).exception, TrainError)
    assert isinstance(CLI.invoke(app, [*args, "--method", "dora", "--merged"]).exception, ConfigError)
    assert trainer.given == []


def test_training_tells_people_what_came_out(desk: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Speed, the reason for the end, the loss, what was left out and the configuration are printed; DoRA says no."""
    Trainer(monkeypatch)
    weights = str(tiny.write_model(home / "tiny.gguf"))
    args = ["train", "--data", f"{desk}/data", "--base", weights]
    done = CLI.invoke(app, args, env={"COLUMNS": "300"})
    assert done.exit_code == 0, done.output
    assert "100 tokens in all, 2 s (50 tokens/s), ended by patience" in done.stdout
    assert "0.500 a token" in done.stdout
    assert "3 examples were too long" in done.stdout
    assert '[models."desk"]' in done.stdout
    done = CLI.invoke(app, [*args, "--method", "dora", "--out", "other"], env={"COLUMNS": "300"})
    assert "cannot serve DoRA" in done.stdout


def test_the_folder_of_another_task_is_refused(desk: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A specialist is not replaced by that of another task."""
    Trainer(monkeypatch)
    weights = tiny.write_model(home / "tiny.gguf")
    data = card.load(desk / "data")
    specialise.specialise(data, weights, home / "a", train.TrainConfig())
    other = msgspec.structs.replace(data, card=msgspec.structs.replace(data.card, task="other"))
    with pytest.raises(ConfigError, match="of the task 'desk'"):
        specialise.specialise(other, weights, home / "a", train.TrainConfig())


def test_without_torch_the_pip_command_is_named(desk: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training on a machine without the extra says what to install."""
    monkeypatch.setitem(sys.modules, "torch", None)
    weights = str(tiny.write_model(home / "tiny.gguf"))
    done = CLI.invoke(app, ["train", "--data", f"{desk}/data", "--base", weights])
    assert isinstance(done.exception, ConfigError)
    assert "pip install 'smallfirst[learn]'" in done.exception.hint


@pytest.mark.engine
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_from_records_to_an_answer_of_the_specialist(desk: Path, home: Path) -> None:
    """Trained for a second on a random tiny model, the adapter answers a held-out call with a call that is allowed."""
    pytest.importorskip("torch")
    pytest.importorskip("peft")
    weights = tiny.write_model(home / "tiny.gguf")
    args = ("--data", f"{desk}/data", "--base", str(weights), "--rank", "4", "--minutes", "0.02", "--lr", "0.01")
    made = run("train", *args)
    assert made["trained"]["steps"] > 0
    assert (home / "adapters/desk/training/curve.svg").exists()
    row = min(card.load(desk / "data").splits["test"], key=lambda row: len(row.prompt))
    engine = 'adapter = "desk"\ncontext = 512\nslots = 1\nthreads = 1\nbatch_threads = 1'
    text = made["config"].replace('adapter = "desk"', engine).replace(', "large"]', "]")
    text += f'\nmode = "small_only"\n[store]\nurl = "sqlite:///{home}/served.db"\n'

    async def ask() -> tuple[dict[str, Any], str]:
        body, headers = {**row.request, "max_tokens": 100}, {"x-smallfirst-task": "desk"}
        async with (
            serving(parse(text, {}), {}) as url,
            aiohttp.ClientSession(url) as http,
            http.post("/v1/chat/completions", json=body, headers=headers) as reply,
        ):
            return await reply.json(), reply.headers["x-smallfirst-model"]

    answer, model = asyncio.run(ask())
    assert model == "tiny"
    [call] = answer["choices"][0]["message"]["tool_calls"]
    arguments = json.loads(call["function"]["arguments"])
    assert call["function"]["name"] in {"find_order", "open_ticket"}
    assert set(arguments) <= {"order", "urgent", "about"}
