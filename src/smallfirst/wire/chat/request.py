"""Chat completion requests: the client's body to a Request, a Request to an upstream body."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

from smallfirst.errors import RequestError
from smallfirst.recurring import derived
from smallfirst.types import Capabilities, Json, Origin, Request, ResponseFormat, Sampling, Tool, ToolChoice
from smallfirst.wire import shared

_PART_FIELDS = {"text": "text", "image_url": "image_url", "input_audio": "input_audio", "file": "file"}
_MODALITIES = {"image_url": "image", "input_audio": "audio", "file": "file"}
_LEGACY_MODES: dict[str, shared.ChoiceMode] = {"none": "none", "auto": "auto"}
_ONLY_OPENAI = ("web_search_options", "logit_bias", "audio", "moderation")


class _Function(Struct):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class _Named(Struct):
    name: str


class _Tool(Struct):
    type: str
    function: _Function | None = None
    custom: _Named | None = None


class _AllowedTool(Struct):
    type: str = "function"
    function: _Named | None = None
    custom: _Named | None = None


class _Allowed(Struct):
    mode: Literal["auto", "required"]
    tools: list[_AllowedTool]


class _Choice(Struct):
    type: str
    function: _Named | None = None
    custom: _Named | None = None
    allowed_tools: _Allowed | None = None


class _JsonSchema(Struct):
    schema: dict[str, Any]
    name: str = ""
    strict: bool | None = None


class _Format(Struct):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: _JsonSchema | None = None


class _Url(Struct):
    url: str


class _Part(Struct):
    type: str
    text: str | None = None
    image_url: _Url | None = None
    input_audio: dict[str, Any] | None = None
    file: dict[str, Any] | None = None


class _Called(Struct):
    name: str
    arguments: str


class _CustomCalled(Struct):
    name: str
    input: str


class _Call(Struct):
    id: str
    type: str = "function"
    function: _Called | None = None
    custom: _CustomCalled | None = None


class _Message(Struct):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[_Part] | None = None
    name: str | None = None
    tool_calls: list[_Call] | None = None
    tool_call_id: str | None = None
    function_call: _Called | None = None
    audio: dict[str, Any] | None = None


class _StreamOptions(Struct):
    include_usage: bool | None = None


class Body(Struct):
    """What is checked of a request's body; every other field is kept and handed on."""

    model: Annotated[str, Meta(min_length=1)]
    messages: Annotated[list[_Message], Meta(min_length=1)]
    tools: list[_Tool] | None = None
    functions: list[_Function] | None = None
    tool_choice: str | _Choice | None = None
    function_call: str | _Named | None = None
    parallel_tool_calls: bool | None = None
    response_format: _Format | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    metadata: dict[str, Any] | None = None
    user: str | None = None
    modalities: list[str] | None = None


def parse(raw: bytes, origin: Origin) -> Request:
    """The request in `raw`; RequestError (TooLargeError) whose `param` is the JSON path of what is wrong."""
    body = shared.decode(raw)
    given = shared.convert(body, Body)
    tools, custom = _tools(given, body)
    known = [tool.name for tool in tools] + custom
    shared.check_unique(known, "tools")
    needs = _needs(given, body, tools, custom)
    return Request(
        wire="chat",
        body=body,
        model=given.model,
        messages=_messages(given.messages, body["messages"], needs),
        tools=tools,
        tool_choice=_tool_choice(given, known),
        parallel_tool_calls=given.parallel_tool_calls is not False and not given.functions,
        response_format=_response_format(given.response_format, len(raw)),
        sampling=_sampling(given),
        stream=bool(given.stream),
        include_usage=bool(given.stream_options and given.stream_options.include_usage),
        origin=shared.fill_origin(origin, given.metadata, given.user),
        needs=frozenset(needs),
    )


def _tools(given: Body, body: Json) -> tuple[tuple[Tool, ...], list[str]]:
    """The function tools, and the names of the custom ones."""
    tools = derived(body.get("tools"), _function_tools)
    if given.functions:
        size = len(msgspec.json.encode(body["functions"]))
        tools = (*(_tool(f, f"functions[{i}]", size) for i, f in enumerate(given.functions)), *tools)
    return tools, [tool.custom.name for tool in given.tools or () if tool.type == "custom" and tool.custom]


