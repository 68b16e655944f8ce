"""A replay as a whole: on made-up calls the promise holds, the cascade pays, the simple ways come out as they must."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from recorded import lines, write
from typer.testing import CliRunner

from smallfirst.cli import app
from smallfirst.errors import CalibrationError, ConfigError, DataError
from smallfirst.replay import tables
from smallfirst.replay.calls import load
from smallfirst.replay.run import Bench, Replay, Settings, certified, halves, run

MODELS = ("tiny", "other", "gpt-4o")


@pytest.fixture(scope="module")
def replay(tmp_path_factory: pytest.TempPathFactory) -> Replay:
    """300 calls, four random halves."""
    path = write(tmp_path_factory.mktemp("replay") / "calls.jsonl", lines(300))
    return run(load(path, MODELS), Settings("tiny", "gpt-4o", "other", alpha=0.15, splits=4))


@pytest.fixture(scope="module")
def said(replay: Replay) -> dict[str, Any]:
    """What --json prints."""
    found: dict[str, Any] = json.loads(json.dumps(tables.to_json(replay)))
    return found


def test_the_object_has_every_figure_with_its_interval(said: dict[str, Any]) -> None:
    """Nine figures for the cascade and for each baseline, each with value, low, high and n; and the settings."""
    for row in (said, *said["baselines"].values()):
        for name in tables.FIGURES:
            assert row[name].keys() == {"value", "low", "high", "n"}
    wanted = {"always-small", "always-large", "random-mix", "validity-only", "agreement-only", "oracle"}
    assert said["baselines"].keys() == wanted
    assert said["settings"]["alpha"] == 0.15
    assert said["settings"]["unit"] == "USD"


def test_the_cascade_keeps_accuracy_and_pays_less(said: dict[str, Any]) -> None:
    """Agreement tells the easy calls: near the large model's accuracy at well under its cost, accepted failures low."""
    large, oracle = said["baselines"]["always-large"], said["baselines"]["oracle"]
    assert said["accuracy"]["value"] > large["accuracy"]["value"] - 0.05
    assert oracle["cps"]["value"] < said["cps"]["value"] < 0.8 * large["cps"]["value"]
    assert said["accepted_failure"]["value"] < 0.15
    assert said["coverage"]["value"] > 0.4
    assert said["auroc"]["value"] > 0.8


def test_the_simple_ways_are_what_they_say(replay: Replay, said: dict[str, Any]) -> None:
    """The large model alone costs 1 relative to itself and accepts nothing; the small one accepts everything."""
    rows = said["baselines"]
    assert rows["always-large"]["cps_ratio"]["value"] == pytest.approx(1)
    assert rows["always-large"]["coverage"]["value"] == 0
    assert rows["always-small"]["escalation"]["value"] == 0
    assert rows["validity-only"]["coverage"]["value"] == 1
    assert rows["oracle"]["accuracy"]["value"] >= max(row["accuracy"]["value"] for row in rows.values())
    per_call = {name: rows[name]["cps"]["value"] * rows[name]["accuracy"]["value"] for name in rows}
    ours = said["cps"]["value"] * said["accuracy"]["value"]
    assert per_call["random-mix"] == pytest.approx(ours, rel=0.05)
    assert replay.facts.small_right.mean() == pytest.approx(rows["always-small"]["accuracy"]["value"], abs=0.05)


def test_labels_of_the_test_part_decide_nothing(tmp_path: Path) -> None:
    """With other labels in the tested file, the same answers are accepted."""
    fit = load(write(tmp_path / "fit.jsonl", lines(150)), MODELS, role="fit:")
    rows = lines(80, seed=1)
    once = run(load(write(tmp_path / "a.jsonl", rows), MODELS), Settings("tiny", "gpt-4o", "other", splits=1), fit)
    for row in rows:
        row["gold"] = None
        for answer in row["answers"].values():
            answer["correct"] = not answer["correct"]
    again = run(load(write(tmp_path / "b.jsonl", rows), MODELS), Settings("tiny", "gpt-4o", "other", splits=1), fit)
    assert once.splits[0].ours.accepted.any()
    assert once.splits[0].ours.accepted.tolist() == again.splits[0].ours.accepted.tolist()


def test_an_alpha_out_of_reach_escalates_everything(tmp_path: Path) -> None:
    """Where nothing can be certified nothing is accepted, and the labels that are missing are told."""
    calls = load(write(tmp_path / "c.jsonl", lines(120)), MODELS)
    said = tables.to_json(run(calls, Settings("tiny", "gpt-4o", "other", alpha=0.005, splits=2)))
    assert said["coverage"]["value"] == 0
    assert said["escalation"]["value"] == 1
    assert said["settings"]["refused_splits"] == 2
    assert said["settings"]["labels_missing"] > 0


