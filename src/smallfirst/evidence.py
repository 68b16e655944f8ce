"""What the request's own text says for or against an answer, without asking any model.

Small models go wrong in ways that leave traces: a tool is called though nothing in it is about what was asked, an
argument's value stands nowhere in the conversation, a number that was given is used nowhere. `evidence` counts such
traces; what they are worth is for the calibrator to learn. Words are compared by crude stems, Chinese and Japanese by
pairs of characters; nothing here depends on a language's grammar.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Generic, Literal, TypeVar

from smallfirst.schemas import JsonTextError, canonical_json, parse_json
from smallfirst.types import Choice, Json, Request, Tool

T = TypeVar("T")

MAX_CHARS = 8_000
"""Of the conversation the last so many characters are looked at."""

Kind = Literal["count", "value"]

REQUEST_FEATURES: Mapping[str, Kind] = {
    "words": "count",
    "numbers": "count",
    "questions": "count",
    "tools_about": "value",
    "tools_named": "value",
}
ANSWER_FEATURES: Mapping[str, Kind] = {
    "calls": "count",
    "repeated_calls": "count",
    "tools_used_share": "value",
    "arguments": "count",
    "optional_arguments": "count",
    "optional_left": "count",
    "optional_left_named": "count",
    "unknown_arguments": "count",
    "inexact_numbers": "count",
    "texts": "count",
    "lists": "count",
    "grounded_min": "value",
    "grounded_mean": "value",
    "optional_grounded_min": "value",
    "ungrounded": "count",
    "name_about": "value",
    "description_about": "value",
    "text_about": "value",
    "uncovered": "count",
    "uncovered_share": "value",
    "unused_numbers": "count",
    "unused_numbers_share": "value",
    "uncalled_about": "value",
}

_WORD = re.compile(r"[^\W\d_]+|\d+(?:\.\d+)?")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_WIDE = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}\b)")
_SUFFIXES = ("ing", "ed", "es", "s", "e")
_EMPTY = frozenset(
    """a an the of in on at to for and or is are was were be been by with from as it its this that these those what
    which who how many much i you he she we they me my your his her our their can could would will shall should may
    please do does did has have had not no if then than so up out about into over find get give tell use using want
    need""".split()
)
_SPELLED = dict(
    zip("zero one two three four five six seven eight nine ten".split(), map(float, range(11)), strict=True)
)


@dataclass(frozen=True, slots=True)
class _Text:
    """A text prepared for looking things up in it: folded, its stems, those that are no numbers, and the numbers."""

    folded: str
    stems: frozenset[str]
    asked: frozenset[str]
    numbers: frozenset[float]
    questions: int


def request_evidence(request: Request) -> dict[str, float]:
    """Features of the conversation (its last `MAX_CHARS` characters): words (different ones), numbers, questions; with
    tools also tools_named and tools_about: the greatest share of a tool's words, in its name or in all that is said of
    it, that the text has."""
    text = _conversation(request)
    found = {
        "words": float(len(text.stems)),
        "numbers": float(len(text.numbers)),
        "questions": float(text.questions),
    }
    if tools := request.callable_tools:
        said = [_said(tool) for tool in tools.values()]
        found["tools_named"] = max(_share(each.name, text.stems) for each in said)
        found["tools_about"] = max(_share(each.text, text.stems) for each in said)
    return found


def answer_evidence(request: Request, choice: Choice) -> dict[str, float]:
    """Features of `choice` against the text of `request`'s conversation.

    Over all of its calls: calls, repeated_calls, arguments, optional_arguments (given), optional_left (not given),
    optional_left_named (not given though the text has the words of its name), unknown_arguments (in no schema),
    inexact_numbers (integers in a list whose schema says "number", which some executors refuse), texts and lists (of
    the arguments' values). Grounding, for an argument 1 when its value stands in the text, else the share of its words
    that do: grounded_min and grounded_mean over required arguments, optional_grounded_min, ungrounded (how many are
    below 0.5). Aboutness: name_about, description_about and text_about (share of the called tool's words, in its name,
    its description or all that is said of it, that the text has; the least over calls), uncovered and uncovered_share
    (content words of the text found neither in what is said of the called tools nor in the arguments), unused_numbers
    and unused_numbers_share, tools_used_share.

    An answer that calls nothing though it might has calls 0 and uncalled_about: the greatest name_about of the tools.
    Without tools there are only grounded_min and grounded_mean, over the values of an answer that is JSON.
    """
    asked = Same(request, request.messages, request.tools, request.tool_choice)
    return dict(_of_answer(asked, tuple((call.name, call.arguments) for call in choice.tool_calls), choice.text))


@lru_cache(maxsize=8)  # each entry keeps a whole request; models that are compared often give the very same answer
def _of_answer(asked: Same[Request], said: tuple[tuple[str, str], ...], answer: str) -> Mapping[str, float]:
    text = _conversation(asked.value)
    tools = asked.value.callable_tools
    if not tools:
        return _grounded_answer(answer, text)
    found = {"calls": float(len(said))}
    if not said:
        return found | {"uncalled_about": max(_share(_said(tool).name, text.stems) for tool in tools.values())}
    calls = [(tools.get(name), _arguments(arguments)) for name, arguments in said]
    different = {canonical_json([t.name if t else "", a]) for t, a in calls} if len(calls) > 1 else calls
    found["repeated_calls"] = float(len(calls) - len(different))
    found["tools_used_share"] = len({tool.name for tool, _ in calls if tool}) / len(tools)
    return found | _of_arguments(calls, text) | _aboutness(calls, text)


def _of_arguments(calls: Sequence[tuple[Tool | None, Json]], text: _Text) -> dict[str, float]:
    """Counts of arguments and how well their values are grounded in the text."""
    required, optional = list[float](), list[float]()
    left = left_named = unknown = inexact = texts = lists = 0
    for tool, arguments in calls:
        said = _said(tool) if tool else None
        if said is None:
            unknown += 1 + len(arguments)
            continue
        for name, value in arguments.items():
            if name not in said.properties:
                unknown += 1
                continue
            grounds = _grounded(value, text, listed="enum" in said.properties[name])
            (required if name in said.required else optional).append(grounds)
            inexact += _inexact(value, said.properties[name])
            texts += isinstance(value, str)
            lists += isinstance(value, list)
        absent = said.properties.keys() - said.required - arguments.keys()
        left += len(absent)
        left_named += sum(bool(said.arguments[name]) and said.arguments[name] <= text.stems for name in absent)
    found = {
        "arguments": float(len(required) + len(optional)),
        "optional_arguments": float(len(optional)),
        "optional_left": float(left),
        "optional_left_named": float(left_named),
        "unknown_arguments": float(unknown),
        "inexact_numbers": float(inexact),
        "texts": float(texts),
        "lists": float(lists),
        "ungrounded": float(sum(each < 0.5 for each in (*required, *optional))),
    }
    if required:
        found |= {"grounded_min": min(required), "grounded_mean": sum(required) / len(required)}
    if optional:
        found["optional_grounded_min"] = min(optional)
    return found


def _aboutness(calls: Sequence[tuple[Tool | None, Json]], text: _Text) -> dict[str, float]:
    """Whether the called tools are about what was asked, and whether all that was asked is in the calls."""
    said = [_said(tool) for tool, _ in calls if tool]
    words = _words(" ".join(str(leaf) for _, arguments in calls for leaf in _leaves(arguments)))
    covered = _stems_of(words).union(*(each.text for each in said))
    uncovered = len(text.asked - covered)
    unused = len(text.numbers - _numbers(words))
    return {
        "name_about": min((_share(each.name, text.stems) for each in said), default=0.0),
        "description_about": min((_share(each.description, text.stems) for each in said), default=0.0),
        "text_about": min((_share(each.text, text.stems) for each in said), default=0.0),
        "uncovered": float(uncovered),
        "uncovered_share": uncovered / max(len(text.asked), 1),
        "unused_numbers": float(unused),
        "unused_numbers_share": unused / max(len(text.numbers), 1),
    }


def _grounded_answer(answer: str, text: _Text) -> dict[str, float]:
    """How well the values of an answer that is JSON are grounded."""
    try:
        value = parse_json(answer)
    except JsonTextError:
        return {}
    grounds = [_grounded(leaf, text, listed=False) for leaf in _leaves(value)]
    return {"grounded_min": min(grounds), "grounded_mean": sum(grounds) / len(grounds)} if grounds else {}


@dataclass(frozen=True, slots=True)
class _Said:
    """What a tool says of itself, as stems: in its name, its description, all its texts, the name of each argument."""

    name: frozenset[str]
    description: frozenset[str]
    text: frozenset[str]
    properties: Json
    chars: int
    required: frozenset[str]
    arguments: dict[str, frozenset[str]]


class Same(Generic[T]):
    """A key that carries `value` and is equal for the very same `parts` only, so that looking it up reads none of
    them. It keeps them, so that their identity stays theirs."""

    __slots__ = ("_ids", "_parts", "value")

    def __init__(self, value: T, *parts: object) -> None:
        self.value, self._parts = value, parts
        self._ids = tuple(map(id, parts))

    def __hash__(self) -> int:
        return hash(self._ids)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self._ids == other._ids


class _SameTool:
    """The same for one tool, looked up ten times for an answer and so leaner."""

    __slots__ = ("tool",)

    def __init__(self, tool: Tool) -> None:
        self.tool = tool

    def __hash__(self) -> int:
        return id(self.tool)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _SameTool) and self.tool is other.tool


def _said(tool: Tool) -> _Said:
    return _said_of(_SameTool(tool))


@lru_cache(maxsize=256)
def _said_of(same: _SameTool) -> _Said:
    tool = same.tool
    return _said_by(tool.name, tool.description, canonical_json(tool.parameters))


@lru_cache(maxsize=1024)
def _said_by(name: str, description: str, parameters: str) -> _Said:
    schema = json.loads(parameters)
    properties = {key: sub if isinstance(sub, dict) else {} for key, sub in schema.get("properties", {}).items()}
    texts = [name, description]
    for key, sub in properties.items():
        texts += [key, str(sub.get("description", "")), *map(str, sub.get("enum", ()))]
    return _Said(
        name=_stems(name),
        description=_stems(description),
        text=_stems(" ".join(texts)),
        properties=properties,
        chars=len(parameters),
        required=frozenset(schema.get("required", ())),
        arguments={key: _stems(key) for key in properties},
    )


def _conversation(request: Request) -> _Text:
    """What was said: the texts of all messages but the system's and the assistant's own, the last of them first cut."""
    texts = [
        t
        for m in request.messages
        if m.get("role") not in {"system", "developer", "assistant"}
        for t in message_texts(m)
    ]
    return _known_text("\n".join(texts)[-MAX_CHARS:])


@lru_cache(maxsize=64)
def _known_text(text: str) -> _Text:
    return _prepared(text)


def _prepared(text: str) -> _Text:
    words = _words(text)
    stems = _stems_of(words)
    asked = frozenset(stem for stem in stems if not stem[0].isdecimal())
    return _Text(text.casefold(), stems, asked, _numbers(words), text.count("?") + text.count("？"))


def _stems(text: str) -> frozenset[str]:
    """Content words by crude stems; runs of wide characters by their pairs."""
    return _stems_of(_words(text))


def terms(text: str) -> list[str]:
    """The content words of `text` in order, by crude stems; of runs of wide characters, their pairs."""
    return [stem for word in _words(text) for stem in sorted(_word_stems(word))]


def _words(text: str) -> list[str]:
    return _WORD.findall(_CAMEL.sub(" ", _THOUSANDS.sub("", text)).lower())


def _numbers(words: Iterable[str]) -> frozenset[float]:
    return frozenset(
        float(word) if word[0].isdecimal() else _SPELLED[word]
        for word in words
        if word[0].isdecimal() or word in _SPELLED
    )


def _stems_of(words: Iterable[str]) -> frozenset[str]:
    return frozenset().union(*map(_word_stems, words))


@lru_cache(maxsize=16384)
def _word_stems(word: str) -> frozenset[str]:
    if _WIDE.match(word):
        return frozenset(word[i : i + 2] for i in range(max(len(word) - 1, 1)))
    counts = (word not in _EMPTY and len(word) > 1) or word.isdigit()
    return frozenset((_stem(word),)) if counts else frozenset()


def _stem(word: str) -> str:
    for suffix in _SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= 3:
            return word[: -len(suffix)]
    return word


def _grounded(value: Any, text: _Text, *, listed: bool) -> float:
    """How much of an argument's value the text has: the least over its leaves. A member of an enum counts half."""
    grounds = [_leaf_grounded(leaf, text) for leaf in _leaves(value)]
    least = min(grounds, default=0.0)
    return max(least, 0.5) if listed else least


def _leaf_grounded(leaf: Any, text: _Text) -> float:
    if isinstance(leaf, bool):
        return 0.5
    if isinstance(leaf, int | float):
        size = abs(leaf)
        return float(size in text.numbers or (size < 1e9 and any(abs(size - n / 100) < 1e-9 for n in text.numbers)))
    folded = str(leaf).casefold().strip() if leaf is not None else ""
    if folded and folded in text.folded:
        return 1.0
    stems = _stems(folded)
    return 0.9 * _share(stems, text.stems)


def _share(some: frozenset[str], of: frozenset[str]) -> float:
    return len(some & of) / len(some) if some else 0.0


def _inexact(value: Any, schema: Json) -> bool:
    items = schema.get("items")
    numbers = isinstance(items, dict) and items.get("type") == "number" and isinstance(value, list)
    return numbers and any(isinstance(item, int) for item in value)


def _arguments(text: str) -> Json:
    try:
        value = parse_json(text)
    except JsonTextError:
        return {}
    return value if isinstance(value, dict) else {}


def _leaves(value: Any) -> Iterator[Any]:
    stack = [value]
    while stack:
        node = stack.pop()
        children: Iterable[Any] | None = None
        if isinstance(node, dict):
            children = node.values()
        elif isinstance(node, list):
            children = node
        if children is None:
            yield node
        else:
            stack.extend(children)


def schema_chars(tool: Tool) -> int:
    """The length of the canonical JSON of a tool's parameters."""
    return _said(tool).chars


def message_texts(message: Json) -> Iterator[str]:
    """The texts of a chat message's content."""
    content = message.get("content")
    if isinstance(content, str):
        yield content
    for part in content if isinstance(content, list) else ():
        if isinstance(part, dict) and isinstance(part.get("text"), str):
            yield part["text"]
