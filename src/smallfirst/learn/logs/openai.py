"""Chat logs as JSON lines of OpenAI request and response pairs.

A line is {"request": ..., "response": ...}, each the body itself or an object with it under "body" (as in files of
OpenAI's Batch API); or a request with its "response" beside the other fields; or, as in files for fine-tuning, a
conversation {"messages": [...], "tools": [...]} whose last message is the answer. Bodies of Responses and of
Anthropic's Messages are read too. Beside them may stand id, created_at, seconds, cost_usd, and task, episode and user,
at the top or under "metadata".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from smallfirst.errors import RequestError
from smallfirst.learn.logs.entry import Entry, Found, Plain, chat_answer, chat_message, mapping, moment, number, word
from smallfirst.types import Json

_TIMES = ("created_at", "timestamp", "created", "time")
_ABOUT = frozenset({*_TIMES, "id", "custom_id", "response", "seconds", "cost_usd", "task", "episode"})


class OpenAI(Plain):
    def recognises(self, item: Json) -> bool:
        return "request" in item or "messages" in item

    def entries(self, item: Json) -> Iterator[Found]:
        request, response = _pair(item)
        if response is None:
            yield None
            return
        about = item.get("metadata")
        about = {**(about if isinstance(about, dict) else {}), **item}
        created = next((about[name] for name in _TIMES if about.get(name) is not None), None)
        created = created if created is not None else response.get("created", response.get("created_at"))
        yield Entry(
            source=word(item.get("id")) or word(item.get("custom_id")) or word(response.get("id")) or "",
            request=request,
            response=response,
            created_at=moment(created),
            seconds=number(about.get("seconds")) or 0.0,
            cost_usd=number(about.get("cost_usd")),
            task=word(about.get("task")),
            episode=word(about.get("episode")) or word(about.get("session_id")),
            user=word(about.get("user")) or word(about.get("user_id")),
        )


def _pair(item: Json) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The request's and the answer's body; no answer when the call failed."""
    if "request" in item:
        request = mapping(item["request"], "request")
        request = mapping(request["body"], "request.body") if "body" in request else request
        return request, _answer(item.get("response"))
    if item.get("response") is not None:
        return {name: value for name, value in item.items() if name not in _ABOUT}, _answer(item["response"])
    conversation = item["messages"]
    if not isinstance(conversation, list) or len(conversation) < 2 or not _assistant(conversation[-1]):
        raise RequestError("There is no response, and the last of the messages is not the assistant's.")
    model = word(item.get("model")) or "unknown"
    rest = {name: value for name, value in item.items() if name not in _ABOUT}
    return {**rest, "model": model, "messages": conversation[:-1]}, chat_answer(model, [chat_message(conversation[-1])])


def _assistant(message: Any) -> bool:
    return isinstance(message, dict) and message.get("role") == "assistant"


def _answer(given: Any) -> dict[str, Any] | None:
    response = mapping(given, "response")
    body = mapping(response["body"], "response.body") if "body" in response else response
    failed = not body or body.get("error") or (number(response.get("status_code")) or 200) >= 400
    return None if failed else body
