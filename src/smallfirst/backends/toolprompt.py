"""How a model without tools of its own is asked to call them, held to it, and understood (pure; no I/O).

The same answer format serves every mode: a call is `{"name": ..., "arguments": {...}}`, several calls are a list of
them, anything else is plain text. Small models' templates know no tools, so the prompt is written here; it is short
because prefill is what a call costs.

    free         the prompt asks for the format; whatever comes is parsed with tolerance (fences, a sentence around it)
    constrained  the first character decides: `{` or `[` binds the rest to the schema, anything else is plain text
    late         text may come first; the first `{` or `[` binds
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

import msgspec

from smallfirst.backends.tightening import tightened
from smallfirst.errors import BackendError, ConstraintUnsupported
from smallfirst.keywords import subschemas
from smallfirst.types import ConstraintMode, Json, Request, Tool

_THINK_CHARACTERS = 600  # of free text before a "late" answer
_DETAIL = 100  # characters kept of a description
_MOST_CALLS = 8  # in one list: a small model may repeat itself without end
_MARK = re.compile(r"[{\[`<]")  # where a call, a fenced call or a tagged call may begin
_METASCHEMA = re.compile(r"https?://json-schema\.org/")
_REPEATED = re.compile(r" \(\d+ times\)$")
_GUIDANCE = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "coerce_one_of": True,
    "lenient": True,  # keywords that the grammar cannot hold are left to the validators, and named by `unheld`
}


def constraint_schema(request: Request) -> Json | None:
    """The JSON Schema of every JSON answer to `request`; None when nothing asks for JSON.

    With tools: one call, or a list of at most 8 where parallel calls are allowed, or what `response_format` asks for.
    Whether plain text is an answer too is not in the schema but in `tool_choice` (see `grammar`).
    """
    tools, wanted = tuple(request.callable_tools.values()), _format_schema(request)
    if not tools:
        return wanted
    definitions: dict[str, Any] = {}
    call = _any_of([_call_schema(tool, index, definitions) for index, tool in enumerate(tools)])
    answers = [call]
    if request.parallel_tool_calls:
        answers.append({"type": "array", "items": call, "minItems": 1, "maxItems": _MOST_CALLS})
    if wanted is not None and request.tool_choice.mode == "auto":
        answers.append(_moved(wanted, "format", definitions))
    return {**_any_of(answers), **({"$defs": definitions} if definitions else {})}


def grammar(request: Request) -> str | None:
    """The llguidance grammar that holds the answer to `request.constraint`; None when there is no constraint.

    Raises ConstraintUnsupported with the compiler's reason. The check runs here because the engine itself only logs a
    grammar that it cannot compile, and then generates freely.
    """
    if request.constraint is None:
        return None
    made = _checked(request)
    if made.problem:
        raise ConstraintUnsupported(
            f"The schema of this answer cannot be held while decoding: {made.problem}",
            hint='Simplify the schema, or use the constraint mode "free".',
        )
    return made.text


def unheld(request: Request) -> tuple[str, ...]:
    """The keywords of `request.constraint` that its grammar leaves to the validators, sorted ("format: NAME" for
    formats); empty without a constraint and where there is no grammar."""
    return () if request.constraint is None else _checked(request).unheld


@dataclass(frozen=True, slots=True)
class _Grammar:
    """A grammar, the keywords that it does not hold, and why it cannot be compiled ("" if it can)."""

    text: str
    unheld: tuple[str, ...] = ()
    problem: str = ""


def _checked(request: Request) -> _Grammar:
    constraint = request.constraint
    assert constraint is not None
    free = request.callable_tools and request.tool_choice.mode == "auto" and _format_schema(request) is None
    return _compiled(msgspec.json.encode(constraint.schema), constraint.mode, bool(free))


@lru_cache(maxsize=128)
def _compiled(schema: bytes, mode: ConstraintMode, text_allowed: bool) -> _Grammar:
    """The grammar of a schema, given as JSON because the order of properties counts. Tools recur: compiling them takes
    milliseconds, during which the gateway does nothing else."""
    from llguidance import LLMatcher

    if mode == "late":
        start = "think answer | text" if text_allowed else "think answer"
        rules = f"think: /[^{{\\[]{{0,{_THINK_CHARACTERS}}}/\n" + ("text: /[^{\\[]+/\n" if text_allowed else "")
    else:
        start = "answer | text" if text_allowed else "answer"
        rules = "text: /[^{\\[](.|\\n)*/\n" if text_allowed else ""
    held = json.dumps({**tightened(json.loads(schema)), "x-guidance": _GUIDANCE})
    made = f"%llguidance {{}}\nstart: {start}\n{rules}answer: %json {held}\n"
    failed, messages = LLMatcher.validate_grammar_with_warnings(made)
    if failed:
        reason = messages[0].partition(": ")[2].partition("\n   1 |")[0]
        return _Grammar(made, problem=" ".join(reason.split()))
    return _Grammar(made, unheld=tuple(sorted({name for message in messages for name in _keywords_in(message)})))


def _keywords_in(warning: str) -> Iterator[str]:
    """The keywords that a warning of llguidance says it ignores; the warning itself if it is of another kind."""
    said = _REPEATED.sub("", warning)
    if said.startswith("Unimplemented keys: "):
        yield from json.loads(said.removeprefix("Unimplemented keys: "))
    elif said.startswith("Unknown format: "):
        yield f"format: {said.removeprefix('Unknown format: ')}"
    elif said.startswith("oneOf "):
        yield "oneOf"
    elif said.startswith("min/maxProperties "):
        yield from ("minProperties", "maxProperties")
    else:
        yield said


def conversation(request: Request) -> list[dict[str, str]]:
    """The messages as roles and plain texts that any chat template renders, the tools' prompt in the system message."""
    names = _call_names(request)
    system: list[str] = []
    turns: list[dict[str, str]] = []
    for message in request.messages:
        role, text = message.get("role"), _text(message.get("content"))
        if role in ("system", "developer"):
            system.append(text)
        elif role in ("tool", "function"):
            name = names.get(str(message.get("tool_call_id")), message.get("name") or "tool")
            turns.append({"role": "user", "content": f"Result of {name}: {text}"})
        elif role == "assistant":
            said = [text] if text else []
            turns.append({"role": "assistant", "content": "\n".join([*said, *_rendered_calls(message)])})
        else:
            turns.append({"role": "user", "content": text})
    if tools := tuple(request.callable_tools.values()):
        system.append(
            tools_prompt(tools, must=request.tool_choice.mode == "required", many=request.parallel_tool_calls)
        )
    elif (schema := _format_schema(request)) is not None:
        system.append(f"Answer only with JSON that follows this schema: {json.dumps(schema)}")
    return ([{"role": "system", "content": "\n\n".join(system)}] if system else []) + turns


