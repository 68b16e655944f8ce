"""The agent's call sites: what each asks, and the right answer to it.

Six are there from the start; `claims` appears later, and what the couriers write drifts with `age`, from 0 to 1. The
system prompts say at length what an agent has to tell a large model; a specialist does not need to be told.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from smallfirst.helpdesk.tickets import MISTYPED, Ticket, draw_order, draw_product, draw_text, words
from smallfirst.types import Json

_TEAM = "You work for the help desk of Hearth & Hall, a shop for household goods that ships to twelve countries. "


@dataclass(frozen=True, slots=True)
class Ask:
    """A call of the agent: the chat `body` that it sends, and `gold`, the right assistant's message.

    `facts` are set where the answer is free text, which is right when it states all of them.
    """

    site: str
    episode: str
    body: Json
    gold: Json
    facts: tuple[str, ...] = ()

    def right(self, answer: Json) -> bool:
        """Whether an assistant's message answers the call."""
        if self.facts:
            said = str(answer.get("content") or "").lower()
            return all(fact.lower() in said for fact in self.facts)
        return bool(_meaning(answer) == _meaning(self.gold))


Site = Callable[[Ticket, random.Random], Ask]


def triage(ticket: Ticket, rng: random.Random) -> Ask:
    """Which of seven categories a mail belongs to."""
    del rng
    system = (
        _TEAM + "Sort the customer's mail into one category. delivery: the parcel is late, lost or its tracking is "
        "unclear. damaged: the article is broken, faulty or came in pieces. wrong_item: something else was sent than "
        "what was ordered. invoice: a bill or receipt is missing. login: signing in, passwords and codes. cancel: an "
        "order is to be stopped. question: anything about an article before or after buying it. If several fit, take "
        "the one that the customer wants solved. Answer with JSON only; no explanation."
    )
    form = _format("triage", {"category": {"type": "string", "enum": list(words()["problem"])}})
    return _asked("triage", ticket, system, ticket.mail, form, {"category": ticket.problem})


def slots(ticket: Ticket, rng: random.Random) -> Ask:
    """Who writes, about which order and article, and what the customer wants."""
    del rng
    system = (
        _TEAM + "Read the customer's mail and fill in the form. name: the customer's full name as signed. order: the "
        "order's number exactly as written, two letters, a dash and five digits; null if the mail has none. wish: "
        "refund if the customer asks for money back, exchange for another article in place of this one, none if "
        "neither is asked for. Do not guess and do not correct what is written. Answer with JSON only, in the order "
        "of the form, without any comment. Mails may hold mistakes in spelling, phone numbers and addresses; these do "
        "not belong into the form."
    )
    fields = {
        "name": {"type": "string"},
        "order": {"type": ["string", "null"]},
        "wish": {"type": "string", "enum": ["refund", "exchange", "none"]},
    }
    gold = {"name": ticket.name, "order": ticket.order, "wish": ticket.wish or "none"}
    return _asked("slots", ticket, system, ticket.mail, _format("form", fields), gold)


def action(ticket: Ticket, rng: random.Random) -> Ask:
    """Which tool solves the customer's matter, with which arguments."""
    del rng
    system = (
        _TEAM + "Call the one tool that solves the customer's matter. An action on an order needs its number; where "
        "the mail has none, ask for it. Questions about articles go to the people who know them."
    )
    order, email = {"order": {"type": "string"}}, {"email": {"type": "string"}}
    tools = [
        _tool("track_parcel", "Find out where an order is", order),
        _tool("send_replacement", "Send the ordered article once more", order),
        _tool("refund", "Pay an order back", order),
        _tool("cancel_order", "Stop an order that has not shipped", order),
        _tool("send_invoice", "Mail an order's invoice to an address", {**order, **email}),
        _tool("reset_password", "Mail a link for a new password to an address", email),
        _tool("ask_for_order", "Ask the customer for the order's number", {}),
        _tool("hand_over", "Hand a question about an article over to the product team", {}),
    ]
    name, arguments = _solution(ticket)
    body = _body(system, f"From: {ticket.email}\n{ticket.mail}") | {"tools": tools, "tool_choice": "required"}
    return Ask("action", _episode(ticket), body, _call(name, arguments))


