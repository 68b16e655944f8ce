"""Stage: recorded calls without personal data. A `StoredRecord` goes in, a `ScrubbedRecord` comes out.

Identifiers and secrets are found by their written form (`pii.patterns`), names, addresses, organisations and places by
a tagger (`pii.tagger`), both within JSON escapes, percent-encoding and base64 (`pii.encodings`). What is found once in
a record is replaced everywhere in it (`pii.marks`), by surrogates that depend on the secret, the tenant, the episode
and the value (`pii.surrogates`). A string of the answer that stands word for word in the prompt does so afterwards. No
mapping is kept.

Tools and response formats are the application's, not a person's, and identify the task: identifiers, secrets and people
found in the record are replaced in their descriptions; names of tools and arguments stay, and so do enumerated values
and those that many episodes share (`pii.common`), here and in the answers, but for identifiers and secrets in them.
Images, audio and files cannot be checked and become a mark such as "[image_url]".
"""

from __future__ import annotations

import hmac
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import msgspec
from msgspec.structs import replace

from smallfirst.errors import ConfigError, DataError, StoreError
from smallfirst.learn.pii.encodings import Edit, plain, rewrite
from smallfirst.learn.pii.marks import Marks, Place, Tokens, tokens_of
from smallfirst.learn.pii.patterns import Finding, digits, structured
from smallfirst.learn.pii.surrogates import Surrogates
from smallfirst.learn.pii.tagger import Tagger
from smallfirst.store import StoredRecord
from smallfirst.types import Attempt, Capabilities, Choice, Json, Origin, total_usd
from smallfirst.wire import WIRES, chat

MIN_SECRET_BYTES = 16
_MEMORY = 256
_PROTOCOL = frozenset(("role", "type", "id", "tool_call_id", "name"))
"""Keys of chat messages whose values are words of the protocol, call ids or tool names."""
_SCHEMA = frozenset(("name", "type", "required", "$ref", "$id", "$schema", "format", "pattern"))
"""Keys of tools and JSON Schemas whose values are names or rules."""
_TOOL_ROLES = ("tool", "function")
_DIGIT_JOINTS = re.compile(r"(?<=\d)[ ().\-/]+(?=\d)")


@dataclass(frozen=True, slots=True)
class ScrubbedAttempt:
    """An answer that was given to the call beside the one served: a failed small one, say, or an audit's. `valid`: it
    broke no rule of the request."""

    model: str
    small: bool
    valid: bool
    answer: Json


@dataclass(frozen=True, slots=True)
class ScrubbedRecord:
    """A call without what identifies a person: all that later stages know of it. Only this module makes one.

    `messages`, `tools`, `tool_choice` and `response_format` are OpenAI chat objects whatever wire the call came by.
    `answer` is the assistant message served (content, tool_calls), None when nothing was; `model`, `small` and `valid`
    tell who gave it and whether it broke a rule of the request. `correct` is the latest label; `reference` the right
    answer where feedback gave it. `episode` is a pseudonym. Tokens and `cost_usd` (None: a price is unknown) are those
    of the call's own attempts.
    """

    id: str
    created_at: float
    task: str
    episode: str | None
    model: str
    messages: tuple[Json, ...]
    tools: tuple[Json, ...]
    tool_choice: str | Json | None
    response_format: Json | None
    answer: Json | None
    correct: bool | None
    input_tokens: int
    output_tokens: int
    cost_usd: float | None
    small: bool = False
    valid: bool = False
    reference: Any = None
    attempts: tuple[ScrubbedAttempt, ...] = ()


def encode(record: ScrubbedRecord) -> bytes:
    """One line of an export."""
    return msgspec.json.encode(record)


def decode(line: bytes) -> ScrubbedRecord:
    """The record of an export's line. Raises DataError when it is none."""
    try:
        return msgspec.json.decode(line, type=ScrubbedRecord)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(f"It is no scrubbed record: {error}.", hint="`smallfirst scrub` writes them.") from error


