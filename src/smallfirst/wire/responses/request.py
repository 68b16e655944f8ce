"""Responses requests: the client's body to a Request, a Request to an upstream body."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct
from msgspec.structs import replace

from smallfirst.errors import RequestError
from smallfirst.types import Capabilities, Json, Origin, Request, ResponseFormat, Sampling, Tool, ToolChoice
from smallfirst.wire import shared
from smallfirst.wire.responses.items import from_chat, to_chat

_STATE = ("previous_response_id", "conversation", "prompt", "background", "store", "moderation")
_LOGPROBS = "message.output_text.logprobs"


class _Tool(Struct):
    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class _AllowedTool(Struct):
    type: str
    name: str | None = None


class _Choice(Struct):
    type: str
    name: str | None = None
    mode: Literal["auto", "required"] | None = None
    tools: list[_AllowedTool] | None = None


class _Format(Struct):
    type: Literal["text", "json_object", "json_schema"]
    name: str = ""
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class _Text(Struct):
    format: _Format | None = None


class Body(Struct):
    """What is checked of a request's body; every other field is kept and handed on."""

    model: Annotated[str, Meta(min_length=1)]
    input: str | list[dict[str, Any]] | None = None
    instructions: str | None = None
    tools: list[_Tool] | None = None
    tool_choice: str | _Choice | None = None
    parallel_tool_calls: bool | None = None
    text: _Text | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    max_output_tokens: Annotated[int, Meta(ge=1)] | None = None
    include: list[str] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    stream: bool | None = None
    metadata: dict[str, Any] | None = None
    user: str | None = None


def parse(raw: bytes, origin: Origin) -> Request:
    """The request in `raw`; RequestError (TooLargeError) whose `param` is the JSON path of what is wrong."""
    body = shared.decode(raw)
    given = shared.convert(body, Body)
    needs = {"native:responses"} if any(body.get(name) for name in _STATE) else set()
    tools, known = _tools(given.tools or [], len(raw), needs)
    logprobs = _LOGPROBS in (given.include or ())
    if logprobs:
        needs.add("logprobs")
    return Request(
        wire="responses",
        body=body,
        model=given.model,
        messages=_messages(given, needs),
        tools=tools,
        tool_choice=_tool_choice(given, known),
        parallel_tool_calls=given.parallel_tool_calls is not False,
        response_format=_response_format(given.text.format if given.text else None, len(raw)),
        sampling=Sampling(
            temperature=given.temperature,
            top_p=given.top_p,
            max_tokens=given.max_output_tokens,
            logprobs=logprobs,
            top_logprobs=(given.top_logprobs or 0) if logprobs else 0,
        ),
        stream=bool(given.stream),
        include_usage=True,
        origin=shared.fill_origin(origin, given.metadata, given.user),
        needs=frozenset(needs),
    )


def _messages(given: Body, needs: set[str]) -> tuple[Json, ...]:
    system: list[Json] = [{"role": "system", "content": given.instructions}] if given.instructions else []
    if isinstance(given.input, str):
        return (*system, {"role": "user", "content": given.input})
    if not given.input and "native:responses" not in needs:
        raise RequestError("input: is missing or empty.", hint="Give a string or a list of items.", param="input")
    return (*system, *to_chat(given.input or [], needs))


def _tools(given: list[_Tool], body_bytes: int, needs: set[str]) -> tuple[tuple[Tool, ...], list[str]]:
    """The function tools, and the names of these and of the custom ones; adds to `needs`."""
    tools, known = [], []
    if given:
        needs.add("tools")
    for i, tool in enumerate(given):
        at = f"tools[{i}]"
        if tool.type not in ("function", "custom"):
            needs.add("native:responses")
            continue
        if tool.name is None:
            raise RequestError(f"{at}.name: is missing.", param=f"{at}.name")
        known.append(tool.name)
        if tool.type == "custom":
            shared.check_name(tool.name, f"{at}.name")
            needs |= {"custom_tools", "native:responses"}
            continue
        tools.append(
            shared.make_tool(
                tool.name,
                tool.description,
                tool.parameters,
                tool.strict,
                at=at,
                schema_field="parameters",
                body_bytes=body_bytes,
            )
        )
    shared.check_unique(known, "tools")
    return tuple(tools), known


