"""The simulated agent: its calls are what they say, varied, and the same for the same seed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from smallfirst.helpdesk.agent import asks, claim_asks, write_log
from smallfirst.helpdesk.large import MISTAKES, NAME, Large
from smallfirst.helpdesk.sites import SITES, Ask
from smallfirst.helpdesk.tickets import draw_ticket
from smallfirst.types import Choice, Completion, Json, Origin, Request, ToolCall
from smallfirst.validators import validate
from smallfirst.wire import WIRES

CALLS = [*asks(range(300)), *claim_asks(range(150)), *claim_asks(range(150, 300), age=1.0)]
NAMES = [*SITES, "claims"]


def at(site: str) -> list[Ask]:
    return [ask for ask in CALLS if ask.site == site]


def request(ask: Ask) -> Request:
    return WIRES["chat"].parse(msgspec.json.encode(ask.body), Origin())


def valid(ask: Ask, message: Json) -> bool:
    """Whether the gateway would find nothing wrong with the answer."""
    calls = message.get("tool_calls") or ()
    made = tuple(ToolCall(c["id"], c["function"]["name"], c["function"]["arguments"]) for c in calls)
    finish: Any = "tool_calls" if made else "stop"
    return validate(Completion((Choice(message["content"] or "", made, finish),)), request(ask)).ok


@pytest.mark.parametrize("site", NAMES)
def test_right_answers_are_valid_and_right(site: str) -> None:
    """At every site the gold answer keeps the request's rules and is judged right."""
    for ask in at(site):
        assert valid(ask, ask.gold)
        assert ask.right(ask.gold)


@pytest.mark.parametrize("site", NAMES)
def test_mistakes_are_valid_and_wrong(site: str) -> None:
    """What stands in for the large model errs in what it says, not in its form."""
    large = Large(mistakes=1.0)
    for ask in at(site):
        answer = large.answer(ask)
        assert valid(ask, answer)
        assert not ask.right(answer)


def test_the_large_model_errs_rarely_and_always_alike() -> None:
    """A small share of its answers is wrong, the same ones whenever it is asked."""
    right = [ask.right(Large().answer(ask)) for ask in CALLS]
    assert 0 < right.count(False) / len(right) < 2 * MISTAKES
    assert right == [ask.right(Large().answer(ask)) for ask in CALLS]


def test_texts_are_varied() -> None:
    """Thousands of tickets have as many texts."""
    mails = {draw_ticket(0, number).mail for number in range(3000)}
    assert len(mails) > 2990


def test_the_same_seed_gives_the_same_calls() -> None:
    """Calls are known by seed and ticket, whichever are drawn beside them."""
    assert list(asks([7], seed=3)) == [ask for ask in asks(range(9), seed=3) if ask.episode == "ticket-7"]
    assert list(asks([7], seed=3)) != list(asks([7], seed=4))


def test_answers_hold_what_the_text_says() -> None:
    """Slots are there word for word, so that they can be extracted; the calls of a ticket are one episode."""
    for ask in at("slots"):
        text, form = ask.body["messages"][-1]["content"], json.loads(ask.gold["content"])
        assert form["name"] in text
        assert form["order"] is None or form["order"] in text
    assert {ask.episode for ask in asks([5])} == {"ticket-5"}


def test_mails_hold_personal_data() -> None:
    """Names stand in all mails, e-mail addresses and telephone numbers in some."""
    tickets = [draw_ticket(0, number) for number in range(200)]
    assert all(ticket.name in ticket.mail for ticket in tickets)
    assert any(ticket.email in ticket.mail for ticket in tickets)
    assert any("+1 415 555" in ticket.mail for ticket in tickets)


def test_the_seventh_site_drifts() -> None:
    """Early and late notes share no damage wording, and so hardly any text."""
    early, late = ({a.body["messages"][-1]["content"] for a in claim_asks(range(100), age=age)} for age in (0.0, 1.0))
    assert not early & late
    some = {a.body["messages"][-1]["content"] for a in claim_asks(range(100), age=0.5)}
    assert some & early
    assert some & late


async def test_the_server_answers_what_it_was_taught() -> None:
    """Over HTTP it gives its answer under a name that says what it is; other calls are refused."""
    large = Large()
    known, other = at("action")[:2]
    large.teach([known])
    async with large.serving() as url, aiohttp.ClientSession() as http:
        async with http.post(f"{url}/chat/completions", json={**known.body, "model": "whatever"}) as reply:
            answer = await reply.json()
        async with http.post(f"{url}/chat/completions", json=other.body) as reply:
            refused = reply.status, await reply.json()
    assert answer["model"] == NAME
    assert answer["choices"][0]["message"] == large.answer(known)
    assert answer["usage"]["prompt_tokens"] > 100
    assert refused[0] == 400
    assert "stands in for a large model" in refused[1]["error"]["message"]


def test_the_log_is_one_line_a_call(tmp_path: Path) -> None:
    """Lines have request, answer, cost and time, evenly over the span."""
    path, large = tmp_path / "log.jsonl", Large()
    count = write_log(path, CALLS[:10], large, first=1000.0, last=1900.0)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert count == len(lines) == 10
    assert [line["created_at"] for line in lines] == [1000.0 + 100 * n for n in range(10)]
    assert lines[0]["request"] == CALLS[0].body
    assert lines[0]["response"]["choices"][0]["message"] == large.answer(CALLS[0])
    assert lines[0]["cost_usd"] == large.cost(CALLS[0]) > 0
