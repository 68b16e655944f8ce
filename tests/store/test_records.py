from __future__ import annotations

import asyncio
import math
import sqlite3
import time
from contextlib import closing

import pytest
from msgspec.structs import replace
from store_samples import SYSTEM, TOOLS, make_attempt, make_record, make_request

from smallfirst.errors import NotFoundError
from smallfirst.store import RecordFilter, Store, open_store
from smallfirst.store.migrations import MIGRATIONS
from smallfirst.types import Feedback, Origin, Usage

HOUR = 3600.0


async def ids(store: Store, wanted: RecordFilter) -> set[str]:
    return {summary.id async for summary in store.summaries(wanted)}


async def test_a_record_reads_back_whole(store):
    """What was appended is what is read: body, messages, attempts with completions, verdicts and features."""
    record = make_record()
    await store.append(record)
    kept = await store.get(record.id)
    assert kept.body == record.request.body
    assert kept.messages == record.request.messages
    assert (kept.task, kept.mode, kept.decision, kept.served, kept.status) == ("trips", "enforce", "escalate", 1, 200)
    assert (kept.created_at, kept.seconds, kept.config_hash) == (record.created_at, 0.5, "c0ffee")
    for got, given in zip(kept.attempts, record.attempts, strict=True):
        assert math.isnan(got.features["not_measured"])
        given = replace(given, completion=replace(given.completion, native=None), features=got.features)
        assert got == given


async def test_a_record_of_another_wire_keeps_its_body_and_its_chat_messages(store):
    """On a wire other than chat the client's own body and the chat messages made of it are both kept."""
    body = {
        "model": "m",
        "system": "Be brief.",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
    }
    messages = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"})
    record = make_record(request=replace(make_request(), wire="messages", body=body, messages=messages))
    await store.append(record)
    kept = await store.get(record.id)
    assert kept.body == body
    assert kept.messages == messages


async def test_an_unknown_record_is_not_found(store):
    """Reading or adding to a record that is not there says so."""
    with pytest.raises(NotFoundError, match="'nope'"):
        await store.get("nope")
    with pytest.raises(NotFoundError):
        await store.add_attempts("nope", [make_attempt()])
    with pytest.raises(NotFoundError):
        await store.add_feedback(Feedback("f", "nope", 1.0, "correct", True, "user"))
    assert await store.feedback("nope") == ()


async def test_messages_and_tools_are_kept_once(store):
    """A message or tools list that repeats in later calls is stored once, by its hash."""
    for text in ("one", "two", "two", "three"):
        await store.append(make_record(text))
    contents = await store._readers.run(lambda c: c.query("SELECT payload FROM contents"))
    assert len(contents) == 5  # the system message, the tools, three user messages


async def test_later_attempts_follow_the_call_s_own(store):
    """Shadow and audit attempts, and evidence beside them, come after the call's own, which alone are its cost."""
    own = (make_attempt("small", small=True), make_attempt("second", decision="evidence"))
    record = make_record(attempts=own, served=0)
    await store.append(record)
    later = [make_attempt("tiny", decision="shadow"), make_attempt("second", decision="evidence")]
    await store.add_attempts(record.id, later)
    await store.add_attempts(record.id, [make_attempt("large", decision="audit", probability=0.02)])
    kept = await store.get(record.id)
    assert [a.stage for a in kept.attempts] == ["small", "second", "tiny", "second", "large"]
    [summary] = await store.list_records()
    assert [a.stage for a in summary.own_attempts] == ["small", "second"]
    assert summary.cost_usd == pytest.approx(0.004)
    assert summary.attempts[-1].probability == kept.attempts[-1].probability == 0.02
    assert not summary.escalated


async def test_a_summary_has_every_number_of_the_report(store):
    """A summary tells cost, tokens, validity, escalation and label without opening a payload."""
    record = make_record(origin=Origin(key="k", user="ann", episode="e1"))
    await store.append(record)
    await store.add_feedback(Feedback("f1", record.id, 1.0, "correct", True, "user"))
    await store.add_feedback(Feedback("f2", record.id, 2.0, "correct", False, "user"))
    [summary] = await store.list_records()
    assert (summary.key, summary.model, summary.stage) == ("k", "large-model", "large")
    assert summary.cost_usd == pytest.approx(0.004)
    assert summary.cost_usd_local_free == pytest.approx(0.002)
    assert (summary.input_tokens, summary.output_tokens) == (24, 14)
    assert (summary.valid_first, summary.executable, summary.escalated, summary.cached) == (False, True, True, False)
    assert summary.correct is False
    small = summary.attempts[0]
    assert (small.violations, small.answered, small.ok, small.confidence) == (("arguments",), True, False, 0.75)
    assert small.features["margin_min"] == 0.5


