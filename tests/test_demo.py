"""demo: the official client against a loopback server that plays the gateway, the report over a real store, and the
whole loop behind a real gateway with stand-ins for all models."""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from rich.console import Console

from smallfirst import bfcl
from smallfirst.bfcl import Question
from smallfirst.config import ModelConfig, PriceConfig, parse
from smallfirst.demo import conversion
from smallfirst.demo import questions as demo
from smallfirst.helpdesk.large import Large
from smallfirst.helpdesk.sites import Ask
from smallfirst.learn.dataset import Settings as Material
from smallfirst.learn.release import register, release
from smallfirst.learn.workshop import Done, Round, Tell
from smallfirst.rollout import Rules
from smallfirst.serve.gateway import new_id
from smallfirst.store import Store, open_store
from smallfirst.types import Attempt, Choice, Completion, Feedback, Record, Request, ToolCall

FUNCTION = {
    "name": "weather.now",
    "description": "Tell the weather.",
    "parameters": {"type": "dict", "required": ["city"], "properties": {"city": {"type": "string"}}},
}


def question(number: int, says: str, category: str = "live_simple") -> Question:
    """A question whose text tells the loopback server what to do."""
    gold = ({"weather.now": {"city": ["Rome"]}},)
    return Question(f"q{number}", category, ({"role": "user", "content": says},), (FUNCTION,), gold)


