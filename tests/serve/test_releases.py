"""Releases, followed by gateways that run: switches under load, canaries, promotions, withdrawals, refusals."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from aiohttp import web
from recording import TOOL, Loopback
from running import Answer, Running, Start, cascade, started, until, whole

from smallfirst.config import ModelConfig
from smallfirst.learn.release import register, release, rollback
from smallfirst.registry import Release, Version
from smallfirst.rollout import Evidence, Rules
from smallfirst.store import Store
from smallfirst.store.rows import StoredRecord

QUICK = Rules(shares=(0.5,), shadow_margin=0.3, margin=0.3, valid_margin=0.3, known=0.95, known_n=200, settle_s=2.0)
ACCEPTING = cascade(accept_uncalibrated=True)


@dataclass
class Model:
    """A small model's server that names the right city, or another one where `wrong` says so of the call's number."""

    url: str
    name: str
    wrong: Callable[[int], bool] = lambda _: False
    asked: list[int] = field(default_factory=list)

    def config(self) -> ModelConfig:
        return ModelConfig(backend="openai", base_url=f"{self.url}/v1", preset="vllm", model=self.name, small=True)


def _number(raw: bytes) -> int:
    return int(msgspec.json.decode(raw)["messages"][-1]["content"].split()[-1])


def _city(n: int) -> str:
    return f"city{n % 7}"


def _says(city: str, model: str) -> web.Response:
    return web.json_response(whole(None, ("get_weather", json.dumps({"city": city})), model=model))


Models = Callable[..., Awaitable[Model]]


@pytest.fixture
async def models(small: Loopback, large: Loopback) -> AsyncIterator[Models]:
    """Starts servers of small models; the configured small one and the large one are always right."""

    async def right(request: web.Request) -> web.StreamResponse:
        return _says(_city(_number(await request.read())), "right")

    small.handlers = large.handlers = [right]
    async with AsyncExitStack() as stack:

        async def start(name: str, wrong: Callable[[int], bool] = lambda _: False) -> Model:
            async def handle(request: web.Request) -> web.StreamResponse:
                n = _number(await request.read())
                model.asked.append(n)
                return _says("nowhere" if model.wrong(n) else _city(n), name)

            model = Model((await stack.enter_async_context(started(Loopback([handle])))).url, name, wrong)
            return model

        yield start


@pytest.fixture(autouse=True)
def brisk_refresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests have no second to wait for a change to be noticed."""
    monkeypatch.setattr("smallfirst.serve.follow.REFRESH_S", 0.02)


async def call(gateway: Running, n: int, **headers: str) -> Answer:
    body = {"messages": [{"role": "user", "content": f"Weather for call {n}"}], "tools": [TOOL]}
    return await gateway.chat(body, x_smallfirst_task="weather", **headers)


async def served_by(gateway: Running, model: str) -> Answer:
    """The first answer that `model` gives."""
    return await until(lambda: call(gateway, 1), lambda answer: answer.said("model") == model)


async def version_of(store: Store, model: Model) -> Version:
    return await register(store, "weather", None, model.config())


async def released(store: Store, enough: Callable[[Release], bool]) -> Release:
    return await until(lambda: store.release("weather"), enough)


async def flow(gateway: Running, n: int, enough: Callable[[], Awaitable[bool]]) -> list[Answer]:
    """Calls one after the other, at most n, until it is enough."""
    answers = []
    for k in range(n):
        answers.append(await call(gateway, k))
        if k % 10 == 9 and await enough():
            break
    return answers


def names(record: StoredRecord) -> list[tuple[str, str]]:
    return [(attempt.model, attempt.decision) for attempt in record.attempts]


async def test_a_switch_is_followed_under_load_without_a_failed_call(start: Start, models: Models) -> None:
    """Live, live again with another version, and back: while calls go on each is answered, and the last pointer
    holds within a second, in one gateway as in another on the same store."""
    gateways = [await start(ACCEPTING), await start(ACCEPTING)]
    first, second = await models("first"), await models("second")
    answers: list[Answer] = []
    done = asyncio.Event()

    async def load(gateway: Running) -> None:
        while not done.is_set():
            answers.append(await call(gateway, len(answers)))

    async with asyncio.TaskGroup() as group, gateways[0].store() as store:
        for gateway in gateways * 2:
            group.create_task(load(gateway))
        for model in (first, second):
            await release(store, await version_of(store, model), to="live", share=1.0, by="ann")
            for gateway in gateways:
                await served_by(gateway, model.name)
        await rollback(store, "weather")
        for gateway in gateways:
            await served_by(gateway, "first")
        aliases, moves = await store.aliases("weather"), await store.moves("weather")
        done.set()
    assert {answer.status for answer in answers} == {200}
    assert {answer.said("model") for answer in answers} == {"right", "first", "second"}
    assert aliases == {"live": moves[0].version}
    assert [(m.by, m.step) for m in moves] == [("ann", "live"), ("ann", "live"), ("cli", "rolled_back")]