def _function_tools(given: Any) -> tuple[Tool, ...]:
    """The function tools of a body's "tools", all of which are checked."""
    functions, size = [], len(msgspec.json.encode(given))
    for i, tool in enumerate(msgspec.convert(given or [], list[_Tool])):
        if tool.type == "function" and tool.function:
            functions.append(_tool(tool.function, f"tools[{i}].function", size))
        elif tool.type == "custom" and tool.custom:
            shared.check_name(tool.custom.name, f"tools[{i}].custom.name")
        elif tool.type in ("function", "custom"):
            raise RequestError(f"tools[{i}].{tool.type}: is missing.", param=f"tools[{i}].{tool.type}")
    return tuple(functions)


def _tool(given: _Function, at: str, body_bytes: int) -> Tool:
    return shared.make_tool(
        given.name,
        given.description,
        given.parameters,
        given.strict,
        at=at,
        schema_field="parameters",
        body_bytes=body_bytes,
    )


def _needs(given: Body, body: Json, tools: Sequence[Tool], custom: list[str]) -> set[str]:
    needs = set()
    hosted = {tool.type for tool in given.tools or ()} - {"function", "custom"}
    if hosted or custom or any(map(body.get, _ONLY_OPENAI)) or "audio" in (given.modalities or ()):
        needs.add("native:chat")
    if custom:
        needs.add("custom_tools")
    if tools or custom or hosted:
        needs.add("tools")
    if given.logprobs:
        needs.add("logprobs")
    if (given.n or 1) > 1:
        needs.add("n")
    return needs


def _tool_choice(given: Body, known: list[str]) -> ToolChoice:
    choice = given.tool_choice
    if choice is None and given.function_call is not None:
        if isinstance(given.function_call, str):
            return shared.plain_choice(given.function_call, _LEGACY_MODES, bool(known), "function_call")
        return shared.choose("required", [given.function_call.name], known, "function_call")
    if choice is None:
        return ToolChoice()
    if isinstance(choice, str):
        return shared.plain_choice(choice, shared.MODES, bool(given.tools))
    if choice.type == "allowed_tools" and choice.allowed_tools:
        named = [tool.function or tool.custom for tool in choice.allowed_tools.tools]
        return shared.choose(choice.allowed_tools.mode, [name.name for name in named if name], known)
    if choice.type in ("function", "custom") and (chosen := choice.function or choice.custom):
        return shared.choose("required", [chosen.name], known)
    raise RequestError(
        f"tool_choice: the form {choice.type!r:.80} is unknown or incomplete.",
        hint='Use "auto", "none", "required", or an object of type "function", "custom" or "allowed_tools".',
        param="tool_choice",
    )


def _response_format(given: _Format | None, body_bytes: int) -> ResponseFormat:
    if given is None or given.type != "json_schema":
        return ResponseFormat(given.type if given else "text")
    if given.json_schema is None:
        raise RequestError(
            "response_format.json_schema: is missing.",
            hint='Give {"name": ..., "schema": ...}, or use the type "json_object".',
            param="response_format.json_schema",
        )
    wanted = given.json_schema
    shared.check_schema(wanted.schema, "response_format.json_schema.schema", body_bytes)
    return ResponseFormat("json_schema", wanted.schema, wanted.name, bool(wanted.strict))


def _sampling(given: Body) -> Sampling:
    if given.top_logprobs and not given.logprobs:
        raise RequestError("top_logprobs: needs logprobs.", hint='Set "logprobs": true.', param="top_logprobs")
    stop = (given.stop,) if isinstance(given.stop, str) else tuple(given.stop or ())
    return Sampling(
        temperature=given.temperature,
        top_p=given.top_p,
        max_tokens=given.max_completion_tokens or given.max_tokens,
        stop=stop,
        seed=given.seed,
        n=given.n or 1,
        logprobs=bool(given.logprobs),
        top_logprobs=given.top_logprobs or 0,
        presence_penalty=given.presence_penalty,
        frequency_penalty=given.frequency_penalty,
    )


