"""The dashboard's figures, worked out by hand for a small store, on both databases."""

from __future__ import annotations

import json
import math
import time
from collections.abc import AsyncIterator

import numpy as np
import pytest
from msgspec.structs import replace

from smallfirst.acceptance import certify
from smallfirst.config import parse
from smallfirst.dashboard import queries
from smallfirst.dashboard.queries import Filters, Value
from smallfirst.dashboard.queries.base import quantile
from smallfirst.errors import RequestError
from smallfirst.guarantee import Certificate
from smallfirst.monitor import Monitor
from smallfirst.registry import Release, Version, released
from smallfirst.rollout import Rules
from smallfirst.serve.gateway import new_id
from smallfirst.store import KeyLimits, Store, TaskRow, open_store
from smallfirst.store.facts import bucket_of
from smallfirst.types import Attempt, Choice, Completion, Feedback, Origin, Record, Request, ToolCall, Trial, Usage

DAY = 86_400.0
NOW = (time.time() // DAY - 1) * DAY + 3600 * 12.5  # yesterday, so that it is past at any hour
ALL = Filters()
MAIL = Filters(task="mail")


def attempt(stage: str, usd: float | None, tool: str = "send", **changes: object) -> Attempt:
    answer = Completion((Choice(tool_calls=(ToolCall("c", tool, "{}"),)),), Usage(12, 7), stage)
    made = Attempt(stage, "fake", f"{stage}-model", "generate", "accept", "valid", answer, small=stage == "small")
    return replace(made, cost_usd=usd, cost_usd_local_free=usd, seconds=0.25, confidence=0.9, **changes)


def record(task: str, decision: str, *attempts: Attempt, **changes: object) -> Record:
    """A call of two hours ago that the last attempt answered."""
    body = {"model": "auto", "messages": [{"role": "user", "content": "hi"}]}
    request = Request("chat", body, "auto", tuple(body["messages"]), origin=Origin("k1" if task == "mail" else "k2"))
    served = len(attempts) - 1 if attempts else None
    status = 200 if attempts else 502
    at = NOW - 7200
    made = Record(new_id(), at, request, task, "enforce", attempts, served, decision, "r", status, 0.5, "c")
    return replace(made, **changes)


async def fill(store: Store) -> dict[str, Record]:
    """Of mail: two audited calls (one differs), one accepted, one escalated, one of the large model alone; of trips:
    one repaired and never audited, one that failed. A second lies between two calls."""
    small, large = attempt("small", 0.001), attempt("large", 0.01)
    again = attempt("small", 0.001, kind="repair")
    calls = {
        "same": record("mail", "accept", small),
        "differs": record("mail", "accept", small),
        "accepted": record("mail", "accept", small),
        "escalated": record("mail", "escalate", replace(small, decision="escalate"), large),
        "direct": record("mail", "escalate", attempt("large", 0.02, "write")),
        "repaired": record("trips", "accept", replace(small, decision="escalate"), again),
        "failed": record("trips", "abstain", seconds=8.0),
    }
    for n, (name, call) in enumerate(calls.items()):
        calls[name] = replace(call, created_at=NOW - 7200 + n)
        await store.append(calls[name])
    for name, probability, reason in (("same", 0.5, "same"), ("differs", 0.25, "different")):
        tool = "send" if reason == "same" else "write"
        audit = attempt("large", 0.01, tool, decision="audit", reason=reason, probability=probability)
        await store.add_attempts(calls[name].id, [audit])
    for name, right in (("same", True), ("escalated", False)):
        await store.add_feedback(Feedback(new_id(), calls[name].id, NOW, "correct", right, "person"))
    return calls


@pytest.fixture
async def empty(url: str) -> AsyncIterator[Store]:
    """A store without calls."""
    store = await open_store(url)
    yield store
    await store.close()


@pytest.fixture
async def store(empty: Store) -> Store:
    """The small store."""
    await fill(empty)
    return empty


def told(value: Value) -> tuple[float | None, int]:
    return (value.value, value.n)


async def test_the_overview_is_the_one_worked_out_by_hand(store: Store) -> None:
    """Savings by weighted pairs of the audited task alone, rates over all calls, costs of all."""
    found = await queries.overview(store, ALL, NOW)
    assert told(found.calls) == (7, 7)
    assert told(found.moved_calls) == (4, 7)
    assert told(found.coverage) == (pytest.approx(4 / 7), 7)
    assert told(found.escalation) == (pytest.approx(2 / 7), 7)
    assert told(found.answered) == (pytest.approx(6 / 7), 7)
    assert told(found.accuracy) == (0.5, 2)
    assert told(found.accepted_failure) == (pytest.approx(4 / 6), 2)
    assert told(found.saved_usd) == (pytest.approx(0.09 - 0.037), 4)
    half = 1.959964 * math.sqrt(2 * 0.009**2 + 12 * 0.009**2)
    assert (found.saved_usd.low, found.saved_usd.high) == pytest.approx((0.053 - half, 0.053 + half), rel=1e-5)
    assert told(found.saved_share) == (pytest.approx(1 - 0.037 / 0.09), 4)
    assert told(found.cps_ratio) == (pytest.approx((0.037 / 4) / (0.09 / 8)), 4)
    assert told(found.moved_tokens) == (pytest.approx(6 * 19), 2)
    assert told(found.spent_usd) == (pytest.approx(0.036), 7)
    assert told(found.afterwards_usd) == (pytest.approx(0.02), 7)
    assert found.joules.value is None
    [point] = found.points
    assert point.small_first.value == pytest.approx(1000 * 0.037 / 4)
    assert point.large_only.value == pytest.approx(1000 * 0.09 / 8)
    assert "Small models answered 57% of 7 calls" in found.sentence
    assert [alarm.text for alarm in found.alarms] == ["1 of 7 calls failed."]
    assert len(found.figures) == 17
    assert all(figure.definition for figure in found.figures)


async def test_figures_are_of_the_calls_asked_for(store: Store) -> None:
    """Key, task and period choose the calls; in a period without calls there is nothing to tell."""
    assert (await queries.overview(store, Filters(key="k2"), NOW)).calls.value == 2
    assert (await queries.overview(store, MAIL, NOW)).calls.value == 5
    later = await queries.overview(store, Filters(since=NOW - 3600), NOW)
    assert later.calls.value == 0
    assert later.sentence == "No calls were recorded in this period."
    assert queries.filters("7d", NOW).since == NOW - 7 * DAY
    with pytest.raises(RequestError, match="allowed are 24h"):
        queries.filters("1y", NOW)


async def test_an_empty_store_has_pages(empty: Store) -> None:
    """Without a call every page says so and none fails."""
    assert (await queries.overview(empty, ALL, NOW)).points == ()
    assert await queries.tasks(empty, ALL, NOW) == ()
    assert await queries.task_page(empty, MAIL, NOW) is None
    assert await queries.releases(empty, ALL) == queries.Releases((), ())


async def test_unaudited_answers_tell_no_saving(empty: Store) -> None:
    """Where no accepted answer was audited, what was saved is not told, and the sentence says why."""
    await empty.append(record("trips", "accept", attempt("small", 0.001)))
    found = await queries.overview(empty, ALL, NOW)
    assert found.saved_usd.value is found.cps_ratio.value is found.accepted_failure.value is None
    assert "not known until some of their answers are audited" in found.sentence


async def test_the_table_of_tasks(store: Store) -> None:
    """The dearest first, extended to a month once seen for a day, with what to do next."""
    mail, trips = await queries.tasks(store, ALL, NOW)
    assert (mail.task, mail.calls.n, mail.mode, mail.model) == ("mail", 5, "enforce", "large-model")
    assert mail.month_usd.value is None
    assert told(mail.accepted_failure) == (pytest.approx(4 / 6), 2)
    assert mail.action.text == "Collect calls: 5 of about 200 are here."
    assert trips.cps_ratio.value is None
    mail, _ = await queries.tasks(store, ALL, NOW + 10 * DAY)
    days = (NOW + 10 * DAY - (NOW - 7200) // 3600 * 3600) / DAY
    assert mail.month_usd.value == pytest.approx(0.034 * 365.25 / 12 / days)


async def calibrated(store: Store, *, right: float, n: int = 400, alpha: float = 0.1) -> str:
    """Certify, or refuse, the small model's answers to mail."""
    dice = np.random.default_rng(1)
    sure = dice.random(n)
    correct = dice.random(n) < np.where(sure > 0.5, right, 0.4)
    rows = [{"margin_min": float(value)} for value in sure]
    names = {"task": "mail", "stage": "small", "label": f"{n} by feedback"}
    made = certify(rows, correct, **names, alpha=alpha, delta=0.1, made_at=NOW)
    return (await store.save_calibration("mail", "small", json.dumps(made.to_json()))).id


async def test_a_guarantee_stands_beside_what_audits_say(store: Store) -> None:
    """Promise, monitor's bounds and alarm of a calibrated task are told; the curve is that of its labels."""
    calibration = await calibrated(store, right=0.99)
    monitor = Monitor.of(calibration, Certificate(0.1, 0.1, 0.5, 1, 0, 0.1, 1, 1.0), 0.5)
    for n in range(60):
        monitor.take(f"r{n}", True, 1.0, accepted=True, least=0.5, now=NOW)
    await store.change_monitor("mail", lambda _: monitor.to_json())
    found = await queries.overview(store, ALL, NOW)
    [guarantee] = found.guarantees
    assert (guarantee.alpha, guarantee.audits, guarantee.wrong, guarantee.alarm) == (0.1, 60, 60, True)
    assert guarantee.failure.value == 1.0
    assert guarantee.failure.low == monitor.sequence.lower
    assert found.alarms[0].task == "mail"
    assert "A promise is broken" in found.sentence
    page = await queries.task_page(store, MAIL, NOW)
    [curves] = page.curves
    assert (curves.n, curves.alpha, curves.labels) == (400, 0.1, "400 by feedback")
    assert sum(each.right.n for each in curves.bins) == 400
    assert [each.confidence for each in curves.bins] == sorted(each.confidence for each in curves.bins)
    assert curves.risk[-1].coverage == 1.0
    assert curves.threshold is not None
    assert {event.kind for event in page.events} == {"calibrated", "alarm"}
    assert page.line.action.step == "calibrate"


async def test_missing_labels_are_what_to_do_next(store: Store) -> None:
    """A refusal that says how many labels are missing asks for them."""
    await calibrated(store, right=1.0, n=60, alpha=0.02)
    [mail] = await queries.tasks(store, MAIL, NOW)
    assert mail.action.step == "label"
    assert mail.action.labels > 0
    assert mail.bound is None


async def test_a_tasks_page(store: Store) -> None:
    """Flow, stages, tools and audits of a task are those worked out by hand."""
    await store.replace_tasks([TaskRow("t1", "mail", True, {}, NOW, {"schemas": {"send": {"type": "object"}}})])
    page = await queries.task_page(store, MAIL, NOW)
    assert {(f.source, f.target): f.calls for f in page.flow} == {
        ("calls", "large at once"): 1,
        ("calls", "small first"): 4,
        ("large at once", "escalated"): 1,
        ("small first", "valid at once"): 4,
        ("valid at once", "accepted"): 3,
        ("valid at once", "escalated"): 1,
    }
    stages = {(s.stage, s.part): s for s in page.stages}
    assert {key: (s.attempts, pytest.approx(s.usd)) for key, s in stages.items()} == {
        ("small", "answer"): (4, 0.004),
        ("large", "answer"): (2, 0.03),
        ("large", "audit"): (2, 0.02),
    }
    assert stages["small", "answer"].usd_per_1000.value == pytest.approx(1000 * 0.004 / 5)
    assert stages["small", "answer"].seconds.value == pytest.approx(0.25)
    assert page.tools.names == ("send", "write")
    assert page.tools.counts == ((2, 0), (1, 0))
    assert told(page.tools.agree) == (pytest.approx(2 / 3), 3)
    assert [(a.wrong, a.probability, a.confidence) for a in page.audits.audits] == [
        (False, 0.5, 0.9),
        (True, 0.25, 0.9),
    ]
    assert page.schemas == {"send": {"type": "object"}}
    trips = await queries.task_page(store, Filters(task="trips"), NOW)
    assert ("repaired", "accepted") in {(f.source, f.target) for f in trips.flow}


async def test_the_system_page(store: Store, url: str) -> None:
    """Storage, keys with what they spent today, and settings without passwords."""
    key, _ = await store.add_key("agent", "agent", KeyLimits(usd_per_day=2.0))
    reserved = await store.reserve(key.id, 0.5, 2.0, NOW - NOW % DAY)
    await store.settle(reserved, 0.4)
    config = parse('[store]\nurl = "postgresql://me:hidden@db/calls"\n[models.m]\nbackend = "fake"\n', {})
    scheme = replace_url(config, url)
    found = await queries.system(store, scheme, NOW)
    assert (found.records, found.encrypted) == (7, False)
    assert found.bytes > 0
    assert (found.oldest, found.newest) == (NOW - 7200, NOW - 7194)
    [use] = [each for each in found.keys if each.id == key.id]
    assert (use.spent_usd, use.limit_usd, use.calls.value) == (pytest.approx(0.4), 2.0, 0)
    settings = {each.name: each for each in queries.settings(config)}
    assert settings["store.url"].value == '"postgresql://me:***@db/calls"'
    assert settings["server.port"].default
    assert not settings["store.url"].default


def replace_url(config, url: str):
    import msgspec

    return msgspec.structs.replace(config, store=msgspec.structs.replace(config.store, url=url))


async def test_the_releases_page(store: Store) -> None:
    """A candidate on trial has its arms, its tests and what is said of it; moves are listed, the newest first."""
    version = await store.save_version(Version("mail@1", "mail", NOW, {"backend": "fake"}))

    def change(release: Release, _: frozenset[str]) -> tuple[Release, str]:
        going = released(
            release, version.id, "canary", share=None, rules=Rules(), rollout_id="ro", now=NOW - 9000, by="ann"
        )
        return going, "looks good"

    await store.change_release("mail", change)
    await store.append(record("mail", "accept", attempt("small", 0.003), trial=Trial("ro", "canary", 0.05)))
    found = await queries.releases(store, ALL)
    [candidate] = found.candidates
    assert (candidate.task, candidate.step, candidate.share) == ("mail", "canary", 0.05)
    [arm] = candidate.arms
    assert (arm.version, arm.calls, arm.valid.value) == ("mail@1", 1, 1.0)
    assert arm.usd_per_1000.value == pytest.approx(3.0)
    assert {(t.measure, t.asks) for t in candidate.tests} >= {("success", "worse"), ("success", "better")}
    assert candidate.says
    assert [(c.who, c.why) for c in found.changes] == [("ann", "looks good")]


def test_a_quantile_from_buckets_is_close_to_that_of_the_durations() -> None:
    """Within 9.1 % of the exact order statistic, inside its own interval."""
    seconds = np.random.default_rng(0).lognormal(-1, 1, 2000)
    times: dict[int, int] = {}
    for value in seconds:
        times[bucket_of(value)] = times.get(bucket_of(value), 0) + 1
    for q, name in ((0.5, "p50"), (0.95, "p95")):
        exact = float(np.quantile(seconds, q, method="inverted_cdf"))
        found = quantile(name, times, q)
        assert found.value == pytest.approx(exact, rel=0.0906)
        assert found.low <= exact <= found.high
