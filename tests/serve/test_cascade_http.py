"""What the cascade does, seen by a client: modes, repair, escalation, streams, headers and records."""

from __future__ import annotations

from typing import Any

import pytest
from recording import TOOL, Loopback, answer, events, sse
from running import CHAT, CITY_FORMAT, MESSAGES, RESPONSES, Start, cascade, chunks, every, says, whole

CITY = '{"city":"Paris"}'
BAD = '{"town":"Paris"}'
FORMAT: dict[str, Any] = {"response_format": CITY_FORMAT}


async def test_observe(start: Start, small: Loopback, large: Loopback) -> None:
    """In `observe` the large model answers, and the small one's attempt is added to the record afterwards."""
    gateway = await start(cascade("observe"))
    done = await gateway.chat()
    assert (done.text, done.said("decision"), done.said("reason")) == ("large", "escalate", "observe")
    record = await gateway.record(done, attempts=2)
    assert [(a.stage, a.decision) for a in record.attempts] == [("large", "accept"), ("small", "shadow")]
    assert record.attempts[1].features
    assert record.attempts[1].small


async def test_enforce_accepts_nothing_uncalibrated(start: Start) -> None:
    """`enforce` without a calibrator answers by the large model and says why."""
    done = await (await start(cascade("enforce"))).chat()
    assert (done.text, done.said("reason"), done.said("attempts")) == ("large", "uncalibrated", "1")


async def test_small_only(start: Start, large: Loopback) -> None:
    """In `small_only` the large model is never asked."""
    done = await (await start(cascade("small_only"))).chat()
    assert (done.text, done.said("decision"), done.said("reason")) == ("small", "accept", "small_only")
    assert large.seen == []


async def test_a_valid_small_answer_is_accepted_on_the_operators_word(
    start: Start, small: Loopback, large: Loopback
) -> None:
    """With `accept_uncalibrated` a valid small answer is served, and costs nothing here."""
    small.handlers = [says(CITY)]
    done = await (await start(cascade(accept_uncalibrated=True))).chat(FORMAT)
    assert (done.text, done.said("decision"), done.said("reason")) == (CITY, "accept", "validity_only")
    assert (done.said("cost-usd"), large.seen) == ("0.00000000", [])


async def test_repair(start: Start, small: Loopback, large: Loopback) -> None:
    """An invalid small answer is repaired by the same model, told what is wrong."""
    small.handlers = [says(BAD), says(CITY)]
    gateway = await start(cascade(accept_uncalibrated=True))
    done = await gateway.chat(FORMAT)
    assert (done.text, done.said("attempts"), large.seen) == (CITY, "2", [])
    said = small.seen[1].body["messages"]
    assert [m["role"] for m in said] == ["user", "assistant", "user"]
    assert "city" in said[2]["content"]
    record = await gateway.record(done)
    assert [a.kind for a in record.attempts] == ["generate", "repair"]


@pytest.mark.parametrize("stream", [True, False])
async def test_escalation(start: Start, small: Loopback, large: Loopback, stream: bool) -> None:
    """What the small model cannot repair is answered by the large one, and no byte of the small one's is shown."""
    small.handlers, large.handlers = [says(BAD)], [says(CITY)]
    gateway = await start(cascade(accept_uncalibrated=True))
    done = await gateway.chat({**FORMAT, "stream": stream})
    assert BAD not in done.raw.decode()
    assert (done.said("decision"), done.said("attempts")) == ("escalate", "3")
    assert done.said("reason").startswith("invalid:")
    record = await gateway.record(done)
    assert [(a.stage, a.kind, a.decision) for a in record.attempts] == [
        ("small", "generate", "escalate"),
        ("small", "repair", "escalate"),
        ("large", "generate", "accept"),
    ]
    assert [a.cost_usd for a in record.attempts] == [0, 0, 0.002]
    assert large.seen[0].body["messages"] == [{"role": "user", "content": "Where am I?"}]


async def test_a_stream_that_the_small_model_answers(start: Start, small: Loopback) -> None:
    """An accepted answer of a stage that might have escalated is streamed after it is whole."""
    small.handlers = [says(CITY)]
    done = await (await start(cascade(accept_uncalibrated=True))).chat({**FORMAT, "stream": True})
    text = "".join(e["choices"][0]["delta"].get("content") or "" for e in done.events if e["choices"])
    assert (text, done.said("decision")) == (CITY, "accept")
    assert done.events[-1]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("path", [CHAT, RESPONSES, MESSAGES])