class Scrubber:
    """Finds and replaces personal data and secrets.

    `secret` (at least 16 bytes) keys the surrogates: the same secret gives the same ones. `tagger` finds names,
    addresses, organisations and places in a text; the shipped one if None. `common` are values that stay because many
    episodes share them, and `ordinary` words that are no names, by tenant (see `pii.common`). Memory: the findings of
    the last 256 texts. Raises ConfigError for a short secret.
    """

    def __init__(
        self,
        secret: bytes,
        tagger: Callable[[str], list[Finding]] | None = None,
        common: Mapping[str, frozenset[Tokens]] | None = None,
        ordinary: Mapping[str, frozenset[str]] | None = None,
    ) -> None:
        if len(secret) < MIN_SECRET_BYTES:
            raise ConfigError(
                f"The scrubbing secret has {len(secret)} bytes; at least {MIN_SECRET_BYTES} are needed.",
                hint="Make one with: head -c 32 /dev/urandom",
            )
        self._secret = secret
        self._tagger = tagger or Tagger.load()
        self._common = common or {}
        self._ordinary = ordinary or {}
        self._found = lru_cache(_MEMORY)(self._find)

    def findings(self, text: str) -> list[Finding]:
        """What is personal or secret in a plain text, in order and apart from each other."""
        return list(self._found(text))

    def text(self, text: str, episode: str) -> str:
        """`text` scrubbed as a call of its own of the episode, encoded parts included."""
        contents = _Contents([{"content": text}], [], [], {})
        contents.scrub(self._found, self._surrogates("", episode))
        scrubbed: str = contents.messages[0]["content"]
        return scrubbed

    def record(self, stored: StoredRecord) -> ScrubbedRecord:
        """The call without what identifies a person.

        Raises StoreError for a record that was kept without its content, RequestError for one whose body is no request.
        """
        if not stored.captured:
            raise StoreError(f"The record {stored.id!r} was kept without its content.", hint="Turn capture on.")
        contents = _Contents.of(stored)
        surrogates = self.surrogates_of(stored)
        nothing = frozenset[Any]()
        common, ordinary = (known.get(stored.key, nothing) for known in (self._common, self._ordinary))
        contents.scrub(self._found, surrogates, common, ordinary)
        episode = None if stored.episode is None else self._key("pseudonym", stored.key, stored.episode)[:16].hex()
        return _record(stored, episode, contents)

    def surrogates_of(self, stored: StoredRecord) -> Surrogates:
        """What stands in for a value in a call: the same in all calls of an episode of a tenant, an API key."""
        return self._surrogates(stored.key, stored.id if stored.episode is None else stored.episode)

    def _surrogates(self, tenant: str, episode: str) -> Surrogates:
        return Surrogates(self._key("surrogates", tenant, episode))

    def _key(self, purpose: str, tenant: str, episode: str) -> bytes:
        data = msgspec.json.encode((purpose, tenant, episode.encode("utf-8", "surrogatepass").hex()))
        return hmac.digest(self._secret, data, "sha256")

    def _find(self, text: str) -> tuple[Finding, ...]:
        certain = structured(text)
        return tuple(sorted([*certain, *_beside(certain, self._tagger(text))]))


def _beside(certain: list[Finding], tagged: list[Finding]) -> Iterator[Finding]:
    """The parts of the tagged findings that no certain one covers; both in order."""
    starts = [finding.start for finding in certain]
    for finding in tagged:
        at = finding.start
        first = max(0, bisect_left(starts, finding.start) - 1)
        for other in [*certain[first : bisect_left(starts, finding.end)], None]:
            end = finding.end if other is None else max(at, min(other.start, finding.end))
            piece = finding.text[at - finding.start : end - finding.start]
            if any(c.isalnum() for c in piece):
                yield Finding(at, end, finding.kind, piece)
            at = max(at, end if other is None else other.end)