async def test_a_shadow_answers_beside_what_is_served(start: Start, models: Models) -> None:
    """In the shadow the candidate is asked after the client was served; its answer is compared on the record."""
    gateway, new = await start(ACCEPTING), await models("new")
    async with gateway.store() as store:
        version = await version_of(store, new)
        rules = Rules(settle_s=2.0, level=1e-9)
        await release(store, version, to="shadow", rules=rules)
        await until(lambda: call(gateway, 5), lambda _: bool(new.asked))
        record = await gateway.record(await call(gateway, 6), attempts=3)
        assert [(a.stage, a.decision) for a in record.attempts[:1]] == [("small", "accept")]
        later = {(a.stage, a.decision, a.probability) for a in record.attempts[1:]}
        assert later == {(version.id, "shadow", None), ("large", "audit", 1.0)}
        assert record.trial is not None
        assert record.trial.arm == "shadow"
        await released(store, lambda found: '"pair":' in found.evidence and '"pair":0' not in found.evidence)


async def test_a_canary_is_sticky_by_episode(start: Start, models: Models) -> None:
    """All calls of an episode are answered by one side, in every gateway, and the record says which and how likely."""
    gateways, new = [await start(ACCEPTING), await start(ACCEPTING)], await models("new")
    async with gateways[0].store() as store:
        version = await version_of(store, new)
        await release(store, version, to="canary", share=0.4, rules=Rules(settle_s=2.0, level=1e-9))
        for gateway in gateways:
            await until(lambda g=gateway: _answered(g, "e"), lambda record: record.trial is not None)
        sides = set()
        for k in range(12):
            records = [await _answered(gateway, f"episode {k}") for gateway in gateways * 2]
            [side] = {(record.trial, record.attempts[0].stage) for record in records}
            sides.add(side)
    found = {(trial.arm, trial.share, stage) for trial, stage in sides if trial}
    assert found == {("canary", 0.4, version.id), ("incumbent", 0.4, "small")}


async def _answered(gateway: Running, episode: str) -> StoredRecord:
    return await gateway.record(await call(gateway, 3, x_smallfirst_episode=episode))


async def test_two_gateways_count_each_call_once(start: Start, models: Models) -> None:
    """Both take outcomes from the same store: together each call of the rollout once, whoever answered it."""
    gateways, new = [await start(ACCEPTING), await start(ACCEPTING)], await models("new")
    async with gateways[0].store() as store:
        version = await version_of(store, new)
        await release(store, version, to="canary", share=0.5, rules=Rules(settle_s=2.0, level=1e-9))
        for gateway in gateways:
            await until(lambda g=gateway: _answered(g, ""), lambda record: record.trial is not None)
        answers = [await call(gateways[n % 2], n) for n in range(40)]
        rollout = await store.rollout("weather")
        assert rollout is not None
        records = [await gateways[0].record(answer, attempts=2) for answer in answers]
        assert all(record.trial for record in records)
        everyone = [record for record in await gateways[0].records(40) if record.trial]

        def calls(found: Release) -> int:
            return Evidence.from_json(rollout, found.evidence).calls

        await released(store, lambda found: calls(found) >= len(everyone))
        await asyncio.sleep(0.1)
        assert calls(await store.release("weather")) == len(everyone)
        assert await store.pending(rollout.id) == []


async def test_a_bad_candidate_is_withdrawn_by_its_calls(start: Start, models: Models) -> None:
    """A canary whose answers are wrong half of the time goes back by itself, with a reason, and is asked no more."""
    gateway, bad = await start(ACCEPTING), await models("bad", lambda n: n % 2 == 0)
    async with gateway.store() as store:
        version = await version_of(store, bad)
        await release(store, version, to="canary", rules=QUICK)
        await until(lambda: call(gateway, 1), lambda _: bool(bad.asked))

        async def back() -> bool:
            return (await store.release("weather")).trial is None

        answers = await flow(gateway, 400, back)
        final = await released(store, lambda found: found.trial is None)
        moves = await store.moves("weather")
    assert {answer.status for answer in answers} == {200}
    assert len(bad.asked) <= 150
    assert (final.aliases, final.changed_by) == ({}, "rollout")
    assert [(m.by, m.step) for m in moves] == [("cli", "canary"), ("rollout", "rolled_back")]
    assert "success: worse than what is configured" in moves[-1].reason
    await served_by(gateway, "right")
    before = len(bad.asked)
    assert {(await call(gateway, n)).said("model") for n in range(5)} == {"right"}
    assert len(bad.asked) == before