@pytest.mark.parametrize("fault", ["500", "garbage"])
async def test_a_dead_small_model_is_escalated_past(start: Start, small: Loopback, fault: str, path: str) -> None:
    """When the small model fails, the large one answers and the headers say what failed."""
    small.handlers = [answer({"error": {"message": "boom"}}, 500) if fault == "500" else answer({"choices": "none"})]
    gateway = await start(cascade(accept_uncalibrated=True))
    done = await gateway.post(path, every(path, "x"))
    assert (done.status, done.said("decision")) == (200, "escalate")
    assert done.said("reason") == {"500": "error:upstream_error", "garbage": "error:unreadable_answer"}[fault]


@pytest.mark.parametrize("path", [CHAT, RESPONSES, MESSAGES])
async def test_no_model_answers_validly(start: Start, small: Loopback, path: str) -> None:
    """When every stage fails its checks the client gets 502 in its wire's shape, with the reason in headers."""
    small.handlers = [says(None, ("get_tide", "{}"))]
    gateway = await start(cascade("small_only"))
    tools: Any = {
        CHAT: [TOOL],
        RESPONSES: [{"type": "function", "name": "get_weather", "parameters": {}}],
        MESSAGES: [{"name": "get_weather", "input_schema": {"type": "object"}}],
    }[path]
    done = await gateway.post(path, every(path, "x") | {"tools": tools})
    assert done.status == 502
    assert "get_tide" in done.body["error"]["message"]
    assert done.body.get("type") == ("error" if path == MESSAGES else None)
    assert done.said("decision") == "abstain"
    assert (await gateway.record(done)).status == 502


@pytest.mark.parametrize("path", [CHAT, RESPONSES, MESSAGES])
@pytest.mark.parametrize("stream", [True, False])
async def test_all_stages_fail(start: Start, small: Loopback, large: Loopback, path: str, stream: bool) -> None:
    """When every model fails the client gets the last error's status and a body of its wire, streaming or not."""
    small.handlers = large.handlers = [answer({"error": {"message": "boom", "type": "x", "code": None}}, 503)]
    gateway = await start(cascade(accept_uncalibrated=True))
    done = await gateway.post(path, every(path, "x") | {"stream": stream})
    assert done.status == 503
    assert "boom" in done.body["error"]["message"]
    assert done.body.get("type") == ("error" if path == MESSAGES else None)
    assert (await gateway.record(done)).decision == "abstain"


async def test_no_large_model(start: Start, small: Loopback) -> None:
    """Without a large model the small one's valid answer is served and the reason says so."""
    done = await (await start(cascade("enforce", stages=["small"]))).chat()
    assert (done.text, done.said("reason")) == ("small", "no_large_model")


async def test_a_stream_that_breaks_the_schema_is_stopped(start: Start, large: Loopback) -> None:
    """A final stage's stream ends with an error event at the first piece that no valid answer can contain."""
    large.handlers = [sse(events(chunks('{"city": 12345, "more": 1}')), then="end")]
    gateway = await start('[cascade]\nstages = ["large"]')
    done = await gateway.chat({**FORMAT, "stream": True})
    assert done.status == 200
    assert done.events[-1]["error"]["code"] == "invalid_answer"
    assert b"12345" not in done.raw
    record = await gateway.record(done)
    assert (record.served, record.decision, record.reason) == (None, "abstain", "error:invalid_answer")


async def test_an_observed_large_model_is_changed_in_nothing(start: Start, large: Loopback) -> None:
    """Until a task is calibrated even an answer that breaks the schema is served and streamed as it is."""
    gateway = await start(cascade("enforce"))
    large.handlers = [answer(whole('{"city":12345}')), sse(events(chunks('{"city":12345}')), then="end")]
    plain = await gateway.chat(FORMAT)
    streamed = await gateway.chat({**FORMAT, "stream": True})
    assert (plain.text, plain.said("reason")) == ('{"city":12345}', "uncalibrated")
    assert b"error" not in streamed.raw
    assert "".join(e["choices"][0]["delta"].get("content") or "" for e in streamed.events) == '{"city":12345}'


