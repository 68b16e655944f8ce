"""What each page is made of. Handlers only read; `changes` has what changes something."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from starlette.responses import Response

from smallfirst.dashboard import calls, charts, labelling, queries, replay, tables
from smallfirst.dashboard.diff import differences
from smallfirst.dashboard.machine import machine
from smallfirst.dashboard.view import Visit
from smallfirst.dashboard.words import count, number, seconds, why
from smallfirst.errors import NotFoundError, RequestError
from smallfirst.serve.access import LOCAL
from smallfirst.store import RecordFilter, Store, StoredRecord
from smallfirst.types import Decision, total_usd

COMPARED = Path("compared")
"""Where `smallfirst compressors compare` writes by default, seen from where the gateway was started."""
_DECISIONS: tuple[Decision, ...] = ("accept", "escalate", "abstain")
_PERIOD = "30d"
_DEEPEST = 100_000
_YES_NO = {"yes": True, "no": False, "": None}


async def overview(visit: Visit) -> Response:
    """What was saved, whether it is still right, what to do next."""
    found = await _overview(visit)
    return await visit.page("overview.html", found=found, costs=charts.costs(found.points), **await _choices(visit))


async def tasks(visit: Visit) -> Response:
    """All tasks in a table."""
    lines = (await _lines(visit)).lines
    alarms = sum(line.alarm for line in lines)
    sentence = f"{count(len(lines), 'task')} had calls in this period, the dearest first."
    if alarms:
        sentence += f" In {count(alarms, 'task')} accepted answers fail too often."
    return await visit.page("tasks.html", lines=lines, sentence=sentence, **await _choices(visit))


async def task(visit: Visit) -> Response:
    """One task."""
    found = await _task(visit)
    name = visit.request.path_params["task"]
    if found is None:
        known = await _known(visit.gateway.store, name)
        return await visit.page(
            "task_empty.html", 200 if known else 404, task=name, known=known, **await _choices(visit)
        )
    curves = [(each, charts.calibration(each), charts.risk(each)) for each in found.curves]
    return await visit.page(
        "task.html",
        task=name,
        found=found,
        curves=curves,
        costs=charts.costs(found.points),
        flow=charts.flow(found.flow),
        audits=charts.audits(found.audits),
        stages=charts.stages(found.stages),
        tools=charts.tools(found.tools),
        timeline=charts.timeline(found.events),
        **await _choices(visit),
    )


async def list_calls(visit: Visit) -> Response:
    """The calls that match a search, newest first."""
    search = _search(visit)
    found = await calls.find(visit.gateway.store, search)
    asked = {name: visit.query(name) for name in _ASKED}
    filtered = any(asked.values()) or search.after is not None
    query = urlencode({name: value for name, value in asked.items() if value})
    sentence = f"{count(len(found.calls), 'call')}, newest first."
    if search.looks and found.back_to is not None:
        sentence += f" {count(found.looked, 'call')} looked at{'' if found.after is None else ', older ones are not'}."
    older = f"/dashboard/calls?{query}&after={found.after}" if found.after else ""
    return await visit.page(
        "calls.html",
        found=found,
        asked=asked,
        filtered=filtered,
        older=older,
        sentence=sentence,
        decisions=_DECISIONS,
        csv=f"/dashboard/csv/calls?figure=calls&{query}",
    )


async def call(visit: Visit) -> Response:
    """One call."""
    return await call_page(visit, await visit.gateway.store.get(visit.request.path_params["id"]), None)


async def call_page(visit: Visit, record: StoredRecord, replayed: Mapping[str, Any] | None) -> Response:
    """The page of `record`, with what came of asking another model, if one was."""
    tries = calls.tries(record)
    episode = await visit.gateway.store.list_records(RecordFilter(pseudonym=record.episode), limit=200)
    return await visit.page(
        "call.html",
        record=record,
        tries=tries,
        longest=max((each.ends for each in tries), default=0.0) or 1.0,
        cost=total_usd(each.attempt.cost_usd for each in tries if not each.afterwards),
        messages=calls.conversation(record.messages),
        episode=sorted(episode, key=lambda each: each.created_at) if record.episode else [],
        models=replay.models(visit.gateway, record) if visit.session.operator else (),
        replayed=replayed,
        sentence=_outcome(record),
    )


async def releases(visit: Visit) -> Response:
    """Candidates, their tests, and what was released."""
    found = await _releases(visit)
    in_service = await visit.gateway.store.releases()
    live, trials = sum(bool(each.live) for each in in_service), len(found.candidates)
    answered = f"{count(live, 'task')} answered by a released version" if live else "no released version answers"
    sentence = (
        f"{count(trials, 'candidate')} on trial; {answered}."
        if in_service
        else "What was trained comes into service here: in shadow, then for some episodes, then for all."
    )
    return await visit.page("releases.html", found=found, releases=in_service, sentence=sentence)


async def compression(visit: Visit) -> Response:
    """What shortening prompts costs and saves."""
    found = (await _compressors(visit)).lines
    best = sum(each.front for each in found)
    sentence = (
        f"{count(len(found), 'measurement')}; for {best} of them no other has fewer tokens and fewer wrong answers."
        if found
        else "How far prompts can be shortened before answers suffer, measured."
    )
    return await visit.page("compression.html", found=found, front=charts.compression(found), sentence=sentence)


async def label(visit: Visit) -> Response:
    """The next pair of answers to judge."""
    store, skip = visit.gateway.store, visit.whole("skip", 0, _DEEPEST)
    queue = await labelling.queue(store, visit.gateway.calibrations, visit.query("task") or None, skip)
    pair, known = queue.pair, dict[str, Any]()
    if pair is not None:
        answers = calls.answer_text(pair.answer("left")), calls.answer_text(pair.answer("right"))
        sides = await asyncio.to_thread(differences, *answers)
        known = {"messages": calls.conversation(pair.record.messages), "sides": sides}
        known["tools"] = pair.request.tools
        sentence = (
            f"Task {pair.record.task}: two models answered this call differently. Which is right? "
            f"{count(queue.waiting, 'call')} like this may be waiting."
        )
    else:
        sentence = "Judging pairs of answers tells the calibration where to accept."
    done, task = visit.query("done"), visit.query("task")
    return await visit.page("label.html", pair=pair, skipped=skip, done=done, task=task, sentence=sentence, **known)


async def system(visit: Visit) -> Response:
    """What runs, how full it is, how it is set."""
    found, live = await _system(visit), machine(visit.gateway)
    valid = sum(not key.revoked for key in found.keys)
    sentence = (
        f"{count(len(live.models), 'model')}, {count(valid, 'valid key')}, {count(found.records, 'record')} in "
        f"{number(found.bytes, 'bytes')} of {found.database}; {count(live.running, 'call')} running."
    )
    return await visit.page("system.html", found=found, live=live, sentence=sentence)


async def csv(visit: Visit) -> Response:
    """A figure of a page as CSV."""
    page, name = visit.request.path_params["page"], visit.query("figure")
    if page not in _PAGES:
        raise NotFoundError(f"There is no page {page!r:.100} with figures.", hint=f"Pages: {', '.join(_PAGES)}.")
    found = await _PAGES[page](visit)
    at = visit.whole("at", 0, _DEEPEST) if visit.query("at") else None
    text = tables.to_csv([] if found is None else tables.figure_rows(found, name, at))
    headers = {"content-disposition": f'attachment; filename="{page}-{name}.csv"', "cache-control": "no-store"}
    return Response(text, headers=headers, media_type="text/csv; charset=utf-8")


def _wanted(visit: Visit) -> queries.Filters:
    """The calls that the page's selection and its task name."""
    period, task = visit.query("period") or _PERIOD, visit.request.path_params.get("task") or visit.query("task")
    return queries.filters(period, time.time(), key=visit.query("key") or None, task=task or None)


