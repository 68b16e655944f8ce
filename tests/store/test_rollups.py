"""Rollups: sums that say what the records say, whatever came when, on both databases."""

from __future__ import annotations

import math
import random
import struct
import time
from collections import Counter

import pytest
from store_samples import make_attempt, make_record, next_id

from smallfirst import report
from smallfirst.store import RecordSummary, Store, rollups
from smallfirst.store.database import database
from smallfirst.store.facts import HOUR_S, MEASURES, SIZE, bounds, bucket_of
from smallfirst.store.migrations import MIGRATIONS
from smallfirst.store.rollups import Span
from smallfirst.types import Attempt, Completion, Feedback, Origin, Record, Usage, Verdict, Violation

NOW = time.time()
ALWAYS = Span(0, 10**9)
WRONG = Verdict((Violation("arguments", "no"),))


def attempt(stage: str, **changes: object) -> Attempt:
    return make_attempt(stage, small=stage == "small", **changes)


def random_record(dice: random.Random) -> Record:
    """A call that went any of the ways that there are, with prices known or not."""
    small = attempt(
        "small",
        decision=dice.choice(["accept", "escalate"]),
        verdict=dice.choice([Verdict(), WRONG]),
        cost_usd=dice.choice([0.0, 0.001, 0.003]),
    )
    repair = attempt("small", kind="repair", decision="accept", cost_usd=0.0005)
    large = attempt("large", cost_usd=dice.choice([0.01, 0.02, None]), completion=used(dice.randrange(1, 500)))
    evidence = attempt("other", decision="evidence", cost_usd=0.004)
    cached = attempt("small", kind="cache", cost_usd=0.0, cost_usd_local_free=0.0)
    attempts, served, decision = dice.choice(
        [
            ((small,), 0, "accept"),
            ((small, repair), 1, "accept"),
            ((small, repair, large), 2, "escalate"),
            ((small, evidence, large), 2, "escalate"),
            ((large,), 0, "escalate"),
            ((small,), None, "abstain"),
            ((small, repair), 0, "abstain"),
            ((large,), None, "abstain"),
            ((cached,), 0, "accept"),
            ((), None, "abstain"),
        ]
    )
    return make_record(
        origin=Origin(dice.choice(["k1", "k2"])),
        task=dice.choice(["trips", "mail"]),
        created_at=NOW - dice.choice([0, 1, 5, 30]) * HOUR_S,
        attempts=attempts,
        served=served,
        decision=decision,
        status=200 if served is not None else 502,
        seconds=dice.choice([0.0, 0.0004, 0.2, 3.0, 100.0]),
    )


def used(tokens: int) -> Completion:
    return Completion((), Usage(tokens, 10), "large-model")


