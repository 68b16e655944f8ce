"""A compressor named as a stage: recorded, priced and decided on as any model is."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from recording import Loopback
from running import Start, cascade, question, until

from smallfirst.assemble import assemble
from smallfirst.compress.guard import fit
from smallfirst.config import ModelConfig, parse
from smallfirst.errors import CalibrationError, ConfigError, ModelFileError
from smallfirst.learn.release import register, release, rollback

PAIR = """
[models.short]
backend = "compressor"
predictor = "large"
"""
TOWN = "The {n}th street of the town is lined with old trees, a bakery and some small shops."
LONG = "\n".join(TOWN.format(n=n) for n in range(120)) + "\nThe river Glenbywater runs through Glenby."
ASK = "Which river runs through Glenby?"


def body(**fields: object) -> dict[str, object]:
    return question(messages=[{"role": "user", "content": f"{LONG}\n\n{ASK}"}], **fields)


@pytest.mark.parametrize("stream", [False, True])
async def test_the_large_model_reads_the_shortened_text(start: Start, large: Loopback, stream: bool) -> None:
    """The answer is the large model's, to a fifth of the text, and the record has the client's own body, the facts and
    the predictor's price."""
    gateway = await start(PAIR, cascade(stages=["short"]))
    answer = await gateway.chat(body(stream=stream))
    sent = large.seen[0].body
    assert sent["model"] == "big"
    assert len(sent["messages"][0]["content"]) < len(LONG) / 3
    assert "Glenbywater" in sent["messages"][0]["content"]
    record = await gateway.record(answer.said("record"))
    assert record.body["messages"][0]["content"] == f"{LONG}\n\n{ASK}"
    attempt = record.attempts[0]
    assert (attempt.stage, attempt.backend, attempt.decision) == ("short", "short", "accept")
    assert attempt.features["compressed"] == 1.0
    assert attempt.features["compression_net"] > 1000
    assert attempt.features["compression_coverage"] == 1.0
    if not stream:
        assert attempt.cost_usd_local_free == pytest.approx((10 * 100 + 5 * 200) / 1e6)
        assert attempt.cost_usd is not None
        assert attempt.cost_usd_local_free < attempt.cost_usd < 1.1 * attempt.cost_usd_local_free


async def test_an_uncalibrated_compressor_runs_in_shadow(start: Start, large: Loopback) -> None:
    """Before anything vouches for it, the full text is answered, and the shortened one beside it for the record."""
    gateway = await start(PAIR, cascade(stages=["short", "large"]))
    answer = await gateway.chat(body())
    record = await gateway.record(answer.said("record"), attempts=2)
    assert [(a.stage, a.decision) for a in record.attempts] == [("large", "accept"), ("short", "shadow")]
    assert [LONG in each.body["messages"][0]["content"] for each in large.seen] == [True, False]
    assert record.attempts[1].features["compression_in"] > 5 * record.attempts[1].features["compression_out"] / 1.5


async def test_a_client_can_name_the_compressor(start: Start, large: Loopback) -> None:
    """By its name in the configuration, as any model."""
    gateway = await start(PAIR, cascade(stages=["short", "large"]))
    answer = await gateway.chat(body(model="short"))
    assert answer.said("reason") == "model_named"
    assert large.seen[0].body["model"] == "big"


async def test_a_compressor_is_released_and_taken_back_as_any_version(
    start: Start, large: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Live it stands before the configured model, under its version's name and at the pair's price; taken back, the
    full text is sent again."""
    monkeypatch.setattr("smallfirst.serve.follow.REFRESH_S", 0.02)
    gateway = await start(cascade(stages=["large"], accept_uncalibrated=True))

    async def asked() -> str | None:
        answer = await gateway.chat(body(), x_smallfirst_task="towns")
        return (await gateway.record(answer.said("record"))).attempts[0].stage

    async with gateway.store() as store:
        version = await register(store, "towns", None, ModelConfig(backend="compressor", predictor="large", keep=0.1))
        assert (version.base, version.adapter) == ("large", "")
        await release(store, version, to="live", share=1.0)
        await until(asked, lambda stage: stage == version.id)
        record = (await gateway.records())[0]
        assert record.attempts[0].features["compressed"] == 1.0
        assert record.attempts[0].cost_usd_local_free == pytest.approx((10 * 100 + 5 * 200) / 1e6)
        assert len(large.seen[-1].body["messages"][0]["content"]) < len(LONG) / 5
        await rollback(store, "towns")
        await until(asked, lambda stage: stage == "large")


async def test_a_released_compressor_keeps_its_guard(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guard is a file of the version: another one is another version, and one that was changed is refused; so is a
    predictor that this gateway does not have."""
    monkeypatch.setenv("SMALLFIRST_HOME", str(tmp_path / "home"))
    guard = tmp_path / "guard.json"
    pair = ModelConfig(backend="compressor", predictor="large", guard=str(guard))
    gateway = await start(cascade(stages=["large"]))
    async with gateway.store() as store:
        with pytest.raises(ModelFileError, match="smallfirst guard"):
            await register(store, "towns", None, pair)
        guard.write_text("{}")
        with pytest.raises(CalibrationError, match="version"):
            await register(store, "towns", None, pair)
        first, second = [await register(store, "towns", None, fitted(pair, seed)) for seed in (0, 1)]
        assert first.id != second.id
        assert content(first.adapter) != content(second.adapter)
        change(second.adapter)
        lost = await register(store, "towns", None, ModelConfig(backend="compressor", predictor="gone"))
    async with assemble(gateway.config, gateway.env) as parts:
        with pytest.raises(ModelFileError, match="as when"):
            await parts.versions.load(second)
        with pytest.raises(ConfigError, match=r"\['gone'\], which are not configured here"):
            await parts.versions.load(lost)


def fitted(pair: ModelConfig, seed: int) -> ModelConfig:
    """The pair after its guard was fitted."""
    dice = random.Random(seed)
    rows = [{"coverage": dice.random(), "mass": dice.random()} for _ in range(200)]
    same = [row["coverage"] > 0.3 for row in rows]
    made = fit(rows, same, task="towns", stage="short", alpha=0.1, delta=0.1, made_at=0.0)
    Path(pair.guard).write_text(json.dumps(made.to_json()))
    return pair


def content(path: str) -> object:
    return json.loads(Path(path).read_text())


def change(path: str) -> None:
    Path(path).write_text("changed")


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ('predictor = "nobody"', "models.short.predictor is 'nobody'"),
        ("", "models.short.predictor is ''"),
        ('predictor = "short"', "models.short.predictor is 'short'"),
        ('predictor = "large"\nmode = "summary"', "models.short.compressor is ''"),
        ('predictor = "large"\ncompressor = "small"', "has mode 'extract'"),
        ('predictor = "large"\nkeep = 0', "keep"),
        ('predictor = "large"\nmode = "shrink"', "mode"),
    ],
)
def test_settings_that_cannot_work_are_refused(table: str, said: str) -> None:
    """Each error names the key and what is allowed."""
    models = "[models.small]\nbackend = 'fake'\n[models.large]\nbackend = 'fake'\n"
    with pytest.raises(ConfigError, match="models") as caught:
        parse(f'{models}[models.short]\nbackend = "compressor"\n{table}\n', {})
    assert said in str(caught.value)
