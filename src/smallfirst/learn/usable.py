"""Whether a recorded call can be learned from: its request as a specialist is asked, and its right answer."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, Literal

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from smallfirst.agreement import calls_of, same_answer
from smallfirst.backends.specialist import PromptTemplate, answer_text
from smallfirst.backends.tightening import tightened
from smallfirst.backends.toolprompt import conversation
from smallfirst.labels import Outcomes, as_choice
from smallfirst.learn.scrub import ScrubbedRecord
from smallfirst.schemas import canonical_json, parse_json
from smallfirst.types import Choice, Completion, Json, Origin, Request, ResponseFormat, Tool, ToolCall
from smallfirst.validators import validate
from smallfirst.wire import WIRES

Kind = Literal["feedback", "execution", "large"]
KINDS: tuple[Kind, ...] = ("feedback", "execution", "large")
"""How an answer is known to be right, best first: a person or program said so; its tools ran without an error; it is
the large model's valid answer."""

Prompt = str | tuple[Json, ...]
_NONE = Choice()


class Call(Struct, frozen=True):
    """A call and what is known of it. `request` is as it was made, `asked` the same with the form that its tools and
    response format have today; `prompt` is that of `packing.Example`, `text` what of it varies from call to call.
    `right` is the right answer, `label` how that is known, `model` who gave it, `completion` the text to generate."""

    record: ScrubbedRecord
    request: Request
    asked: Request
    prompt: Prompt
    text: str
    right: Choice = _NONE
    label: Kind = "large"
    model: str = ""
    completion: str = ""

    @property
    def episode(self) -> str:
        return self.record.episode or self.record.id

    @property
    def key(self) -> str:
        """Equal for calls that a specialist cannot tell apart."""
        return self.prompt if isinstance(self.prompt, str) else msgspec.json.encode(self.prompt).decode()

    @property
    def meaning(self) -> str:
        """Equal for the same answer. All free texts are one: other words may say the same."""
        if self.right.tool_calls:
            return canonical_json(calls_of(self.asked, self.right))
        return "" if self.asked.response_format.kind == "text" else canonical_json(parse_json(self.completion))


def read(record: ScrubbedRecord, template: PromptTemplate) -> Call:
    """The call of a record, its answer not looked at. Raises RequestError for a request that cannot be read."""
    request = WIRES["chat"].parse(msgspec.json.encode(body(record)), Origin())
    pruned = template.pruned(request)
    text = PromptTemplate("pruned", system=True).pruned(request) if pruned is None else pruned
    return Call(record, request, request, _prompt(request, template), text or "")


def body(record: ScrubbedRecord) -> dict[str, Any]:
    """The record's request as a chat body for the model "auto"."""
    given = {"tools": list(record.tools), "tool_choice": record.tool_choice, "response_format": record.response_format}
    return {"model": "auto", "messages": list(record.messages), **{key: value for key, value in given.items() if value}}


