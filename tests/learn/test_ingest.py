"""Logs of other tools become records: every format, idempotence, bad lines."""

from __future__ import annotations

import copy
import gzip
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smallfirst.errors import ConfigError, SmallfirstError
from smallfirst.learn.ingest import Imported, record_of, run
from smallfirst.learn.logs import FORMATS, Entry
from smallfirst.learn.scrub import Scrubber
from smallfirst.prices import PriceList
from smallfirst.store import Store, StoredRecord, open_store
from smallfirst.types import Choice

SYSTEM = "You look up the weather."
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "get_weather", "description": "Weather.", "parameters": PARAMETERS}}
ARGUMENTS = '{"city":"Oslo"}'
MESSAGES = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "How is Oslo?"}]
CALLED = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": ARGUMENTS}}],
}
PRICES = PriceList()
REQUEST = {"model": "gpt-4o", "messages": MESSAGES, "tools": [TOOL], "temperature": 0.0}
RESPONSE = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1_760_000_000,
    "model": "gpt-4o-2024-08-06",
    "choices": [{"index": 0, "message": CALLED, "finish_reason": "tool_calls"}],
    "usage": {"prompt_tokens": 50, "completion_tokens": 9},
}
OPENAI = {
    "id": "o1",
    "request": REQUEST,
    "response": RESPONSE,
    "cost_usd": 0.002,
    "seconds": 1.5,
    "metadata": {"task": "weather", "session_id": "s1", "user_id": "u1"},
}
LITELLM = {
    "request_id": "chatcmpl-1",
    "call_type": "acompletion",
    "spend": 0.002,
    "startTime": "2025-10-09T08:53:20Z",
    "endTime": "2025-10-09T08:53:21.5Z",
    "model": "gpt-4o",
    "cache_hit": "False",
    "end_user": "u1",
    "session_id": "s1",
    "status": "success",
    "metadata": "{}",
    "messages": {},
    "response": json.dumps(RESPONSE),
    "proxy_server_request": json.dumps(REQUEST),
}
LANGFUSE = {
    "id": "g1",
    "traceId": "s1",
    "type": "GENERATION",
    "name": "ask",
    "startTime": "2025-10-09T08:53:20.000Z",
    "endTime": "2025-10-09T08:53:21.500Z",
    "model": "gpt-4o",
    "modelParameters": {"temperature": 0, "max_tokens": "inf"},
    "input": {"messages": MESSAGES, "tools": [TOOL]},
    "output": CALLED,
    "usageDetails": {"input": 10, "input_cached_tokens": 40, "output": 9, "total": 59},
    "costDetails": {"total": 0.002},
    "userId": "u1",
    "level": "DEFAULT",
}
LANGFUSE_EXPORT = {
    "id": "g1",
    "trace_id": "t1",
    "session_id": "s1",
    "user_id": "u1",
    "type": "GENERATION",
    "start_time": "2025-10-09 08:53:20.000000",
    "end_time": "2025-10-09 08:53:21.500000",
    "provided_model_name": "gpt-4o",
    "model_parameters": '{"temperature": 0}',
    "input": json.dumps(MESSAGES),
    "output": json.dumps([CALLED]),
    "tool_definitions": {"get_weather": json.dumps(TOOL["function"])},
    "usage_details": {"input": 50, "output": 9},
    "cost_details": {},
    "total_cost": 0.002,
}
TENSORZERO = {
    "type": "chat",
    "function_name": "weather",
    "variant_name": "gpt-4o",
    "input": {"system": SYSTEM, "messages": [{"role": "user", "content": [{"type": "text", "text": "How is Oslo?"}]}]},
    "output": [
        {"type": "thought", "text": "A city."},
        {"type": "tool_call", "id": "c1", "name": "get_weather", "arguments": {"city": "Oslo"},
         "raw_name": "get_weather", "raw_arguments": ARGUMENTS},
    ],
    "timestamp": "2025-10-09T08:53:20Z",
    "episode_id": "0199c8f6-0000-7000-8000-000000000000",
    "inference_id": "0199c8f6-0000-7000-8000-000000000001",
    "additional_tools": [{"name": "get_weather", "description": "Weather.", "parameters": PARAMETERS, "strict": False}],
    "tool_choice": "auto",
    "inference_params": {"chat_completion": {"temperature": 0.0}},
    "processing_time_ms": 1500,
    "tags": {"user_id": "u1"},
}  # fmt: skip


