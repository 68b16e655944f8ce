"""What operators change from the dashboard: labels, replays, releases. Every handler has checked role and token."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from urllib.parse import urlencode

import structlog
from starlette.responses import RedirectResponse, Response

from smallfirst.dashboard import calls, labelling, replay
from smallfirst.dashboard.diff import differences
from smallfirst.dashboard.pages import call_page
from smallfirst.dashboard.view import Visit
from smallfirst.errors import NotFoundError, RequestError
from smallfirst.registry import Release, Target, released, withdrawn
from smallfirst.serve.gateway import new_id
from smallfirst.types import Feedback

log = structlog.get_logger("smallfirst.dashboard")
_MOVES: Mapping[str, Target | None] = {"canary": "canary", "live": "live", "withdraw": None}
_REASON = 300


async def label_pair(visit: Visit) -> Response:
    """A verdict on a pair, or none of it: on to the next."""
    form = visit.form
    skip = int(form["skip"]) if form.get("skip", "").isdecimal() else 0
    said = form.get("verdict", "")
    if said == "skip":
        return _to_label(form.get("task", ""), skip + 1, "")
    record = await visit.gateway.store.get(form.get("record", ""))
    pair = labelling.pair_of(record, visit.gateway.store.secret(labelling.ORDER))
    if pair is None:
        raise NotFoundError(f"Record {record.id!r} has no two answers to compare.", hint="Go on to the next pair.")
    for feedback in labelling.feedback_of(pair, said, _source(visit)):
        await visit.gateway.store.add_feedback(feedback)
    return _to_label(form.get("task", ""), skip, record.id)


async def label_call(visit: Visit) -> Response:
    """Whether the answer that a call got was right."""
    said, record_id = visit.form.get("correct", ""), visit.request.path_params["id"]
    if said not in {"yes", "no"}:
        raise RequestError(f"correct is {said!r:.50}; allowed are yes and no.", param="correct")
    feedback = Feedback(new_id(), record_id, time.time(), "correct", said == "yes", _source(visit))
    await visit.gateway.store.add_feedback(feedback)
    return RedirectResponse(f"/dashboard/calls/{record_id}", 303)


async def replay_call(visit: Visit) -> Response:
    """Ask a recorded call of another model, and show its answer beside the one served."""
    caller = visit.session.caller
    assert caller is not None
    record, model = await visit.gateway.store.get(visit.request.path_params["id"]), visit.form.get("model", "")
    attempts = await replay.replay(visit.gateway, caller, record, model)
    last = attempts[-1].completion
    answer = calls.answer_text(last.choices[0]) if last and last.choices else ""
    served = record.attempts[record.served].completion if record.served is not None else None
    before = calls.answer_text(served.choices[0]) if served and served.choices else ""
    sides = await asyncio.to_thread(differences, before, answer)
    replayed = {"model": model, "attempts": attempts, "sides": sides, "same": before == answer}
    return await call_page(visit, record, replayed)


async def move_release(visit: Visit) -> Response:
    """Promote a task's candidate, withdraw it, or put the previous version back: confirmed, and with a reason."""
    form = visit.form
    task, version, action, said = (form.get(name, "").strip() for name in ("task", "version", "action", "why"))
    if action not in _MOVES:
        raise RequestError(f"The action is {action!r:.50}; allowed are {', '.join(_MOVES)}.", param="action")
    if form.get("confirmed") != "yes" or not said:
        raise RequestError("The move is not confirmed.", hint="Say why, and tick that you have looked at the evidence.")
    assert visit.session.caller is not None
    now, by = time.time(), visit.session.caller.key

    def change(before: Release, _: frozenset[str]) -> tuple[Release, str]:
        to, trial = _MOVES[action], before.trial
        if to is None and version == (before.candidate or before.live):
            return withdrawn(before, now=now, by=by), said[:_REASON]
        if to is not None and trial is not None and version == before.candidate:
            rules = trial.rules
            moved = released(before, version, to, share=None, rules=rules, rollout_id=trial.id, now=now, by=by)
            return moved, said[:_REASON]
        return before, ""

    after = await visit.gateway.store.change_release(task, change)
    if after.changed_at != now or after.changed_by != by:
        raise RequestError(f"{version!r:.100} is not where it was.", hint="Look at the page again: it has moved since.")
    log.info("release moved", task=task, version=version, action=action, by=by)
    return RedirectResponse("/dashboard/releases", 303)


def _to_label(task: str, skip: int, done: str) -> Response:
    query = {name: value for name, value in {"task": task, "skip": skip, "done": done}.items() if value}
    return RedirectResponse(f"/dashboard/label?{urlencode(query)}" if query else "/dashboard/label", 303)


def _source(visit: Visit) -> str:
    """Who labels, as the feedback's source."""
    assert visit.session.caller is not None
    return f"dashboard:{visit.session.caller.key}"


ROUTES = {
    "/dashboard/label/verdict": label_pair,
    "/dashboard/calls/{id}/label": label_call,
    "/dashboard/calls/{id}/replay": replay_call,
    "/dashboard/releases/move": move_release,
}