@dataclass(frozen=True, slots=True)
class _Contents:
    """The texts of a record as own, changeable copies: chat messages, the answers in the order of the attempts that
    have one, the reference in a list of one, and what belongs to the application."""

    messages: list[Any]
    answers: list[Any]
    reference: list[Any]
    shared: dict[str, Any]

    @classmethod
    def of(cls, stored: StoredRecord) -> _Contents:
        asked = _chat_request(stored)
        messages = [_textual(message) for message in asked["messages"]]
        answers = [_message(choices[0]) for attempt in stored.attempts if (choices := _choices(attempt))]
        shared = {key: asked.get(key) for key in ("tools", "tool_choice", "response_format")}
        copied = msgspec.json.encode((messages, answers, [_latest(stored, "answer")], shared))
        return cls(*msgspec.json.decode(copied))

    def scrub(
        self,
        find: Callable[[str], Iterable[Finding]],
        surrogates: Surrogates,
        common: frozenset[Tokens] = frozenset(),
        ordinary: frozenset[str] = frozenset(),
    ) -> None:
        """Finds in every text first, then replaces in each."""
        marks = Marks(surrogates, common.union(_vocabulary(self.shared)), ordinary)

        def add(text: str, place: Place) -> list[Edit]:
            marks.add(text, structured(text) if place is Place.SHARED else find(text), place)
            return []

        self._edit(add)
        for value in _values(self.answers, self.reference):
            marks.answer(plain(value))
        marks.settle()
        self._edit(marks.edits)

    def _edit(self, editor: Callable[[str, Place], list[Edit]]) -> None:
        """Passes every text through the editor."""

        def change(place: Place) -> Callable[[str], str]:
            return partial(rewrite, editor=lambda text: editor(text, place))

        _change(self.messages, change(Place.ASKED), _PROTOCOL)
        _change(self.answers, change(Place.ANSWERED), _PROTOCOL)
        _change(self.reference, change(Place.ANSWERED), None)
        _change(self.shared, change(Place.SHARED), _SCHEMA)


def _values(answers: list[Any], reference: Any) -> Iterator[str]:
    """The strings of the answers: of JSON those within it, else the text as a whole."""
    stack = [reference]
    for answer in answers:
        calls = answer.get("tool_calls", ())
        stack += [_parsed(text) for text in (answer["content"], *(call["function"]["arguments"] for call in calls))]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            stack += value.values()
        elif isinstance(value, list):
            stack += value
        elif isinstance(value, str):
            yield value


def _parsed(text: str | None) -> Any:
    try:
        return msgspec.json.decode(text or "null")
    except msgspec.DecodeError:
        return text


def _change(value: Any, change: Callable[[str], str], fixed: frozenset[str] | None) -> None:
    """Replaces every text within a list or object, in place and without recursion.

    Texts under the `fixed` keys stay, and so do all keys; None: nothing is fixed, keys are texts like any other.
    """
    stack = [value]
    while stack:
        holder = stack.pop()
        for place, item in list(holder.items() if isinstance(holder, dict) else enumerate(holder)):
            if isinstance(item, dict) or (isinstance(item, list) and place not in (fixed or ())):
                stack.append(item)
            elif isinstance(item, str) and place not in (fixed or ()):
                holder[place] = change(item)
        if isinstance(holder, dict) and fixed is None:
            renamed = {change(place): item for place, item in holder.items()}
            holder.clear()
            holder.update(renamed)


