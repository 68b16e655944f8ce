"""The file of a replay: JSONL, gzip or not, a call a line with what several models answered and whether it was right.

{"id", "category", "request": {OpenAI chat body}, "gold",
 "answers": {model: {"tool_calls": [{"name", "arguments"}] | null, "content", "correct",
                     "input_tokens", "output_tokens"}}}

`arguments` is an object, or JSON text as OpenAI has it; a call may also stand under "function" as there. An answer may
have "logprobs" in OpenAI's form. Other members are allowed and not read.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec

from smallfirst import bfcl
from smallfirst.agreement import canonical_call
from smallfirst.errors import DataError, RequestError, unreadable
from smallfirst.types import Choice, Json, Origin, Request, ToolCall, Usage
from smallfirst.validators import check_schemas
from smallfirst.wire import WIRES
from smallfirst.wire.chat.answer import Logprobs, token_logprobs
from smallfirst.wire.shared import convert

TASK = "replay"
_GZIP = b"\x1f\x8b"
_NUMBERED = re.compile(r"_\d+$")
_UNRECORDED = "(no text recorded)"  # where tools are offered, calling none is an answer
_FORM = "See `smallfirst replay --help` for the form of a line."
_BFCL_TYPES = {"object": "dict", "number": "float"}


class _CallMade(msgspec.Struct):
    name: str
    arguments: Any


class _Answer(msgspec.Struct):
    correct: bool
    tool_calls: list[dict[str, Any]] | None = None
    content: str | None = None
    input_tokens: Annotated[float, msgspec.Meta(ge=0)] | None = None
    output_tokens: Annotated[float, msgspec.Meta(ge=0)] | None = None
    logprobs: Logprobs | None = None


class _Line(msgspec.Struct):
    id: str
    request: dict[str, Any]
    answers: dict[str, msgspec.Raw]
    category: str = ""
    gold: Any = msgspec.UNSET


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model answered, whether it was right, and what was measured of it; None where it was not."""

    choice: Choice
    correct: bool
    usage: Usage | None


@dataclass(frozen=True, slots=True)
class Call:
    """A recorded call; `request.origin.episode` is its id. `gold` is read for scoring only; UNSET where not given."""

    id: str
    category: str
    request: Request
    answers: Mapping[str, Answer]
    gold: Any

    def right(self, model: str, choice: Choice) -> bool:
        """Whether `choice` is right: as recorded where it is what `model` answered, else by the gold answer.

        An answer that was mended and whose gold is not given or cannot be read counts as the recorded one does.
        """
        answer = self.answers[model]
        if choice.tool_calls == answer.choice.tool_calls:
            return answer.correct
        judged = judge(choice.tool_calls, self.gold, self.request)
        return answer.correct if judged is None else judged


