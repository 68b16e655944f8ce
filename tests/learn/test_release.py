"""From an adapter's file to a version, and into service: what is checked, kept and refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import gguf
import msgspec
import numpy as np
import pytest
import tiny
from typer.testing import CliRunner

from smallfirst.assemble import assemble
from smallfirst.backends.llamacpp import LlamaCppBackend
from smallfirst.backends.specialist import Manifest, PromptTemplate
from smallfirst.cli import app
from smallfirst.config import ModelConfig, parse
from smallfirst.errors import ConfigError, ModelFileError, NotFoundError
from smallfirst.learn import release as stage
from smallfirst.models import file_sha256, write_gguf
from smallfirst.rollout import Rules
from smallfirst.serve.server import serving
from smallfirst.store import Store, TaskRow, open_store
from smallfirst.types import Attempt, Choice, Completion, Record, Request, ToolCall

SERVER = ModelConfig(backend="openai", base_url="http://localhost:1/v1", model="tuned", small=True)
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SMALLFIRST_HOME", str(tmp_path / "home"))
    return tiny.write_model(tmp_path / "tiny.gguf")


@pytest.fixture
def adapter(tmp_path: Path, base: Path) -> Path:
    """An adapter's file with its manifest; what is in it nobody reads here."""
    path = tmp_path / "adapter.gguf"
    path.write_bytes(b"lora")
    describe(path, base_sha256=file_sha256(base))
    return path


def describe(path: Path, **more: Any) -> None:
    fields: dict[str, Any] = {"sha256": file_sha256(path), "prompt": PromptTemplate("pruned", turns=2)}
    made = Manifest(**fields | {"parents": ("data",), "recipe": {"task": "t"}} | more)
    path.with_suffix(".json").write_bytes(msgspec.json.encode(made))


def train_again(adapter: Path) -> None:
    adapter.write_bytes(b"other")


def content(path: str) -> bytes:
    return Path(path).read_bytes()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    made = await open_store(f"sqlite:///{tmp_path}/calls.db")
    yield made
    await made.close()


async def test_a_version_is_a_copy_of_its_files(store: Store, adapter: Path, base: Path) -> None:
    """Training again into the same folder changes no version; the same files again are the same version."""
    version = await stage.register(store, "t", adapter, str(base), evaluation={"accuracy": 0.8})
    assert (version.parents, version.prompt["turns"], version.base) == (("data",), 2, str(base))
    assert content(version.adapter) == b"lora"
    again = await stage.register(store, "t", adapter, str(base))
    assert (again.id, again.created_at, again.evaluation) == (version.id, version.created_at, None)
    train_again(adapter)
    describe(adapter, base_sha256=file_sha256(base))
    other = await stage.register(store, "t", adapter, str(base))
    assert other.id != version.id
    assert content(version.adapter) == b"lora"
    assert [known.id for known in await store.versions("t")] == [version.id, other.id]


async def test_a_version_may_be_registered_by_several_at_once(store: Store, adapter: Path, base: Path) -> None:
    """Those who come at the same time get one version with whole files, and leave no other folder behind."""
    made = await asyncio.gather(*(stage.register(store, "t", adapter, str(base)) for _ in range(8)))
    assert {version.id for version in made} == {made[0].id}
    assert content(made[0].adapter) == b"lora"
    folder = Path(made[0].adapter).parent
    assert sorted(path.name for path in folder.iterdir()) == ["adapter.gguf", "adapter.json"]
    assert list(folder.parent.iterdir()) == [folder]


async def test_what_is_not_an_adapter_of_the_base_is_refused(store: Store, adapter: Path, base: Path) -> None:
    """Missing, without a manifest, changed since its export, or of another base: nothing is kept."""
    with pytest.raises(ModelFileError, match="There is no adapter"):
        await stage.register(store, "t", adapter.with_name("no.gguf"), str(base))
    with pytest.raises(ModelFileError, match="No weights"):
        await stage.register(store, "t", adapter, str(base.with_name("no.gguf")))
    other = tiny.write_model(base.with_name("other.gguf"), seed=1)
    with pytest.raises(ModelFileError, match="belongs to weights"):
        await stage.register(store, "t", adapter, str(other))
    train_again(adapter)
    with pytest.raises(ModelFileError, match="as when it was exported"):
        await stage.register(store, "t", adapter, str(base))
    adapter.with_suffix(".json").unlink()
    with pytest.raises(ModelFileError, match="no manifest"):
        await stage.register(store, "t", adapter, str(base))
    assert await store.versions() == []


async def test_a_copy_that_fails_says_so(store: Store, adapter: Path, base: Path) -> None:
    """A home that cannot be written is named, and nothing is registered."""
    (base.parent / "home").write_text("a file")
    with pytest.raises(ModelFileError, match="cannot be copied"):
        await stage.register(store, "t", adapter, str(base))
    assert await store.versions() == []


