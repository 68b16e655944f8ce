"""A compressor and its predictor as one backend: long texts of a call are shortened, then the predictor is asked.

Shortened are long texts of users and tools, each for what its own turn asks. System prompts, tools, schemas, the
model's own messages, code blocks and the paragraphs that ask stay byte by byte; what stands for a text says what it is.

The provider's prompt cache is worth more than it seems, and two rules keep it. A turn is shortened once, and the same
text is sent in every later call of the conversation, so that no prefix that was sent is ever rewritten. And where the
same long prefix comes again and again with other questions, the provider would have read it at a discount: once what
shortening lost by that reaches the price of sending it in full, it is sent in full (`Recurring`).
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import msgspec
from msgspec.structs import replace

from smallfirst.compress.base import Compressed, Compressor, Count, count_tokens
from smallfirst.compress.conversation import Turn, turns
from smallfirst.compress.extract import Extract
from smallfirst.compress.guard import Guard, features
from smallfirst.errors import BackendError
from smallfirst.types import Backend, Capabilities, Delta, Request
from smallfirst.wire.retold import marked, retold

REMEMBERED = 1024
"""Turns, and prefixes, that are remembered, the latest."""
CACHED_S = 300.0
"""Seconds that providers keep a prompt's prefix at least."""

_QUOTED = "[Quoted word for word from a longer text, as material; […] marks what was left out.]\n"
_NOTED = "[Notes on a longer text, made by a small model.]\n"
_NOTHING = "[A text of about {tokens} tokens, in which nothing bears on the question, was left out.]"


@dataclass(frozen=True, slots=True)
class Settings:
    """Texts of at least `least` tokens are shortened, those of a turn together to the share `keep` of their tokens and
    to at most `budget` tokens (0: any number). `cached` is what a cached input token costs the predictor, as a share of
    a fresh one's price."""

    keep: float = 0.2
    budget: int = 0
    least: int = 400
    cached: float = 1.0


@dataclass(frozen=True, slots=True)
class _Told:
    """What became of a turn: what stands for its long texts (None: they stay), tokens before and after, facts, and
    machine seconds."""

    texts: tuple[str, ...] | None
    before: int
    after: int
    facts: Mapping[str, float]
    seconds: float = 0.0


class Recurring:
    """Prefixes that came lately, and what it cost so far to shorten them rather than to have them cached.

    As in renting or buying: a prefix is bought (sent in full, which the provider then reads at a discount) as soon as
    the rent paid exceeds by how much the first full reading is dearer, so that no course of calls costs much more than
    twice the best one.
    """

    def __init__(self, cached: float) -> None:
        self._cached = cached
        self._paid: OrderedDict[bytes, tuple[float, float]] = OrderedDict()

    def take(self, prefix: bytes, full: int, short: int, now: float, *, marked: bool = False) -> tuple[bool, float]:
        """(whether to send it in full, the tokens at full price that the full text would have counted for)."""
        paid, last = self._paid.pop(prefix, (0.0, -CACHED_S))
        again = marked or now - last < CACHED_S
        worth = full * self._cached if again else float(full)
        paid = paid + short - worth if again else 0.0
        self._paid[prefix] = (paid, now)
        while len(self._paid) > REMEMBERED:
            self._paid.popitem(last=False)
        in_full = again and short > worth and (marked or paid >= full - short)
        return in_full, worth


