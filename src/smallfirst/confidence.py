"""What is recorded of an answer so that its correctness can be predicted (mechanisms, section 2).

`features` looks at the tokens that carry *values* (arguments of calls, enum members, the function's name), and apart
from these at the *form*, keys and punctuation: whether a value ends, and whether another argument follows. A grammar
makes the form valid, but log-probabilities are the model's own, so they tell what it would rather have said
(`pressure`). What the request's text says of the answer is `evidence`'s, what
other answers say `agreement`'s. Calibrating the features into P(correct) is `calibration`'s.
"""

from __future__ import annotations

import json
import math
import re
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any, Literal

from msgspec import Struct

from smallfirst import agreement, evidence
from smallfirst.evidence import Kind, Same, message_texts
from smallfirst.schemas import JsonTextError, canonical_json, parse_json
from smallfirst.types import Choice, Completion, Request, TokenLogprob, ToolCall, Verdict

Path = tuple[str | int, ...]

_TOKEN = re.compile(r'[ \t\n\r]*("(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*|true|false|null|[{}\[\],:])', re.DOTALL)
_BRACKET = re.compile(r"[{\[]")
_MAX_TRIES = 64


class Span(Struct, frozen=True):
    """Characters [start, end) of a text: a key, or a leaf value (a scalar, quotes included, or an empty container)."""

    path: Path
    kind: Literal["key", "value"]
    start: int
    end: int


def json_spans(raw: str, start: int = 0) -> Iterator[Span]:
    """Keys and leaf values, in order, of the JSON value that is known to begin at `start`."""
    path: list[str | int] = []
    key_next, at = False, start
    while match := _TOKEN.match(raw, at):
        lexeme, begin, at = match.group(1), match.start(1), match.end()
        if lexeme in "{[":
            closing = _TOKEN.match(raw, at)
            if closing and closing.group(1) in "}]":
                at = closing.end()
                yield Span(tuple(path), "value", begin, at)
            else:
                path.append("" if lexeme == "{" else 0)
                key_next = lexeme == "{"
                continue
        elif lexeme in "}]":
            path.pop()
        elif lexeme in ",:":
            last = path[-1]
            key_next = lexeme == "," and isinstance(last, str)
            path[-1] = last + 1 if isinstance(last, int) else last
            continue
        elif key_next:
            path[-1] = json.loads(lexeme)
            yield Span(tuple(path), "key", begin, at)
            continue
        else:
            yield Span(tuple(path), "value", begin, at)
        if not path:
            return


REQUEST_FEATURES: Mapping[str, Kind] = {
    "tools": "count",
    "schema_chars": "count",
    "prompt_chars": "count",
    **evidence.REQUEST_FEATURES,
}
"""What is known before any model is asked."""

COMPRESSION_FEATURES: Mapping[str, Kind] = {
    "compressed": "value",
    "compression_share": "value",
    "compression_found": "value",
    "compression_coverage": "value",
    "compression_mass": "value",
    "compression_margin": "value",
    "compression_confidence": "value",
    "compression_grounded": "value",
}
"""Of an answer from a shortened context: whether the last long texts were shortened, to which share of their tokens,
and what says how much was kept (`compress.guard`). Backends tell them (`Completion.facts`); absent elsewhere."""

TOKEN_FEATURES: Mapping[str, Kind] = {
    "value_tokens": "count",
    "margin_mean": "value",
    "margin_min": "value",
    "margin_p10": "value",
    "logprob_sum": "value",
    "logprob_mean": "value",
    "form_margin_mean": "value",
    "form_margin_min": "value",
    "form_logprob_sum": "value",
    "pressure_sum": "value",
    "pressure_max": "value",
    "decision_entropy": "value",
}
"""From log-probabilities; absent without them."""

FEATURES: Mapping[str, Kind] = {
    **REQUEST_FEATURES,
    **COMPRESSION_FEATURES,
    "repairs": "count",
    "violations": "count",
    "mended": "value",
    "constrained": "value",
    "no_call": "value",
    **evidence.ANSWER_FEATURES,
    **agreement.FEATURES,
    **TOKEN_FEATURES,
}
"""Every feature there is, and whether it is a count (differences matter less the larger it is)."""