async def test_shares_are_checked(store: Store) -> None:
    """A share has to be one, and nobody is served in the shadow; what is live is not put on trial."""
    version = await stage.register(store, "t", None, SERVER)
    for to, share in (("canary", 1.0), ("canary", 0.0), ("live", 1.5), ("shadow", 0.5)):
        with pytest.raises(ConfigError):
            await stage.release(store, version, to=to, share=share)  # type: ignore[arg-type]
    await stage.release(store, version, to="live")
    with pytest.raises(ConfigError, match="is live"):
        await stage.release(store, version, to="canary")
    await stage.rollback(store, "t")
    with pytest.raises(NotFoundError, match="Nothing of 't' is released"):
        await stage.rollback(store, "t")


async def test_rules_come_from_the_incumbents_calls(store: Store) -> None:
    """Its success rate sizes the bets; twice its slow calls are late; a success costs what its successes did. Without
    enough calls nothing but validity and success is compared."""
    assert await stage.rules_for(store, "t", "") == Rules(labelled_incumbent=stage.AUDITED)
    for n in range(40):
        await store.append(call(n, right=n % 4 != 0))
    assert (await stage.rules_for(store, "t", "")).known == 0.98  # the large model's answers were served
    rules = await stage.rules_for(store, "t", "small")
    assert (rules.known, rules.known_n) == (0.75, 40)
    assert rules.late_s == pytest.approx(1.0)
    assert rules.usd_per_success == pytest.approx(0.003 / 0.75)


def call(n: int, *, right: bool) -> Record:
    def answer(stage: str, city: str, decision: Any) -> Attempt:
        choice = Choice(tool_calls=(ToolCall("c", "weather", json.dumps({"city": city})),))
        small = stage == "small"
        return Attempt(
            stage, stage, stage, "generate", decision, "", Completion((choice,)), small, seconds=0.5, cost_usd=0.003
        )

    said: dict[str, Any] = {"role": "user", "content": "?"}
    body = {"model": "auto", "messages": [said], "tools": [WEATHER]}
    attempts = (answer("large", "Rome", "escalate"), answer("small", "Rome" if right else "Oslo", "shadow"))
    request = Request("chat", body, "auto", (said,))
    return Record(f"r{n}", float(n), request, "t", "observe", attempts, 0, "escalate", "", 200, 1.0, "c")


def write_lora(path: Path, seed: int, base: Path) -> Path:
    """An adapter of the tiny model that changes one matrix at random."""
    random = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, arch="llama")
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 4.0)
    for side, shape in (("a", (4, tiny.HEADS * tiny.SIZE)), ("b", (tiny.WIDTH, 4))):
        writer.add_tensor(f"blk.0.attn_output.weight.lora_{side}", random.normal(size=shape).astype(np.float32))
    write_gguf(writer)
    describe(path, base_sha256=file_sha256(base))
    return path


ENGINE = """
[models.small]
backend = "llamacpp"
weights = "{base}"
context = 512
slots = 2
threads = 1
batch_threads = 1
[cascade]
mode = "small_only"
[store]
url = "sqlite:///{folder}/calls.db"
"""


