"""Arms of an evaluation: what each asks, what is certified, what is told, and what cannot be evaluated."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import experts
import msgspec
import pytest
from rich.console import Console

from smallfirst.backends.fake import Script
from smallfirst.errors import ConfigError, ContextLengthExceeded, DataError
from smallfirst.learn import card, pictures
from smallfirst.learn.card import Folder
from smallfirst.learn.dataset import Row
from smallfirst.learn.evaluate import evaluate
from smallfirst.learn.evaluation import FILE, Evaluation, Settings, render, save, to_json
from smallfirst.learn.examples import MOST_BYTES, Examples
from smallfirst.quality import auroc
from smallfirst.store import open_store
from smallfirst.types import Completion, Request

SKILL, RAW_SKILL = 0.85, 0.2


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the help desk's store and dataset, a third of it to calibrate on."""
    return experts.desk_folder(tmp_path_factory.mktemp("desk"), 420, 0.4)


@pytest.fixture
def data(desk: Path) -> Folder:
    return card.load(desk / "data")


async def run(
    desk: Path, data: Folder, small: Script | None = None, large: Script | None = None, **settings: object
) -> Evaluation:
    """The evaluation of a specialist that is good with its adapter and bad without, with few test calls."""
    good, raw = experts.expert(data, SKILL), experts.expert(data, RAW_SKILL)
    store = await open_store(f"sqlite:///{desk}/calls.db")
    try:
        async with experts.assembly(store, small or experts.by_adapter(good, raw), large) as parts:
            return await evaluate(
                parts,
                data,
                experts.version(data),
                large=None if large is None else "large",
                settings=Settings(**{"limit": 40, **settings}),  # type: ignore[arg-type]
            )
    finally:
        await store.close()


@pytest.fixture(scope="module")
def found(desk: Path) -> Evaluation:
    """The evaluation of all arms."""
    return asyncio.run(run(desk, card.load(desk / "data")))


def value(found: Evaluation, arm: str, name: str) -> float:
    result = found.arm(arm)  # type: ignore[arg-type]
    assert result is not None
    figure = result.figures[name].value
    assert figure is not None
    return figure


def test_each_arm_is_what_it_says(found: Evaluation) -> None:
    """B0 is the recorded model at its recorded cost and time, B1 and B2 are the model without its adapter, B3 is with
    it, and B4 escalates what it does not trust."""
    assert [each.arm for each in found.arms] == ["B0", "B1", "B2", "B3", "B4"]
    assert value(found, "B0", "accuracy") == 1
    assert value(found, "B0", "cps") == pytest.approx(0.01)
    assert value(found, "B0", "latency_p50") >= 2
    assert value(found, "B1", "accuracy") == value(found, "B2", "accuracy") < 0.5 < value(found, "B3", "accuracy") < 1
    assert value(found, "B3", "coverage") == 1
    assert 0.4 < value(found, "B4", "coverage") < 1
    assert value(found, "B4", "coverage") + value(found, "B4", "escalation") == 1
    assert value(found, "B4", "accuracy") > value(found, "B3", "accuracy")
    assert all(call.seconds >= 2 for call in found.arms[4].calls if call.escalated)


def test_acceptance_is_certified_on_calibration_calls_alone(found: Evaluation, data: Folder) -> None:
    """The certificate counts the calibration calls; the specialist's test answers are told with their confidence."""
    assert found.certificate is not None
    assert found.certificate.n == len(data.splits["calibration"])
    assert found.acceptance is not None
    assert found.acceptance.stage == found.small
    assert len(found.judged) == 40
    confidence, correct = zip(*found.judged, strict=True)
    found_auroc = auroc(confidence, correct)
    assert found_auroc is not None
    assert found_auroc > 0.9


def test_arms_are_paired_with_the_large_model(found: Evaluation) -> None:
    """Differences are by call, costs against what the same calls cost the large model, idle machines are paid."""
    wrong = sum(call.correct is False for call in found.arms[3].calls)
    assert value(found, "B3", "difference") == pytest.approx(-wrong / 40)
    for name in ("cost_moved", "tokens_moved"):
        assert value(found, "B4", name) == pytest.approx(value(found, "B4", "coverage"))
    assert 0 < value(found, "B4", "cost_saved") < value(found, "B4", "coverage")
    once, twice, five = (value(found, "B3", name) for name in ("cps", "cps_50", "cps_20"))
    assert (twice, five) == (pytest.approx(2 * once), pytest.approx(5 * once))
    assert found.arms[0].p_noninferior is not None
    assert found.arms[3].p_noninferior > found.arms[4].p_noninferior  # type: ignore[operator]


def test_it_is_kept_and_shown(found: Evaluation, tmp_path: Path) -> None:
    """The JSON has each figure with interval and n, what was evaluated by hash, and the settings; the table fits."""
    kept = json.loads(save(found, tmp_path).read_bytes())
    assert tmp_path / FILE == save(found, tmp_path)
    assert kept == json.loads(msgspec.json.encode(to_json(found)))
    assert kept["arms"]["B3"]["accuracy"].keys() == {"value", "low", "high", "n"}
    assert set(kept["parents"]) == {"dataset", "adapter", "base"}
    assert kept["settings"]["limit"] == 40
    assert kept["configuration"]["policy"]["repairs"] == 0
    console = Console(width=120, record=True)
    console.print(render(found))
    shown = console.export_text()
    assert "accepted failure" in shown
    assert "Accepted from a confidence of" in shown
    assert max(map(len, shown.splitlines())) <= 120