def sql(ticket: Ticket, rng: random.Random) -> Ask:
    """The query that answers a colleague's question."""
    system = (
        _TEAM + "Translate the colleague's question into one SQL query for SQLite and run it. Tables: "
        "orders(id TEXT, email TEXT, product TEXT, status TEXT, placed DATE, total REAL, country TEXT); status is "
        "placed, shipped, delivered, returned or cancelled. customers(email TEXT, name TEXT, country TEXT, since "
        "DATE). Use no other tables and change nothing."
    )
    parts = words()["sql"]
    kind = rng.choice(list(parts["query"]))
    values = {
        "status": rng.choice(("placed", "shipped", "delivered", "returned", "cancelled")),
        "date": f"202{rng.choice('56')}-{rng.randrange(1, 13):02}-{rng.randrange(1, 29):02}",
        "country": rng.choice(parts["countries"]),
        "product": draw_product(rng),
        "email": ticket.email,
        "n": rng.randrange(2, 10),
    }
    question = draw_text(rng, rng.choice(parts["asked"][kind]), values, mistyped=MISTYPED)
    tools = [_tool("run_sql", "Run a query that only reads", {"query": {"type": "string"}})]
    body = _body(system, question) | {"tools": tools, "tool_choice": "required"}
    return Ask("sql", _episode(ticket), body, _call("run_sql", {"query": parts["query"][kind].format(**values)}))


def summary(ticket: Ticket, rng: random.Random) -> Ask:
    """An order's document as JSON."""
    system = (
        _TEAM + "Turn the order's document into JSON: its number, the customer's name, the articles with their "
        "quantities, and whether it is paid. Leave prices and addresses out."
    )
    items = [(draw_product(rng), rng.randrange(1, 5)) for _ in range(rng.randrange(1, 4))]
    order, paid = ticket.order or draw_order(rng), rng.random() < 0.7
    lines = [f"{n} x {product:<26}{n * rng.randrange(500, 9000) / 100:>9.2f}" for product, n in items]
    settled = "Paid by card" if paid else "Payment due in 14 days"
    text = "\n".join((f"ORDER {order}   {settled}", f"{ticket.name}, {ticket.email}", *lines))
    item = {"product": {"type": "string"}, "quantity": {"type": "integer"}}
    fields = {
        "order": {"type": "string"},
        "customer": {"type": "string"},
        "items": {"type": "array", "items": _object(item)},
        "paid": {"type": "boolean"},
    }
    gold_items = [{"product": product, "quantity": n} for product, n in items]
    gold = {"order": order, "customer": ticket.name, "items": gold_items, "paid": paid}
    return _asked("summary", ticket, system, text, _format("order", fields), gold)


def reply(ticket: Ticket, rng: random.Random) -> Ask:
    """A short answer to the customer, in free text."""
    system = (
        _TEAM + "Write a short and friendly answer to the customer that states the facts given, the name and the "
        "article. Sign as the help desk of Hearth & Hall."
    )
    days = rng.randrange(2, 9)
    done = rng.choice(("a new one will arrive", "the money will be on your card", "a colleague will write to you"))
    given = f"Customer: {ticket.name}\nArticle: {ticket.product}\nFacts: {done} within {days} days."
    text = (
        f"Dear {ticket.name},\nthank you for writing to us about the {ticket.product}: {done} within {days} days.\n"
        "Your help desk of Hearth & Hall"
    )
    facts = (ticket.name, ticket.product, f"{days} days")
    return Ask("reply", _episode(ticket), _body(system, given), {"role": "assistant", "content": text}, facts)


