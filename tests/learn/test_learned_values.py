"""Which arguments' values recur or are quoted."""

from __future__ import annotations

import json

import pytest

from smallfirst.backends.values import Capitals, Values
from smallfirst.learn.packing import Example
from smallfirst.learn.values import LEAST_CALLS, learn_values

CITIES = ("Rome", "Oslo", "Turin", "Bergen")


def example(n: int, prompt: str, **arguments: object) -> Example:
    """The nth example, an episode of its own."""
    return Example(str(n), f"e{n}", prompt, json.dumps({"name": "book", "arguments": arguments}))


def test_values_that_recur_are_a_closed_set() -> None:
    """What many episodes have given, and nothing else, may be given where prompts do not say it; where they do, a city
    that is new may be quoted."""
    told = [example(n, "user: the usual", city=CITIES[n % 4]) for n in range(2 * LEAST_CALLS)]
    assert learn_values(told) == {"book": {"city": Values(tuple(sorted(CITIES)))}}
    quoted = [example(n, f"user: {CITIES[n % 4]}", city=CITIES[n % 4]) for n in range(2 * LEAST_CALLS)]
    assert learn_values(quoted) == {"book": {"city": Values(tuple(sorted(CITIES)), 1, "always")}}


def test_values_of_one_episode_each_are_quoted_not_kept() -> None:
    """A name that only one episode has said is nobody else's to give; the longest passage tells how many words."""
    told = [example(n, f"user: a table for ann {n}, please", name=f"ann {n}") for n in range(LEAST_CALLS)]
    assert learn_values(told) == {"book": {"name": Values((), 2)}}


@pytest.mark.parametrize(("plain", "capitals"), [(0, "always"), (LEAST_CALLS, "also")])
def test_how_passages_are_written_is_learned(plain: int, capitals: Capitals) -> None:
    """Names that always have capitals get them, whatever a hurried user types; where some have none, both are right."""
    told = [example(n, f"user: for ann b{n}", name=f"Ann B{n}") for n in range(LEAST_CALLS)]
    told += [example(n, f"user: for ann b{n}", name=f"ann b{n}") for n in range(LEAST_CALLS, LEAST_CALLS + plain)]
    assert learn_values(told) == {"book": {"name": Values((), 2, capitals)}}


def test_values_that_come_from_elsewhere_are_left_free() -> None:
    """So are arguments that were hardly ever given, and those that are not texts."""
    made_up = [example(n, "user: a code", code=f"x{n}", seats=n) for n in range(LEAST_CALLS)]
    assert learn_values(made_up) == {}
    few = [example(n, "user: Rome", city="Rome") for n in range(LEAST_CALLS - 1)]
    assert learn_values(few) == {}


def test_a_value_does_not_vouch_for_itself() -> None:
    """What an episode repeats, or one other has said, is not known; so no share of it counts as covered."""
    twice = [
        Example(str(n), f"e{n // 2}", "user: it", json.dumps({"code": f"x{n // 2}"})) for n in range(2 * LEAST_CALLS)
    ]
    assert learn_values(twice) == {}
    pairs = [Example(str(n), f"e{n}", "user: it", json.dumps({"code": f"x{n // 2}"})) for n in range(2 * LEAST_CALLS)]
    assert learn_values(pairs) == {}


@pytest.mark.parametrize("answer", ['{"city": "Rome"}', '[{"name": "book", "arguments": {"city": "Rome"}}]'])
def test_answers_in_json_and_lists_of_calls_are_read(answer: str) -> None:
    """Members of an answer stand under the empty name, the calls of a list under their tools'."""
    told = [Example(str(n), f"e{n}", "user: Rome", answer) for n in range(LEAST_CALLS)]
    assert learn_values(told) == {"book" if answer.startswith("[") else "": {"city": Values(("Rome",), 1, "always")}}


def test_other_prompts_and_texts_say_nothing() -> None:
    """Chat messages hold the tools too, and a plain text has no values."""
    chat = ({"role": "user", "content": "Rome"},)
    told = [Example(str(n), f"e{n}", chat, '{"city": "Rome"}') for n in range(LEAST_CALLS)]
    assert learn_values([*told, *(Example(str(n), f"e{n}", "user: hi", "Hello.") for n in range(LEAST_CALLS))]) == {}