def load(path: Path, models: Sequence[str] = (), role: str = "") -> tuple[Call, ...]:
    """Read a file of calls with the answers of `models` (of all, if none is named), which every call must have.

    `role` goes before the ids, to tell files apart. Raises DataError, with the line and the field, for what cannot be
    read, repeats an id or lacks a model.
    """
    try:
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if raw.startswith(_GZIP) else raw
    except (OSError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(unreadable(path, error), hint="Give a JSONL file, gzip or not.") from None
    calls: dict[str, Call] = {}
    for number, line in enumerate(raw.split(b"\n"), start=1):
        if not line.strip():
            continue
        where = f"{path.name}, line {number}"
        call = _call(line, where, models, role)
        if call.id in calls:
            raise DataError(
                f"{where}: id {call.id.removeprefix(role)!r} occurs twice.", hint="Every call needs an id of its own."
            )
        calls[call.id] = call
    if not calls:
        raise DataError(f"{path.name} holds no calls.", hint="Each line is a JSON object with id, request and answers.")
    return tuple(calls.values())


def judge(made: Sequence[ToolCall], gold: Any, request: Request) -> bool | None:
    """Whether calls are what `gold` wants; None when it is not given (UNSET) or cannot be read.

    Gold is null (no call is right), BFCL's {function: {argument: [allowed values]}} where several calls of a function
    are numbered (`f_1`, `f_2`), or a list of {"name", "arguments"} to be met exactly.
    """
    if gold is None:
        return not made
    if isinstance(gold, list):
        return _as_listed(made, gold, request)
    if not isinstance(gold, dict):
        return None
    functions = {tool.name: _function(tool.name, tool.parameters) for tool in request.tools}
    expected = []
    for key, allowed in gold.items():
        name = next((n for n in (bfcl.tool_name(key), bfcl.tool_name(_NUMBERED.sub("", key))) if n in functions), None)
        if name is None or not isinstance(allowed, dict):
            return None
        expected.append({name: allowed})
    try:
        return bfcl.score(
            made, expected, list(functions.values()), "parallel" if len(expected) > 1 else "simple"
        ).correct
    except (KeyError, TypeError, AttributeError):
        return None


def _as_listed(made: Sequence[ToolCall], gold: Sequence[Any], request: Request) -> bool | None:
    """Whether the calls are those that a list names, in any order."""
    try:
        wanted = [_tool_call(each, f"gold[{n}]") for n, each in enumerate(gold)]
    except RequestError:
        return None
    schemas = {tool.name: tool.parameters for tool in request.tools}

    def canonical(calls: Sequence[ToolCall]) -> list[str]:
        return sorted(canonical_call(c.name, c.arguments, schemas.get(c.name, {})) for c in calls)

    return canonical(wanted) == canonical(made)


def _call(line: bytes, where: str, models: Sequence[str], role: str) -> Call:
    try:
        read = msgspec.json.decode(line, type=_Line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{where}: {error}.", hint=_FORM) from None
    try:
        origin = Origin(task=TASK, episode=role + read.id)
        request = WIRES["chat"].parse(msgspec.json.encode({**read.request, "model": "auto"}), origin)
        check_schemas(request)
    except RequestError as error:
        raise DataError(f"{where}: request: {error.message}", hint=error.hint or "") from None
    answers = {}
    for model in models or read.answers:
        if model not in read.answers:
            known = ", ".join(read.answers) or "none"
            raise DataError(f"{where}: answers.{model} is missing.", hint=f"Models answered here: {known}.")
        try:
            answers[model] = _answer(read.answers[model], f"answers.{model}", tools=bool(request.tools))
        except (msgspec.DecodeError, RequestError) as error:
            raise DataError(f"{where}: {error}", hint=_FORM) from None
    return Call(role + read.id, read.category, request, answers, read.gold)


def _answer(raw: msgspec.Raw, at: str, *, tools: bool) -> Answer:
    read = convert(msgspec.json.decode(raw), _Answer, at)
    calls = tuple(_tool_call(made, f"{at}.tool_calls[{n}]", n) for n, made in enumerate(read.tool_calls or ()))
    usage = None
    if read.input_tokens is not None and read.output_tokens is not None:
        usage = Usage(input_tokens=round(read.input_tokens), output_tokens=round(read.output_tokens))
    choice = Choice(
        text="" if calls else read.content or (_UNRECORDED if tools else ""),
        tool_calls=calls,
        finish_reason="tool_calls" if calls else "stop",
        logprobs=token_logprobs(read.logprobs) if read.logprobs else (),
    )
    return Answer(choice, read.correct, usage)


def _tool_call(given: Any, at: str, n: int = 0) -> ToolCall:
    """A call as {"name", "arguments"} or as OpenAI's {"function": {...}}. Raises RequestError, naming the field."""
    made = convert(given.get("function", given) if isinstance(given, dict) else given, _CallMade, at)
    text = made.arguments if isinstance(made.arguments, str) else msgspec.json.encode(made.arguments).decode()
    return ToolCall(f"call_{n}", made.name, text)


def _function(name: str, parameters: Json) -> dict[str, Any]:
    """A tool's schema in BFCL's words."""
    return {"name": name, "parameters": {"required": [], **_typed(parameters)}}


def _typed(schema: Json) -> dict[str, Any]:
    found = {**schema, "type": _BFCL_TYPES.get(str(schema.get("type", "any")), schema.get("type", "any"))}
    if isinstance(schema.get("properties"), dict):
        found["properties"] = {name: _typed(sub) for name, sub in schema["properties"].items()}
    if found["type"] == "array":
        found["items"] = _typed(schema["items"]) if isinstance(schema.get("items"), dict) else {"type": "any"}
    return found
