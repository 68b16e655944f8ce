"""A help desk's calls, drawn by a seed: two tools, short conversations, names, mistakes and repetitions."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

from smallfirst.types import Attempt, Choice, Completion, Origin, Record, Request, Tool, ToolCall, Usage
from smallfirst.validators import validate

TASK = "desk"
FIND: dict[str, Any] = {
    "type": "object",
    "properties": {"order": {"type": "string", "pattern": "^[A-F][0-9]{3}$"}},
    "required": ["order"],
}
OPEN: dict[str, Any] = {
    "type": "object",
    "properties": {
        "urgent": {"type": "boolean"},
        "about": {"type": "string", "enum": ["billing", "delivery", "login", "refund"]},
    },
    "required": ["about"],
}
TOOLS = (Tool("find_order", "Looks up an order", FIND), Tool("open_ticket", "Opens a ticket", OPEN))
SYSTEM = "You work at the help desk of a shop. Call a tool for each message of a customer."
PEOPLE = ("Mia Li", "Tom Hart", "Ada Moss", "Ben Kerr", "Eva Roth", "Ian Vale", "Lena Voss", "Omar Haddad")
TROUBLES = {
    "billing": ("I was charged twice", "the invoice has a wrong total", "my card was billed for nothing"),
    "delivery": ("the parcel has not come", "the box was broken", "it went to the wrong house"),
    "login": ("I cannot sign in", "the password mail never comes", "my account is locked"),
    "refund": ("I want my money back", "please return what I paid", "the refund is missing"),
}
HELLOS = ("Hello", "Hi there", "Good morning", "Dear team", "Hey")
ENDS = ("Thanks.", "Please help!", "What now?", "Regards", "")


def says(rng: random.Random) -> tuple[str, ToolCall]:
    """A customer's message and the right call."""
    head = f"{rng.choice(HELLOS)}, {rng.choice(PEOPLE)} here,"
    if rng.random() < 0.5:
        order = f"{rng.choice('ABCDEF')}{rng.randrange(1000):03}"
        asked = rng.choice(("where is order", "any news of order", "please check order"))
        return f"{head} {asked} {order}? {rng.choice(ENDS)}", ToolCall("", "find_order", json.dumps({"order": order}))
    about = rng.choice(list(TROUBLES))
    hurry = rng.random() < 0.3
    arguments = {"urgent": True, "about": about} if hurry else {"about": about}
    text = f"{head} {rng.choice(TROUBLES[about])}{', it is urgent' if hurry else ''}. {rng.choice(ENDS)}"
    return text, ToolCall("", "open_ticket", json.dumps(arguments))


def records(count: int = 200, seed: int = 0) -> Iterator[Record]:
    """Calls of conversations of one to three messages, answered by "big", who errs one time in twenty."""
    rng = random.Random(seed)
    made = episode = 0
    while made < count:
        episode += 1
        talk: list[dict[str, Any]] = [{"role": "system", "content": SYSTEM}]
        for _ in range(min(rng.randint(1, 3), count - made)):
            text, call = says(rng)
            talk.append({"role": "user", "content": text})
            if rng.random() < 0.05:
                call = ToolCall("", "open_ticket", '{"about": "weather"}')
            call = ToolCall(f"call_{made}", call.name, call.arguments)
            yield record(made, episode, tuple(talk), call)
            said = {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            talk += [
                {"role": "assistant", "content": None, "tool_calls": [said]},
                {"role": "tool", "tool_call_id": call.id, "content": '{"done": true}'},
            ]
            made += 1


def record(number: int, episode: int, messages: tuple[dict[str, Any], ...], call: ToolCall) -> Record:
    """The call as the gateway records it."""
    tools = [
        {"type": "function", "function": {"name": t.name, "description": t.description, "parameters": t.parameters}}
        for t in TOOLS
    ]
    body = {"model": "big", "messages": list(messages), "tools": tools, "tool_choice": "required"}
    origin = Origin(task=TASK, episode=f"e{episode}")
    request = Request("chat", body, "big", messages, TOOLS, origin=origin)
    completion = Completion((Choice(tool_calls=(call,), finish_reason="tool_calls"),), Usage(300, 20), "big")
    verdict = validate(completion, request)
    attempt = Attempt("large", "large", "big", "generate", "accept", "", completion, verdict=verdict)
    made_at = 1_760_000_000.0 + 60 * number
    return Record(f"r{number:05}", made_at, request, TASK, "observe", (attempt,), 0, "escalate", "", 200, 1.0, "c")
