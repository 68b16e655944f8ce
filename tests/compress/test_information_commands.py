"""`smallfirst information`, `compressors compare` and `attribute` as they are typed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from smallfirst.cli import app

DOCUMENTS = [
    {"context": f"{name} runs the mill. It rained on day {n}7.", "question": "Who runs the mill?", "answers": [name]}
    for n, name in enumerate(("Ann", "Bob", "Cyd", "Dot", "Eve", "Fay", "Gus", "Hal"), 1)
]


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    file = tmp_path / "docs.jsonl"
    file.write_text("\n".join(map(json.dumps, DOCUMENTS)))
    return file


def said(*words: str) -> Any:
    """What a command prints as JSON."""
    result = CliRunner().invoke(app, [*words, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_information_of_a_named_compressor(documents: Path) -> None:
    """The report has both forms, length, rate, the baseline, and what the estimate cost."""
    report = said(
        "information", "--contexts", str(documents), "--compressor", "lead", "--scorer", "lexical", "--budget", "5"
    )
    assert report["information"]["value"] == pytest.approx(3, abs=0.3)
    assert report["leave_one_out"]["value"] > report["information"]["value"]
    assert report["length"]["value"] == 5
    assert report["baseline"]["information"]["n"] == report["contexts"] == 8
    assert report["cost"]["scores"] > 0
    assert report["decode_flops"]["value"] == 0


def test_compressors_are_compared(documents: Path, tmp_path: Path) -> None:
    """Points, fits and a recommendation are printed and written beside the pictures."""
    pytest.importorskip("vl_convert")
    config = tmp_path / "smallfirst.toml"
    config.write_text('[models.f]\nbackend = "fake"\nprice = { input = 1.0, output = 2.0 }\n')
    found = said(
        *("compressors", "compare", "--contexts", str(documents), "--predictor", "f", "--scorer", "lexical"),
        *("--compressor", "identity", "--compressor", "empty", "--out", str(tmp_path / "out"), "--config", str(config)),
    )
    assert [point["name"] for point in found["points"]] == ["identity", "empty"]
    assert found["recommended"] in ("identity", "empty")
    assert json.loads((tmp_path / "out/comparison.json").read_text()) == found
    assert {file.suffix for file in (tmp_path / "out").iterdir()} == {".json", ".svg", ".png"}


def test_wrong_answers_are_attributed(tmp_path: Path) -> None:
    """Each compressor with each predictor gets its shares, as a table too."""
    file = tmp_path / "answers.jsonl"
    marks = {"oracle": (True, True), "empty": (False, False), "lead": (True, False)}
    rows = [{"id": str(n), "compressor": c, "correct": r} for c, right in marks.items() for n, r in enumerate(right)]
    file.write_text("\n".join(map(json.dumps, rows)))
    (one,) = said("attribute", str(file))
    assert (one["lost"]["value"], one["missed"]["value"]) == (1, 0)
    assert "lost by the compressor" in CliRunner().invoke(app, ["attribute", str(file)]).stdout