async def _choices(visit: Visit) -> dict[str, Any]:
    """What the selection offers and what is selected; `q` is that as a query for links."""
    period, key = visit.query("period") or _PERIOD, visit.query("key")
    keys = {LOCAL.key: "without a key"} | {row.id: row.name for row in await visit.gateway.store.list_keys()}
    chosen = {"period": period, "key": key} if key else {"period": period}
    return {"periods": tuple(queries.PERIODS), "period": period, "keys": keys, "key": key, "q": urlencode(chosen)}


_ASKED = ("task", "decision", "reason", "model", "episode", "key", "labelled", "usd", "text", "error")


def _search(visit: Visit) -> calls.Search:
    said, labelled = visit.query("decision"), visit.query("labelled")
    decision = next((each for each in _DECISIONS if each == said), None)
    if said and decision is None:
        raise RequestError(f"decision is {said!r:.50}; allowed are {', '.join(_DECISIONS)}.", param="decision")
    if labelled not in _YES_NO:
        raise RequestError(f"labelled is {labelled!r:.50}; allowed are yes and no.", param="labelled")
    wanted = RecordFilter(
        task=visit.query("task") or None,
        decision=decision,
        reason=visit.query("reason") or None,
        model=visit.query("model") or None,
        episode=visit.query("episode") or None,
        key=visit.query("key") or None,
        has_feedback=_YES_NO[labelled],
        failed=True if visit.query("error") else None,
    )
    after = visit.query("after") or None
    return calls.Search(wanted, visit.amount("usd"), visit.query("text"), after)


