"""Which model is selected, when none is, and what is kept of the way there."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import experts
import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from smallfirst.assemble import Assembly
from smallfirst.backends.fake import Script
from smallfirst.config import ModelConfig, parse
from smallfirst.errors import BackendUnavailable, ConfigError, DataError, ModelFileError
from smallfirst.learn import card
from smallfirst.learn.candidates import Candidate, Facts, chosen, identity, listed, named
from smallfirst.learn.card import Folder
from smallfirst.learn.past import Past, answers_of
from smallfirst.learn.select import FILE, JOURNAL, Settings, save, select, to_json
from smallfirst.store import Store, open_store
from smallfirst.types import Choice, Completion, Request, Usage

WIDE = Settings(limit=50, margin=0.1)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the help desk's store and dataset, half of it to try models on."""
    return experts.desk_folder(tmp_path_factory.mktemp("desk"), 150, 0.6)


@pytest.fixture
def data(desk: Path) -> Folder:
    return card.load(desk / "data")


@pytest.fixture
async def store(desk: Path) -> AsyncIterator[Store]:
    made = await open_store(f"sqlite:///{desk}/calls.db")
    yield made
    await made.close()


@pytest.fixture
async def past(store: Store, data: Folder) -> Mapping[str, Past]:
    return await answers_of(store, data.splits["calibration"])


def candidate(store: Store, name: str, script: Script) -> Candidate:
    """A model that answers by a script, at the price of an embedded one."""

    @asynccontextmanager
    async def start() -> AsyncIterator[Assembly]:
        async with experts.assembly(store, script) as parts:
            stage = parts.candidates["small"].stage
            parts.pricing.add(name, ModelConfig(backend="llamacpp", weights="tiny"))
            named = msgspec.structs.replace(stage, name=name)
            made = msgspec.structs.replace(parts.candidates["small"], stage=named)
            yield replace(parts, candidates={name: made})

    return Candidate(name, Facts("test", "Apache-2.0", 4096), ModelConfig(backend="fake", model=name), start)


async def test_the_cheapest_that_is_as_good_is_chosen(
    store: Store, data: Folder, past: Mapping[str, Past], tmp_path: Path
) -> None:
    """Of two that are always right the cheaper one wins; the one that is not is given up early, and told."""
    models = {
        "dear": experts.expert(data, 1.0, seconds=2.0),
        "cheap": experts.expert(data, 1.0, seconds=0.5),
        "bad": experts.expert(data, 0.5, seconds=0.1),
    }
    tried = [candidate(store, name, script) for name, script in models.items()]
    found = await select(data, tried, past, settings=WIDE)
    assert found.chosen is not None
    assert found.chosen.name == "cheap"
    assert {trial.name for trial in found.trials if trial.passed} == {"dear", "cheap"}
    assert [trial.calls for trial in found.trials if trial.name == "bad"] == [20, 20]
    assert all(trial.calls == found.calls == 50 for trial in found.trials if trial.name != "bad")
    assert "worse by less than 10 points" in found.why
    kept = json.loads(save(found, tmp_path).read_bytes())
    assert kept["chosen"]["cps"]["value"] == pytest.approx(0.5 * 0.1 / 3600)
    assert kept == json.loads(msgspec.json.encode(to_json(found)))
    assert (tmp_path / FILE).exists()


async def test_none_is_an_answer(store: Store, data: Folder, past: Mapping[str, Past]) -> None:
    """Where every candidate is worse, the large model stays, and it is told how far the best one comes."""
    tried = [candidate(store, f"m{skill}", experts.expert(data, skill)) for skill in (0.2, 0.6)]
    found = await select(data, tried, past)
    assert found.chosen is None
    assert found.why.startswith("Stay with the large model")
    assert "m0.6" in found.why
    assert not any(trial.passed for trial in found.trials)


async def test_too_few_calls_are_told(store: Store, data: Folder, past: Mapping[str, Past]) -> None:
    """On 10 calls nothing within five points can be shown, even by a model that is always right."""
    found = await select(data, [candidate(store, "m", experts.expert(data, 1.0))], past, settings=Settings(limit=10))
    assert found.chosen is None
    assert "10 calls are too few" in found.why
    assert "72 could" in found.why


async def test_what_costs_more_is_not_chosen(store: Store, data: Folder, past: Mapping[str, Past]) -> None:
    """A model as good as the large one, but dearer, is no reason to leave that."""
    found = await select(
        data, [candidate(store, "slow", experts.expert(data, 1.0, seconds=3600.0))], past, settings=WIDE
    )
    assert all(trial.passed for trial in found.trials)
    assert found.chosen is None
    assert "cost as much" in found.why


async def test_candidates_that_cannot_be_tried_are_told(store: Store, data: Folder, past: Mapping[str, Past]) -> None:
    """Missing weights, a dead server and a model that never answers end in a result, not in a crash."""

    def missing() -> AbstractAsyncContextManager[Assembly]:
        raise ModelFileError("No weights at 'gone.gguf'.")

    def dead(_: Request) -> BackendUnavailable:
        return BackendUnavailable("Connection refused.")

    tried = [
        replace(candidate(store, "gone", experts.expert(data, 1.0)), start=missing),
        candidate(store, "dead", dead),
    ]
    lenient = Settings(margin=0.5, level=0.4)
    found = await select(data, tried, past, settings=lenient, excluded={"server": "it does not answer"})
    assert found.excluded == {"server": "it does not answer", "gone": "No weights at 'gone.gguf'."}
    assert [(trial.name, trial.calls) for trial in found.trials] == [("dead", 5), ("dead", 5)]
    assert found.trials[0].errors == {"unavailable": 5}
    assert found.chosen is None
    nothing = await select(data, [], past)
    assert "no candidate could be tried" in nothing.why