def _messages(given: list[_Message], raw: list[dict[str, Any]], needs: set[str]) -> tuple[Json, ...]:
    """The checked messages in today's words: developer is system, a function's result is a tool's. Adds to `needs`."""
    out: list[Json] = []
    calls: set[str] = set()
    legacy: dict[str, str] = {}
    for i, (message, original) in enumerate(zip(given, raw, strict=True)):
        at = f"messages[{i}]"
        _check_content(message, at, needs)
        for j, call in enumerate(message.tool_calls or ()):
            if not (call.function or call.custom):
                raise RequestError(
                    f"{at}.tool_calls[{j}].function: is missing.", param=f"{at}.tool_calls[{j}].function"
                )
            if call.custom:
                needs.add("native:chat")
            calls.add(call.id)
        if message.role == "tool" and message.tool_call_id not in calls:
            raise shared.unanswered(message.tool_call_id, f"{at}.tool_call_id")
        if message.role == "developer":
            original = {**original, "role": "system"}
        elif message.function_call:
            legacy[message.function_call.name] = f"call_{i}"
            original = _modern_call(original, f"call_{i}")
        elif message.role == "function":
            if message.name not in legacy:
                raise shared.unanswered(message.name, f"{at}.name")
            original = {"role": "tool", "tool_call_id": legacy[message.name], "content": original["content"]}
        out.append(original)
    return tuple(out)


def _check_content(message: _Message, at: str, needs: set[str]) -> None:
    if message.content is None:
        if message.role != "assistant":
            raise RequestError(f"{at}.content: is missing.", param=f"{at}.content")
        if message.audio:
            needs.add("native:chat")
    elif not isinstance(message.content, str):
        for j, part in enumerate(message.content):
            needed = _PART_FIELDS.get(part.type)
            if needed is None:
                if part.type != "refusal":
                    needs.add("native:chat")
            elif getattr(part, needed) is None:
                raise RequestError(f"{at}.content[{j}].{needed}: is missing.", param=f"{at}.content[{j}].{needed}")
            elif part.type in _MODALITIES:
                needs.add(_MODALITIES[part.type])


def _modern_call(message: dict[str, Any], call_id: str) -> dict[str, Any]:
    rest = {key: value for key, value in message.items() if key != "function_call"}
    return {**rest, "tool_calls": [{"id": call_id, "type": "function", "function": message["function_call"]}]}


def extend(request: Request, messages: Sequence[Json]) -> Request:
    """`request` with chat `messages` appended, in its body too (a repair's exchange, say)."""
    body = {**request.body, "messages": [*request.body["messages"], *messages]}
    return replace(request, messages=(*request.messages, *messages), body=body)


def body(
    request: Request, *, model: str, stream: bool, capabilities: Capabilities, top_logprobs: int = 0
) -> dict[str, Any]:
    """What to send upstream: the client's body with model, stream and (if `top_logprobs` and its body does not ask)
    log-probabilities replaced; or, for a request of another wire, one built from the canonical fields."""
    out = shared.upstream_copy(request) if request.wire == "chat" else _built(request, capabilities)
    out["model"] = model
    shared.set_stream(out, stream)
    if stream and capabilities.stream_usage:
        out["stream_options"] = {**(out.get("stream_options") or {}), "include_usage": True}
    if top_logprobs > 0 and not out.get("top_logprobs"):
        out["logprobs"] = True
        out["top_logprobs"] = top_logprobs
    return out


def _built(request: Request, capabilities: Capabilities) -> dict[str, Any]:
    sampling = request.sampling
    out: dict[str, Any] = {
        "messages": list(request.messages),
        **_built_tools(request),
        "response_format": _built_format(request.response_format),
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        capabilities.max_tokens_field: sampling.max_tokens,
        "stop": list(sampling.stop) or None,
        "seed": sampling.seed,
        "n": sampling.n if sampling.n > 1 else None,
        "logprobs": sampling.logprobs or None,
        "top_logprobs": sampling.top_logprobs or None,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
    }
    return {key: value for key, value in out.items() if value is not None}


def _built_tools(request: Request) -> dict[str, Any]:
    if not request.tools:
        return {}
    choice, named = request.tool_choice, _named(request.tool_choice)
    return {
        "tools": [_built_tool(tool) for tool in (request.tools if named else shared.offered(request))],
        "tool_choice": named or (choice.mode if choice.mode != "auto" else None),
        "parallel_tool_calls": None if request.parallel_tool_calls else False,
    }


def _named(choice: ToolChoice) -> dict[str, Any] | None:
    if choice.mode == "required" and len(choice.allowed) == 1:
        return {"type": "function", "function": {"name": choice.allowed[0]}}
    return None


def _built_tool(tool: Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    if tool.strict:
        function["strict"] = True
    return {"type": "function", "function": function}


def _built_format(wanted: ResponseFormat) -> dict[str, Any] | None:
    if wanted.kind == "text":
        return None
    if wanted.kind == "json_object":
        return {"type": "json_object"}
    schema = {"name": wanted.name or "answer", "schema": wanted.schema, "strict": wanted.strict}
    return {"type": "json_schema", "json_schema": schema}