async def live_through(store: Store, dice: random.Random, calls: int) -> list[Record]:
    """Calls, then what comes late to some of them: shadows, audits, labels, and labels that contradict those."""
    records = [random_record(dice) for _ in range(calls)]
    for record in records:
        await store.append(record)
    for record in dice.sample(records, calls // 2):
        late = attempt("small", decision="shadow", cost_usd=0.002)
        if record.decision == "accept":
            reason = dice.choice(["same", "different", "not_told"])
            late = attempt("large", decision="audit", reason=reason, probability=dice.choice([0.1, 0.5]))
        await store.add_attempts(record.id, [late, attempt("other", decision="evidence", cost_usd=0.5)])
    for record in dice.choices(records, k=calls // 2):
        right = dice.random() < 0.7
        await store.add_feedback(Feedback(next_id(), record.id, dice.random(), "correct", right, "person"))
        await store.add_feedback(Feedback(next_id(), record.id, NOW, "comment", "thanks", "person"))
    return records


def expected(calls: list[RecordSummary]) -> dict[str, float]:
    """Some of the measures, by their meaning."""
    small = [call for call in calls if call.by_small]
    labelled = [call for call in calls if call.correct is not None]
    pairs = [(c, c.pair) for c in calls if c.pair and None not in (c.cost_usd, c.pair.large_usd)]
    audits = [(c, c.pair) for c in small if c.pair]
    priced = [c for c in calls if c.cost_usd is not None]
    return {
        "calls": len(calls),
        "cache": sum(c.cached for c in calls),
        "small": len(small),
        "answered": sum(c.served is not None for c in calls),
        "valid_first": sum(c.valid_first for c in calls),
        "executable": sum(c.executable for c in calls),
        "escalated": sum(c.escalated for c in calls),
        "failed": sum(c.status >= 400 for c in calls),
        "priced": len(priced),
        "usd": sum(c.cost_usd for c in priced),
        "usd_local_free": sum(c.cost_usd_local_free for c in priced),
        "afterwards_usd": sum(c.afterwards_usd for c in calls),
        "tokens_in": sum(c.input_tokens for c in calls),
        "tokens_out": sum(c.output_tokens for c in calls),
        "pairs": len(pairs),
        "pairs_small": sum(c.by_small for c, _ in pairs),
        "wc": sum(p.weight * c.cost_usd for c, p in pairs),
        "wr": sum(p.weight * (not p.differs) for _, p in pairs),
        "wl": sum(p.weight * p.large_usd for _, p in pairs),
        "w": sum(p.weight for _, p in pairs),
        "wc_wl": sum(p.weight**2 * c.cost_usd * p.large_usd for c, p in pairs),
        "wr_w": sum(p.weight**2 * (not p.differs) for _, p in pairs),
        "wt_small": sum(p.weight * p.large_tokens for c, p in pairs if c.by_small),
        "usd_var": sum((p.weight**2 - p.weight) * (p.large_usd - c.cost_usd) ** 2 for c, p in pairs),
        "tokens_var": sum((p.weight**2 - p.weight) * p.large_tokens**2 for _, p in pairs),
        "audits": len(audits),
        "audit_ww": sum(p.weight**2 for _, p in audits),
        "audit_wrong": sum(p.weight * p.differs for _, p in audits),
        "labelled": len(labelled),
        "right_labelled": sum(c.correct for c in labelled),
        "valid_wrong": sum(c.executable and not c.correct for c in labelled),
        "small_wrong": sum(c.by_small and not c.correct for c in labelled),
        "cost_n": sum(c.cost_usd is not None for c in labelled),
        "cost_cr": sum(c.cost_usd * c.correct for c in labelled if c.cost_usd is not None),
    }


async def compare(store: Store) -> None:
    """The sums by task and hour, and durations, are those of the records' summaries."""
    summaries = [summary async for summary in store.summaries()]
    groups: dict[tuple[int, str], list[RecordSummary]] = {}
    for summary in summaries:
        groups.setdefault((int(summary.created_at // HOUR_S), summary.task), []).append(summary)
    found = await store.read(lambda c: rollups.sums(c, ALWAYS, 1))
    assert {(sums.hour, sums.task) for sums in found} == set(groups)
    for sums in found:
        m = sums.by_name()
        told = {**m, "small": m["first_accepted"] + m["repaired_accepted"]}
        wanted = expected(groups[sums.hour, sums.task])
        assert {name: told[name] for name in wanted} == pytest.approx(wanted, abs=1e-9)
    times = await store.read(lambda c: rollups.durations(c, ALWAYS))
    assert times == Counter(bucket_of(summary.seconds) for summary in summaries)
    await compare_days(store, summaries)


async def compare_days(store: Store, summaries: list[RecordSummary]) -> None:
    """Sums over days, of spans that begin and end within one, are those of the records."""
    now = int(NOW // HOUR_S)
    for first, last in ((now - 60, now), (now - 29, now - 1), (now - 5, now)):
        span = Span(first, last)
        calls = [call for call in summaries if first <= call.created_at // HOUR_S <= last]
        wanted = Counter((max(first, int(call.created_at // 86400) * 24), call.task) for call in calls)
        found = await store.read(lambda c, span=span: rollups.sums(c, span, 24))
        assert {(sums.hour, sums.task): sums.by_name()["calls"] for sums in found} == wanted
        assert sum(sums.by_name()["usd"] for sums in found) == pytest.approx(sum(c.cost_usd or 0.0 for c in calls))
        times = await store.read(lambda c, span=span: rollups.durations(c, span))
        assert times == Counter(bucket_of(call.seconds) for call in calls)
        keys = await store.read(lambda c, span=span: rollups.by_key(c, span))
        assert {key: n for key, n in keys.items() if n} == Counter(call.key for call in calls)


@pytest.mark.parametrize("seed", range(3))
async def test_sums_say_what_the_records_say(store, seed, monkeypatch):
    """After calls, shadows, audits, labels, contradicting labels and removal by age, with facts folded and waiting."""
    monkeypatch.setattr(rollups, "FOLD_AT", 7)
    await live_through(store, random.Random(seed), 60)
    await compare(store)
    assert await store.prune(NOW - 3 * HOUR_S)
    await compare(store)


async def test_sums_are_made_anew_from_records(store, url):
    """A rebuild, as the migration does it, comes to the sums that were kept."""
    await live_through(store, random.Random(4), 60)
    kept = await store.read(lambda c: rollups.sums(c, ALWAYS, 1))
    connection = database(url, durability="process", busy_timeout_s=3).connect()
    with connection.transaction():
        rollups.rebuild(connection)
    connection.close()
    made = await store.read(lambda c: rollups.sums(c, ALWAYS, 1))
    assert [(s.hour, s.task) for s in made] == [(s.hour, s.task) for s in kept]
    for one, other in zip(made, kept, strict=True):
        assert one.measures == pytest.approx(other.measures, abs=1e-9)
    assert any(rollups.rebuild in step for step in MIGRATIONS)


async def test_facts_that_wait_outlive_the_migration_to_rows_of_many(store, url):
    """Facts as schema 9 had them, a row for each call with its bucket beside the numbers, count as before."""
    await live_through(store, random.Random(5), 30)
    kept = await store.read(lambda c: (rollups.sums(c, ALWAYS, 1), rollups.durations(c, ALWAYS)))
    connection = database(url, durability="process", busy_timeout_s=3).connect()
    with connection.transaction():
        rows = connection.query("SELECT hour, task, key_id, numbers FROM facts")
        connection.execute("DROP TABLE facts")
        connection.execute(rollups.SCHEMA[2])
        for *cell, numbers in rows:
            for at in range(0, len(numbers), SIZE):
                *fields, bucket = struct.unpack(f"{SIZE // 8}d", numbers[at : at + SIZE])
                row = (*cell, int(bucket), struct.pack(f"{len(fields)}d", *fields))
                connection.execute(
                    "INSERT INTO facts (hour, task, key_id, bucket, numbers) VALUES (?, ?, ?, ?, ?)", row
                )
        rollups.put_buckets_in_numbers(connection)
    connection.close()
    assert rows
    sums, times = await store.read(lambda c: (rollups.sums(c, ALWAYS, 1), rollups.durations(c, ALWAYS)))
    assert times == kept[1]
    assert [(s.hour, s.task) for s in sums] == [(s.hour, s.task) for s in kept[0]]
    for one, other in zip(sums, kept[0], strict=True):
        assert one.measures == pytest.approx(other.measures, abs=1e-9)


async def test_the_same_record_again_is_not_counted_again(store):
    """An append that is repeated, alone or in one group, adds nothing."""
    record = make_record()
    for _ in range(3):
        await store.append(record)
    [sums] = await store.read(lambda c: rollups.sums(c, ALWAYS, 1))
    assert sums.by_name()["calls"] == 1


async def test_sums_are_chosen_by_key_task_and_hours(store):
    """A span takes the calls of its hours, its key and its task; width gathers hours."""
    for hours, key, task in ((0, "a", "trips"), (1, "a", "trips"), (2, "b", "mail"), (9, "a", "mail")):
        await store.append(make_record(origin=Origin(key), task=task, created_at=(1000 + hours) * HOUR_S))

    async def calls(span: Span, width: int = 1) -> dict[tuple[int, str], float]:
        found = await store.read(lambda c: rollups.sums(c, span, width))
        return {(s.hour, s.task): s.by_name()["calls"] for s in found}

    assert await calls(Span(1000, 1008), 24) == {(1000, "trips"): 2, (1000, "mail"): 1}
    assert await calls(Span(1000, 1009, key="a")) == {(1000, "trips"): 1, (1001, "trips"): 1, (1009, "mail"): 1}
    assert await calls(Span(1000, 1009, task="mail"), 2) == {(1002, "mail"): 1, (1008, "mail"): 1}
    assert await store.read(rollups.first_hour) == 1000


async def test_sums_hold_nothing_of_a_payload(opener, url):
    """With encryption, no text of a call and no user stands in what the sums keep."""
    store = await opener()
    origin = Origin("k1", episode="secret-episode", user="secret-user")
    await store.append(make_record("secret text", origin=origin))
    tables = ("rollups", "rollup_seconds", "facts")
    rows = await store.read(lambda c: [row for t in tables for row in c.query(f"SELECT * FROM {t}")])
    assert rows
    assert "secret" not in repr(rows)
    assert all(isinstance(value, bytes | int | float) or value in ("trips", "k1") for row in rows for value in row)


def test_a_bucket_is_at_most_9_percent_wide_on_either_side():
    """The geometric middle of a bucket is within 9.1 % of any duration in it."""
    for seconds in (0.0011, 0.5, 1.0, 17.3, 900.0):
        low, high = bounds(bucket_of(seconds))
        assert low < seconds <= high * (1 + 1e-12)
        assert math.sqrt(low * high) == pytest.approx(seconds, rel=0.0906)
    assert bucket_of(0.0) == bucket_of(0.001) == 0


async def test_totals_are_those_of_the_report(store):
    """What the sums tell of all calls is what `report` computes from them."""
    await live_through(store, random.Random(9), 200)
    tally = report.Tally()
    async for summary in store.summaries():
        tally.add(summary)
    overall = tally.report().overall
    found = await store.read(lambda c: rollups.sums(c, ALWAYS, 10**6))
    total = {name: sum(sums.by_name()[name] for sums in found) for name in MEASURES}
    assert total["calls"] == overall.calls
    assert total["priced"] == overall.calls - overall.unpriced
    assert total["usd"] == pytest.approx(overall.cost_usd)
    assert total["audit_wrong"] / total["audit_w"] == pytest.approx(overall.accepted_failure.value)
    assert 1 - total["wc"] / total["wl"] == pytest.approx(overall.cost_saved.value)
    assert total["wt_small"] / total["wt"] == pytest.approx(overall.tokens_saved.value)