def features(
    request: Request,
    completion: Completion,
    verdict: Verdict,
    repairs: int = 0,
    *,
    mended: bool = False,
    others: Sequence[Completion] = (),
) -> dict[str, float]:
    """Features of the first choice. What cannot be known is absent, never 0.

    `request_features`, `evidence.answer_evidence`, and `agreement.agreement` with the first choices of `others`. Of the
    attempt: repairs, violations, mended (1 when its calls were put right without a model), constrained (1 when the
    backend was told a schema to hold decoding to, else 0), no_call (1 when tools were offered and none was called, else
    0; absent without tools).

    From log-probabilities, over the value tokens: value_tokens (their number), margin_mean, margin_min, margin_p10
    (see `margin`; tokens without one are left out), logprob_sum and logprob_mean (natural logs). Over the other tokens:
    form_margin_mean, form_margin_min, form_logprob_sum. Over all: pressure_sum and pressure_max (see `pressure`).
    decision_entropy: `entropy` of the token that decides which tool is called (the first of the first call's name) or,
    when none is, of the first token that is not blank.
    """
    choice = completion.choices[0] if completion.choices else Choice()
    tools = request.callable_tools
    found = request_features(request)
    found |= {
        "repairs": float(repairs),
        "violations": float(len(verdict.violations)),
        "mended": float(mended),
        "constrained": float(request.constraint is not None),
    }
    if tools:
        found["no_call"] = float(not choice.tool_calls)
    found |= evidence.answer_evidence(request, choice)
    found |= agreement.agreement(request, choice, [other.choices[0] for other in others if other.choices])
    if choice.logprobs:
        found |= _token_features(choice, decides=bool(tools))
    return found | dict(completion.facts)


def request_features(request: Request) -> dict[str, float]:
    """Features of the request alone: tools (callable ones), schema_chars (canonical JSON of their and the answer's
    schemas), prompt_chars (texts of the messages), and `evidence.request_evidence`."""
    same = Same(request, request.messages, request.tools, request.tool_choice, request.response_format)
    return dict(_features_of(same))


@lru_cache(maxsize=8)  # each entry keeps a whole request
def _features_of(asked: Same[Request]) -> Mapping[str, float]:
    request = asked.value
    tools = request.callable_tools
    schema = request.response_format.schema
    chars = sum(map(evidence.schema_chars, tools.values())) + (0 if schema is None else len(canonical_json(schema)))
    return {
        "tools": float(len(tools)),
        "schema_chars": float(chars),
        "prompt_chars": float(sum(len(text) for message in request.messages for text in message_texts(message))),
        **evidence.request_evidence(request),
    }


def margin(token: TokenLogprob) -> float | None:
    """u = p(token) - p(likeliest other token), in [-1, 1].

    That is p1 - p2 when the sampled token is the likeliest, and negative when it is not (sampling or a grammar took
    another than the model preferred). None when fewer than two alternatives were returned: p2 is then unknown.
    """
    if len(token.top) < 2:
        return None
    others = [logprob for text, logprob in token.top if text != token.token]
    return math.exp(token.logprob) - math.exp(max(others)) if others else None


def pressure(token: TokenLogprob) -> float:
    """The mass of the returned alternatives that were likelier than the token taken, in [0, 1).

    Of a greedy answer that is mass which a grammar took away, from below: alternatives that were not returned, or are
    less likely, may have been taken away as well.
    """
    return math.fsum(math.exp(logprob) for text, logprob in token.top if logprob > token.logprob)


def entropy(token: TokenLogprob) -> float | None:
    """Entropy in nats of the returned alternatives (and the sampled token, if it is not among them).

    The mass that was not returned counts as one more outcome, so this is a lower bound. None without alternatives.
    """
    if not token.top:
        return None
    masses = [math.exp(logprob) for logprob in dict([(token.token, token.logprob), *token.top]).values()]
    masses.append(1 - sum(masses))
    return -sum(p * math.log(p) for p in masses if p > 0)


def value_tokens(choice: Choice) -> tuple[TokenLogprob, ...]:
    """The tokens that overlap a value of the answer by at least one character that is not a quote, in order.

    Values are found in the generated text (the tokens, joined) through the parsed answer: the arguments and the name
    of every tool call, or every value of a text that is JSON. Empty when they cannot be found.
    """
    raw = "".join(token.token for token in choice.logprobs)
    return tuple(choice.logprobs[i] for i in _overlapping(choice, raw, _value_spans(choice, raw)))


def _token_features(choice: Choice, *, decides: bool) -> dict[str, float]:
    raw = "".join(token.token for token in choice.logprobs)
    spans = _value_spans(choice, raw)
    places = _overlapping(choice, raw, spans)
    tokens = [choice.logprobs[i] for i in places]
    found = {"value_tokens": float(len(tokens))} if spans else {}
    if margins := _margins(tokens):
        mean = math.fsum(margins) / len(margins)
        found |= {"margin_mean": mean, "margin_min": min(margins), "margin_p10": _quantile(margins, 0.1)}
    if tokens:
        total = math.fsum(token.logprob for token in tokens)
        found |= {"logprob_sum": total, "logprob_mean": total / len(tokens)}
        found |= _form_features(choice, set(places))
    decision = _decision_token(choice, raw, spans) if decides else None
    uncertainty = entropy(decision) if decision else None
    return found if uncertainty is None else found | {"decision_entropy": uncertainty}


