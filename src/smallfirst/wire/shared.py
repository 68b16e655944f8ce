"""What the three wires share: reading JSON within limits, clear refusals, tools, schemas, origins, events."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar

import msgspec
from msgspec.structs import replace

from smallfirst import recurring
from smallfirst.errors import BackendGarbage, RequestError, SmallfirstError, TooLargeError, UpstreamError
from smallfirst.schemas import MAX_SCHEMA_BYTES, MAX_SCHEMA_NODES, check_size
from smallfirst.types import Json, Native, Origin, Request, TokenLogprob, Tool, ToolChoice, Wire
from smallfirst.wire import sse

MAX_DEPTH = 100
OUR_METADATA = ("smallfirst_task", "smallfirst_episode", "smallfirst_user")

ChoiceMode = Literal["auto", "none", "required"]
MODES: Mapping[str, ChoiceMode] = {"auto": "auto", "none": "none", "required": "required"}
T = TypeVar("T")
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}")
_PATH = re.compile(r"(.*?)(?: - at (?:`key` in )?`\$\.?(.*)`)?", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(\w+)`")
_STEP = re.compile(r"([^.\[\]]+)|\[(\d+)\]")


def decode(raw: bytes) -> dict[str, Any]:
    """The JSON object that a client sent; RequestError if it is not one, TooLargeError if it nests too deep."""
    try:
        body: Any = recurring.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        body = _refused(raw)
    if not isinstance(body, dict):
        raise RequestError(f"The body is {type(body).__name__}, not a JSON object.", hint="Send one JSON object.")
    if raw.count(b"{") + raw.count(b"[") > MAX_DEPTH and any(depth > MAX_DEPTH for depth, _ in _levels(body)):
        raise _too_deep()
    return body


def _refused(raw: bytes) -> Any:
    """The JSON value `raw`, which is no object; RequestError if it is no JSON value either."""
    try:
        return msgspec.json.decode(raw)
    except UnicodeDecodeError as error:
        raise RequestError(f"The body is not UTF-8: {error.reason}.", hint="Send JSON as UTF-8.") from None
    except msgspec.DecodeError as error:
        raise RequestError(f"The body is not JSON: {error}.", hint="Send one JSON object.") from None
    except RecursionError:
        raise _too_deep() from None


def _too_deep() -> TooLargeError:
    return TooLargeError(f"The body nests deeper than {MAX_DEPTH} levels.", hint="Send a flatter object.")


def convert(value: object, kind: type[T], at: str = "") -> T:
    """`value` as the msgspec type `kind`; RequestError whose `param` is the JSON path, under `at`, of what is wrong."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        found = _PATH.fullmatch(str(error))
        what, path = (found[1], found[2] or "") if found else (str(error), "")
        given = _lookup(value, path)
        if missing := _MISSING.fullmatch(what):
            path, what = (f"{path}.{missing[1]}".lstrip("."), "is missing")
        else:
            what = f"{what[0].lower()}{what[1:]} (given: {given!r:.80})"
        param = f"{at}.{path}" if at and path and not path.startswith("[") else at + path
        raise RequestError(f"{param or 'body'}: {what}.", param=param or None) from None


def _lookup(value: Any, path: str) -> Any:
    """The value at `path`, or the nearest one above it."""
    for step in _STEP.finditer(path):
        if step[1] and isinstance(value, dict) and step[1] in value:
            value = value[step[1]]
        elif step[2] and isinstance(value, list) and int(step[2]) < len(value):
            value = value[int(step[2])]
        else:
            break
    return value


def _levels(value: object) -> Iterator[tuple[int, list[Any]]]:
    """The containers in `value` with their depth, level by level (no recursion, so any depth is safe)."""
    level: list[Any] = [value]
    depth = 0
    while level:
        depth += 1
        yield depth, level
        level = [
            child
            for container in level
            for child in (container.values() if type(container) is dict else container)
            if type(child) is dict or type(child) is list
        ]


def check_schema(schema: Json, param: str, body_bytes: int) -> None:
    """TooLargeError if `schema` is over the limits of size. No schema is larger than the body it came in, nor has more
    nodes than half the body's bytes; so a small body costs no walk."""
    if body_bytes > min(MAX_SCHEMA_BYTES, 2 * MAX_SCHEMA_NODES):
        check_size(schema, param=param)


def check_name(name: str, param: str) -> None:
    """RequestError unless `name` may name a tool."""
    if not _NAME.fullmatch(name):
        raise RequestError(
            f"{param}: {name!r:.80} is no name for a tool.",
            hint="Use 1 to 128 letters, digits, underscores and dashes.",
            param=param,
        )


def check_unique(names: Sequence[str], param: str) -> None:
    """RequestError if a tool's name occurs twice."""
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise RequestError(f"{param}: two tools are named {twice!r}.", hint="Give each tool its own name.", param=param)


def make_tool(
    name: str,
    description: str | None,
    schema: dict[str, Any] | None,
    strict: bool | None,
    *,
    at: str,
    schema_field: str,
    body_bytes: int,
) -> Tool:
    """A checked function tool; `at` is its JSON path."""
    check_name(name, f"{at}.name")
    param = f"{at}.{schema_field}"
    if schema:
        if schema.get("type", "object") != "object":
            raise RequestError(
                f"{param}: a schema of type {schema['type']!r}.", hint='Its "type" must be "object".', param=param
            )
        check_schema(schema, param, body_bytes)
    return Tool(name, description or "", schema or {}, bool(strict))


