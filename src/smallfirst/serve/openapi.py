"""The OpenAPI description of the gateway: what it accepts, generated from the types that the wire layer checks with."""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec

from smallfirst import __version__
from smallfirst.serve.feedback import FeedbackBody
from smallfirst.types import Wire
from smallfirst.wire import BODIES

_CALLS: dict[str, tuple[Wire, str]] = {
    "/v1/chat/completions": ("chat", "Answer a chat completion, small-first (OpenAI)"),
    "/v1/responses": ("responses", "Answer a response, small-first (OpenAI)"),
    "/v1/messages": ("messages", "Answer a message, small-first (Anthropic)"),
}
_READS = {
    "/v1/models": ("Names that a call may use", "application/json"),
    "/healthz": ("The process answers", "application/json"),
    "/readyz": ("A record could be made durable now", "application/json"),
    "/metrics": ("Prometheus metrics", "text/plain"),
    "/openapi.json": ("This description", "application/json"),
}
_HEADERS = {
    "x-smallfirst-task": "The call's task; it is found from the request without it",
    "x-smallfirst-episode": "The agent run that the call belongs to",
    "x-smallfirst-user": "Who the agent works for; kept as a keyed hash",
    "x-smallfirst-cache": "'use' or 'skip' the exact response cache of the task",
}


@cache
def description() -> dict[str, Any]:
    """The document, OpenAPI 3.1."""
    wires = {wire: BODIES[wire] for wire, _ in _CALLS.values()}
    types = (*wires.values(), FeedbackBody)
    schemas, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    by_type = dict(zip(types, schemas, strict=True))
    paths: dict[str, Any] = {
        path: {"post": _post(summary, by_type[wires[wire]], parameters=True)}
        for path, (wire, summary) in _CALLS.items()
    }
    anything = {"type": "object", "properties": {"model": {"type": "string"}, "input": {}}}
    paths["/v1/embeddings"] = {"post": _post("Pass through to a server that makes embeddings", anything)}
    paths["/v1/feedback"] = {"post": _post("Label a record", by_type[FeedbackBody], created=True)}
    for path, (summary, kind) in _READS.items():
        paths[path] = {"get": {"summary": summary, "responses": {"200": _content("Done", kind), **_ERRORS}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "smallfirst", "version": __version__},
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{}, {"key": []}],
    }


def _content(text: str, *kinds: str) -> dict[str, Any]:
    return {"description": text, "content": {kind: {} for kind in kinds}}


_ERRORS = {"4XX": _content("The call is wrong", "application/json"), "5XX": _content("No answer", "application/json")}


def _post(summary: str, schema: Any, *, parameters: bool = False, created: bool = False) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": summary,
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        "responses": {
            "201" if created else "200": _content("Done", "application/json", "text/event-stream"),
            **_ERRORS,
        },
    }
    if parameters:
        operation["parameters"] = [
            {"name": name, "in": "header", "description": text, "schema": {"type": "string"}}
            for name, text in _HEADERS.items()
        ]
    return operation
