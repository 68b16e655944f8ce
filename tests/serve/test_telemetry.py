"""What operators see: metrics, spans and logs, none of which carries what was said."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from recording import Loopback
from running import Running, Start

from smallfirst import config
from smallfirst.errors import ConfigError
from smallfirst.serve.telemetry import Telemetry, configure_logging

SECRET = "the patient is called Ermintrude"


class Collector:
    """An OpenTelemetry collector on loopback."""

    def __init__(self) -> None:
        self.url = ""
        self.raw = b""
        self.spans: list[dict[str, object]] = []

    async def take(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.raw += body
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            for scope in resource.scope_spans:
                for span in scope.spans:
                    values = {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}
                    self.spans.append({"name": span.name, "parent": span.parent_span_id, "id": span.span_id, **values})
        return web.Response()


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    taking = Collector()
    app = web.Application()
    app.router.add_post("/v1/traces", taking.take)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    taking.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1/traces"
    yield taking
    await runner.cleanup()


async def test_metrics_count_calls_tokens_and_cost(start: Start) -> None:
    """/metrics has the call's decision, its attempts, tokens and cost, and nothing of what was said."""
    gateway = await start()
    await gateway.chat({"messages": [{"role": "user", "content": SECRET}]})
    text = (await gateway.get("/metrics")).raw.decode()
    assert 'smallfirst_calls_total{decision="escalate",mode="observe",status="200",wire="chat"} 1.0' in text
    assert 'smallfirst_tokens_total{direction="input",stage="large"} 10.0' in text
    assert 'smallfirst_cost_usd_total{stage="large"} 0.002' in text
    assert "Ermintrude" not in text


async def test_refused_calls_are_counted_by_code(start: Start) -> None:
    """A call that no model was asked for shows in the metrics with its error's code."""
    gateway = await start()
    await gateway.chat({"messages": []})
    assert 'smallfirst_refused_total{code="invalid_request"} 1.0' in (await gateway.get("/metrics")).raw.decode()


async def test_spans_say_which_model_what_tokens_and_why(
    tmp_path: Path, small: Loopback, large: Loopback, collector: Collector
) -> None:
    """A call is a span in gen_ai words with one span below it for each attempt; what was said is in none."""
    tables = [f'[telemetry]\notlp_endpoint = "{collector.url}"', "[cascade]\naccept_uncalibrated = true"]
    async with Running.open(tmp_path, small.url, large.url, tables, {}) as gateway:
        answered = await gateway.chat({"messages": [{"role": "user", "content": SECRET}]})
    call = next(s for s in collector.spans if not s["parent"])
    attempts = [s for s in collector.spans if s["parent"] == call["id"]]
    assert call["smallfirst.record"] == answered.said("record")
    assert call["gen_ai.response.model"] == "big-2026"
    assert [a["gen_ai.usage.input_tokens"] for a in attempts] == [10]
    assert b"Ermintrude" not in collector.raw


def test_logs_are_json_lines_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    """Each line is one JSON object with its level and time; levels below the configured one are left out."""
    try:
        configure_logging(config.Telemetry(log_level="info", log_format="json"))
        structlog.get_logger("x").info("said", record="r1")
        structlog.get_logger("x").debug("not said")
    finally:
        structlog.reset_defaults()
    (line,) = capsys.readouterr().err.splitlines()
    said = json.loads(line)
    assert (said["event"], said["record"], said["level"]) == ("said", "r1", "info")
    assert "timestamp" in said


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_a_logged_defect_shows_where_but_no_values(capsys: pytest.CaptureFixture[str], log_format: Any) -> None:
    """The traceback of a defect is in the log, the local variables, which may hold keys and messages, are not."""

    def fails(authorization: str) -> None:
        raise ZeroDivisionError

    try:
        configure_logging(config.Telemetry(log_format=log_format))
        fails("-".join(["Bearer", "sk", "9f3a7c"]))
    except ZeroDivisionError:
        structlog.get_logger("x").exception("defect")
    finally:
        structlog.reset_defaults()
    said = capsys.readouterr().err
    assert "ZeroDivisionError" in said
    assert "in fails" in said
    assert "Bearer-sk-9f3a7c" not in said


def test_spans_need_the_sdk_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra, the configured endpoint is an error that names the pip command."""
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigError, match="otel"):
        Telemetry(config.Telemetry(otlp_endpoint="http://127.0.0.1:1"))