def any_value(value: Any) -> dict[str, Any]:
    """OTLP's form of a value."""
    if isinstance(value, bool | str | float):
        return {{bool: "boolValue", str: "stringValue", float: "doubleValue"}[type(value)]: value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, list):
        return {"arrayValue": {"values": [any_value(item) for item in value]}}
    return {"kvlistValue": {"values": pairs(value)}}


def pairs(fields: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"key": name, "value": any_value(value)} for name, value in fields.items() if value is not None]


ABOUT = {
    "gen_ai.operation.name": "chat",
    "gen_ai.request.model": "gpt-4o",
    "gen_ai.response.model": "gpt-4o-2024-08-06",
    "gen_ai.request.temperature": 0.0,
    "gen_ai.conversation.id": "s1",
    "gen_ai.usage.input_tokens": 50,
    "gen_ai.usage.output_tokens": 9,
    "user.id": "u1",
}
PARTS = {
    "gen_ai.system_instructions": [{"type": "text", "content": SYSTEM}],
    "gen_ai.input.messages": [{"role": "user", "parts": [{"type": "text", "content": "How is Oslo?"}]}],
    "gen_ai.output.messages": [
        {
            "role": "assistant",
            "parts": [{"type": "tool_call", "id": "c1", "name": "get_weather", "arguments": {"city": "Oslo"}}],
            "finish_reason": "tool_call",
        }
    ],
    "gen_ai.tool.definitions": [{"name": "get_weather", "description": "Weather.", "parameters": PARAMETERS}],
}
TOOLS = {"gen_ai.tool.definitions": PARTS["gen_ai.tool.definitions"]}
EVENTS = [
    ("gen_ai.system.message", {"content": SYSTEM}),
    ("gen_ai.user.message", {"content": "How is Oslo?"}),
    ("gen_ai.choice", {"index": 0, "finish_reason": "tool_calls", "message": {"tool_calls": CALLED["tool_calls"]}}),
]


