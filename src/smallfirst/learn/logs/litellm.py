"""LiteLLM: rows of its table LiteLLM_SpendLogs (as the database, /spend/logs or /spend/logs/v2 give them), and the
StandardLoggingPayload that its callbacks write. Read against LiteLLM 1.106.2.

A row holds prompts only where `store_prompts_in_spend_logs` was on. LiteLLM shortens long texts in rows; a call that it
shortened is refused, for nothing is learnt from half a prompt.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from smallfirst.errors import RequestError
from smallfirst.learn.logs.entry import (
    Entry,
    Found,
    Plain,
    between,
    listed,
    mapping,
    moment,
    number,
    settings,
    text,
    word,
)
from smallfirst.types import Json

_CALLS = frozenset({"completion", "acompletion", "responses", "aresponses", "anthropic_messages"})
_SHORTENED = b"(litellm_truncated"


class LiteLLM(Plain):
    def recognises(self, item: Json) -> bool:
        return "call_type" in item and "startTime" in item

    def entries(self, item: Json) -> Iterator[Found]:
        response = mapping(item.get("response"), "response")
        if text(item["call_type"]) not in _CALLS or item.get("status") == "failure" or response.get("error"):
            yield None
            return
        request = _request(item)
        if not request or not response:
            raise RequestError(
                "The row has no prompt or no answer.", hint="LiteLLM keeps them with store_prompts_in_spend_logs: true."
            )
        if _SHORTENED in msgspec.json.encode((request, response)):
            raise RequestError(
                "LiteLLM has shortened the prompt or the answer.", hint="Raise its MAX_STRING_LENGTH_PROMPT_IN_DB."
            )
        start, end = moment(item["startTime"]), moment(item.get("endTime"))
        metadata = mapping(item.get("metadata"), "metadata")
        yield Entry(
            source=word(item.get("request_id")) or word(item.get("id")) or "",
            request=request,
            response=response,
            created_at=start,
            seconds=between(start, end),
            cost_usd=_cost(item),
            episode=word(item.get("session_id")) or word(item.get("trace_id")),
            user=word(item.get("end_user")) or word(item.get("user")) or word(metadata.get("user_api_key_user_id")),
        )


def _request(item: Json) -> dict[str, Any]:
    """The client's body where the row has it, else one made of what the row says."""
    body = mapping(item.get("proxy_server_request"), "proxy_server_request")
    model = word(body.get("model")) or word(item.get("model_group")) or word(item.get("model")) or "unknown"
    if "messages" in body or "input" in body:
        return {**body, "model": model}
    messages = [] if item.get("messages") in ({}, "{}") else listed(item.get("messages"), "messages")
    given = settings(mapping(item.get("model_parameters"), "model_parameters"))
    return {**given, "model": model, "messages": messages} if messages else {}


def _cost(item: Json) -> float | None:
    """The row's cost; LiteLLM writes 0 for a model whose price it does not know."""
    cost = number(item.get("spend", item.get("response_cost")))
    cached = str(item.get("cache_hit")).lower() == "true"
    return cost if cost or cached else None