@pytest.mark.engine
async def test_a_real_engine_switches_adapters_under_load(
    store: Store, tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While calls go on, versions come and go on the embedded engine: every call is answered, and an adapter that the
    engine cannot read is taken back while the live one goes on."""
    monkeypatch.setattr("smallfirst.serve.releases._RETRY_S", 0.1)
    versions = [
        await stage.register(store, "t", write_lora(tmp_path / f"{n}.gguf", n, base), str(base)) for n in range(2)
    ]
    broken = write_lora(tmp_path / "broken.gguf", 2, base)
    train_again(broken)
    describe(broken, base_sha256=file_sha256(base))
    answers: list[tuple[int, str]] = []
    done = asyncio.Event()
    config = parse(ENGINE.format(base=base, folder=tmp_path), {})
    async with serving(config, {}) as url, aiohttp.ClientSession(url) as http:

        async def load() -> None:
            body = {"model": "auto", "messages": [{"role": "user", "content": "Rome"}], "max_tokens": 8}
            while not done.is_set():
                async with http.post("/v1/chat/completions", json=body, headers={"x-smallfirst-task": "t"}) as reply:
                    answers.append((reply.status, reply.headers.get("x-smallfirst-model", "")))

        async def served_by(model: str) -> None:
            async with asyncio.timeout(20):
                while not answers or answers[-1][1] != model:  # noqa: ASYNC110 - another task asks
                    await asyncio.sleep(0.01)

        async with asyncio.TaskGroup() as group:
            for _ in range(2):
                group.create_task(load())
            await served_by("tiny")
            for version in versions:
                await stage.release(store, version, to="live", share=1.0)
                await served_by(version.id)
            bad = await stage.register(store, "t", broken, str(base))
            await stage.release(store, bad, to="live", share=1.0)
            async with asyncio.timeout(20):
                while (await store.aliases("t"))["live"] == bad.id:  # noqa: ASYNC110 - the gateway writes
                    await asyncio.sleep(0.01)
            await stage.rollback(store, "t")
            await served_by("tiny")
            done.set()
    assert {status for status, _ in answers} == {200}
    assert {model for _, model in answers} == {"tiny", versions[0].id, versions[1].id}
    refused = next(move for move in await store.moves("t") if move.by == "gateway")
    assert (refused.version, refused.reason.startswith("cannot be served")) == (bad.id, True)


@pytest.mark.engine
async def test_a_base_that_nothing_else_uses_has_an_engine_of_its_own(store: Store, tmp_path: Path, base: Path) -> None:
    """It starts with the first version on it, holds the others too, and ends with the last; files that changed since
    they were registered are refused, and the versions beside go on."""
    first, second = [
        await stage.register(store, "t", write_lora(tmp_path / f"{n}.gguf", n, base), str(base)) for n in range(2)
    ]
    config = parse(f'[models.large]\nbackend = "fake"\n[store]\nurl = "sqlite:///{tmp_path}/calls.db"\n', {})
    async with assemble(config, {}) as parts:
        made = await parts.versions.load(first)
        engine = made.stage.backend
        assert isinstance(engine, LlamaCppBackend)
        assert (made.stage.name, made.stage.adapter, made.stage.small) == (first.id, first.id, True)
        assert await parts.versions.load(first) is made
        train_again(Path(second.adapter))
        with pytest.raises(ModelFileError, match=r"as when .* was registered"):
            await parts.versions.load(second)
        bare = await stage.register(store, "t", None, str(base))
        assert (await parts.versions.load(bare)).stage.backend is engine
        await parts.versions.retain([bare.id])
        assert engine.engine.pid is not None
        await parts.versions.retain([])
        assert engine.engine.pid is None


TABLES = """
[models.large]
backend = "fake"
[models.short]
backend = "compressor"
predictor = "large"
[models.tuned]
backend = "llamacpp"
weights = "smollm2-135m"
adapters = { trips = "trips.gguf" }
adapter = "trips"
"""


async def name_task(url: str) -> None:
    store = await open_store(url)
    await store.replace_tasks([TaskRow("t-1", "trips", False, {"cells": []}, 1.0)])
    await store.close()


def test_the_commands_release_show_and_take_back(tmp_path: Path, adapter: Path, base: Path) -> None:
    """From an adapter to live and back, by a task's name, as JSON and for people; wrong words are errors."""
    asyncio.run(name_task(f"sqlite:///{tmp_path}/calls.db"))
    where = ["--store", f"{tmp_path}/calls.db", "--config", f"{tmp_path}/smallfirst.toml"]
    (tmp_path / "smallfirst.toml").write_text(TABLES)

    def run(*args: str) -> Any:
        done = CliRunner().invoke(app, [*args, *where, "--json"])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    made = ["--adapter", str(adapter), "--base", str(base)]
    shadow = run("release", "trips", "--to", "shadow", *made, "--settle", "1h", "--audited", "0.5")
    version = shadow["aliases"]["candidate"]
    assert version.startswith("t-1@")
    assert (shadow["rollout"]["rules"]["settle_s"], shadow["rollout"]["rules"]["labelled_incumbent"]) == (3600, 0.5)
    assert run("release", "trips", "--to", "canary", "--share", "0.2")["rollout"]["share"] == 0.2
    live = run("release", "trips", "--to", "live", "--version", version)
    assert live["aliases"] == {"live": version}
    assert run("releases")[0]["aliases"] == {"live": version}
    assert run("rollback", "trips", "--reason", "wrong totals")["aliases"] == {}
    shown = run("releases", "trips")
    assert [move["step"] for move in shown["moves"]] == ["shadow", "canary", "live", "rolled_back"]
    assert (shown["moves"][-1]["reason"], shown["versions"][0]["id"]) == ("wrong totals", version)
    assert run("release", "trips", "--to", "live", "--model", "short")["aliases"]["live"].startswith("t-1@")
    assert run("releases", "trips")["versions"][1]["model"] == {"backend": "compressor", "predictor": "large"}
    told = CliRunner().invoke(app, ["releases", "trips", *where], env={"COLUMNS": "200"})
    assert "wrong totals" in told.stdout
    for args, error in (
        (["--version", "t-1@no"], NotFoundError),
        (["--audited", "2"], ConfigError),
        (["--adapter", "a", "--version", "b"], ConfigError),
        (["--adapter", "a", "--model", "b"], ConfigError),
        (["--model", "nobody"], NotFoundError),
        (["--model", "large"], ConfigError),
        (["--model", "tuned"], ConfigError),
    ):
        failed = CliRunner().invoke(app, ["release", "trips", "--to", "live", *args, *where])
        assert isinstance(failed.exception, error)
