"""OpenTelemetry: GenAI spans and logs as OTLP JSON (the collector's file exporter, a line a batch; or one document).

Two forms of content are read. Of the semantic conventions 1.37 and later (schema gen-ai-dev/1.42.0): the attributes
gen_ai.system_instructions, gen_ai.input.messages, gen_ai.output.messages and gen_ai.tool.definitions, structured or as
JSON text, on the span or on the log record gen_ai.client.inference.operation.details. Of 1.36 and earlier: the events
gen_ai.{system,user,assistant,tool}.message and gen_ai.choice, and before them gen_ai.content.prompt and
gen_ai.content.completion, on the span or as log records of it, before or after it in the same or another file.

What belongs to a span whose other half has not come is held for the latest 10,000 spans.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from smallfirst.errors import RequestError
from smallfirst.learn.logs.entry import (
    Entry,
    Found,
    between,
    call,
    chat_answer,
    chat_message,
    counted,
    linked,
    listed,
    mapping,
    moment,
    parsed,
    said,
    settings,
    text,
    tool,
    word,
)
from smallfirst.types import Json

_HELD = 10_000
_ASKING = frozenset({"chat", "generate_content", "text_completion"})
_ROLES = {f"gen_ai.{role}.message": role for role in ("system", "user", "assistant", "tool")}
_PROMPT, _COMPLETION = "gen_ai.content.prompt", "gen_ai.content.completion"
_CHOICE, _DETAILS = "gen_ai.choice", "gen_ai.client.inference.operation.details"
_EVENTS = frozenset({*_ROLES, _PROMPT, _COMPLETION, _CHOICE, _DETAILS})
_CONTENT = ("gen_ai.input.messages", "gen_ai.output.messages")
_SETTINGS = {
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "max_tokens": "gen_ai.request.max_tokens",
    "seed": "gen_ai.request.seed",
    "stop": "gen_ai.request.stop_sequences",
    "presence_penalty": "gen_ai.request.presence_penalty",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
}


@dataclass(slots=True)
class _Call:
    """What is known of a call so far. `spanned`: its span has come."""

    source: str
    attributes: dict[str, Any] = field(default_factory=dict)
    trace: str = ""
    start: float | None = None
    end: float | None = None
    spanned: bool = False
    asked: list[dict[str, Any]] = field(default_factory=list)
    answered: list[dict[str, Any]] = field(default_factory=list)
    reasons: list[Any] = field(default_factory=list)

    @property
    def told(self) -> bool:
        """Whether prompt and answer are known."""
        return bool(self.asked and self.answered) or all(self.attributes.get(name) for name in _CONTENT)


class OTel:
    def __init__(self) -> None:
        self._held: dict[tuple[str, str], _Call] = {}

    def recognises(self, item: Json) -> bool:
        return "resourceSpans" in item or "resourceLogs" in item

    def entries(self, item: Json) -> Iterator[Found]:
        for span in _within(item, "resourceSpans", "scopeSpans", "spans"):
            yield from _apart(self._span(span))
        for record in _within(item, "resourceLogs", "scopeLogs", "logRecords"):
            yield from _apart(self._record(record))

    def rest(self) -> Iterator[Found]:
        while self._held:
            yield from _apart(self._given_up())

    def _span(self, span: Mapping[str, Any]) -> Iterator[Found]:
        attributes = _attributes(span)
        operation = text(attributes.get("gen_ai.operation.name"))
        failed = attributes.get("error.type") or mapping(span.get("status"), "status").get("code") in (
            2,
            "STATUS_CODE_ERROR",
        )
        if failed or (operation not in _ASKING if operation else "gen_ai.request.model" not in attributes):
            yield None
            return
        known = self._call(span)
        known.attributes |= attributes
        known.start, known.end = moment(span.get("startTimeUnixNano")), moment(span.get("endTimeUnixNano"))
        known.spanned = True
        for event in (mapping(one, "An event") for one in listed(span.get("events"), "events")):
            _take(known, text(event.get("name")), _attributes(event))
        yield from self._complete(span)

    def _record(self, record: Mapping[str, Any]) -> Iterator[Found]:
        attributes = _attributes(record)
        name = text(record.get("eventName") or attributes.get("event.name"))
        if name not in _EVENTS:
            return
        known = self._call(record)
        known.start = known.start or moment(record.get("timeUnixNano") or record.get("observedTimeUnixNano"))
        body = parsed(_value(record.get("body")))
        _take(known, name, {**attributes, **(body if isinstance(body, dict) else {"content": body})})
        yield from self._complete(record)

    def _call(self, item: Mapping[str, Any]) -> _Call:
        """What is held of the item's span, which is the latest now."""
        trace, span = text(item.get("traceId")), text(item.get("spanId"))
        known = self._held.pop((trace, span), None) or _Call(span, trace=trace)
        self._held[trace, span] = known
        return known

    def _complete(self, item: Mapping[str, Any]) -> Iterator[Found]:
        """The item's call when both halves of it have come, and one that is held too long."""
        key = (text(item.get("traceId")), text(item.get("spanId")))
        known = self._held[key]
        if known.spanned and known.told:
            yield _entry(self._held.pop(key))
        elif len(self._held) > _HELD:
            yield from self._given_up()

    def _given_up(self) -> Iterator[Found]:
        """The call that is held longest: what is known of it, if that is prompt and answer."""
        known = self._held.pop(next(iter(self._held)))
        yield _entry(known) if known.told else None


def _apart(found: Iterator[Found]) -> Iterator[Found]:
    """What is found of a span; its error is no other span's."""
    try:
        yield from found
    except RequestError as error:
        yield error