def test_pictures_are_drawn(found: Evaluation, tmp_path: Path) -> None:
    """Accuracy by cost and risk by coverage, as SVG."""
    pytest.importorskip("altair")
    pytest.importorskip("vl_convert")
    drawn = pictures.draw(found, tmp_path)
    assert [path.name for path in drawn] == ["accuracy-cost.svg", "risk-coverage.svg"]
    assert all(path.read_text().startswith("<svg") for path in drawn)


def test_risk_is_told_where_confidence_changes() -> None:
    """Equal confidences are accepted together, so no order among them is told."""
    found = pictures.risk_coverage([(0.9, True), (0.5, False), (0.9, True), (0.5, True)])
    assert [(p["coverage"], p["wrong"]) for p in found] == [(0.5, 0.0), (1.0, 0.25)]
    assert pictures.risk_coverage([]) == []


async def test_a_live_large_model_is_asked_instead_of_its_past(desk: Path, data: Folder) -> None:
    """With a configured large model B0 and B4 ask that one, whatever is recorded; what it costs is not known here."""
    found = await run(desk, data, large=experts.expert(data, 0.7), arms=("B0", "B4"), limit=20, labels=20)
    assert value(found, "B0", "accuracy") < 1
    assert found.arms[0].figures["cps"].value is None
    assert found.arms[1].figures["difference"].n == 20


async def test_without_a_recorded_large_model_its_arms_are_left_out(data: Folder, tmp_path: Path) -> None:
    """An empty store leaves B1 to B3, and the notes say so."""
    await (await open_store(f"sqlite:///{tmp_path}/calls.db")).close()
    found = await run(tmp_path, data, arms=("B0", "B1", "B4"), limit=5)
    assert [each.arm for each in found.arms] == ["B1"]
    assert found.arms[0].p_noninferior is None
    assert any("B0 and B4 left out" in note for note in found.notes)


async def test_too_few_labels_accept_nothing(desk: Path, data: Folder) -> None:
    """Where nothing can be certified the large model answers all, and it is told how many labels are missing."""
    found = await run(desk, data, arms=("B0", "B4"), labels=20, limit=10)
    assert found.certificate is None
    assert found.needed
    assert value(found, "B4", "coverage") == 0
    assert value(found, "B4", "accuracy") == 1
    assert "more labels are needed" in " ".join(_lines(found))


async def test_prompts_that_do_not_fit_are_counted(desk: Path, data: Folder) -> None:
    """A prompt of 200,000 tokens is a call without an answer, and wrong; the others go on."""
    long = _with(data, lambda row: {**row.request, "messages": [{"role": "user", "content": "word " * 200_000}]})
    good = experts.expert(data, 1.0)

    def small(request: Request) -> Completion | ContextLengthExceeded:
        said = str(request.messages[-1]["content"])
        return ContextLengthExceeded("Too long.") if len(said) > 100_000 else good(request)  # type: ignore[return-value]

    found = await run(desk, long, small, arms=("B3",), limit=10)
    [result] = found.arms
    assert result.errors == {ContextLengthExceeded.code: 1}
    assert result.figures["accuracy"].value == pytest.approx(0.9)
    assert "left calls without an answer" in " ".join(_lines(found))


async def test_contradictory_answers_are_counted_as_they_are(desk: Path, data: Folder) -> None:
    """Of two rows with one request and two answers, one is right."""
    first, *rest = data.splits["test"][-10:]
    other = next(row for row in rest if row.completion != first.completion)
    twice = msgspec.structs.replace(
        data, splits={**data.splits, "test": (first, _replaced(first, id=other.id, answer=other.answer))}
    )
    found = await run(desk, twice, experts.expert(data, 1.0), arms=("B3",))
    assert found.arms[0].figures["accuracy"].value == 0.5


async def test_what_cannot_be_evaluated_says_so(desk: Path, data: Folder) -> None:
    """No test calls, another task's version, unknown arms and models are refused before anything is asked."""
    empty = msgspec.structs.replace(data, splits={**data.splits, "test": ()})
    with pytest.raises(DataError, match="no test calls"):
        await run(desk, empty)
    with pytest.raises(ConfigError, match="B9"):
        await run(desk, data, arms=("B9",))
    store = await open_store(f"sqlite:///{desk}/calls.db")
    async with experts.assembly(store, experts.expert(data, 1.0)) as parts:
        with pytest.raises(ConfigError, match="task 'other'"):
            await evaluate(parts, data, experts.version(data, recipe={"task": "other"}))
        with pytest.raises(ConfigError, match="no model 'huge'"):
            await evaluate(parts, data, experts.version(data), large="huge")
        strange = await evaluate(parts, data, experts.version(data, parents=()), settings=Settings(("B3",), limit=2))
    await store.close()
    assert any("may have seen" in note for note in strange.notes)


def test_examples_are_near_and_short(data: Folder) -> None:
    """The nearest training call stands last; together they are as short as they must be; none is what was asked."""
    examples = Examples(data.splits["train"])
    row = data.splits["train"][0]
    assert examples.nearest(row, 3)[-1].completion == row.completion
    assert len(examples.nearest(row, 3)) == 3
    assert examples.nearest(row, 0) == []
    long = _replaced(row, prompt="x" * MOST_BYTES)
    assert Examples([long]).nearest(row, 3) == []
    assert Examples([]).nearest(row, 3) == []


def _lines(found: Evaluation) -> Iterator[str]:
    console = Console(width=200, record=True)
    console.print(render(found))
    yield from console.export_text().splitlines()


def _with(data: Folder, change: Callable[[Row], object]) -> Folder:
    """The dataset with its newest test row's request changed."""
    *rows, last = data.splits["test"]
    changed = _replaced(last, request=change(last))
    return msgspec.structs.replace(data, splits={**data.splits, "test": (*rows, changed)})


def _replaced(row: Row, **changes: object) -> Row:
    return replace(row, **changes)  # type: ignore[arg-type]
