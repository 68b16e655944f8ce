"""Anthropic Messages requests: the client's body to a Request, a Request to an upstream body."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct
from msgspec.structs import replace

from smallfirst.errors import RequestError
from smallfirst.types import Capabilities, Json, Origin, Request, ResponseFormat, Sampling, Tool, ToolChoice
from smallfirst.wire import shared
from smallfirst.wire.messages.blocks import Message, System, from_chat, to_chat

DEFAULT_MAX_TOKENS = 4096
_MODES: dict[str, shared.ChoiceMode] = {"auto": "auto", "any": "required", "none": "none"}
_ONLY_ANTHROPIC = ("container", "mcp_servers", "context_management")
_JSON_ONLY = "Answer with one JSON object and nothing else."


class _Tool(Struct):
    name: str | None = None
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = None


class _Choice(Struct):
    type: str
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class _Format(Struct):
    type: Literal["json_schema"]
    schema: dict[str, Any]


class _OutputConfig(Struct):
    format: _Format | None = None


class Body(Struct):
    """What is checked of a request's body; every other field is kept and handed on."""

    model: Annotated[str, Meta(min_length=1)]
    max_tokens: Annotated[int, Meta(ge=1)]
    messages: Annotated[list[Message], Meta(min_length=1)]
    system: str | list[System] | None = None
    tools: list[_Tool] | None = None
    tool_choice: _Choice | None = None
    output_config: _OutputConfig | None = None
    temperature: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    metadata: dict[str, Any] | None = None


def parse(raw: bytes, origin: Origin) -> Request:
    """The request in `raw`; RequestError (TooLargeError) whose `param` is the JSON path of what is wrong."""
    body = shared.decode(raw)
    given = shared.convert(body, Body)
    needs = {"native:messages"} if any(body.get(name) for name in _ONLY_ANTHROPIC) else set()
    tools, names = _tools(given.tools or [], len(raw), needs)
    choice = given.tool_choice
    return Request(
        wire="messages",
        body=body,
        model=given.model,
        messages=to_chat(given.system, given.messages, needs),
        tools=tools,
        tool_choice=_tool_choice(choice, names, bool(given.tools)),
        parallel_tool_calls=not (choice and choice.disable_parallel_tool_use),
        response_format=_response_format(given.output_config.format if given.output_config else None, len(raw)),
        sampling=Sampling(
            temperature=given.temperature,
            top_p=given.top_p,
            max_tokens=given.max_tokens,
            stop=tuple(given.stop_sequences or ()),
        ),
        stream=bool(given.stream),
        include_usage=True,
        origin=shared.fill_origin(origin, given.metadata, _user(given.metadata)),
        needs=frozenset(needs),
    )


def _user(metadata: dict[str, Any] | None) -> str | None:
    user = (metadata or {}).get("user_id")
    if user is not None and not isinstance(user, str):
        raise RequestError(f"metadata.user_id: {user!r:.80} is no string.", param="metadata.user_id")
    return user


def _tools(given: list[_Tool], body_bytes: int, needs: set[str]) -> tuple[tuple[Tool, ...], list[str]]:
    """The function tools, and the names of all; adds to `needs`. A typed tool is Anthropic's own."""
    tools, names = [], []
    if given:
        needs.add("tools")
    for i, tool in enumerate(given):
        at = f"tools[{i}]"
        if tool.name is not None:
            names.append(tool.name)
        if tool.type not in (None, "custom"):
            needs.add("native:messages")
            continue
        for field in ("name", "input_schema"):
            if getattr(tool, field) is None:
                raise RequestError(f"{at}.{field}: is missing.", param=f"{at}.{field}")
        tools.append(
            shared.make_tool(
                tool.name or "",
                tool.description,
                tool.input_schema,
                tool.strict,
                at=at,
                schema_field="input_schema",
                body_bytes=body_bytes,
            )
        )
    shared.check_unique(names, "tools")
    return tuple(tools), names


def _tool_choice(choice: _Choice | None, names: list[str], has_tools: bool) -> ToolChoice:
    if choice is None:
        return ToolChoice()
    if choice.type != "tool":
        return shared.plain_choice(choice.type, _MODES, has_tools, "tool_choice.type")
    if choice.name is None:
        raise RequestError("tool_choice.name: is missing.", param="tool_choice.name")
    return shared.choose("required", [choice.name], names, "tool_choice.name")


def _response_format(given: _Format | None, body_bytes: int) -> ResponseFormat:
    if given is None:
        return ResponseFormat()
    shared.check_schema(given.schema, "output_config.format.schema", body_bytes)
    return ResponseFormat("json_schema", given.schema, strict=True)


def extend(request: Request, messages: Sequence[Json]) -> Request:
    """`request` with chat `messages` appended, in its body too (a repair's exchange, say)."""
    _, turns = from_chat(messages)
    body = {**request.body, "messages": [*request.body["messages"], *turns]}
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
    built from the canonical fields. Seed and penalties have no field in this wire; temperature ends at 1."""
    out = shared.upstream_copy(request) if request.wire == "messages" else _built(request)
    out["model"] = model
    shared.set_stream(out, stream)
    return out


def _built(request: Request) -> dict[str, Any]:
    sampling, wanted = request.sampling, request.response_format
    system, turns = from_chat(request.messages)
    if wanted.kind == "json_object":
        system = f"{system}\n\n{_JSON_ONLY}".lstrip()
    schema = {"format": {"type": "json_schema", "schema": wanted.schema}}
    out: dict[str, Any] = {
        "max_tokens": sampling.max_tokens or DEFAULT_MAX_TOKENS,
        "system": system or None,
        "messages": turns,
        **_built_tools(request),
        "output_config": schema if wanted.kind == "json_schema" else None,
        "temperature": sampling.temperature if sampling.temperature is None else min(sampling.temperature, 1.0),
        "top_p": sampling.top_p,
        "stop_sequences": list(sampling.stop) or None,
    }
    return {key: value for key, value in out.items() if value is not None}


def _built_tools(request: Request) -> dict[str, Any]:
    if not request.tools:
        return {}
    mode, allowed = request.tool_choice.mode, request.tool_choice.allowed
    choice: dict[str, Any] = {"type": "any" if mode == "required" else mode}
    if mode == "required" and len(allowed) == 1:
        choice = {"type": "tool", "name": allowed[0]}
    if not request.parallel_tool_calls and mode != "none":
        choice["disable_parallel_tool_use"] = True
    return {
        "tools": [
            {
                "name": tool.name,
                "description": tool.description,
                "input_schema": {"type": "object", **tool.parameters},
                **({"strict": True} if tool.strict else {}),
            }
            for tool in shared.offered(request)
        ],
        "tool_choice": choice if choice != {"type": "auto"} else None,
    }