async def test_a_call_that_served_nothing_and_one_from_the_cache(store):
    """A call without an answer has no model and is not executable; a cached answer is marked."""
    failed = make_attempt(completion=None, error="connection refused", decision="escalate")
    await store.append(make_record(attempts=(failed,), served=None, decision="abstain", status=502))
    await store.append(make_record(attempts=(make_attempt(kind="cache"),), served=0, decision="accept"))
    cached, abstained = await store.list_records()
    assert (abstained.model, abstained.executable, abstained.valid_first) == ("", False, False)
    assert (cached.cached, cached.valid_first, cached.escalated) == (True, True, False)
    assert (await store.get(abstained.id)).attempts[0].error == "connection refused"


async def test_filters_take_the_caller_s_own_words(store):
    """Every field of the filter selects; user and episode are given as the caller wrote them and kept as pseudonyms."""
    now = time.time()
    one = make_record(task="a", created_at=now - 100, origin=Origin(key="k1", user="ann", episode="e1"))
    two = make_record(task="b", created_at=now, decision="accept", reason="fine", served=0, origin=Origin(user="bob"))
    await store.append(one)
    await store.append(two)
    await store.add_feedback(Feedback("f", one.id, now, "score", 0.5, "judge"))
    for wanted in (
        RecordFilter(task="a"),
        RecordFilter(decision="escalate"),
        RecordFilter(reason="invalid"),
        RecordFilter(model="large-model"),
        RecordFilter(episode="e1"),
        RecordFilter(user="ann"),
        RecordFilter(key="k1"),
        RecordFilter(until=now - 50),
        RecordFilter(has_feedback=True),
        RecordFilter(task="a", user="ann", since=now - 100),
    ):
        assert await ids(store, wanted) == {one.id}, wanted
    assert await ids(store, RecordFilter(has_feedback=False)) == {two.id}
    assert await ids(store, RecordFilter(since=now - 50)) == {two.id}
    assert await ids(store, RecordFilter(task="a", user="bob")) == set()
    assert "ann" not in str(await store.get(one.id))


async def test_pages_go_from_the_newest_to_the_oldest(store):
    """Keyset pages meet without gap or repetition, also where records have the same time."""
    now = time.time()
    records = [make_record(created_at=now - n // 3) for n in range(10)]
    for record in records:
        await store.append(record)
    newest_first = [r.id for r in sorted(records, key=lambda r: (r.created_at, r.id), reverse=True)]
    seen, after = [], None
    while page := await store.list_records(limit=4, after=after):
        seen += [summary.id for summary in page]
        after = seen[-1]
    assert seen == newest_first
    assert [s.id async for s in store.summaries()] == newest_first


async def test_a_rare_task_is_found_without_reading_the_others(tmp_path):
    """A filter by task goes by an index, in the order that pages are in; a database made before it had one gains it."""
    path = tmp_path / "records.db"
    with closing(sqlite3.connect(path)) as old:
        old.execute("CREATE TABLE schema_version (version BIGINT NOT NULL)")
        for statement in (*MIGRATIONS[0], "INSERT INTO schema_version VALUES (1)"):
            old.execute(statement)
        old.commit()
    store = await open_store(f"sqlite:///{path}")
    await store.append(make_record())
    assert len(await store.list_records()) == 1
    await store.close()
    with closing(sqlite3.connect(path)) as found:
        wanted = "SELECT id FROM records WHERE task = 'rare' AND created_at >= 1 ORDER BY created_at DESC, id DESC"
        plan = str(found.execute(f"EXPLAIN QUERY PLAN {wanted}").fetchall())
    assert "records_by_task (task=? AND created_at>?)" in plan
    assert "TEMP B-TREE FOR ORDER BY" not in plan  # only records of one moment are put in order


async def test_the_tasks_of_the_records_are_listed_once(store):
    """Every task that a record has is named, once."""
    assert await store.recorded_tasks() == []
    for task in ("trips", "rooms", "trips"):
        await store.append(replace(make_record(), task=task))
    assert await store.recorded_tasks() == ["rooms", "trips"]


async def test_export_yields_every_record_in_full(store):
    """The export crosses page borders and carries the feedback with each record."""
    records = [make_record(f"call {n}") for n in range(120)]
    await asyncio.gather(*map(store.append, records))
    await store.add_feedback(Feedback("f", records[0].id, 1.0, "answer", {"city": "Lyon"}, "user"))
    exported = [record async for record in store.export()]
    assert [r.id for r in exported] == [r.id for r in reversed(records)]
    assert exported[-1].feedback[0].value == {"city": "Lyon"}
    assert exported[0].messages[0] == SYSTEM
    assert exported[0].body["tools"] == TOOLS


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"user": "ann"}, "user"),
        ({"safety_identifier": "ann"}, "safety_identifier"),
        ({"metadata": {"user_id": "ann", "team": "x"}}, "metadata"),
        ({"metadata": {"smallfirst_user": "ann", "smallfirst_episode": "ann"}}, "metadata"),
    ],
)
async def test_a_body_names_users_by_their_pseudonyms_too(store, fields, where):
    """Who called stands nowhere in clear, however the client said it; what else the body says is kept."""
    request = make_request(origin=Origin(user="ann"))
    record = make_record(request=replace(request, body={**request.body, **fields}))
    await store.append(record)
    kept = await store.get(record.id)
    assert "ann" not in str(kept)
    assert kept.user in str(kept.body[where])
    assert kept.body.keys() == record.request.body.keys()
    assert kept.body["x_unknown"] == request.body["x_unknown"]


