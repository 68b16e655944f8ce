"""A task on its way: observed, calibrated, served small-first, audited, drifting, alarmed, calibrated again."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from aiohttp import web
from recording import TOOL, Loopback
from running import Answer, Running, Start, cascade, until, whole

from smallfirst.learn.calibrate import Result, run
from smallfirst.monitor import Monitor
from smallfirst.store.rows import StoredRecord

CITIES = ("Paris", "Lyon", "Oslo", "Kyiv", "Lima", "Quito", "Cairo", "Accra", "Delhi", "Hanoi", "Perth", "Turin")
ALPHA = 0.1
DEAR = """
[models.dear]
backend = "openai"
preset = "vllm"
base_url = "{small}/v1"
model = "tiny"
small = true
price = {{input = 80.0, output = 160.0}}
"""


@dataclass
class World:
    """What the small model knows and what is right: it guesses where the question says "maybe", and what was right
    is right no more once it `drifted`."""

    drifted: bool = False

    async def small(self, request: web.Request) -> web.StreamResponse:
        said = _asked(await request.read())
        return _call("Berlin" if "maybe" in said else said.split()[-1])

    async def large(self, request: web.Request) -> web.StreamResponse:
        city = _asked(await request.read()).split()[-1]
        return _call(f"{city}, Earth" if self.drifted else city)


def _asked(raw: bytes) -> str:
    return msgspec.json.decode(raw)["messages"][-1]["content"]


def _call(city: str) -> web.Response:
    return web.json_response(whole(None, ("get_weather", json.dumps({"city": city}))))


@pytest.fixture
def world(small: Loopback, large: Loopback) -> World:
    """Puts both models into a world of their own."""
    made = World()
    small.handlers, large.handlers = [made.small], [made.large]
    return made


def easy(n: int) -> str:
    return f"Weather, call {n}, in {CITIES[n % len(CITIES)]}"


def hard(n: int) -> str:
    return f"Weather, call {n}, or maybe not, who knows, in or around or near {CITIES[n % len(CITIES)]}"


async def ask(gateway: Running, *questions: str, task: str = "weather", **headers: str) -> list[Answer]:
    """Ask one after the other; waits until what follows each answer is recorded."""
    done = []
    for text in questions:
        body = {"messages": [{"role": "user", "content": text}], "tools": [TOOL]}
        done.append(await gateway.chat(body, x_smallfirst_task=task, **headers))
    return done


async def observed(gateway: Running, n: int) -> None:
    """`n` easy and half as many hard calls, each with its shadow."""
    questions = [hard(k) if k % 3 == 2 else easy(k) for k in range(n)]
    for start in range(0, n, 30):
        last = (await ask(gateway, *questions[start : start + 30]))[-1]
        await gateway.record(last, attempts=2)


async def calibrated(gateway: Running, **more: Any) -> Result:
    """Calibrate as the command does, and wait until the gateway knows."""
    async with gateway.store() as store:
        [result] = await run(store, task="weather", alpha=ALPHA, delta=0.1, now=time.time(), **more)
    return result


async def said(gateway: Running, question: str, reason: str) -> Answer:
    """The first answer given for `reason`."""
    return await until(lambda: _one(gateway, question), lambda answer: answer.said("reason") == reason)


async def _one(gateway: Running, question: str) -> Answer:
    return (await ask(gateway, question))[0]


async def metric(gateway: Running, name: str) -> float:
    lines = (await gateway.get("/metrics")).raw.decode().splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(name))


@pytest.fixture(autouse=True)
def brisk_refresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests have no second to wait for a calibration to be noticed."""
    monkeypatch.setattr("smallfirst.serve.follow.REFRESH_S", 0.02)


async def test_a_task_from_observation_to_alarm_and_back(start: Start, world: World) -> None:
    """Calibrated from shadows a task is served by the small model where it is confident; audits notice that it is no
    longer right, the large model takes over, and a calibration on what came after puts the small one back."""
    gateway = await start(cascade(audit=1.0, shadow=True))
    await observed(gateway, 60)
    result = await calibrated(gateway)
    assert result.certificate is not None
    assert result.sample.kinds == {"agreement": 60}
    assert 0.4 < result.certificate.coverage <= 0.7

    accepted = await said(gateway, easy(3), "calibrated")
    assert accepted.said("model") == "big-2026"  # what both servers call themselves
    assert accepted.said("decision") == "accept"
    assert float(accepted.said("confidence")) >= result.certificate.threshold
    [escalated] = await ask(gateway, hard(4))
    assert (escalated.said("decision"), escalated.said("reason")) == ("escalate", "low_confidence")
    assert "x-smallfirst-confidence" not in escalated.headers
    audited = await gateway.record(accepted, attempts=2)
    assert [(a.decision, a.reason, a.probability) for a in audited.attempts] == [
        ("accept", "calibrated", None),
        ("audit", "same", 1.0),
    ]
    assert await metric(gateway, 'smallfirst_alarm{task="weather"}') == 0

    world.drifted = True
    drifted = await until_reason(gateway, "alarm")
    assert drifted.mode == "observe"
    assert await metric(gateway, 'smallfirst_alarm{task="weather"}') == 1
    async with gateway.store() as store:
        monitor = Monitor.from_json((await store.monitors())["weather"])
    assert monitor is not None
    assert monitor.alarm
    assert monitor.wrong >= 1
    assert monitor.threshold > monitor.adaptive.certified

    world.drifted = False
    await observed(gateway, 60)
    assert (await calibrated(gateway)).sample.rows[0].decided == "shadow"
    assert (await said(gateway, easy(5), "calibrated")).said("decision") == "accept"
    assert await metric(gateway, 'smallfirst_alarm{task="weather"}') == 0


