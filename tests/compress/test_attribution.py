"""Whose wrong answers are: the compressor's or the predictor's."""

from __future__ import annotations

from pathlib import Path

import pytest

from smallfirst.compress.attribution import EMPTY, ORACLE, Answer, attribute, read
from smallfirst.errors import DataError


def answers(table: dict[tuple[str, str], str]) -> list[Answer]:
    """Answers by compressor and predictor; a letter a case, "1" right."""
    return [
        Answer(id=str(n), compressor=compressor, predictor=predictor, correct=mark == "1", question=f"q{n}")
        for (compressor, predictor), marks in table.items()
        for n, mark in enumerate(marks)
    ]


TABLE = {(ORACLE, "p"): "1111110000", (EMPTY, "p"): "1000000000", ("bm25", "p"): "1110001000"}


def test_wrong_answers_are_divided() -> None:
    """Of six wrong answers three are right after the oracle and so the compressor's, three the predictor's."""
    (found,) = attribute(answers(TABLE))
    assert found.cases == 10
    assert (found.lost.value, found.missed.value) == (0.5, 0.5)
    assert found.loss.value == pytest.approx(0.2)
    assert found.rest.value == pytest.approx(0.4)
    assert found.lucky.value == pytest.approx(0.1)
    assert found.guessed.value == pytest.approx(0.25)
    assert found.by_predictor is None
    assert [(e.whose, e.answer.id) for e in found.examples][:1] == [("compressor", "3")]
    assert len(found.examples) == 6


def test_swaps_tell_who_would_have_been_right() -> None:
    """Another predictor on the same texts, and another compressor before the same predictor, mend their shares."""
    more = {("bm25", "q"): "1111111110", (ORACLE, "q"): "1" * 10, (EMPTY, "q"): "0" * 10, ("lead", "p"): "0001000000"}
    found = {(a.compressor, a.predictor): a for a in attribute(answers(TABLE | more))}
    assert found["bm25", "p"].by_predictor.value == pytest.approx(5 / 6)
    assert found["bm25", "p"].by_compressor.value == pytest.approx(1 / 6)
    assert found["bm25", "q"].missed.value == 0


def test_what_is_missing_is_said() -> None:
    """Without the bounds, without a compressor, or with a case answered twice, the error says what to give."""
    for table, message in (
        ({("bm25", "p"): "10"}, "no answers after 'oracle'"),
        ({(ORACLE, "p"): "1", ("bm25", "p"): "10"}, "no answers after 'empty'"),
        ({(ORACLE, "p"): "1", (EMPTY, "p"): "1"}, "no answers after a compressor"),
    ):
        with pytest.raises(DataError, match=message):
            attribute(answers(table))
    with pytest.raises(DataError, match="twice"):
        attribute(answers(TABLE) + answers({("bm25", "p"): "1"}))


def test_files_are_read_by_line(tmp_path: Path) -> None:
    """A file of answers is read; a wrong line is named."""
    file = tmp_path / "answers.jsonl"
    file.write_text('{"id": "1", "compressor": "bm25", "correct": true}\n\n')
    assert read(file) == [Answer(id="1", compressor="bm25", correct=True)]
    file.write_text('{"id": "1", "compressor": "bm25", "correct": "yes"}\n')
    with pytest.raises(DataError, match="line 1"):
        read(file)
    with pytest.raises(DataError, match="There is no file"):
        read(tmp_path / "none")