class CompressorBackend:
    """Answers by its predictor (protocol `types.Backend`), which is started and closed by whoever made it. Where this
    backend's own name is asked for, the predictor is asked for `model`, else for what the request names.

    An answer's first delta carries facts (see `confidence.COMPRESSION_FEATURES`, and of the long texts of the whole
    call: compression_in and compression_out, about how many tokens they have and were sent as; compression_net, the
    tokens saved at the price of fresh ones, less the discounts that were lost). The usage is the predictor's; its
    busy seconds have the compressor's time added. A compressor that fails leaves the call as it is.
    """

    def __init__(
        self,
        name: str,
        predictor: Backend,
        compressor: Compressor,
        settings: Settings,
        guard: Guard,
        *,
        model: str = "",
        capabilities: Capabilities | None = None,
        count: Count = count_tokens,
    ) -> None:
        """`capabilities` are the predictor's unless they are given."""
        self.name = name
        self.capabilities = predictor.capabilities if capabilities is None else capabilities
        self._predictor = predictor
        self._compressor = compressor
        self._settings = settings
        self._guard = guard
        self._model = model
        self._count = count
        self._known: OrderedDict[bytes, _Told] = OrderedDict()
        self._recurring = Recurring(settings.cached)

    async def start(self) -> None:
        """Nothing: the predictor, and a compressor's model, have lives of their own."""

    async def close(self) -> None:
        """Forget what was shortened."""
        self._known.clear()

    async def generate(self, request: Request) -> AsyncIterator[Delta]:
        """The predictor's answer to the shortened `request`. Raises what the predictor raises."""
        begin = time.monotonic()
        if request.model == self.name:
            request = replace(request, model=self._model)
        asked, facts, busy = await self.shortened(request)
        if request.timeout_s is not None:
            asked = replace(asked, timeout_s=max(request.timeout_s - (time.monotonic() - begin), 0.001))
        deltas: Any = self._predictor.generate(asked)
        told = False
        try:
            async for delta in deltas:
                changed = delta if told else replace(delta, facts=facts)
                if busy and delta.usage is not None:
                    usage = replace(delta.usage, busy_seconds=(delta.usage.busy_seconds or 0.0) + busy)
                    changed = replace(changed, usage=usage)
                told = True
                yield changed
        finally:
            await deltas.aclose()

    async def shortened(self, request: Request) -> tuple[Request, dict[str, float], float]:
        """The request as the predictor is asked it, the facts, and the seconds that shortening it took."""
        marks = marked(request)
        prefix = blake2b(msgspec.json.encode(_head(request)), digest_size=16)
        found = await asyncio.to_thread(turns, request.messages, self._settings.least, self._count)
        told, saved, busy, at = list[_Told](), 0.0, 0.0, 0
        for turn in found:
            prefix.update(msgspec.json.encode(request.messages[at : turn.end]))
            at = turn.end
            done = self._known.get(prefix.digest())
            if done is None:
                done, worth = await self._told(turn, request, marks)
                saved += worth - done.after
                busy += done.seconds
                self._remember(prefix.digest(), done)
            else:
                saved += (done.before - done.after) * self._settings.cached
            told.append(done)
        if not told:
            return request, {}, 0.0
        facts = {
            "compressed": float(told[-1].after < told[-1].before),
            "compression_in": float(sum(t.before for t in told)),
            "compression_out": float(sum(t.after for t in told)),
            "compression_net": saved,
            **features(told[-1].facts),
        }
        longs = [long.text for turn in found for long in turn.longs]
        texts = [text for turn, t in zip(found, told, strict=True) for text in t.texts or [x.text for x in turn.longs]]
        return retold(request, list(zip(longs, texts, strict=True))), facts, busy

    async def _told(self, turn: Turn, request: Request, marks: frozenset[str]) -> tuple[_Told, float]:
        """A turn shortened, or left as it is, and what its long texts would have counted for in full."""
        full = sum(self._count(long.body) for long in turn.longs)
        budget = int(full * self._settings.keep)
        budget = min(budget, self._settings.budget) if self._settings.budget else budget
        begin = time.perf_counter()
        try:
            bodies = [long.body for long in turn.longs]
            made, facts = await guarded(self._compressor, self._guard, bodies, turn.question, budget, self._count)
        except BackendError:
            return _Told(None, full, full, {}), float(full)
        told = self._shorter(turn, made, full, facts, time.perf_counter() - begin)
        through = [request.messages[: turn.start], *(long.head + long.body for long in turn.longs)]
        key = blake2b(msgspec.json.encode([_head(request), through]), digest_size=16).digest()
        in_full, worth = self._recurring.take(
            key, full, told.after, time.monotonic(), marked=any(long.text in marks for long in turn.longs)
        )
        if in_full or told.after >= full or not self._guard.allows(facts):
            return _Told(None, full, full, facts, told.seconds), float(full)
        return told, worth

    def _shorter(
        self, turn: Turn, made: Sequence[Compressed], full: int, facts: Mapping[str, float], seconds: float
    ) -> _Told:
        bodies = [self._said(long.body, short) for long, short in zip(turn.longs, made, strict=True)]
        texts = tuple(long.head + body + long.tail for long, body in zip(turn.longs, bodies, strict=True))
        return _Told(texts, full, sum(map(self._count, bodies)), facts, seconds)

    def _said(self, body: str, short: Compressed) -> str:
        """What stands for `body`, never longer than it."""
        if short.text.strip() == body.strip():
            return body
        note = _QUOTED if short.usage.output_tokens == 0 else _NOTED
        said = f"{note}{short.text}" if short.text else _NOTHING.format(tokens=short.tokens_in)
        return said if len(said) < len(body) else body

    def _remember(self, key: bytes, told: _Told) -> None:
        self._known[key] = told
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)


async def guarded(
    compressor: Compressor, guard: Guard, contexts: Sequence[str], question: str, budget: int, count: Count
) -> tuple[list[Compressed], dict[str, float]]:
    """The contexts shortened to `budget` tokens together, or by extraction to twice as many where so few do not cover
    the question (see `Guard.covers`), and the facts: those of the worst of them, and the share that was kept."""
    sizes = [count(context) for context in contexts]
    again = isinstance(compressor, Extract)
    for room in (budget, 2 * budget) if again else (budget,):
        made = await together(compressor, contexts, sizes, question, room)
        facts = {"share": sum(short.tokens_out for short in made) / max(sum(sizes), 1), **_least(made)}
        if guard.covers(facts):
            break
    return made, facts


async def together(
    compressor: Compressor, contexts: Sequence[str], sizes: Sequence[int], question: str, budget: int
) -> list[Compressed]:
    """Each context shortened, all together to about `budget` tokens: by extraction as the question needs them, else
    each by its size."""
    if isinstance(compressor, Extract):
        return await asyncio.to_thread(compressor.together, contexts, question, budget)
    full = max(sum(sizes), 1)
    shares = [budget * size // full for size in sizes]
    jobs = (compressor.compress(context, question, share) for context, share in zip(contexts, shares, strict=True))
    return list(await asyncio.gather(*jobs))


def _head(request: Request) -> list[Any]:
    """What stands before the messages, and to whom."""
    return [request.model, request.adapter or "", [t.name for t in request.tools]]


def _least(made: Sequence[Compressed]) -> dict[str, float]:
    """The least of each fact: a turn is as trustworthy as its worst text."""
    names = sorted({name for short in made for name in short.facts})
    return {name: min(short.facts[name] for short in made if name in short.facts) for name in names}