async def until_reason(gateway: Running, reason: str) -> StoredRecord:
    answer = await said(gateway, easy(1), reason)
    return await gateway.record(answer)


async def test_a_restarted_gateway_goes_on_with_its_monitors(start: Start, world: World) -> None:
    """Calibration, alarm and what audits have counted are as they were after a restart."""
    gateway = await start(cascade(audit=1.0))
    await observed(gateway, 60)
    await calibrated(gateway)
    world.drifted = True
    await until_reason(gateway, "alarm")
    again = await start(cascade(audit=1.0))
    [first] = await ask(again, easy(2))
    assert first.said("reason") == "alarm"


async def test_what_does_not_pay_is_not_tried(start: Start, world: World, small: Loopback) -> None:
    """Calls of a kind that is hardly ever accepted begin at the large model, except a few, drawn with a known
    probability; both kinds say with which."""
    dear = DEAR.format(small=small.url)
    gateway = await start(cascade(stages=["dear", "large"], explore=0.3, audit=0.0), dear)
    await observed(gateway, 60)
    result = await calibrated(gateway)
    assert result.acceptance is not None
    assert result.acceptance.costs is not None
    await said(gateway, easy(3), "calibrated")
    before = len(small.seen)
    answers = await ask(gateway, *(hard(n) for n in range(30)))
    records = [await gateway.record(answer) for answer in answers]
    skipped = [record for record in records if record.reason == "unpromising"]
    explored = [record for record in records if record.reason == "low_confidence"]
    assert len(skipped) + len(explored) == 30
    assert 0 < len(explored) < 25
    assert {record.attempts[0].probability for record in skipped} == {0.7}
    assert {(record.attempts[0].small, record.attempts[0].probability) for record in explored} == {(True, 0.3)}
    assert {record.attempts[-1].probability for record in explored} == {None}
    assert len(small.seen) - before == len(explored)


async def test_shadows_are_asked_beside_the_same_others_as_what_is_served(
    start: Start, world: World, small: Loopback
) -> None:
    """What is calibrated is what is served: a shadow has its evidence, and so have the small answers accepted later."""
    dear = DEAR.format(small=small.url)
    gateway = await start(cascade(stages=["small", "large"], others=["dear"], audit=0.0), dear)
    [first] = await ask(gateway, easy(0))
    watched = await gateway.record(first, attempts=3)
    assert [(a.stage, a.decision) for a in watched.attempts] == [
        ("large", "accept"),
        ("small", "shadow"),
        ("dear", "evidence"),
    ]
    assert watched.attempts[1].features["agree"] == 1
    await observed(gateway, 60)
    await calibrated(gateway)
    served = await gateway.record(await said(gateway, easy(1), "calibrated"))
    assert [(a.stage, a.decision) for a in served.attempts] == [("small", "accept"), ("dear", "evidence")]
    alone = await start(cascade(stages=["small", "large"], audit=0.0))
    [answer] = await ask(alone, easy(1))
    assert answer.said("reason") == "uncalibrated"


async def test_a_calibration_that_cannot_be_followed_is_refused(start: Start, world: World) -> None:
    """One for a stage that is not small here leaves its task uncalibrated, and a metric and a log line say so."""
    gateway = await start(cascade())
    async with gateway.store() as store:
        await store.save_calibration("weather", "small", '{"version": 99}')
    found = await until(
        lambda: gateway.get("/metrics"), lambda answer: b'calibrations_refused_total{task="weather"} 1.0' in answer.raw
    )
    assert found.status == 200
    [answer] = await ask(gateway, easy(1))
    assert answer.said("reason") == "uncalibrated"


async def test_a_refusal_in_force_means_uncalibrated(start: Start, world: World) -> None:
    """Where the small model is wrong too often nothing is certified, the large model answers, and the reason says how
    many more labels could help."""
    gateway = await start(cascade())
    world.drifted = True
    await observed(gateway, 30)
    result = await calibrated(gateway)
    assert result.certificate is None
    assert result.refused
    await asyncio.sleep(0.1)
    [answer] = await ask(gateway, easy(1))
    assert answer.said("reason") == "uncalibrated"