def _outcome(record: StoredRecord) -> str:
    """What became of a call, in a sentence."""
    served = None if record.served is None else record.attempts[record.served]
    cost = total_usd(each.attempt.cost_usd for each in calls.tries(record) if not each.afterwards)
    by = "Nothing was answered" if served is None else f"{served.model or served.stage} answered"
    return f"{by} after {seconds(record.seconds)} for {number(cost, 'usd')}. {why(record.reason)}"


@dataclass(frozen=True, slots=True)
class _Table:
    """A page that is one table."""

    lines: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class _Calls:
    """The calls that a search found, as CSV."""

    calls: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class _CallLine:
    """A call in a row of CSV; times in seconds since the epoch."""

    record: str
    at: float
    task: str
    decision: str
    reason: str
    status: int
    model: str
    key: str
    episode: str | None
    input_tokens: int
    output_tokens: int
    seconds: float
    cost_usd: float | None
    correct: bool | None


async def _found_calls(visit: Visit) -> _Calls:
    found = await calls.find(visit.gateway.store, _search(visit))
    return _Calls(
        tuple(
            _CallLine(
                each.id,
                each.created_at,
                each.task,
                each.decision,
                each.reason,
                each.status,
                each.model,
                each.key,
                each.episode,
                each.input_tokens,
                each.output_tokens,
                each.seconds,
                each.cost_usd,
                each.correct,
            )
            for each in found.calls
        )
    )


async def _known(store: Store, task: str) -> bool:
    """Whether a call of the task is on record, or it was found."""
    recorded = await store.list_records(RecordFilter(task=task), limit=1)
    return bool(recorded) or any(row.id == task for row in await store.tasks())


async def _task(visit: Visit) -> queries.TaskPage | None:
    return await queries.task_page(visit.gateway.store, _wanted(visit), time.time())


async def _overview(visit: Visit) -> queries.Overview:
    return await queries.overview(visit.gateway.store, _wanted(visit), time.time())


async def _lines(visit: Visit) -> _Table:
    return _Table(await queries.tasks(visit.gateway.store, _wanted(visit), time.time()))


async def _compressors(_: Visit) -> _Table:
    return _Table(queries.compression(COMPARED))


async def _releases(visit: Visit) -> queries.Releases:
    return await queries.releases(visit.gateway.store, queries.Filters())


async def _system(visit: Visit) -> queries.System:
    return await queries.system(visit.gateway.store, visit.gateway.config, time.time())


_PAGES: Mapping[str, Callable[[Visit], Awaitable[Any]]] = {
    "overview": _overview,
    "tasks": _lines,
    "task": _task,
    "calls": _found_calls,
    "releases": _releases,
    "compression": _compressors,
    "system": _system,
}

ROUTES = {
    "/dashboard": overview,
    "/dashboard/tasks": tasks,
    "/dashboard/tasks/{task:path}": task,
    "/dashboard/calls": list_calls,
    "/dashboard/calls/{id}": call,
    "/dashboard/releases": releases,
    "/dashboard/compression": compression,
    "/dashboard/label": label,
    "/dashboard/system": system,
    "/dashboard/csv/{page}": csv,
}
