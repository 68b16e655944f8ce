"""The OpenAPI description is true: schemathesis calls what it describes, and the gateway answers as described."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from running import Running, Start, cascade
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance, status_code_conformance]
OPERATIONS = [
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/responses"),
    ("POST", "/v1/messages"),
    ("POST", "/v1/embeddings"),
    ("POST", "/v1/feedback"),
    ("GET", "/v1/models"),
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/metrics"),
    ("GET", "/openapi.json"),
]


async def test_every_route_is_described(gateway: Running) -> None:
    """The description lists exactly what is tested here."""
    paths = (await gateway.get("/openapi.json")).body["paths"]
    assert {(method.upper(), path) for path, methods in paths.items() for method in methods} == set(OPERATIONS)


async def call_as_described(gateway: Running, method: str, path: str, examples: int, status: set[int]) -> None:
    """Call an operation with generated input, half of it wrong; check each answer against the description."""
    described = (await gateway.get("/openapi.json")).body
    operation = schemathesis.openapi.from_dict(described)[path][method]
    bodies = operation.as_strategy() | operation.as_strategy(schemathesis.GenerationMode.NEGATIVE)

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(bodies)
    def calls(case: Any) -> None:
        answered = case.call_and_validate(base_url=gateway.url, checks=CHECKS, timeout=10)
        assert answered.status_code in status

    await asyncio.to_thread(calls)


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
async def test_operations_are_as_described(start: Start, method: str, path: str) -> None:
    """No input makes an operation fail, and every answer has a described status and type."""
    gateway = await start(cascade("small_only"))
    examples = 8 if method == "POST" else 3
    await call_as_described(gateway, method, path, examples, {200, 201, 202, 400, 401, 404, 413, 502})