async def test_it_goes_on_where_it_was_broken_off(
    store: Store, data: Folder, past: Mapping[str, Past], tmp_path: Path
) -> None:
    """Answers that are kept are not asked for again, whatever was cut off at the end; other models' are."""
    asked, few = list[Request](), Settings(limit=20)
    right = experts.expert(data, 1.0)

    def counting(request: Request) -> Completion:
        asked.append(request)
        if len(asked) == 30:
            raise KeyboardInterrupt
        return right(request)  # type: ignore[return-value]

    with pytest.raises(KeyboardInterrupt):
        await select(data, [candidate(store, "m", counting)], past, folder=tmp_path, settings=few)
    with (tmp_path / JOURNAL).open("ab") as file:
        file.write(b'\n{"key": "cut')
    found = await select(data, [candidate(store, "m", counting)], past, folder=tmp_path, settings=few)
    assert len(asked) == 41
    assert [trial.calls for trial in found.trials] == [20, 20]
    await select(data, [candidate(store, "m", counting)], past, folder=tmp_path, settings=few)
    assert len(asked) == 41
    await select(data, [candidate(store, "other", counting)], past, folder=tmp_path, settings=Settings(limit=5))
    assert len(asked) == 51


async def test_answers_that_cannot_be_kept_are_an_error(
    store: Store, data: Folder, past: Mapping[str, Past], tmp_path: Path
) -> None:
    """Answers that cannot be kept or read end the selection, and no candidate is blamed for it."""
    (tmp_path / JOURNAL).mkdir()
    (tmp_path / "file").touch()
    for folder in (tmp_path, tmp_path / "file"):
        with pytest.raises(DataError, match="cannot be kept"):
            await select(data, [candidate(store, "m", experts.expert(data, 1.0))], past, folder=folder)


async def test_free_texts_and_empty_splits_cannot_be_selected_by(store: Store, data: Folder) -> None:
    """Answers that nobody can compare leave the large model; a dataset without calibration calls is refused."""
    rows = tuple(
        replace(row, request={"model": "auto", "messages": row.request["messages"]}, answer={"content": "Sure."})
        for row in data.splits["calibration"][-5:]
    )
    free = msgspec.structs.replace(data, splits={**data.splits, "calibration": rows})
    past = {row.id: Past(Choice("Sure."), "big", Usage(), 1.0, 0.1) for row in rows}
    found = await select(free, [candidate(store, "m", experts.expert(data, 1.0))], past)
    assert (found.calls, found.chosen) == (0, None)
    assert "cannot be compared" in found.why
    empty = msgspec.structs.replace(data, splits={**data.splits, "calibration": ()})
    with pytest.raises(DataError, match="no calibration calls"):
        await select(empty, [], {})


async def test_servers_are_asked_what_they_serve(tmp_path: Path) -> None:
    """Each model that a small server lists is a candidate with its context; a silent server is told; others are not
    asked; names choose among them."""

    async def models(request: web.Request) -> web.Response:
        assert request.headers["authorization"] == "Bearer secret"
        return web.json_response(
            {"data": [{"id": "a", "max_model_len": 8192}, {"id": "b", "meta": {"n_ctx_train": 2048}}]}
        )

    app = web.Application()
    app.router.add_get("/v1/models", models)
    async with TestServer(app) as server:
        text = f"""
[models.near]
backend = "openai"
preset = "vllm"
base_url = "http://127.0.0.1:{server.port}/v1"
api_key_env = "KEY"
models = ["*"]
small = true
[models.far]
backend = "openai"
base_url = "http://127.0.0.1:9/v1"
model = "x"
small = true
[models.large]
backend = "openai"
base_url = "http://127.0.0.1:9/v1"
model = "gpt"
[store]
url = "sqlite:///{tmp_path}/calls.db"
"""
        config, env = parse(text, {}), {"KEY": "secret"}
        found, silent = await listed(config, env)
    assert [(one.name, one.facts.context) for one in found] == [("near/a", 8192), ("near/b", 2048)]
    assert list(silent) == ["far"]
    assert [one.name for one in chosen(["near/b", "x.gguf"], found, config, env)] == ["near/b", "x.gguf"]
    with pytest.raises(ConfigError, match="large"):
        chosen(["large"], found, config, env)
    async with found[0].start() as parts:
        assert parts.candidates["near/a"].stage.small
        assert parts.candidates["near/a"].stage.model == "a"


def test_other_weights_are_another_model(tmp_path: Path) -> None:
    """Answers are kept by what a model is: its table and, for a file, what lies there today."""
    weights = tmp_path / "a.gguf"
    weights.write_bytes(b"one")
    model = ModelConfig(backend="llamacpp", weights=str(weights))
    before = identity(model)
    assert identity(model) == before
    weights.write_bytes(b"other")
    assert identity(model) != before
    assert identity(ModelConfig(backend="openai", model="a")) != identity(ModelConfig(backend="openai", model="b"))


def test_a_catalogue_model_has_its_licence() -> None:
    """What the catalogue tells of a model stands in the facts, and a file has none."""
    assert named("smollm2-135m", parse("", {}), {}).facts == Facts("this machine", "Apache-2.0", 4096)
    assert named("a.gguf", parse("", {}), {}).facts.licence == ""