def _tool_choice(given: Body, known: list[str]) -> ToolChoice:
    choice = given.tool_choice
    if choice is None:
        return ToolChoice()
    if isinstance(choice, str):
        return shared.plain_choice(choice, shared.MODES, bool(given.tools))
    if choice.type == "allowed_tools" and choice.mode and choice.tools is not None:
        return shared.choose(choice.mode, [tool.name for tool in choice.tools if tool.name], known)
    if choice.type in ("function", "custom") and choice.name:
        return shared.choose("required", [choice.name], known)
    if choice.type in {tool.type for tool in given.tools or ()} - {"function", "custom"}:
        return ToolChoice("required")
    raise RequestError(
        f"tool_choice: the form {choice.type!r:.80} is unknown, incomplete, or names a tool that is not given.",
        hint='Use "auto", "none", "required", or an object of type "function", "custom" or "allowed_tools".',
        param="tool_choice",
    )


def _response_format(given: _Format | None, body_bytes: int) -> ResponseFormat:
    if given is None or given.type != "json_schema":
        return ResponseFormat(given.type if given else "text")
    if given.schema is None:
        raise RequestError(
            "text.format.schema: is missing.",
            hint='Give a JSON Schema, or use the type "json_object".',
            param="text.format.schema",
        )
    shared.check_schema(given.schema, "text.format.schema", body_bytes)
    return ResponseFormat("json_schema", given.schema, given.name, bool(given.strict))


def extend(request: Request, messages: Sequence[Json]) -> Request:
    """`request` with chat `messages` appended, in its body too (a repair's exchange, say)."""
    given = request.body.get("input") or []
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    body = {**request.body, "input": [*items, *from_chat(messages)]}
    return replace(request, messages=(*request.messages, *messages), body=body)


def body(
    request: Request,
    *,
    model: str,
    stream: bool,
    capabilities: Capabilities,  # noqa: ARG001 - every wire's body() takes the same arguments
    top_logprobs: int = 0,  # noqa: ARG001
) -> dict[str, Any]:
    """What to send upstream: the client's body with model and stream replaced; or, for a request of another wire, one
    built from the canonical fields. Stop sequences, seed and penalties have no field in this wire."""
    out = shared.upstream_copy(request) if request.wire == "responses" else _built(request)
    out["model"] = model
    shared.set_stream(out, stream)
    return out


def _built(request: Request) -> dict[str, Any]:
    sampling = request.sampling
    out: dict[str, Any] = {
        "input": from_chat(request.messages),
        "store": False,
        **_built_tools(request),
        "text": _built_format(request.response_format),
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_output_tokens": sampling.max_tokens,
        "include": [_LOGPROBS] if sampling.logprobs else None,
        "top_logprobs": sampling.top_logprobs or None,
    }
    return {key: value for key, value in out.items() if value is not None}


def _built_tools(request: Request) -> dict[str, Any]:
    if not request.tools:
        return {}
    mode, allowed = request.tool_choice.mode, request.tool_choice.allowed
    choice: Any = mode if mode != "auto" else None
    if mode == "required" and len(allowed) == 1:
        choice = {"type": "function", "name": allowed[0]}
    return {
        "tools": [
            {
                "type": "function",
                "name": tool.name,
                "description": tool.description,
                "parameters": tool.parameters or {"type": "object", "properties": {}},
                "strict": tool.strict,
            }
            for tool in shared.offered(request)
        ],
        "tool_choice": choice,
        "parallel_tool_calls": None if request.parallel_tool_calls else False,
    }


def _built_format(wanted: ResponseFormat) -> dict[str, Any] | None:
    if wanted.kind == "text":
        return None
    if wanted.kind == "json_object":
        return {"format": {"type": "json_object"}}
    named = {"name": wanted.name or "answer", "schema": wanted.schema, "strict": wanted.strict}
    return {"format": {"type": "json_schema", **named}}
