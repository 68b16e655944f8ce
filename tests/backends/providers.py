"""What the hosted providers answer, whole and streamed, in their own formats."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web
from recording import Handler, answer, events, sse

TEXT = "Paris is the capital of France."
ARGUMENTS = '{"city":"Paris","days":2}'
TOOL = "get_weather"
CHAT_USAGE = {
    "prompt_tokens": 20,
    "completion_tokens": 7,
    "total_tokens": 27,
    "prompt_tokens_details": {"cached_tokens": 16},
}


def chat_whole(message: dict[str, Any], finish: str = "stop") -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish, "logprobs": None}
    return {"id": "c1", "object": "chat.completion", "model": "big-1", "choices": [choice], "usage": CHAT_USAGE}


def chat_chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
    return {"id": "c1", "object": "chat.completion.chunk", "model": "big-1", "choices": [choice]}


def chat_call(arguments: str, *, head: bool) -> dict[str, Any]:
    function = {"name": TOOL, "arguments": arguments} if head else {"arguments": arguments}
    return {"tool_calls": [{"index": 0, **({"id": "t1", "type": "function"} if head else {}), "function": function}]}


CHAT_TEXT = [
    chat_chunk({"role": "assistant", "content": ""}),
    *(chat_chunk({"content": word}) for word in ("Paris is ", "the capital ", "of France.")),
    chat_chunk({}, "stop"),
    {"id": "c1", "object": "chat.completion.chunk", "model": "big-1", "choices": [], "usage": CHAT_USAGE},
]
CHAT_TOOL = [
    chat_chunk({"role": "assistant", "content": None, **chat_call("", head=True)}),
    *(chat_chunk(chat_call(piece, head=False)) for piece in ('{"city":', '"Paris"', ',"days":2}')),
    chat_chunk({}, "tool_calls"),
    {"id": "c1", "object": "chat.completion.chunk", "model": "big-1", "choices": [], "usage": CHAT_USAGE},
]


def openai(stream: list[dict[str, Any]], whole: dict[str, Any]) -> Handler:
    """A chat endpoint that gives one answer, streamed when it is asked to."""

    async def handle(request: web.Request) -> web.StreamResponse:
        body = msgspec.json.decode(await request.read())
        return await (sse(events(stream)) if body.get("stream") else answer(whole))(request)

    return handle


def openai_text() -> Handler:
    return openai(CHAT_TEXT, chat_whole({"content": TEXT}))


def openai_tool() -> Handler:
    return openai(CHAT_TOOL, chat_whole({"content": None, **chat_call(ARGUMENTS, head=True)}, "tool_calls"))


ANTHROPIC_USAGE = {
    "input_tokens": 4,
    "output_tokens": 7,
    "cache_read_input_tokens": 16,
    "cache_creation_input_tokens": 0,
}


def anthropic(blocks: list[tuple[dict[str, Any], list[dict[str, Any]]]], whole: list[Any], stop: str) -> Handler:
    """A messages endpoint that gives one answer, streamed when it is asked to."""
    message = {"id": "m1", "type": "message", "role": "assistant", "model": "claude-1", "stop_sequence": None}
    stream: list[dict[str, Any]] = [
        {
            "type": "message_start",
            "message": {
                **message,
                "content": [],
                "stop_reason": None,
                "usage": {**ANTHROPIC_USAGE, "output_tokens": 1},
            },
        },
        {"type": "ping"},
    ]
    for index, (start, pieces) in enumerate(blocks):
        stream.append({"type": "content_block_start", "index": index, "content_block": start})
        stream += [{"type": "content_block_delta", "index": index, "delta": piece} for piece in pieces]
        stream.append({"type": "content_block_stop", "index": index})
    stream += [
        {"type": "message_delta", "delta": {"stop_reason": stop}, "usage": {"output_tokens": 7}},
        {"type": "message_stop"},
    ]

    async def handle(request: web.Request) -> web.StreamResponse:
        body = msgspec.json.decode(await request.read())
        if body.get("stream"):
            return await sse(events(stream, named=True))(request)
        return await answer({**message, "content": whole, "stop_reason": stop, "usage": ANTHROPIC_USAGE})(request)

    return handle


def anthropic_text() -> Handler:
    pieces = [{"type": "text_delta", "text": word} for word in ("Paris is ", "the capital ", "of France.")]
    return anthropic([({"type": "text", "text": ""}, pieces)], [{"type": "text", "text": TEXT}], "end_turn")


def anthropic_tool() -> Handler:
    pieces = [{"type": "input_json_delta", "partial_json": piece} for piece in ('{"city":', '"Paris"', ',"days":2}')]
    use = {"type": "tool_use", "id": "t1", "name": TOOL}
    return anthropic([({**use, "input": {}}, pieces)], [{**use, "input": msgspec.json.decode(ARGUMENTS)}], "tool_use")