def _form_features(choice: Choice, values: Collection[int]) -> dict[str, float]:
    """Of an answer with values at those places; tokens without a text end the turn and say nothing."""
    spoken = [(i, token) for i, token in enumerate(choice.logprobs) if token.token]
    form = [token for i, token in spoken if i not in values]
    found = {"form_logprob_sum": math.fsum(token.logprob for token in form)}
    if margins := _margins(form):
        found |= {"form_margin_mean": math.fsum(margins) / len(margins), "form_margin_min": min(margins)}
    if any(token.top for _, token in spoken):
        taken = [pressure(token) for _, token in spoken]
        found |= {"pressure_sum": math.fsum(taken), "pressure_max": max(taken)}
    return found


def _margins(tokens: Iterable[TokenLogprob]) -> list[float]:
    return [u for token in tokens if (u := margin(token)) is not None]


def _quantile(values: Sequence[float], q: float) -> float:
    """The q-quantile, linear between order statistics (definition 7 of Hyndman and Fan 1996)."""
    ordered = sorted(values)
    below, part = divmod(q * (len(ordered) - 1), 1)
    left, right = ordered[int(below)], ordered[min(int(below) + 1, len(ordered) - 1)]
    return left + part * (right - left)


def _decision_token(choice: Choice, raw: str, spans: Sequence[tuple[int, int]]) -> TokenLogprob | None:
    if not choice.tool_calls:
        return next((token for token in choice.logprobs if token.token.strip()), None)
    named = [span for span in spans if raw[slice(*span)] == choice.tool_calls[0].name]
    tokens = _overlapping(choice, raw, named[:1])
    return choice.logprobs[tokens[0]] if tokens else None


def _overlapping(choice: Choice, raw: str, spans: Iterable[tuple[int, int]]) -> list[int]:
    """Indices of the tokens that share a character other than a quote with a span."""
    ends = list(accumulate(len(token.token) for token in choice.logprobs))
    found: set[int] = set()
    for start, end in spans:
        begin = start
        for index in range(bisect_right(ends, start), len(ends)):
            if raw[begin : min(end, ends[index])].strip('"'):
                found.add(index)
            begin = ends[index]
            if begin >= end:
                break
    return sorted(found)


def _value_spans(choice: Choice, raw: str) -> list[tuple[int, int]]:
    documents = list(_documents(raw))
    if choice.tool_calls:
        used: set[tuple[int, Path]] = set()
        spans: list[tuple[int, int]] = []
        for call in choice.tool_calls:
            spans += _call_spans(raw, documents, call, used)
        return spans
    try:
        answer = parse_json(choice.text)
    except JsonTextError:
        return []
    return next(
        (
            [(s.start, s.end) for s in json_spans(raw, start) if s.kind == "value"]
            for start, v in documents
            if v == answer
        ),
        [],
    )


def _documents(raw: str) -> Iterator[tuple[int, Any]]:
    """(start, value) of the JSON arrays and objects that stand in `raw`, outermost ones only."""
    decoder, at = json.JSONDecoder(), 0
    for _ in range(_MAX_TRIES):
        bracket = _BRACKET.search(raw, at)
        if bracket is None:
            return
        try:
            value, at = decoder.raw_decode(raw, bracket.start())
        except (ValueError, RecursionError):
            at = bracket.end()
        else:
            yield bracket.start(), value


def _call_spans(
    raw: str, documents: list[tuple[int, Any]], call: ToolCall, used: set[tuple[int, Path]]
) -> list[tuple[int, int]]:
    """The name and the values of one call; `used` are places that belong to earlier calls."""
    try:
        arguments = parse_json(call.arguments)
    except JsonTextError:
        return []
    places = [
        (_names(value, path, call.name), start, path)
        for start, value in documents
        for path, node in _objects(value, ())
        if node == arguments and (start, path) not in used
    ]
    if not places:
        return []
    name_path, start, path = next((place for place in places if place[0] is not None), places[0])
    used.add((start, path))
    spans = list(json_spans(raw, start))
    values = [(s.start, s.end) for s in spans if s.kind == "value" and s.path != path and s.path[: len(path)] == path]
    named = [
        (s.start + 1, s.end - 1) for s in spans if s.path == name_path and raw[s.start + 1 : s.end - 1] == call.name
    ]
    if not named:
        before = raw.rfind(call.name, 0, start)
        named = [(before, before + len(call.name))] if before >= 0 else []
    return named[:1] + values


def _objects(node: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    """Every object in `node` with its path, outermost first."""
    stack: list[tuple[Path, Any]] = [(path, node)]
    while stack:
        path, node = stack.pop()
        if isinstance(node, dict):
            yield path, node
        children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        stack.extend(reversed([((*path, key), child) for key, child in children]))


def _names(document: Any, path: Path, name: str) -> Path | None:
    """The path of the function's name beside or above the arguments at `path`: {"name": NAME, ...} or {NAME: ...}."""
    if not path:
        return None
    parent = document
    for step in path[:-1]:
        parent = parent[step]
    if path[-1] == name:
        return path
    beside = (key for key, value in parent.items() if value == name) if isinstance(parent, dict) else ()
    return next(((*path[:-1], key) for key in beside), None)