def message(answer: Choice) -> dict[str, Any]:
    """The answer as an assistant's message."""
    made: dict[str, Any] = {"role": "assistant", "content": answer.text or None}
    if answer.tool_calls:
        made["tool_calls"] = [
            {
                "id": call.id or f"call_{n}",
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for n, call in enumerate(answer.tool_calls)
        ]
    return made


def choice_of(answer: Json) -> Choice:
    """The answer that an assistant's message of a scrubbed record holds."""
    made = answer.get("tool_calls") or ()
    calls = (ToolCall(c["id"], c["function"]["name"], c["function"]["arguments"]) for c in made)
    return Choice(answer.get("content") or "", tuple(calls))


def answered(call: Call, outcomes: Outcomes) -> Call | Literal["wrong", "unlabelled", "invalid"]:
    """The call with its right answer, or why there is none. `outcomes` know the messages of the later records."""
    found = _right(call, outcomes)
    if isinstance(found, str):
        return found
    return found if _keeps_rules(found.right, found.request) else "invalid"


def brought_up_to(
    call: Call, tools: Mapping[str, Tool], form: ResponseFormat, template: PromptTemplate
) -> Call | Literal["outdated", "unwritable"]:
    """The call with its completion, asked with today's `tools` and `form` where their shape is another than then.

    Else why its answer is of no use: it does not fit that shape, or no constraint would let a model write it.
    """
    asked = replace(call.request, tools=tuple(tools[t.name] for t in call.request.tools), response_format=form)
    if _shape(asked) == _shape(call.request):  # what differs may vary from call to call, such as an enum
        asked = call.request
    if not _keeps_rules(call.right, _tightened(asked)):
        return "unwritable" if asked is call.request else "outdated"
    completion = answer_text(asked, call.right.tool_calls, call.right.text)
    prompt = call.prompt if asked is call.request else _prompt(asked, template)
    return replace(call, asked=asked, prompt=prompt, completion=completion)


def wrong_answers(call: Call) -> Iterator[str]:
    """The wrong answers that were given to the call, each once, as far as they can be written as a model would."""
    answers = [attempt.answer for attempt in call.record.attempts]
    if call.record.answer is not None:
        answers.append(call.record.answer)
    seen = {call.completion}
    for answer in answers:
        choice = choice_of(answer)
        if same_answer(call.asked, choice, call.right) is not False:
            continue
        try:
            completion = answer_text(call.asked, choice.tool_calls, choice.text)
        except ValueError:  # not JSON: a constraint forbids it, so there is nothing to unlearn
            continue
        if completion and completion not in seen:
            seen.add(completion)
            yield completion


def form_of(request: Request) -> bytes:
    """A hash of the request's tools and response format."""
    tools = [(tool.name, tool.parameters) for tool in request.tools]
    return hashlib.sha256(msgspec.json.encode((tools, request.response_format), order="deterministic")).digest()


def _prompt(request: Request, template: PromptTemplate) -> Prompt:
    pruned = template.pruned(request)
    return tuple(conversation(request)) if pruned is None else pruned


def _right(call: Call, outcomes: Outcomes) -> Call | Literal["wrong", "unlabelled", "invalid"]:
    record, request = call.record, call.request
    given = None if record.reference is None else as_choice(record.reference)
    if given is not None:
        return replace(call, right=given, label="feedback", model="feedback")
    served = None if record.answer is None else choice_of(record.answer)
    if served is None:
        return _by_large(call, None, None) or "unlabelled"
    if record.correct:
        return replace(call, right=served, label="feedback", model=record.model)
    failed = outcomes.failed(record.episode, served)
    if record.correct is False or failed:
        return _by_large(call, None, served) or "wrong"
    found = _by_large(call, served, None)
    executed = record.valid and failed is False
    if executed and (found is None or same_answer(request, found.right, served) is True):
        return replace(call, right=served, label="execution", model=record.model)
    return found or ("unlabelled" if record.valid else "invalid")


def _by_large(call: Call, served: Choice | None, wrong: Choice | None) -> Call | None:
    """The call with the large model's answer: `served` if it is that one's, else its last valid one that is not
    `wrong`."""
    record = call.record
    if served is not None and not record.small and record.valid:
        return replace(call, right=served, label="large", model=record.model)
    for attempt in reversed(record.attempts):
        if attempt.small or not attempt.valid:
            continue
        answer = choice_of(attempt.answer)
        if wrong is None or same_answer(call.request, answer, wrong) is not True:
            return replace(call, right=answer, label="large", model=attempt.model)
    return None


def _keeps_rules(answer: Choice, request: Request) -> bool:
    empty = not answer.tool_calls and not answer.text.strip()
    return not empty and validate(Completion((answer,)), request).ok


def _tightened(request: Request) -> Request:
    """`request` as a constraint sees it: objects have no members but those that are listed."""
    tools = tuple(replace(tool, parameters=_tight(tool.parameters)) for tool in request.tools)
    form = request.response_format
    form = form if form.schema is None else replace(form, schema=_tight(form.schema))
    return replace(request, tools=tools, response_format=form)


def _tight(schema: Json) -> dict[str, Any]:
    return _tight_json(msgspec.json.encode(schema))


@lru_cache(maxsize=256)
def _tight_json(schema: bytes) -> dict[str, Any]:
    return tightened(msgspec.json.decode(schema))


def _shape(request: Request) -> list[Any]:
    """What of a request's schemas stays where only allowed values vary: members, their types, which are required."""
    schemas = [tool.parameters for tool in request.tools] + [request.response_format.schema or {}]
    return [(_types(schema.get("properties")), sorted(schema.get("required") or ())) for schema in schemas]


def _types(properties: Any) -> dict[str, Any]:
    known = properties if isinstance(properties, Mapping) else {}
    return {name: sub.get("type") if isinstance(sub, Mapping) else None for name, sub in known.items()}