async def test_a_truncated_answer_of_the_last_model_is_served(start: Start, large: Loopback) -> None:
    """An answer that the client's own max_tokens cut short is served with its finish reason."""
    cut = whole('{"city": "Pa')
    cut["choices"][0]["finish_reason"] = "length"
    large.handlers = [answer(cut)]
    done = await (await start(cascade("enforce"))).chat({**FORMAT, "max_tokens": 4})
    assert (done.status, done.body["choices"][0]["finish_reason"]) == (200, "length")


async def test_task_episode_and_user(start: Start) -> None:
    """Headers and metadata name task, episode and user; the origin's names are not kept readable."""
    gateway = await start()
    by_header = await gateway.chat(
        {"model": "gpt-x"}, x_smallfirst_task="invoices", x_smallfirst_episode="run-17", x_smallfirst_user="ada@x.org"
    )
    metadata = {"smallfirst_task": "invoices", "smallfirst_episode": "run-17", "smallfirst_user": "ada@x.org"}
    by_metadata = await gateway.chat({"model": "gpt-x", "metadata": metadata})
    assert by_header.said("task") == by_metadata.said("task") == "invoices"
    one, two = await gateway.record(by_header), await gateway.record(by_metadata)
    assert (one.task, one.episode, one.user) == (two.task, two.episode, two.user)
    assert one.episode not in (None, "run-17")
    assert one.user not in (None, "ada@x.org")


async def test_a_tasks_own_policy(start: Start, large: Loopback) -> None:
    """A task's table overrides the default for its calls, found by what they look like."""
    table = '[tasks.weather]\nmode = "small_only"\ncapture = false\nmatch = {tools = ["get_weather"]}'
    gateway = await start(cascade("observe"), table)
    done = await gateway.chat({"tools": [TOOL]})
    assert (done.said("task"), done.said("reason")) == ("weather", "small_only")
    assert (await gateway.record(done)).captured is False
    assert (await gateway.chat()).said("reason") == "observe"


@pytest.mark.parametrize(("model", "asked"), [("tiny", "small"), ("large", "large"), ("big", "large")])
async def test_a_named_model_is_asked(start: Start, small: Loopback, large: Loopback, model: str, asked: str) -> None:
    """A client that names a configured model gets that model and no other."""
    done = await (await start()).chat({"model": model})
    assert (done.text, done.said("reason")) == (asked, "model_named")


async def test_feedback(start: Start) -> None:
    """A label sent later stands with its record."""
    gateway = await start()
    record_id = (await gateway.chat()).said("record")
    done = await gateway.post("/v1/feedback", {"record_id": record_id, "kind": "correct", "value": True})
    assert done.status == 201
    assert (await gateway.record(record_id)).feedback[0].value is True
    missing = await gateway.post("/v1/feedback", {"record_id": "nope", "kind": "correct", "value": True})
    assert missing.status == 404
    wrong = await gateway.post("/v1/feedback", {"record_id": record_id, "kind": "correct", "value": 3})
    assert (wrong.status, wrong.body["error"]["param"]) == (400, "value")


async def test_metrics_count_calls(start: Start) -> None:
    """Metrics count calls, attempts and refusals."""
    gateway = await start(cascade("small_only"))
    await gateway.chat()
    await gateway.chat({"model": "no-such"})
    text = (await gateway.get("/metrics")).raw.decode()
    assert 'smallfirst_calls_total{decision="accept",mode="small_only",status="200",wire="chat"} 1.0' in text
    assert 'smallfirst_refused_total{code="not_found"} 1.0' in text


async def test_keywords_that_nothing_enforces_are_named(start: Start) -> None:
    """A schema's unknown keywords and formats are told in a header, never ignored in silence."""
    schema = {"type": "object", "properties": {"city": {"type": "string", "format": "town", "shouted": True}}}
    tool = {"type": "function", "function": {"name": "weather", "parameters": schema}}
    gateway = await start(cascade("observe"))
    assert (await gateway.chat({"tools": [tool]})).said("unchecked") == "format: town, shouted"
    assert "x-smallfirst-unchecked" not in (await gateway.chat({"tools": [TOOL]})).headers