async def test_a_good_candidate_goes_live_by_its_calls(start: Start, models: Models) -> None:
    """From the shadow through the canary to live; a bad one after it goes back to it, while it stayed loaded."""
    gateway, good = await start(ACCEPTING), await models("good")
    async with gateway.store() as store:
        version = await version_of(store, good)
        await release(store, version, to="shadow", rules=QUICK)

        async def live() -> bool:
            return (await store.release("weather")).live == version.id

        await flow(gateway, 600, live)
        final = await released(store, lambda found: found.live == version.id)
        moves = await store.moves("weather")
        assert [m.step for m in moves] == ["shadow", "canary", "live"]
        assert moves[-1].share == QUICK.live_share
        assert final.aliases == {"live": version.id}

        bad = await models("bad", lambda _: True)
        worse = await version_of(store, bad)
        await release(store, worse, to="live", share=0.5, rules=QUICK)
        await served_by(gateway, "bad")

        async def back() -> bool:
            return (await store.release("weather")).live == version.id

        await flow(gateway, 300, back)
        final = await released(store, lambda found: found.live == version.id)
    assert final.aliases == {"live": version.id}
    await served_by(gateway, "good")


@pytest.fixture
def brisk_retry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests have no minute to wait for the second try."""
    monkeypatch.setattr("smallfirst.serve.releases._RETRY_S", 0.05)


@pytest.mark.usefixtures("brisk_retry")
async def test_what_cannot_be_served_is_refused(start: Start, models: Models) -> None:
    """A version that no gateway can load is withdrawn with the reason; what was live goes on, also when the new one
    was put live at once."""
    gateway, good = await start(ACCEPTING), await models("good")
    async with gateway.store() as store:
        version = await version_of(store, good)
        await release(store, version, to="live", share=1.0)
        await served_by(gateway, "good")
        locked = msgspec.structs.replace(good.config(), api_key_env="NOT_SET")
        for to in ("canary", "live"):
            broken = await register(store, "weather", None, locked)
            await release(store, broken, to=to, rules=QUICK)
            final = await released(store, lambda found: found.trial is None)
            assert final.aliases == {"live": version.id}
            move = (await store.moves("weather"))[-1]
            assert (move.by, move.version, move.step) == ("gateway", broken.id, "rolled_back")
            assert "NOT_SET" in move.reason
            locked = msgspec.structs.replace(locked, model=f"other-{to}")
    assert (await call(gateway, 1)).said("model") == "good"
    assert b'versions_refused_total{task="weather"} 4.0' in (await gateway.get("/metrics")).raw  # each was tried twice


@pytest.mark.usefixtures("brisk_retry")
async def test_a_gateway_that_cannot_serve_does_not_speak_for_the_others(start: Start, models: Models) -> None:
    """Where one gateway serves a version, another that cannot goes on without it and withdraws nothing."""
    good = await models("good")
    able = await start(ACCEPTING, env={"VERSION_KEY": "secret"})
    async with able.store() as store:
        locked = msgspec.structs.replace(good.config(), api_key_env="VERSION_KEY")
        version = await register(store, "weather", None, locked)
        await release(store, version, to="live", share=1.0)
        await served_by(able, "good")
        unable = await start(ACCEPTING)
        tried = re.compile(rb'versions_refused_total\{task="weather"\} [5-9]')
        await until(lambda: unable.get("/metrics"), lambda answer: tried.search(answer.raw) is not None)
        assert (await call(unable, 1)).said("model") == "right"
        assert (await store.release("weather")).live == version.id
    assert (await call(able, 2)).said("model") == "good"


async def test_a_restarted_gateway_serves_what_is_live_at_once(start: Start, models: Models) -> None:
    """Pointers are in the store: the first call after a restart is answered by the live version."""
    gateway, good = await start(ACCEPTING), await models("good")
    async with gateway.store() as store:
        await release(store, await version_of(store, good), to="live", share=1.0)
    again = await start(ACCEPTING)
    assert (await call(again, 1)).said("model") == "good"


async def test_a_client_that_names_a_model_gets_it(start: Start, models: Models) -> None:
    """A configured model that is named answers, whatever is released."""
    gateway, good = await start(ACCEPTING), await models("good")
    async with gateway.store() as store:
        await release(store, await version_of(store, good), to="live", share=1.0)
        await served_by(gateway, "good")
    body: dict[str, Any] = {"model": "small", "messages": [{"role": "user", "content": "call 1"}], "tools": [TOOL]}
    assert (await gateway.chat(body, x_smallfirst_task="weather")).said("model") == "right"