def _vocabulary(schema: Any) -> Iterator[Tokens]:
    """What the application's schemas name: tools, arguments, enumerated values; and the words of JSON."""
    yield from (("true",), ("false",), ("null",))
    stack = [schema]
    while stack:
        item = stack.pop()
        if isinstance(item, list):
            stack += item
        elif isinstance(item, dict):
            stack += item.values()
            properties = item.get("properties")
            values = [*_listed(item.get("enum")), item.get("const"), item.get("name")]
            values += properties if isinstance(properties, dict) else ()
            yield from (tokens_of(plain(value)) for value in values if isinstance(value, str))


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _chat_request(stored: StoredRecord) -> dict[str, Any]:
    """The call as a chat request, whatever wire it came by."""
    request = WIRES[stored.wire].parse(msgspec.json.encode(stored.body), Origin())
    canonical = replace(request, wire="responses", messages=stored.messages or request.messages)
    return chat.body(canonical, model=request.model, stream=False, capabilities=Capabilities())


def _textual(message: Json) -> dict[str, Any]:
    """The message without a participant's name, parts other than text become a mark."""
    kept = {key: value for key, value in message.items() if key != "name" or message.get("role") in _TOOL_ROLES}
    if isinstance(kept.get("content"), list):
        kept["content"] = [
            {"type": "text", "text": part.get("text", f"[{part.get('type')}]")} for part in kept["content"]
        ]
    return kept


def _choices(attempt: Attempt) -> tuple[Choice, ...]:
    return attempt.completion.choices if attempt.completion else ()


def _message(choice: Choice) -> dict[str, Any]:
    """The assistant message of a choice."""
    message: dict[str, Any] = {"role": "assistant", "content": choice.text or None}
    if choice.tool_calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in choice.tool_calls
        ]
    return message


def _latest(stored: StoredRecord, kind: str) -> Any:
    """The value of the latest feedback of a kind, None without one."""
    given = [feedback for feedback in stored.feedback if feedback.kind == kind]
    return max(given, key=lambda feedback: feedback.created_at).value if given else None


def _record(stored: StoredRecord, episode: str | None, contents: _Contents) -> ScrubbedRecord:
    answered = [at for at, attempt in enumerate(stored.attempts) if _choices(attempt)]
    tries = {
        at: ScrubbedAttempt(
            stored.attempts[at].model, stored.attempts[at].small, stored.attempts[at].verdict.ok, answer
        )
        for at, answer in zip(answered, contents.answers, strict=True)
    }
    served = tries.pop(stored.served, None) if stored.served is not None else None
    own = [attempt for attempt in stored.attempts if attempt.decision != "shadow"]
    usages = [attempt.completion.usage for attempt in own if attempt.completion]
    return ScrubbedRecord(
        id=stored.id,
        created_at=stored.created_at,
        task=stored.task,
        episode=episode,
        model=served.model if served else "",
        messages=tuple(contents.messages),
        tools=tuple(contents.shared["tools"] or ()),
        tool_choice=contents.shared["tool_choice"],
        response_format=contents.shared["response_format"],
        answer=served.answer if served else None,
        correct=_latest(stored, "correct"),
        input_tokens=sum(usage.input_tokens for usage in usages),
        output_tokens=sum(usage.output_tokens for usage in usages),
        cost_usd=total_usd(attempt.cost_usd for attempt in own),
        small=bool(served and served.small),
        valid=bool(served and served.valid),
        reference=contents.reference[0],
        attempts=tuple(tries.values()),
    )


def leaks(exported: str, canaries: Iterable[str]) -> list[str]:
    """The canaries that stand in an export: in any letter case, under any encoding that `pii.encodings` reads, and
    numbers with any separators."""
    views = [exported]

    def look(text: str) -> list[Edit]:
        views.append(text)
        return []

    rewrite(exported, look)
    readable = "\0".join(views).casefold()
    joined = _DIGIT_JOINTS.sub("", readable)
    return [canary for canary in canaries if canary.casefold() in readable or _number(canary) in joined]


def _number(canary: str) -> str:
    """The digits of a canary that is a number; a text that stands nowhere for any other."""
    number = digits(canary)
    return number if len(number) >= 7 and not any(c.isalpha() for c in canary) else "\0\0"