def choose(mode: ChoiceMode, names: Sequence[str], known: Sequence[str], param: str = "tool_choice") -> ToolChoice:
    """The tool choice `mode` among `names`, each of which must be in `known`, the names of all the request's tools."""
    for name in names:
        if name not in known:
            raise RequestError(
                f"{param}: {name!r} is not among the request's tools {list(known)!r:.300}.",
                hint="Name a tool that the request gives.",
                param=param,
            )
    return ToolChoice(mode, tuple(names))


def plain_choice(mode: str, modes: Mapping[str, ChoiceMode], has_tools: bool, param: str = "tool_choice") -> ToolChoice:
    """The tool choice that the word `mode` stands for in `modes`; it may not be "required" without tools."""
    if mode not in modes:
        raise RequestError(f"{param}: {mode!r:.80} is unknown.", hint=f"Use one of {list(modes)!r}.", param=param)
    if modes[mode] == "required" and not has_tools:
        raise RequestError(f"{param}: {mode!r} without tools.", hint="Give tools, or leave it out.", param=param)
    return ToolChoice(modes[mode])


def offered(request: Request) -> tuple[Tool, ...]:
    """The tools that the request's tool choice leaves, for a wire that cannot name several allowed ones."""
    allowed = request.tool_choice.allowed
    return tuple(tool for tool in request.tools if tool.name in allowed) if allowed else request.tools


def fill_origin(origin: Origin, metadata: Mapping[str, Any] | None, user: str | None) -> Origin:
    """`origin` with the fields that headers left None filled from the body's metadata, then from `user`."""
    words = []
    for key in OUR_METADATA:
        value = (metadata or {}).get(key)
        if value is not None and not isinstance(value, str):
            raise RequestError(f"metadata.{key}: {value!r:.80} is no string.", param=f"metadata.{key}")
        words.append(value)
    task, episode, named_user = words
    user = named_user or user
    if not (task or episode or user):
        return origin
    return replace(origin, task=origin.task or task, episode=origin.episode or episode, user=origin.user or user)


def upstream_copy(request: Request) -> dict[str, Any]:
    """A shallow copy of the client's body, without the metadata that is addressed to this gateway."""
    body = dict(request.body)
    metadata = body.get("metadata")
    if metadata and any(key in metadata for key in OUR_METADATA):
        body["metadata"] = {key: value for key, value in metadata.items() if key not in OUR_METADATA}
        if not body["metadata"]:
            del body["metadata"]
    return body


def set_stream(body: dict[str, Any], stream: bool) -> None:
    """Put `stream` into an upstream body in place; without streaming, its options go too."""
    if stream:
        body["stream"] = True
    else:
        if "stream" in body:
            body["stream"] = False
        body.pop("stream_options", None)


def unanswered(call_id: str | None, param: str) -> RequestError:
    """The refusal of a tool result that answers no earlier call."""
    return RequestError(
        f"{param}: {call_id!r} answers no call of an earlier assistant message.",
        hint="Put the assistant message that made the call before its result.",
        param=param,
    )


def read_as(payload: object, kind: type[T]) -> T:
    """What an upstream sent, as the msgspec type `kind`; BackendGarbage if it is something else."""
    try:
        return msgspec.convert(payload, kind)
    except msgspec.ValidationError as error:
        raise BackendGarbage(f"The upstream's answer has the wrong shape: {error}.") from None


def read_event(data: bytes) -> dict[str, Any]:
    """The JSON object of a stream event; BackendGarbage if it is none."""
    try:
        payload = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BackendGarbage(f"The upstream sent an event that is not JSON: {error}.") from None
    if not isinstance(payload, dict):
        raise BackendGarbage(f"The upstream sent an event that is {type(payload).__name__}, not an object.")
    return payload


def kind_of(payload: Json, name: str | None = None) -> str:
    """The "type" of an upstream's object; `name` or "" if it has none."""
    kind = payload.get("type")
    return kind if isinstance(kind, str) else name or ""


def upstream_error(error: object, body: Json, status: int = 502) -> UpstreamError:
    """The error that an upstream sent inside an answer or a stream; `error` is its error object or text."""
    message = error.get("message") if isinstance(error, dict) else error
    code = error.get("code") if isinstance(error, dict) else None
    if isinstance(code, int) and 400 <= code < 600:
        status = code
    return UpstreamError(f"The upstream broke off: {message!s:.500}", upstream_status=status, body=body)


def event(payload: Json, name: str | None = None) -> bytes:
    """A server-sent event with `payload` as JSON."""
    return sse.encode(msgspec.json.encode(payload), name)


def json_text(value: object) -> str:
    """`value` as compact JSON text."""
    return msgspec.json.encode(value).decode()


def is_event_of(native: Native | None, wire: Wire) -> bool:
    """Whether `native` is a stream event of `wire`, to be handed on as it is."""
    return native is not None and native.wire == wire and native.event is not None


def openai_error(err: SmallfirstError) -> dict[str, Any]:
    """`err` in OpenAI's shape; an upstream's own error of that shape as it is."""
    body = (err.body if isinstance(err, UpstreamError) else None) or {}
    if isinstance(body.get("error"), dict) and body.get("type") != "error":
        return dict(body)
    return {"error": {"message": str(err), "type": err.type, "param": err.param, "code": err.code}}


def tokens_json(tokens: tuple[TokenLogprob, ...], top: int) -> list[dict[str, Any]]:
    """Log-probabilities in OpenAI's words with at most `top` alternatives; -inf becomes -9999, as JSON has none."""
    return [
        {**_token_json(token.token, token.logprob), "top_logprobs": [_token_json(*best) for best in token.top[:top]]}
        for token in tokens
    ]


def _token_json(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": max(logprob, -9999.0), "bytes": list(token.encode())}