def spans(attributes: dict[str, Any], **more: Any) -> dict[str, Any]:
    span = {
        "traceId": "t1",
        "spanId": "p1",
        "name": "chat gpt-4o",
        "startTimeUnixNano": "1760000000000000000",
        "endTimeUnixNano": "1760000001500000000",
        "attributes": pairs(attributes),
        **more,
    }
    return {"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}


def logs(*events: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    records = [
        {"traceId": "t1", "spanId": "p1", "timeUnixNano": "1760000000000000000", "eventName": name,
         "body": any_value(body)}
        for name, body in events
    ]  # fmt: skip
    return {"resourceLogs": [{"scopeLogs": [{"logRecords": records}]}]}


SPAN = spans(ABOUT | PARTS)
SPAN_AS_TEXT = spans(ABOUT | {name: json.dumps(value) for name, value in PARTS.items()})
SPAN_EVENTS = spans(ABOUT | TOOLS, events=[{"name": name, "attributes": pairs(body)} for name, body in EVENTS])
SAMPLES = {
    "openai": [OPENAI],
    "litellm": [LITELLM],
    "langfuse": [LANGFUSE],
    "langfuse blob": [LANGFUSE_EXPORT],
    "tensorzero": [TENSORZERO],
    "otel": [SPAN],
    "otel text": [SPAN_AS_TEXT],
    "otel events": [SPAN_EVENTS],
    "otel logs first": [logs(*EVENTS), spans(ABOUT | TOOLS)],
    "otel logs last": [spans(ABOUT | TOOLS), logs(*EVENTS[:1]), logs(*EVENTS[1:])],
}


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    opened = await open_store(f"sqlite:///{tmp_path}/calls.db")
    yield opened
    await opened.close()


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    def write(*items: Any, name: str = "log.jsonl") -> Path:
        lines = [item if isinstance(item, bytes) else json.dumps(item).encode() for item in items]
        path = tmp_path / name
        path.write_bytes(b"".join(line + b"\n" for line in lines))
        return path

    return write


async def records(store: Store) -> list[StoredRecord]:
    return [record async for record in store.export()]


async def one(store: Store, path: Path, **given: Any) -> StoredRecord:
    result = await run(store, [path], **given)
    assert result == Imported(added=1), result
    [record] = await records(store)
    return record


def chosen(record: StoredRecord) -> Choice:
    assert record.attempts[0].completion is not None
    return record.attempts[0].completion.choices[0]


@pytest.mark.parametrize("kind", SAMPLES)
async def test_a_call_of_every_format_becomes_the_same_record(store, written, kind):
    """Prompt, tools, answer, model, origin and time of a logged call are the record's; figures as far as logged."""
    record = await one(store, written(*SAMPLES[kind]), form=kind.split()[0])
    attempt, [said] = record.attempts[0], chosen(record).tool_calls
    assert list(record.messages) == MESSAGES
    assert record.body["tools"][0]["function"]["parameters"] == PARAMETERS
    assert record.body["temperature"] == 0.0
    assert (said.id, said.name, json.loads(said.arguments)) == ("c1", "get_weather", {"city": "Oslo"})
    assert chosen(record).finish_reason == "tool_calls"
    assert record.model == "gpt-4o"
    assert attempt.model.startswith("gpt-4o")
    assert (record.decision, record.reason, record.served, attempt.small) == ("escalate", "imported", 0, False)
    assert attempt.verdict.ok
    assert record.created_at == 1_760_000_000.0
    assert record.seconds == pytest.approx(1.5)
    assert record.id[14] == "7"
    assert record.episode is not None
    assert record.user is not None
    tokens = (0, 0) if kind == "tensorzero" else (50, 9)
    assert attempt.completion is not None
    assert (attempt.completion.usage.input_tokens, attempt.completion.usage.output_tokens) == tokens
    cost = {"tensorzero": None, "otel": pytest.approx(50 * 2.5e-6 + 9 * 10e-6)}  # no tokens; gpt-4o's list price
    assert attempt.cost_usd == cost.get(kind.split()[0], 0.002)


@pytest.mark.parametrize("kind", SAMPLES)
async def test_formats_are_recognised(store, written, kind):
    """Without a format named, each line is read as what it looks like."""
    assert (await one(store, written(*SAMPLES[kind]))).model == "gpt-4o"


async def test_callers_words_for_tasks_stay_and_others_are_told_by_the_prompt(store, written):
    """A task is the log's own word, --task for all, or a fingerprint."""
    await run(store, [written(OPENAI, LITELLM, TENSORZERO)])
    tasks = sorted(record.task for record in await records(store))
    assert tasks[0].startswith("auto:")
    assert tasks[1:] == ["weather", "weather"]
    await run(store, [written({**OPENAI, "id": "o2"})], task="mine")
    assert "mine" in {record.task for record in await records(store)}
    with pytest.raises(ConfigError):
        await run(store, [written(OPENAI)], task="not allowed")


async def test_a_second_import_changes_nothing(store, written):
    """The same calls again, also in another file or twice in one, are known."""
    path = written(OPENAI, LITELLM, LANGFUSE, TENSORZERO, SPAN)
    assert await run(store, [path]) == Imported(added=5)
    before = await records(store)
    assert await run(store, [path]) == Imported(known=5)
    assert await run(store, [written(OPENAI, OPENAI, name="more")]) == Imported(known=2)
    assert await records(store) == before


async def test_more_calls_than_a_batch(store, written):
    """Many calls are all kept, whatever batch they fall into."""
    lines = [{**OPENAI, "id": f"o{n}"} for n in range(1100)]
    seen: list[int] = []
    path = written(*lines)
    assert await run(store, [path], progress=seen.append) == Imported(added=1100)
    assert seen == sorted(seen)
    assert seen[-1] == path.stat().st_size
    assert await store.count() == 1100


async def test_bad_lines_are_named_and_the_rest_is_kept(store, written):
    """What is not JSON, not UTF-8, of no known kind or no valid call is told with its line."""
    refused = {**OPENAI, "request": {**REQUEST, "messages": [{"role": "user"}]}}
    undated = {**OPENAI, "created_at": "x"}
    path = written(b'{"a', b'{"request": "\xff"}', {"what": 1}, b"7", b"", refused, undated, OPENAI)
    result = await run(store, [path])
    assert (result.added, result.bad) == (1, 6)
    assert [problem.line for problem in result.problems] == [1, 2, 3, 4, 6, 7]
    told = [problem.reason for problem in result.problems]
    for part, reason in zip(
        ("not JSON", "not UTF-8", "what", "int", "messages[0].content: is missing", "time"), told, strict=True
    ):
        assert part in reason


async def test_a_bad_span_is_no_other_spans(store, written):
    """One span of a batch that cannot be read does not take the others with it."""
    bad = spans(ABOUT | PARTS | {"gen_ai.input.messages": "{"}, spanId="p0")
    bad["resourceSpans"] += SPAN["resourceSpans"]
    result = await run(store, [written(bad)])
    assert (result.added, result.bad) == (1, 1)


async def test_what_is_no_answered_call_is_passed_over(store, written):
    """Failures, embeddings, spans of tools and spans without content are counted apart from what is bad."""
    items = [
        {**LITELLM, "status": "failure"},
        {**LITELLM, "call_type": "aembedding"},
        {**LANGFUSE, "type": "SPAN"},
        {**LANGFUSE, "level": "ERROR"},
        {**OPENAI, "response": {"error": {"message": "no"}}},
        {**OPENAI, "response": {"status_code": 500, "body": {}}},
        {**TENSORZERO, "output": None},
        spans({"gen_ai.operation.name": "execute_tool"}),
        spans(ABOUT),
    ]
    assert await run(store, [written(*items)]) == Imported(others=len(items))


async def test_what_litellm_has_shortened_or_left_out_is_refused(store, written):
    """Nothing is learnt from half a prompt, nor from none."""
    cut = json.dumps(REQUEST).replace(SYSTEM, "You ... (litellm_truncated skipped 900 chars. Note) ... weather")
    items = [{**LITELLM, "proxy_server_request": cut}, {**LITELLM, "proxy_server_request": "{}", "response": "{}"}]
    result = await run(store, [written(*items)])
    assert [problem.line for problem in result.problems] == [1, 2]
    assert "MAX_STRING_LENGTH" in result.problems[0].reason
    assert "store_prompts_in_spend_logs" in result.problems[1].reason


async def test_unknown_prices_are_not_zero(store, written):
    """LiteLLM writes 0 for a price that it does not know: the list may know it. Of an answer from its cache, 0 is the
    cost."""
    free = {**LITELLM, "spend": 0.0}
    ours = json.dumps({**RESPONSE, "model": "house-7b"})
    cached, listed = {**free, "cache_hit": "True", "request_id": "2"}, {**free, "request_id": "3"}
    await run(store, [written({**free, "response": ours}, cached, listed)])
    costs = [record.attempts[0].cost_usd for record in await records(store)]
    assert sorted(costs, key=lambda cost: -1.0 if cost is None else cost) == [None, 0.0, pytest.approx(215e-6)]


async def test_other_wires_are_read(store, written):
    """Pairs of Responses and of Anthropic's Messages become records of their wire."""
    asked = {"model": "gpt-4o", "input": "Hi"}
    replied = {
        "object": "response",
        "status": "completed",
        "model": "gpt-4o",
        "output": [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Yo"}]}],
    }
    claude = {"model": "claude", "max_tokens": 9, "system": "S", "messages": [{"role": "user", "content": "Hi"}]}
    said = {"type": "message", "role": "assistant", "model": "claude", "content": [{"type": "text", "text": "Yo"}],
            "stop_reason": "end_turn", "usage": {"input_tokens": 1, "output_tokens": 1}}  # fmt: skip
    pairs_ = [{"request": {"body": asked}, "response": {"body": replied}}, {"request": claude, "response": said}]
    assert await run(store, [written(*pairs_)]) == Imported(added=2)
    found = await records(store)
    assert {record.wire for record in found} == {"responses", "messages"}
    assert {chosen(record).text for record in found} == {"Yo"}


async def test_conversations_end_with_their_answer(store, written):
    """Of a file for fine-tuning, the assistant's last message is the answer; without one the line is bad."""
    path = written({"messages": [*MESSAGES, CALLED], "tools": [TOOL]}, {"messages": MESSAGES})
    result = await run(store, [path])
    assert (result.added, [problem.line for problem in result.problems]) == (1, [2])
    [record] = await records(store)
    assert list(record.messages) == MESSAGES
    assert chosen(record).tool_calls[0].arguments == ARGUMENTS


async def test_tool_results_are_linked(store, written):
    """Results of tools, in parts, blocks or messages without ids, follow the calls that they answer."""
    rounds = [
        *PARTS["gen_ai.input.messages"],
        {"role": "assistant", "parts": [{"type": "tool_call", "name": "get_weather", "arguments": {"city": "Oslo"}}]},
        {"role": "tool", "parts": [{"type": "tool_call_response", "response": {"sky": "clear"}}]},
    ]
    blocks = [
        *TENSORZERO["input"]["messages"],
        {"role": "assistant", "content": [{"type": "tool_call", "id": "a", "name": "get_weather", "arguments": "{}"}]},
        {"role": "user", "content": [{"type": "tool_result", "id": "a", "name": "get_weather", "result": "clear"}]},
    ]
    items = [spans(ABOUT | PARTS | {"gen_ai.input.messages": rounds}), {**TENSORZERO, "input": {"messages": blocks}}]
    assert await run(store, [written(*items)]) == Imported(added=2)
    for record in await records(store):
        assert record.messages[-1]["role"] == "tool"
        assert record.messages[-1]["tool_call_id"] == record.messages[-2]["tool_calls"][0]["id"]


async def test_answers_in_json(store, written):
    """JSON functions of TensorZero and JSON outputs of Langfuse are texts; the schema asked for is checked."""
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    made = {**TENSORZERO, "output": {"raw": ARGUMENTS, "parsed": {"city": "Oslo"}}, "output_schema": schema}
    items = [{**made, "additional_tools": None, "tool_choice": None}, {**LANGFUSE, "output": {"city": "Oslo"}}]
    assert await run(store, [written(*items)]) == Imported(added=2)
    found = await records(store)
    assert {chosen(record).text for record in found} == {ARGUMENTS}
    assert all(record.attempts[0].verdict.ok for record in found)


@pytest.mark.parametrize(
    "document",
    [
        json.dumps([LANGFUSE, 7]).encode(),
        json.dumps({"data": [LANGFUSE, 7]}, indent=1).encode(),
        gzip.compress(json.dumps([LANGFUSE, 7]).encode()),
        b"\xef\xbb\xbf" + json.dumps(LANGFUSE).encode() + b"\r\n7\r\n",
    ],
    ids=["list", "page", "gzip", "BOM"],
)
async def test_documents_and_compressed_files(store, tmp_path, document):
    """A list, an API's page, gzip and a byte-order mark are read; an item of a document is named by its number."""
    path = tmp_path / "log"
    path.write_bytes(document)
    result = await run(store, [path])
    assert (result.added, [problem.line for problem in result.problems]) == (1, [2])


async def test_files_that_break_off(store, tmp_path):
    """Of a damaged gzip file what came before is kept; empty files hold nothing; missing ones are named."""
    whole = gzip.compress(b"".join(json.dumps({**OPENAI, "id": str(n)}).encode() + b"\n" for n in range(3000)))
    (tmp_path / "cut.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty").write_bytes(b"")
    result = await run(store, [tmp_path / "cut.gz", tmp_path / "empty"])
    assert result.added > 100
    assert "breaks off" in result.problems[-1].reason
    assert await run(store, [tmp_path / "empty"]) == Imported()
    with pytest.raises(ConfigError, match="There is no file"):
        await run(store, [tmp_path / "none"])


async def test_long_lines_are_refused(store, written, monkeypatch):
    """A line over the limit is named, and the lines after it are read."""
    monkeypatch.setattr("smallfirst.learn.logs.files.MAX_LINE", 4000)
    result = await run(store, [written(OPENAI, {**OPENAI, "x": "y" * 9000}, {**OPENAI, "id": "o2"})])
    assert (result.added, [problem.line for problem in result.problems]) == (2, [2])


async def test_imported_records_are_scrubbed_like_others(store, written):
    """The next stage takes what was imported."""
    record = await one(store, written(OPENAI))
    scrubbed = Scrubber(store.secret("scrub"), lambda _: []).record(record)
    assert scrubbed.answer is not None
    assert scrubbed.answer["tool_calls"][0]["function"]["name"] == "get_weather"
    assert scrubbed.cost_usd == 0.002


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return found + [place for key, item in inner for place in places(item, (*path, key))]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from([(kind, n) for kind, items in SAMPLES.items() for n in range(len(items))]), st.data())
def test_whatever_stands_in_an_item_is_read_or_refused(sample, data):
    """Any part of an entry may be anything: it becomes records or errors of ours."""
    kind, n = sample
    item = copy.deepcopy(SAMPLES[kind][n])
    *path, last = data.draw(st.sampled_from(places(item)))
    holder: Any = item
    for step in path:
        holder = holder[step]
    holder[last] = data.draw(JSON)
    form = FORMATS[kind.split()[0]]()
    try:
        if not form.recognises(item):
            return
        for found in (*form.entries(item), *form.rest()):
            if isinstance(found, Entry):
                record_of(found, b"secret", PRICES)
    except SmallfirstError:
        pass