def tools_prompt(tools: tuple[Tool, ...], *, must: bool, many: bool) -> str:
    """The tools as signatures with what their arguments mean, and how to answer with a call."""
    lines = ["You can call these functions:"]
    lines.extend(_signature(tool) for tool in tools)
    lines.append('To call one, answer only with JSON: {"name": "<function>", "arguments": {"<argument>": <value>}}')
    if many:
        lines.append("Several calls are a JSON list of these.")
    lines.append("Leave out optional arguments (marked ?) that the user does not mention.")
    if not must:
        lines.append("If no function fits, answer in plain text.")
    return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class ParsedCall:
    """A call found in generated text; `arguments` is the JSON text as generated."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Parsed:
    """What was left when the generation ended: more text, reasoning that went before, and the calls."""

    text: str = ""
    reasoning: str = ""
    calls: tuple[ParsedCall, ...] = ()


@dataclass(slots=True)
class AnswerParser:
    """Splits one generation into text that may be shown at once and what must wait for the end.

    Plain answers pass through. Where tools may be called, text is held from the first character that may begin a call.
    Free and late JSON answers are held whole, because only the end tells what belongs to them.
    """

    request: Request
    _held: str = field(default="", init=False)
    _holding: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        constraint, wanted = self.request.constraint, _format_schema(self.request)
        late = constraint is not None and constraint.mode == "late"
        self._holding = late or (wanted is not None and constraint is None)

    def feed(self, text: str) -> str:
        """Takes generated text; returns the part that is surely plain text of the answer."""
        if self._holding:
            self._held += text
            return ""
        mark = _MARK.search(text) if self.request.callable_tools else None
        if mark is None:
            return text
        self._holding, self._held = True, text[mark.start() :]
        return text[: mark.start()]

    def finish(self) -> Parsed:
        """What was held, understood."""
        if not self._holding:
            return Parsed()
        late = self.request.constraint is not None and self.request.constraint.mode == "late"
        before, values = _json_values(self._held)
        calls = tuple(_calls(values)) if self.request.callable_tools else ()
        if calls:
            return Parsed(reasoning=before.strip() if late else "", calls=calls)
        if values and _format_schema(self.request) is not None:
            return Parsed(text=values[0], reasoning=before.strip() if late else "")
        return Parsed(text=self._held)


class _Call(msgspec.Struct):
    name: str
    arguments: msgspec.Raw = msgspec.Raw(b"")
    parameters: msgspec.Raw = msgspec.Raw(b"")


class _ChatFunction(msgspec.Struct):
    name: str = ""
    arguments: str = ""


class _ChatCall(msgspec.Struct):
    id: str = ""
    function: _ChatFunction = msgspec.field(default_factory=_ChatFunction)


def _json_values(text: str) -> tuple[str, list[str]]:
    """The text before the first JSON object or list, and each one's own text, one after the other."""
    decoder, values, at, first = json.JSONDecoder(), [], 0, len(text)
    while mark := re.compile(r"[{\[]").search(text, at):
        try:
            _, end = decoder.raw_decode(text, mark.start())
        except (json.JSONDecodeError, RecursionError):
            at = mark.start() + 1
            continue
        first = min(first, mark.start())
        values.append(text[mark.start() : end])
        at = end
    return text[:first], values


