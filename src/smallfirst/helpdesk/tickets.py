"""Customers, orders and mail, drawn by a seed: what the help desk's calls are about."""

from __future__ import annotations

import random
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

MISTYPED = 0.02
"""Share of a customer's words that are mistyped."""

_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_HAS_ORDER = 0.8
_WISHING = ("damaged", "wrong_item")
_SHORT_WORD = 4


@dataclass(frozen=True, slots=True)
class Ticket:
    """A customer's matter. `order` None: the mail does not name it; `wish` None: it is none that has to be said.

    `problem` is the mail's category; `mail` is what the customer wrote. All else that the agent needs for its calls
    is drawn from `seed`.
    """

    number: int
    seed: str
    name: str
    email: str
    product: str
    problem: str
    order: str | None
    wish: str | None
    mail: str


@cache
def words() -> Mapping[str, Any]:
    """The parts."""
    return tomllib.loads(resources.files("smallfirst.helpdesk").joinpath("words.toml").read_text(encoding="utf-8"))


def draw_ticket(seed: int, number: int) -> Ticket:
    """The ticket of that number; the same for the same seed."""
    own = f"{seed}/{number}"
    rng, parts = random.Random(own), words()
    first, last = rng.choice(parts["first"]), rng.choice(parts["last"])
    problem = rng.choice(list(parts["problem"]))
    order = draw_order(rng) if problem != "login" and rng.random() < _HAS_ORDER else None
    wish = rng.choice(list(parts["wish"])) if problem in _WISHING else None
    slots = {
        "name": f"{first} {last}",
        "email": f"{first}.{last}@{rng.choice(parts['mail'])}".lower(),
        "product": draw_product(rng),
        "order": order or "",
        "phone": f"+1 415 555 01{rng.randrange(100):02}",
        "street": f"{rng.randrange(1, 200)} {rng.choice(parts['last'])} Street",
        "city": rng.choice(("Springfield", "Riverton", "Lakewood", "Fairview", "Milton", "Ashford")),
    }
    return Ticket(
        number=number,
        seed=own,
        name=slots["name"],
        email=slots["email"],
        product=slots["product"],
        problem=problem,
        order=order,
        wish=wish,
        mail=_mail(rng, problem, wish, slots),
    )


def draw_order(rng: random.Random) -> str:
    """An order's number."""
    return f"{rng.choice('ABCDEFGH')}{rng.choice('KLMNPR')}-{rng.randrange(10_000, 100_000)}"


def draw_product(rng: random.Random) -> str:
    """A product's name."""
    parts = words()
    return f"{rng.choice(parts['make'])} {rng.choice(parts['colour'])}{rng.choice(parts['kind'])}"


def draw_text(rng: random.Random, template: str, slots: Mapping[str, object], *, mistyped: float = 0.0) -> str:
    """The template with choices made, words mistyped but for slots, and slots filled."""
    while (chosen := _CHOICE.sub(lambda found: rng.choice(found[1].split("|")), template, count=1)) != template:
        template = chosen
    typed = " ".join(_mistyped(rng, word) if rng.random() < mistyped else word for word in template.split(" "))
    return typed.format(**slots)


def _mail(rng: random.Random, problem: str, wish: str | None, slots: Mapping[str, str]) -> str:
    parts = words()

    def some(name: str, chance: float = 1.0) -> list[str]:
        said = draw_text(rng, rng.choice(parts[name]), slots, mistyped=MISTYPED) if rng.random() < chance else ""
        return [said] if said else []

    what = draw_text(rng, rng.choice(parts["problem"][problem]), slots, mistyped=MISTYPED)
    asked = [draw_text(rng, rng.choice(parts["wish"][wish]), slots, mistyped=MISTYPED)] if wish else []
    about = [*(some("order_said") if slots["order"] else []), *asked, *some("filler", 0.4), *some("reach_said", 0.3)]
    rng.shuffle(about)
    stop = "" if what[-1] in "?." else "."
    body = " ".join([f"{what[0].upper() if rng.random() < 0.8 else what[0]}{what[1:]}{stop}", *about])
    hello = "".join(f"{said},\n" for said in some("hello"))
    sign = rng.choice((slots["name"], slots["name"], f"{slots['name']}\n{slots['email']}"))
    return f"{hello}{body}\n{some('end')[0]},\n{sign}"


def _mistyped(rng: random.Random, word: str) -> str:
    """The word with two neighbouring letters swapped, or one left out; short words and slots stay."""
    if len(word) < _SHORT_WORD or not word.isalpha():
        return word
    at = rng.randrange(1, len(word) - 1)
    return word[:at] + word[at + 1] + word[at] + word[at + 2 :] if rng.random() < 0.5 else word[:at] + word[at + 1 :]
