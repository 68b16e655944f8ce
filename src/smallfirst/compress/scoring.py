"""Scorers: how likely a summary is after a context and a question, in nats.

`PromptScorer` asks a language model (see `tokens` and `native`), `LexicalScorer` counts words. What they cost is told
with the scores. `Cached` keeps scores in a file, so that a broken-off estimate goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import IO, Protocol

import msgspec

from smallfirst.compress.base import ModelShape
from smallfirst.compress.tokens import Continuation, TokenModel
from smallfirst.errors import DataError


@dataclass(frozen=True, slots=True)
class Ask:
    """A text whose probability is wanted, as an answer to `question`; without one, as what the context says."""

    question: str
    text: str


@dataclass(frozen=True, slots=True)
class Scored:
    """Log-probabilities of the texts asked for, in nats, and their tokens, in order. `read` is how many tokens were
    evaluated for them, `flops` the operations (0 without a model or its shape), `chunks` in how many pieces the context
    was read."""

    logprobs: tuple[float, ...]
    tokens: tuple[int, ...]
    read: int = 0
    flops: int = 0
    chunks: int = 1


class Scorer(Protocol):
    """log p(text | context, question). `name` tells it from others: scores under one name are the same scores."""

    @property
    def name(self) -> str: ...
    async def start(self) -> None: ...
    async def close(self) -> None: ...
    async def score(self, context: str, asks: Sequence[Ask]) -> Scored:
        """Scores everything that is asked of one context; an empty text has probability 1."""
        ...


@dataclass(frozen=True, slots=True)
class Template:
    """How a context and a question become a prompt: head context ask question tail text; no ask without a question.

    The three may hold a model's control words, which are read as such here and in no document.
    """

    head: str = ""
    ask: str = "\n\nQuestion: "
    tail: str = "\n\nIn short, what the text above says about it:\n"


class PromptScorer:
    """A language model as a scorer. The context comes before the question, so it is read once for all that is asked.

    A context that does not fit into the model's window with what is asked is cut into equal chunks, and the probability
    is the mean of those under each chunk. That is a probability too, so an estimate from it is still a lower bound; a
    text that draws on several chunks gets less than it would after the whole.
    """

    def __init__(self, model: TokenModel, template: Template | None = None) -> None:
        self._model, self._template = model, template or Template()

    @property
    def name(self) -> str:
        """With all that bears on the scores: the model, its window and the prompt."""
        told = hashlib.sha256(repr(self._template).encode()).hexdigest()[:8]
        return f"{self._model.name}, window {self._model.window}, prompt {told}"

    async def start(self) -> None:
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._model.close)
            await self._model.start()
            stack.pop_all()

    async def close(self) -> None:
        await self._model.close()

    async def score(self, context: str, asks: Sequence[Ask]) -> Scored:
        """Raises DataError when a text is longer than half of the window."""
        model, template = self._model, self._template
        head = [*model.begin, *await model.tokenize(template.head, special=True)]
        body = await model.tokenize(context, special=False)
        items = [await self._continuation(ask) for ask in asks]
        wanted = [item for item in items if len(item.tokens) > item.given]
        longest = max((len(item.tokens) for item in wanted), default=0)
        if 2 * longest > model.window:
            raise DataError(
                f"A text of {longest} tokens does not leave room for its context in {model.window}.",
                hint="Shorten the summaries, or take a scorer with a longer window.",
            )
        chunks = _chunks(body, model.window - longest - len(head))
        told = [await model.logprobs([*head, *chunk], wanted) for chunk in chunks] if wanted else []
        means = iter([_log_mean(column) for column in zip(*told, strict=True)])
        logprobs = tuple(next(means) if len(item.tokens) > item.given else 0.0 for item in items)
        tokens = tuple(len(item.tokens) - item.given for item in items)
        lengths = [len(head) + len(chunk) for chunk in chunks] if wanted else []
        read = sum(lengths) + len(lengths) * sum(len(item.tokens) for item in wanted)
        return Scored(logprobs, tokens, read, self._flops(lengths, wanted), len(chunks))

    async def _continuation(self, ask: Ask) -> Continuation:
        model, template = self._model, self._template
        given = list[int]()
        if ask.question:
            given += await model.tokenize(template.ask, special=True)
            given += await model.tokenize(ask.question, special=False)
        given += await model.tokenize(template.tail, special=True)
        text = await model.tokenize(ask.text, special=False)
        return Continuation((*given, *text), len(given))

    def _flops(self, lengths: Sequence[int], items: Sequence[Continuation]) -> int:
        shape: ModelShape | None = self._model.shape
        if shape is None:
            return 0
        behind = sum(shape.flops(len(item.tokens), length) for length in lengths for item in items)
        return sum(map(shape.flops, lengths)) + behind


def _chunks(tokens: list[int], room: int) -> list[list[int]]:
    """`tokens` in as few pieces of at most `room` as there can be, all about equally long."""
    count = max(1, math.ceil(len(tokens) / room))
    size = math.ceil(len(tokens) / count)
    return [tokens[start : start + size] for start in range(0, len(tokens), size)] or [[]]


def _log_mean(logs: Sequence[float]) -> float:
    top = max(logs)
    return top + math.log(sum(math.exp(value - top) for value in logs) / len(logs))


_TERM = re.compile(
    r"\d+|[^\W\d_\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+|[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\w\s]"
)
_VOCABULARY = 1 << 16


class LexicalScorer:
    """Counts words: a text is likely when it uses the context's words, likelier in the context's order.

    A term (word, number, ideograph, sign) has the probability of .6 in following the term before it in the context,
    .25 of the context's terms, .1 of the question's, and .05 of any of 2^16: a language model of copying, for any
    language, in microseconds. It knows no synonyms, so it suits texts that quote.
    """

    name = "lexical"

    async def start(self) -> None:
        """Nothing to start."""

    async def close(self) -> None:
        """Nothing to close."""

    async def score(self, context: str, asks: Sequence[Ask]) -> Scored:
        terms = _terms(context)
        single, double = Counter(terms), Counter(pairwise(terms))
        follows = Counter(terms[:-1])
        logprobs, lengths = [], []
        for ask in asks:
            asked, text = Counter(_terms(ask.question)), _terms(ask.text)
            total = 0.0
            for before, term in pairwise(("", *text)):
                chance = 0.05 / _VOCABULARY + 0.25 * single[term] / max(len(terms), 1)
                chance += 0.1 * asked[term] / max(asked.total(), 1)
                chance += 0.6 * double[before, term] / max(follows[before], 1)
                total += math.log(chance)
            logprobs.append(total)
            lengths.append(len(text))
        return Scored(tuple(logprobs), tuple(lengths), read=len(terms) + sum(lengths))


@lru_cache(maxsize=4096)
def _terms(text: str) -> tuple[str, ...]:
    return tuple(_TERM.findall(text.lower()))


class _Line(msgspec.Struct, frozen=True, array_like=True):
    """One score in the file: what was asked, nats, tokens, and chunks of the context."""

    key: str
    logprob: float
    tokens: int
    chunks: int


class Cached:
    """A scorer that keeps what `scorer` says in the file `path`, one line a score, and asks it for the rest only.

    Raises DataError for a file that holds anything else; a last line that is broken off is written over.
    """

    def __init__(self, scorer: Scorer, path: Path) -> None:
        self._scorer, self._path = scorer, path
        self._known: dict[str, _Line] = {}
        self._file: IO[bytes] | None = None

    @property
    def name(self) -> str:
        return self._scorer.name

    async def start(self) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.touch()
            raw = self._path.read_bytes()
        except OSError as error:
            raise DataError(f"Scores cannot be kept in {self._path}: {error}.", hint="Name another file.") from error
        whole = raw[: raw.rfind(b"\n") + 1]
        try:
            lines = [msgspec.json.decode(line, type=_Line) for line in whole.splitlines()]
        except msgspec.MsgspecError as error:
            raise DataError(
                f"{self._path} is no file of scores: {error}.", hint="Name another, or delete it."
            ) from error
        self._known = {line.key: line for line in lines}
        await self._scorer.start()
        self._file = self._path.open("r+b")
        self._file.seek(len(whole))
        self._file.truncate()

    async def close(self) -> None:
        if self._file is not None:
            self._file.close()
        await self._scorer.close()

    async def score(self, context: str, asks: Sequence[Ask]) -> Scored:
        assert self._file is not None, "start() first"
        of_context = hashlib.sha256(msgspec.json.encode([self.name, context])).digest()
        keys = [_key(of_context, ask) for ask in asks]
        missing = {key: ask for key, ask in zip(keys, asks, strict=True) if key not in self._known}
        fresh = await self._scorer.score(context, list(missing.values())) if missing else Scored((), ())
        for key, logprob, tokens in zip(missing, fresh.logprobs, fresh.tokens, strict=True):
            line = self._known[key] = _Line(key, logprob, tokens, fresh.chunks)
            self._file.write(msgspec.json.encode(line) + b"\n")
        self._file.flush()
        known = [self._known[key] for key in keys]
        chunks = max((line.chunks for line in known), default=1)
        return Scored(tuple(k.logprob for k in known), tuple(k.tokens for k in known), fresh.read, fresh.flops, chunks)


def _key(of_context: bytes, ask: Ask) -> str:
    return hashlib.blake2b(msgspec.json.encode([ask.question, ask.text]), key=of_context, digest_size=12).hexdigest()