def claims(ticket: Ticket, rng: random.Random, age: float) -> Ask:
    """What happened to a parcel, from a courier's note; `age` is the share of notes in the later wording."""
    system = (
        _TEAM + "Read the courier's note about a damaged parcel and fill in the claim. parcel: its number as written, "
        "twelve digits. damage: crushed for pressure and dents, wet for any liquid, opened where somebody got in. "
        "place: depot, van or door, where it was noticed. Claims are checked by the carrier's insurance, so take only "
        "what the note says. Answer with JSON only."
    )
    parts = words()["claim"]
    wording = parts["late" if rng.random() < age else "early"]
    damage, place = rng.choice(list(wording)), rng.choice(list(parts["place"]))
    values = {"parcel": "".join(rng.choices("0123456789", k=12)), "carrier": rng.choice(parts["carrier"])}
    said = [
        draw_text(rng, rng.choice(parts["opening"]), values),
        draw_text(rng, rng.choice(wording[damage]), values, mistyped=MISTYPED) + ",",
        draw_text(rng, rng.choice(parts["place"][place]), values, mistyped=MISTYPED) + ".",
        draw_text(rng, rng.choice(parts["name"]), {"name": ticket.name}),
    ]
    fields = {
        "parcel": {"type": "string"},
        "damage": {"type": "string", "enum": list(parts["early"])},
        "place": {"type": "string", "enum": list(parts["place"])},
    }
    gold = {"parcel": values["parcel"], "damage": damage, "place": place}
    return _asked("claims", ticket, system, " ".join(said).strip(), _format("claim", fields), gold)


SITES: Mapping[str, tuple[Site, float]] = {
    "triage": (triage, 1.0),
    "slots": (slots, 1.0),
    "action": (action, 0.35),
    "sql": (sql, 0.3),
    "summary": (summary, 0.3),
    "reply": (reply, 0.3),
}
"""The six sites in the order of an episode, each with the share of tickets that it is asked for."""


def _solution(ticket: Ticket) -> tuple[str, dict[str, str]]:
    """The right tool and its arguments."""
    if ticket.problem == "login":
        return "reset_password", {"email": ticket.email}
    if ticket.problem == "question":
        return "hand_over", {}
    if ticket.order is None:
        return "ask_for_order", {}
    if ticket.problem == "invoice":
        return "send_invoice", {"order": ticket.order, "email": ticket.email}
    plain = {"delivery": "track_parcel", "cancel": "cancel_order"}
    wished = "refund" if ticket.wish == "refund" else "send_replacement"
    return plain.get(ticket.problem, wished), {"order": ticket.order}


def _asked(site: str, ticket: Ticket, system: str, text: str, form: Json, gold: Json) -> Ask:
    """A call that is answered in JSON."""
    answer = {"role": "assistant", "content": json.dumps(gold)}
    return Ask(site, _episode(ticket), _body(system, text) | {"response_format": form}, answer)


def _body(system: str, text: str) -> dict[str, Any]:
    return {
        "model": "auto",
        "messages": [{"role": "system", "content": system}, {"role": "user", "content": text}],
        "temperature": 0,
        "max_tokens": 200,
    }


def _episode(ticket: Ticket) -> str:
    return f"ticket-{ticket.number}"


def _tool(name: str, description: str, fields: Json) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "description": description, "parameters": _object(fields)}}


def _format(name: str, fields: Json) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": name, "strict": True, "schema": _object(fields)}}


def _object(fields: Json) -> dict[str, Any]:
    return {"type": "object", "properties": dict(fields), "required": list(fields), "additionalProperties": False}


def _call(name: str, arguments: Json) -> dict[str, Any]:
    function = {"name": name, "arguments": json.dumps(arguments)}
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "call_1", "type": "function", "function": function}],
    }


def _meaning(answer: Json) -> Any:
    """What an answer says, apart from its writing; None when it is not JSON where it has to be."""
    try:
        made = [(c["function"]["name"], json.loads(c["function"]["arguments"])) for c in answer.get("tool_calls") or ()]
        return made or json.loads(answer.get("content") or "")
    except (ValueError, TypeError, KeyError):
        return None