@pytest.mark.parametrize(
    ("kind", "value"), [("correct", True), ("score", 0.25), ("answer", {"a": [1, "ü"]}), ("comment", "no\nwonder")]
)
async def test_feedback_keeps_its_value(store, kind, value):
    """Feedback of each kind reads back as it was given."""
    record = make_record()
    await store.append(record)
    feedback = Feedback("f", record.id, 5.0, kind, value, "user")
    await store.add_feedback(feedback)
    assert await store.feedback(record.id) == (feedback,)


async def test_without_capture_only_numbers_are_kept(store):
    """A task whose capture is off leaves no text of the call, but all that a report needs."""
    record = make_record("my secret plan")
    await store.append(record, capture=False)
    await store.add_attempts(record.id, [make_attempt("audit", decision="shadow")], capture=False)
    kept = await store.get(record.id)
    assert (kept.captured, kept.body, kept.messages) == (False, {}, ())
    assert kept.attempts[0].completion.choices == ()
    assert kept.attempts[0].completion.usage == Usage(12, 7, busy_seconds=0.25)
    assert [v.code for v in kept.attempts[0].verdict.violations] == ["arguments"]
    [summary] = await store.list_records()
    assert summary.cost_usd == pytest.approx(0.004)
    assert await store._readers.run(lambda c: c.query("SELECT hash FROM contents")) == []


async def test_the_same_record_twice_changes_nothing(store):
    """Appending an id that is there already keeps the first record."""
    record = make_record()
    await store.append(record)
    await store.append(replace(record, task="other"))
    [summary] = await store.list_records()
    assert (summary.task, len(summary.attempts)) == ("trips", 2)


async def test_names_from_outside_cannot_break_a_row(store):
    """A NUL or a lone surrogate in a task or model name is dropped, and the record is kept."""
    await store.append(make_record(task="a\0b", request=replace(make_request(), model="m\ud800")))
    [summary] = await store.list_records()
    assert summary.task == "ab"


async def test_prune_removes_old_records_and_what_only_they_used(store):
    """Retention removes records by age with attempts, feedback and messages, and keeps what newer records share."""
    now = time.time()
    old = [make_record(f"old {n}", created_at=now - 10 * HOUR) for n in range(250)]
    new = make_record("new", created_at=now)
    await asyncio.gather(*map(store.append, [*old, new]))
    await store.add_feedback(Feedback("f", old[0].id, now, "comment", "old", "user"))
    assert await store.prune(now - 5 * HOUR) == 250
    assert await ids(store, RecordFilter()) == {new.id}
    assert (await store.get(new.id)).body == new.request.body
    assert await store.feedback(old[0].id) == ()
    [(contents,)] = await store._readers.run(lambda c: c.query("SELECT count(*) FROM contents"))
    assert contents == 3
    again = make_record("old 1")
    await store.append(again)
    assert (await store.get(again.id)).messages == again.request.messages