def _calls(values: list[str]) -> Iterator[ParsedCall]:
    """The calls among JSON texts: objects with a name and arguments, alone or in lists; nothing else."""
    for value in values:
        try:
            found = msgspec.json.decode(value, type=_Call | list[_Call])
        except msgspec.DecodeError:
            continue
        for call in found if isinstance(found, list) else [found]:
            arguments = bytes(call.arguments) or bytes(call.parameters) or b"{}"
            if arguments.startswith(b'"'):  # JSON in a string, as some models learned it
                arguments = msgspec.json.decode(arguments, type=str).encode()
            yield ParsedCall(call.name, arguments.decode())


def _format_schema(request: Request) -> Json | None:
    form = request.response_format
    if form.kind == "json_schema":
        return form.schema
    return {"type": "object"} if form.kind == "json_object" else None


def _any_of(schemas: list[dict[str, Any]]) -> dict[str, Any]:
    return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}


def _call_schema(tool: Tool, index: int, definitions: dict[str, Any]) -> dict[str, Any]:
    arguments = _moved(tool.parameters or {"type": "object"}, f"tool{index}", definitions)
    return {
        "type": "object",
        "properties": {"name": {"const": tool.name}, "arguments": arguments},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _moved(schema: Json, name: str, definitions: dict[str, Any]) -> dict[str, Any]:
    """`schema` for use inside a larger one: as it is, or as a resource of its own when it refers to parts of itself.

    A resource keeps its name ($id), if it is an absolute one, so that its references mean what they meant.
    """
    body = {key: value for key, value in schema.items() if key not in ("$schema", "$id", "id")}
    references = [str(node["$ref"]) for _, node in subschemas(schema) if "$ref" in node]
    if all(_METASCHEMA.match(reference) for reference in references):
        return body
    own = str(schema.get("$id") or schema.get("id") or "").rstrip("#")
    taken = {definition["$id"] for definition in definitions.values()}
    uri = own if urlsplit(own).scheme and own not in taken else f"https://smallfirst.invalid/{name}"
    definitions[name] = {"$id": uri, **_anchored(body)}
    return {"$ref": uri}


def _anchored(node: Any) -> Any:
    """`node` with the anchors of drafts 4 to 7, as in {"$id": "#name"}, in the words of later drafts."""
    if isinstance(node, list):
        return [_anchored(item) for item in node]
    if not isinstance(node, dict):
        return node
    made = {key: _anchored(value) for key, value in node.items()}
    for key in ("$id", "id"):
        if isinstance(anchor := node.get(key), str) and anchor.startswith("#"):
            made["$anchor"] = anchor[1:]
            del made[key]
    return made


def _signature(tool: Tool) -> str:
    properties = tool.parameters.get("properties")
    properties = properties if isinstance(properties, Mapping) else {}
    required = tool.parameters.get("required") or ()
    ordered = sorted(properties, key=lambda name: name not in required)
    arguments = [f"{name}{'' if name in required else '?'}: {_type(properties[name])}" for name in ordered]
    lines = [f"{tool.name}({', '.join(arguments)}): {_short(tool.description)}"]
    for name in ordered:
        about = properties[name].get("description") if isinstance(properties[name], Mapping) else None
        if about:
            lines.append(f"  {name}: {_short(about)}")
    return "\n".join(lines)


def _type(schema: Any) -> str:
    """A JSON Schema as a short type, in the manner of TypeScript; what it cannot say is "any"."""
    if not isinstance(schema, Mapping):
        return "any"
    if isinstance(options := schema.get("enum"), list):
        return "|".join(json.dumps(option, ensure_ascii=False) for option in options)
    if "const" in schema:
        return json.dumps(schema["const"], ensure_ascii=False)
    kind = schema.get("type", "any")
    if isinstance(kind, list):
        return "|".join(str(k) for k in kind)
    if kind == "array":
        return f"{_type(schema.get('items'))}[]"
    if kind == "object" and isinstance(properties := schema.get("properties"), Mapping) and properties:
        required = schema.get("required") or ()
        return "{" + ", ".join(f"{n}{'' if n in required else '?'}: {_type(s)}" for n, s in properties.items()) + "}"
    return str(kind)


def _short(text: Any) -> str:
    """The beginning of a description, on one line, cut between words."""
    line = " ".join(str(text).split())
    return line if len(line) <= _DETAIL else line[:_DETAIL].rpartition(" ")[0]


def _text(content: Any) -> str:
    """The text of a message's content. Raises BackendError on parts that are not text (the router sends none)."""
    if content is None or isinstance(content, str):
        return content or ""
    parts = [part for part in content if isinstance(part, Mapping)]
    if other := sorted({str(p.get("type")) for p in parts} - {"text", "input_text", "output_text", "refusal"}):
        raise BackendError(f"The embedded model reads text only, not {other}.")
    return "".join(str(part.get("text") or part.get("refusal") or "") for part in parts)


def _message_calls(message: Json) -> list[_ChatCall]:
    try:
        return msgspec.convert(message.get("tool_calls") or [], type=list[_ChatCall])
    except msgspec.ValidationError:
        return []


def _rendered_calls(message: Json) -> list[str]:
    functions = [call.function for call in _message_calls(message)]
    calls = [f'{{"name": {json.dumps(f.name)}, "arguments": {f.arguments or "{}"}}}' for f in functions]
    return calls if len(calls) < 2 else [f"[{', '.join(calls)}]"]


def _call_names(request: Request) -> dict[str, str]:
    """The function's name by the id of its call."""
    return {call.id: call.function.name for message in request.messages for call in _message_calls(message)}