class Loopback:
    """Answers /v1/chat/completions as the question's text says, and keeps feedback; with a store it records too."""

    def __init__(self) -> None:
        self.url = ""
        self.store: Store | None = None
        self.bodies: list[dict[str, Any]] = []
        self.tasks: list[str | None] = []
        self.feedback: list[dict[str, Any]] = []

    async def chat(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.bodies.append(body)
        self.tasks.append(request.headers.get("x-smallfirst-task"))
        says = body["messages"][-1]["content"]
        if says == "drop":
            assert request.transport is not None
            request.transport.abort()
        if says == "fail without record":
            return web.json_response({"error": {"message": "broken", "type": "server_error"}}, status=500)
        record_id = await self._record(self.tasks[-1] or "")
        headers = {"x-smallfirst-record": record_id}
        if says == "fail":
            error = {"message": "no valid answer", "type": "api_error"}
            return web.json_response({"error": error}, status=502, headers=headers)
        city = "Rome" if says.endswith("?") else "Pisa"
        function = {"name": "weather_now" if "tools" in body else "none", "arguments": json.dumps({"city": city})}
        call = {"id": "1", "type": "function", "function": function}
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
        choice = {"index": 0, "finish_reason": "tool_calls", "message": message}
        answer = {"id": "c", "object": "chat.completion", "created": 0, "model": "small", "choices": [choice]}
        return web.json_response(answer, headers=headers)

    async def label(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.feedback.append(body)
        if self.store:
            label = Feedback(new_id(), body["record_id"], time.time(), body["kind"], body["value"], body["source"])
            await self.store.add_feedback(label)
        return web.json_response({"id": "f"}, status=201)

    async def _record(self, task: str) -> str:
        record_id = new_id()
        if self.store:
            done = Completion((Choice(tool_calls=(ToolCall("1", "weather_now", "{}"),)),))
            attempt = Attempt("small", "fake", "m", "generate", "accept", "valid", done, cost_usd=0.001, seconds=0.1)
            asked = Request("chat", {}, "auto", ())
            record = Record(
                record_id, time.time(), asked, task, "small_only", (attempt,), 0, "accept", "valid", 200, 0.1, "h"
            )
            await self.store.append(record)
        return record_id


@pytest.fixture
async def loopback() -> AsyncIterator[Loopback]:
    server = Loopback()
    app = web.Application()
    app.router.add_post("/v1/chat/completions", server.chat)
    app.router.add_post("/v1/feedback", server.label)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    yield server
    await runner.cleanup()


async def ask(loopback: Loopback, *asked: Question | str, seconds: float = 60) -> list[demo.Outcome]:
    questions = [q if isinstance(q, Question) else question(i, q) for i, q in enumerate(asked)]
    seen: list[demo.Outcome] = []
    outcomes = await demo.run_questions(
        loopback.url, "key", questions, seconds=seconds, tool_choice="required", on_progress=seen.append
    )
    assert outcomes == seen
    return outcomes


async def test_answers_are_scored_and_labelled(loopback: Loopback) -> None:
    """A right and a wrong answer are told apart, and each verdict is posted as feedback on its record."""
    right, wrong = await ask(loopback, "Rome?", "wrong")
    assert (right.correct, right.error, right.failure) == (True, None, None)
    assert not wrong.correct
    assert wrong.failure is None
    assert wrong.error == "argument 'city' is 'Pisa', allowed are ['Rome']"
    verdicts = [
        {"record_id": outcome.record_id, "kind": "correct", "value": outcome.correct, "source": "bfcl gold"}
        for outcome in (right, wrong)
    ]
    assert loopback.feedback == verdicts


async def test_a_question_is_an_ordinary_request(loopback: Loopback) -> None:
    """The question's messages and tools are sent as any client sends them, under the task of its category."""
    await ask(loopback, "Rome?")
    (body,) = loopback.bodies
    assert body["messages"] == [{"role": "user", "content": "Rome?"}]
    assert body["tools"] == bfcl.tools([FUNCTION])
    assert (body["temperature"], body["max_tokens"], body["tool_choice"]) == (0, demo.MAX_TOKENS, "required")
    assert loopback.tasks == ["bfcl:live_simple"]


async def test_a_question_without_functions_is_sent_without_tools(loopback: Loopback) -> None:
    """An empty list of tools, which OpenAI refuses, is left out."""
    bare = Question("q", "live_irrelevance", ({"role": "user", "content": "Rome?"},), ())
    (outcome,) = await ask(loopback, bare)
    assert "tools" not in loopback.bodies[0]
    assert not outcome.correct


async def test_failed_calls_are_outcomes_with_a_reason(loopback: Loopback) -> None:
    """An HTTP error and a dropped connection are wrong answers with a reason, and the other questions go on."""
    failed, unrecorded, dropped, right = await ask(loopback, "fail", "fail without record", "drop", "Rome?")
    assert "no valid answer" in (failed.failure or "")
    assert "broken" in (unrecorded.failure or "")
    assert dropped.failure
    assert [o.correct for o in (failed, unrecorded, dropped, right)] == [False, False, False, True]
    assert [o.record_id is None for o in (failed, unrecorded, dropped, right)] == [False, True, True, False]
    assert [label["value"] for label in loopback.feedback] == [False, True]


async def test_no_question_begins_after_the_time_is_up(loopback: Loopback) -> None:
    """What was not begun in time is not asked, and is no outcome."""
    assert await ask(loopback, "Rome?", "Rome?", seconds=0) == []
    assert loopback.bodies == []


@pytest.fixture
async def store(tmp_path: Path, loopback: Loopback) -> AsyncIterator[Store]:
    loopback.store = await open_store(f"sqlite:///{tmp_path / 'records.db'}")
    yield loopback.store
    await loopback.store.close()


async def run(
    monkeypatch: pytest.MonkeyPatch, loopback: Loopback, store: Store, questions: list[Question]
) -> tuple[demo.Answered, str]:
    """What a whole demo over these questions came to, and what it printed."""
    monkeypatch.setattr(bfcl, "fetch", lambda _progress: Path("unused"))
    monkeypatch.setattr(bfcl, "load", lambda _wheel, _categories: tuple(questions))
    printed = io.StringIO()
    console = Console(file=printed, width=100)
    result = await demo.run(store, loopback.url, "key", console, where="records.db")
    return result, printed.getvalue()


async def test_the_demo_shows_the_report_and_where_the_records_are(
    loopback: Loopback, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table has the figures of all calls with their label, a line per task, and how to look at the records."""
    questions = [question(0, "Rome?"), question(1, "wrong"), question(2, "Rome?", "live_irrelevance")]
    result, text = await run(monkeypatch, loopback, store, questions)
    overall = result.report.overall
    assert (overall.calls, overall.accuracy.value) == (3, 1 / 3)
    assert "Right or wrong by: bfcl gold." in text
    assert "bfcl:live_irrelevance" in text
    assert "The records are in records.db." in text
    assert "smallfirst records show" in text


async def test_the_demo_counts_failed_calls_that_left_no_record(
    loopback: Loopback, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that failed without a record is in the figures as not answered and not right, and its reason is shown."""
    questions = [question(0, "Rome?"), question(1, "fail without record")]
    result, text = await run(monkeypatch, loopback, store, questions)
    overall = result.report.overall
    assert (overall.calls, overall.answered.value, overall.accuracy.value) == (2, 0.5, 0.5)
    assert "1 of 2 calls failed and count as wrong:" in text
    assert "broken" in text


async def test_the_demo_in_json(loopback: Loopback, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What came of it is one JSON object: the report's rows and the failures."""
    questions = [question(0, "Rome?"), question(1, "fail")]
    result, _ = await run(monkeypatch, loopback, store, questions)
    made = json.loads(json.dumps(result.to_json()))
    assert made["rows"][0]["calls"] == 2
    assert [failure["question"] for failure in made["failures"]] == ["q1"]


class Taught(Large):
    """Stands in for the large model; what it is taught, the stand-in for its specialist learns too."""

    def __init__(self) -> None:
        super().__init__(mistakes=0.0)  # of its mistakes the specialist's answers would wait long for a label
        self.special = Large(mistakes=0.0)

    def teach(self, asks: Iterable[Ask]) -> None:
        """Make these calls known to both."""
        known = list(asks)
        for each in (super(), self.special):
            each.teach(known)


def served(url: str) -> ModelConfig:
    """A small model on a server."""
    price = PriceConfig(input=0.01, output=0.01)
    return ModelConfig(backend="openai", base_url=url, preset="vllm", model="tiny", small=True, price=price)


class Bench(conversion.Conversion):
    """The loop's workshop with a server for the specialist, so that nothing is trained."""

    url = ""

    async def train(self, work: Round, tell: Tell) -> Done:
        return Done({})

    async def evaluate(self, work: Round, tell: Tell) -> Done:
        return Done({"promise": "Nothing was measured."})

    async def release(self, work: Round, tell: Tell) -> Done:
        version = await register(self.store, work.task, None, served(self.url))
        await release(self.store, version, to="shadow", rules=self.recipe.rules)
        return Done({"version": version.id, "step": "shadow"})


PLAN = conversion.Plan(
    tickets=30,
    measured=2,
    notes=24,
    later=3,
    trial=120,
    patience_s=600.0,
    specialists=1,
    least_calls=20,
    rules=Rules(level=0.3, shares=(0.5,), margin=0.4, shadow_margin=0.4, valid_margin=0.4, settle_s=30.0),
    material=Material(least=10),
)


async def test_the_loop_is_shown_from_the_log_to_the_new_call_site(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log becomes tasks and a released version that live traffic brings to live; then another call site's comes too.

    Stand-ins answer for all models, and nothing is trained: the parts, their order and what is printed are tested."""
    large = Taught()
    monkeypatch.setattr(conversion, "Large", lambda: large)
    monkeypatch.setattr(conversion, "Conversion", Bench)
    monkeypatch.setattr(conversion._Show, "_select", lambda _: asyncio.sleep(0))
    printed, config = io.StringIO(), parse(f'[store]\nurl = "sqlite:///{tmp_path}/demo.db"\n', {})
    async with large.special.serving() as special:
        monkeypatch.setattr(Bench, "url", special)
        found = await conversion.run(config, tmp_path, Console(file=printed, width=120), PLAN)
    text = printed.getvalue()
    assert [f"{n}  " in text for n in range(1, 10)] == [n != 6 for n in range(1, 10)]
    assert "simulated-large" in text
    assert [rollout["step"] for rollout in found["rollouts"]] == ["live", "live"], text
    assert [[task["outcome"] for task in done].count("released") for done in found["passes"]] == [1, 1]
    assert min(found["before"][0]["calls"], found["after"][0]["calls"]) > 0
    assert found["drift"]["after"][0]["calls"] == 3
    json.dumps(found)