def test_one_sided_labels_and_too_few_are_refused(tmp_path: Path) -> None:
    """All answers right (or wrong), or a handful of calls: an error, not a threshold."""
    with pytest.raises(DataError, match=r"answers\.tiny\.correct: all \d+ labels to fit on are right"):
        run(load(write(tmp_path / "c.jsonl", lines(100, easy=1.0)), MODELS), Settings("tiny", "gpt-4o"))
    with pytest.raises(CalibrationError, match="too few"):
        run(load(write(tmp_path / "d.jsonl", lines(30)), MODELS), Settings("tiny", "gpt-4o"))


def test_a_split_with_too_few_labels_accepts_nothing(tmp_path: Path) -> None:
    """Where right answers are rare some halves have too few of them: there the large model answers, and alone it costs
    what it costs."""
    rows = lines(160, easy=1.0)
    for row in rows[10:]:
        row["answers"]["tiny"]["correct"] = False
    replay = run(load(write(tmp_path / "c.jsonl", rows), MODELS), Settings("tiny", "gpt-4o", "other", splits=8))
    few = [split for split in replay.splits if split.acceptance is None]
    assert 0 < len(few) < 8
    for split in few:
        assert split.ours.cost.tolist() == split.baselines["always-large"].cost.tolist()
        assert not split.ours.accepted.any()
    assert tables.to_json(replay)["settings"]["refused_splits"] >= len(few)


def test_a_model_named_twice_is_refused() -> None:
    """A model cannot vouch for itself."""
    for small, large, second in (("a", "a", None), ("a", "b", "a"), ("a", "b", "b")):
        with pytest.raises(ConfigError, match="'a'"):
            Settings(small, large, second)


async def test_what_is_kept_between_splits_is_what_a_fresh_run_decides(tmp_path: Path) -> None:
    """The second split's results do not depend on the first having run."""
    calls, settings = load(write(tmp_path / "c.jsonl", lines(160)), MODELS), Settings("tiny", "gpt-4o", "other")
    used, fresh = Bench(calls, settings), Bench(calls, settings)
    await used.prepare()
    await fresh.prepare()
    (first, _), (second, tested), *_ = halves(len(calls), settings)
    await used.decide(tested, certified(used, first, 80))
    acceptance = certified(used, second, 80)
    once, again = await used.decide(tested, acceptance), await fresh.decide(tested, acceptance)
    for name in once.__slots__:
        assert getattr(once, name).tolist() == getattr(again, name).tolist()


def test_requests_of_every_kind_are_replayed(tmp_path: Path) -> None:
    """Several choices, log-probabilities, images, custom tools, a model's name, metadata, Chinese, NUL, no tools, a
    response schema, empty answers and arguments that are no JSON."""
    rows = lines(100)
    odd: list[dict[str, Any]] = [
        {"n": 2, "stream": True},
        {"logprobs": True, "top_logprobs": 3, "model": "tiny"},
        {"model": "gpt-4o", "metadata": {"smallfirst_episode": "e", "smallfirst_task": "t"}},
        {"tools": [{"type": "custom", "custom": {"name": "sql"}}]},
        {"tools": [], "messages": [{"role": "user", "content": "\u4eca\u5929\u5929\u6c14\u600e\u4e48\u6837\u0000?"}]},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}},
    ]
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    odd.append({"messages": [{"role": "user", "content": [{"type": "text", "text": "What is this?"}, image]}]})
    for row, more in zip(rows, odd, strict=False):
        row["request"] |= more
    rows[4]["answers"]["tiny"] = {"tool_calls": None, "content": None, "correct": False}
    rows[9]["answers"]["tiny"] = {"tool_calls": [{"name": "get_weather", "arguments": "{city"}], "correct": False}
    said = tables.to_json(run(load(write(tmp_path / "c.jsonl", rows), MODELS), Settings("tiny", "gpt-4o", splits=2)))
    assert 0 <= said["coverage"]["value"] <= 1


def test_a_large_model_without_a_price_is_the_unit(tmp_path: Path) -> None:
    """Costs are then told in its calls, and the small one costs its share of them."""
    calls = load(write(tmp_path / "c.jsonl", lines(120)), MODELS)
    said = tables.to_json(run(calls, Settings("tiny", "other", splits=1, small_cost_ratio=0.1)))
    assert said["settings"]["unit"] == "calls of the large model"
    assert said["baselines"]["always-large"]["cps"]["value"] >= 1


def test_the_command_prints_tables_and_json(tmp_path: Path) -> None:
    """`smallfirst replay` shows the figures to people, and one object to programs."""
    path = write(tmp_path / "calls.jsonl.gz", lines(120))
    arguments = ["replay", str(path), "--small", "tiny", "--second", "other", "--large", "gpt-4o", "--splits", "1"]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0, shown.output
    assert "always-large" in shown.output
    printed = CliRunner().invoke(app, [*arguments, "--json", "--fit", str(path)])
    settings = json.loads(printed.stdout)["settings"]
    assert settings["small"] == "tiny"
    assert settings["fitted_and_tested"] == settings["tested_on"] == 120
    said = CliRunner().invoke(app, [*arguments, "--fit", str(path)])
    assert "120 of the calls tested on are fitted on as well" in said.output
