"""What a compressor is, and the ones that need no model: identity, empty, lead-k, random-k.

A compressor turns a context into a shorter text given the question that will be asked of it. Lengths are in `tokens`
of `count`: a stand-in that needs no tokenizer, or that of a model where a figure is about that model.
"""

from __future__ import annotations

import random
import re
from bisect import bisect_right
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Protocol

from smallfirst.types import TokenLogprob, Usage

Count = Callable[[str], int]
"""The number of tokens of a text."""

_WORD = re.compile(r"[^\W\d_\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]{1,6}|\d{1,3}|\s{2,}|\S")
_END = re.compile(r"(?<=[.!?])[\"')\]”’]*\s+|(?<=[。！？；])[”’」』）]*\s*|\n+")
"""Where a sentence ends; decimal points and dots inside words are followed by no space."""


def count_tokens(text: str) -> int:
    """About how many tokens a byte-pair tokenizer makes of `text`: pieces of words of at most six letters, of numbers
    of at most three digits, and each other character for itself, ideographs among them."""
    return sum(1 for _ in _WORD.finditer(text))


def sentences(text: str) -> list[str]:
    """`text` cut after its sentences and lines; the pieces joined are `text` again, and none is only white space."""
    starts: list[int] = []
    start, blank = 0, True  # blank: the last piece has only white space so far
    for end in (*(match.end() for match in _END.finditer(text)), len(text)):
        if end > start:
            said = not text[start:end].isspace()
            if not starts or (said and not blank):
                starts.append(start)
                blank = True
            blank = blank and not said
            start = end
    ends = [*starts[1:], len(text)]
    return [text[start:end] for start, end in zip(starts, ends, strict=True)] if text.strip() else []


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What the arithmetic of a transformer depends on: `parameters` that every token is multiplied with, `layers`, and
    the `width` of attention (heads x their size)."""

    parameters: int
    layers: int
    width: int

    def flops(self, tokens: int, before: int = 0) -> int:
        """Floating-point operations for `tokens` tokens, read or generated, behind `before` others.

        A token costs 2 P + 2 n_layer n_ctx d_attn (Kaplan et al. 2020, table 1; arXiv 2512.21720), where n_ctx counts
        the tokens that it attends to, itself among them.
        """
        attended = tokens * before + tokens * (tokens + 1) // 2
        return 2 * self.parameters * tokens + 2 * self.layers * self.width * attended


@dataclass(frozen=True, slots=True)
class Compressed:
    """A shortened context. `tokens_in` and `tokens_out` are lengths by the compressor's `count`; `usage` is what a
    model read and wrote for it, summed over its calls (all zero without a model); `logprobs` those of the text as it
    was generated, empty where it was not. `facts` say how far the text may be trusted (see `guard`); empty where the
    compressor cannot tell."""

    text: str
    tokens_in: int
    tokens_out: int
    usage: Usage = field(default_factory=Usage)
    seconds: float = 0.0
    logprobs: tuple[TokenLogprob, ...] = ()
    facts: Mapping[str, float] = field(default_factory=dict)


class Compressor(Protocol):
    """Shortens contexts. One instance serves many calls at once."""

    @property
    def name(self) -> str:
        """Tells it from others in a report: method and model, not the budget."""
        ...

    async def compress(self, context: str, question: str, budget: int, *, seed: int = 0) -> Compressed:
        """At most about `budget` tokens that say of `context` what `question` needs; one that does not shorten returns
        all. Another `seed` may give another text of the same quality; the same seed gives the same text.

        Raises errors of `smallfirst.errors.BackendError` only.
        """
        ...


def join(chosen: Collection[int], pieces: Sequence[str]) -> str:
    """The pieces at the positions `chosen`, in their order in the text, without white space around the whole."""
    return "".join(piece for i, piece in enumerate(pieces) if i in chosen).strip()


def within(order: Sequence[int], pieces: Sequence[str], budget: int, count: Count = count_tokens) -> list[int]:
    """The first of the positions `order` whose pieces have at most `budget` tokens together, at least one.

    A piece that does not fit is passed over, and the next is tried.
    """
    chosen: list[int] = []
    room = budget
    for i in order:
        tokens = count(pieces[i])
        if tokens <= room or not chosen:
            chosen.append(i)
            room -= tokens
    return chosen


@dataclass(frozen=True, slots=True)
class Identity:
    """Returns the context as it is: what no compressor can beat in information."""

    count: Count = count_tokens
    name: str = "identity"

    async def compress(self, context: str, question: str, budget: int, *, seed: int = 0) -> Compressed:
        del question, budget, seed
        tokens = self.count(context)
        return Compressed(context, tokens, tokens)


@dataclass(frozen=True, slots=True)
class Empty:
    """Returns nothing: what the predictor knows by itself."""

    count: Count = count_tokens
    name: str = "empty"

    async def compress(self, context: str, question: str, budget: int, *, seed: int = 0) -> Compressed:
        del question, budget, seed
        return Compressed("", self.count(context), 0)


@dataclass(frozen=True, slots=True)
class Lead:
    """Returns the first sentences."""

    count: Count = count_tokens
    name: str = "lead"

    async def compress(self, context: str, question: str, budget: int, *, seed: int = 0) -> Compressed:
        del question, seed
        pieces = sentences(context)
        ends = list(accumulate(map(self.count, pieces)))
        return selected(range(max(1, bisect_right(ends, budget))), pieces, context, self.count)


@dataclass(frozen=True, slots=True)
class Random:
    """Returns random sentences in their order; which ones depends on the seed and the context alone."""

    count: Count = count_tokens
    name: str = "random"

    async def compress(self, context: str, question: str, budget: int, *, seed: int = 0) -> Compressed:
        del question
        pieces = sentences(context)
        order = list(range(len(pieces)))
        random.Random(f"{seed} {context}").shuffle(order)
        return selected(within(order, pieces, budget, self.count), pieces, context, self.count)


def selected(chosen: Collection[int], pieces: Sequence[str], context: str, count: Count = count_tokens) -> Compressed:
    """The chosen pieces of `context`, verbatim, as what a compressor returns."""
    text = join(chosen, pieces)
    return Compressed(text, count(context), count(text))


DETERMINISTIC: dict[str, Compressor] = {c.name: c for c in (Identity(), Empty(), Lead(), Random())}
"""By name, the compressors that need nothing but the text."""