def _within(item: Json, *path: str) -> Iterator[dict[str, Any]]:
    """The objects at the end of a path of lists."""
    found: Any = [item]
    for name in path:
        found = [inner for each in found for inner in listed(mapping(each, name).get(name), name)]
    return (mapping(each, path[-1]) for each in found)


def _attributes(item: Mapping[str, Any]) -> dict[str, Any]:
    return _pairs(item.get("attributes"))


def _pairs(given: Any) -> dict[str, Any]:
    pairs = (mapping(pair, "An attribute") for pair in listed(given, "attributes"))
    return {text(pair.get("key")): _value(pair.get("value")) for pair in pairs}


def _value(given: Any) -> Any:
    """OTLP's AnyValue as plain JSON."""
    if not isinstance(given, dict) or len(given) != 1:
        return None
    [(kind, value)] = given.items()
    if kind == "arrayValue":
        return [_value(item) for item in listed(mapping(value, kind).get("values"), kind)]
    if kind == "kvlistValue":
        return _pairs(mapping(value, kind).get("values"))
    return int(value) if kind == "intValue" and isinstance(value, str) and value.lstrip("-").isdigit() else value


def _take(known: _Call, name: str, said_in: dict[str, Any]) -> None:
    """Adds what an event says to what is known of its call."""
    given = parsed(said_in.get("gen_ai.event.content"))
    given = given if isinstance(given, dict) else said_in
    if name == _DETAILS:
        known.attributes |= {key: value for key, value in said_in.items() if value is not None}
    elif name in _ROLES:
        known.asked.append(chat_message(given, _ROLES[name]))
    elif name == _PROMPT:
        known.asked += [chat_message(one) for one in listed(said_in.get("gen_ai.prompt"), "gen_ai.prompt")]
    elif name == _COMPLETION:
        made = listed(said_in.get("gen_ai.completion"), "gen_ai.completion")
        known.answered += [chat_message(one, "assistant") for one in made]
    elif name == _CHOICE:
        message = parsed(given.get("message"))
        message = {**given, **message} if isinstance(message, dict) else {**given, "content": message}
        known.answered.append({**chat_message(message, "assistant"), "role": "assistant"})
        known.reasons.append(given.get("finish_reason"))


def _entry(known: _Call) -> Entry:
    given = known.attributes
    asked, answered, reasons = known.asked, known.answered, known.reasons
    if all(given.get(name) for name in _CONTENT):
        asked = _instructions(given) + [m for one in listed(given[_CONTENT[0]], _CONTENT[0]) for m in _messages(one)]
        made = [mapping(one, _CONTENT[1]) for one in listed(given[_CONTENT[1]], _CONTENT[1])]
        answered = [message for one in made for message in _messages({**one, "role": "assistant"})]
        reasons = [one.get("finish_reason") for one in made]
    if not asked or not answered:
        raise RequestError("The span has an empty prompt or answer.")
    model = word(given.get("gen_ai.request.model")) or word(given.get("gen_ai.response.model")) or "unknown"
    answerer = word(given.get("gen_ai.response.model")) or model
    return Entry(
        source=known.source,
        request={**_settings(given), "model": model, "messages": linked(asked)},
        response=chat_answer(answerer, answered, reasons, _usage(given)),
        created_at=known.start,
        seconds=between(known.start, known.end),
        episode=word(given.get("gen_ai.conversation.id")) or word(given.get("session.id")) or known.trace or None,
        user=word(given.get("user.id")) or word(given.get("enduser.id")),
    )


def _settings(given: Mapping[str, Any]) -> dict[str, Any]:
    found = settings({name: given.get(attribute) for name, attribute in _SETTINGS.items()})
    offered = [
        mapping(one, "A tool") for one in listed(given.get("gen_ai.tool.definitions"), "gen_ai.tool.definitions")
    ]
    if offered:
        functions = (mapping(one.get("function"), "function") or one for one in offered)
        found["tools"] = [tool(f.get("name"), f.get("description"), f.get("parameters")) for f in functions]
    if given.get("gen_ai.output.type") == "json":
        found["response_format"] = {"type": "json_object"}
    return found


def _instructions(given: Mapping[str, Any]) -> list[dict[str, Any]]:
    parts = listed(given.get("gen_ai.system_instructions"), "gen_ai.system_instructions")
    shown = "\n".join(text(mapping(part, "A part").get("content")) for part in parts)
    return [said("system", shown)] if shown else []


def _messages(given: Any) -> Iterator[dict[str, Any]]:
    """A message of parts and, each as one of its own, the tool results in it."""
    fields = mapping(given, "A message")
    texts, calls = [], []
    for part in (mapping(one, "A part") for one in listed(fields.get("parts"), "parts")):
        kind = text(part.get("type"))
        if kind == "tool_call_response":
            shown = part.get("response", part.get("result"))
            yield {"role": "tool", "tool_call_id": text(part.get("id")).strip(), "content": text(shown)}
        elif kind == "tool_call":
            calls.append(call(part.get("id"), part.get("name"), part.get("arguments")))
        elif kind == "text":
            texts.append(text(part.get("content")))
        elif kind != "reasoning":
            texts.append(f"[{part.get('modality') or kind}]")
    if texts or calls:
        yield said(text(fields.get("role")), "\n".join(texts), calls)


def _usage(given: Mapping[str, Any]) -> dict[str, Any]:
    tokens_in = given.get("gen_ai.usage.input_tokens", given.get("gen_ai.usage.prompt_tokens"))
    tokens_out = given.get("gen_ai.usage.output_tokens", given.get("gen_ai.usage.completion_tokens"))
    return counted(tokens_in, tokens_out, given.get("gen_ai.usage.cache_read.input_tokens"))
