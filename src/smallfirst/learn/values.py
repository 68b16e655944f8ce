"""Which values recur, and which are quoted: what a specialist's decoding is held to (`backends.values`).

Read off the right answers to training calls, without a model: an argument is held when nearly all of its values were
known from other episodes or stand in their own prompt.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from msgspec import Struct

from smallfirst.backends.values import Capitals, Passages, Values, capitalised
from smallfirst.learn.packing import Example

LEAST_CALLS = 40
"""With a value for an argument, before anything is said of it."""
LEAST_COVERED = 0.95
"""Share of an argument's values that those allowed must have covered."""
LEAST_QUOTED = 0.05
"""Share of them that must stand in their prompts, so that passages are allowed: what is new to all is mostly quoted."""
MOST_WORDS = 12
"""Of a passage."""
ALWAYS = 0.99
"""Share of quoted values from which on a way of writing is the only one: with capitals, or as the prompt has it."""
MOST_KNOWN = 1_000

_RECURS = 2  # episodes beside a value's own, or at all, to be known: a value of one episode alone may be somebody's own


class _Seen(Struct, frozen=True):
    """A value of an argument, and its length where it stands in its prompt (else 0): as it is, and when the words there
    are written with capitals."""

    episode: str
    text: str
    as_it_is: int
    capitalised: int

    @property
    def words(self) -> int:
        return self.as_it_is or self.capitalised


def learn_values(examples: Sequence[Example]) -> dict[str, dict[str, Values]]:
    """The values of text arguments by tool ("" for answers that are JSON) and argument, where they can be held.

    Each value is judged by what other episodes say: known are those of at least two of them. Examples whose prompt is
    made by a chat template say nothing, for there the prompt is not what varies alone.
    """
    seen: dict[tuple[str, str], list[_Seen]] = defaultdict(list)
    for example in examples:
        if not isinstance(example.prompt, str):
            continue
        passages, capitals = Passages(example.prompt), Passages(capitalised(example.prompt))
        for tool, name, text in _texts(example.completion):
            lengths = (n if n <= MOST_WORDS else 0 for n in (passages.length(text), capitals.length(text)))
            seen[tool, name].append(_Seen(example.episode, text, *lengths))
    found: dict[str, dict[str, Values]] = defaultdict(dict)
    for (tool, name), values in seen.items():
        if (allowed := _allowed(values)) is not None:
            found[tool][name] = allowed
    return dict(found)


def _allowed(seen: Sequence[_Seen]) -> Values | None:
    """What may be given for an argument; None where too little is known of it."""
    episodes = Counter(text for text, _ in {(each.text, each.episode) for each in seen})
    recurring = [text for text, n in episodes.most_common(MOST_KNOWN) if n >= _RECURS]
    certain = {text for text in recurring if episodes[text] > _RECURS}  # known without the episode that is judged
    covered = sum(each.text in certain or each.words > 0 for each in seen) / len(seen)
    if len(seen) < LEAST_CALLS or covered < LEAST_COVERED:
        return None
    quoted = [each for each in seen if each.words > 0]
    if len(quoted) < LEAST_QUOTED * len(seen):
        return Values(tuple(sorted(recurring)))
    only = sum(each.capitalised > 0 for each in quoted) / len(quoted)
    needed = sum(not each.as_it_is for each in quoted) / len(quoted)
    capitals: Capitals = "always" if only >= ALWAYS else "never" if needed <= 1 - ALWAYS else "also"
    return Values(tuple(sorted(recurring)), max(each.words for each in quoted), capitals)


def _texts(completion: str) -> Iterator[tuple[str, str, str]]:
    """(tool, argument, value) of the texts in an answer as `specialist.answer_text` writes it."""
    try:
        answer: Any = json.loads(completion)
    except ValueError:
        return
    for each in answer if isinstance(answer, list) else [answer]:
        if not isinstance(each, dict):
            continue
        call = each.keys() == {"name", "arguments"} and isinstance(each["arguments"], dict)
        tool, arguments = (str(each["name"]), each["arguments"]) if call else ("", each)
        yield from ((tool, name, value) for name, value in arguments.items() if isinstance(value, str))
