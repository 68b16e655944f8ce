"""What operators watch: Prometheus metrics, OpenTelemetry GenAI spans when configured, structured logs.

None of them ever carries message text, tool arguments, user ids or keys.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from smallfirst import config
from smallfirst.errors import ConfigError
from smallfirst.types import Attempt, Record

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


def configure_logging(settings: config.Telemetry) -> None:
    """Send structured logs to standard error, as lines for people or as JSON."""
    render: list[Any] = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    if settings.log_format == "console":
        plain = structlog.dev.plain_traceback  # the default prints local variables, and with them keys and messages
        render = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]
    structlog.configure(
        processors=[structlog.processors.add_log_level, structlog.processors.TimeStamper(fmt="iso"), *render],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, settings.log_level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


class Telemetry:
    """Observes finished calls. Each instance has a registry of its own."""

    def __init__(self, settings: config.Telemetry) -> None:
        self._registry = CollectorRegistry()
        self._calls = self._counter("calls", "Calls by outcome", "wire", "mode", "decision", "status")
        self._attempts = self._counter("attempts", "Attempts", "stage", "kind", "decision", "reason")
        self._tokens = self._counter("tokens", "Tokens", "stage", "direction")
        self._cost = self._counter("cost_usd", "Cost in USD, local machine time priced", "stage")
        self._unpriced = self._counter("unpriced_attempts", "Attempts whose price is unknown", "stage")
        self._dropped = Counter(
            "smallfirst_shadow_dropped",
            "Shadow attempts given up because too many waited or no budget allowed them",
            registry=self._registry,
        )
        self._refused = self._counter("refused", "Calls refused before a model was asked", "code")
        self._seconds = self._histogram("call_seconds", "Seconds from arrival to durable record", "decision")
        self._stage_seconds = self._histogram("attempt_seconds", "Seconds of an attempt", "stage")
        self._tracer = _tracer(settings.otlp_endpoint) if settings.otlp_endpoint else None

    def observe(self, record: Record) -> None:
        """Count a recorded call."""
        self._calls(record.request.wire, record.mode, record.decision, record.status).inc()
        self._seconds(record.decision).observe(record.seconds)
        self.attempted(record.attempts)
        if self._tracer is not None:
            _span(self._tracer, record)

    def attempted(self, attempts: Sequence[Attempt]) -> None:
        """Count attempts: those of a recorded call, or those made in shadow after it."""
        for attempt in attempts:
            self._attempt(attempt)

    def refused(self, code: str) -> None:
        """Count a call that was refused before a model was asked."""
        self._refused(code).inc()

    def shadow_dropped(self) -> None:
        """Count a shadow attempt that was given up."""
        self._dropped.inc()

    def exposition(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def close(self) -> None:
        """Send the spans that wait."""
        if self._tracer is not None:
            self._tracer.provider.shutdown()

    def _attempt(self, attempt: Attempt) -> None:
        self._attempts(attempt.stage, attempt.kind, attempt.decision, attempt.reason).inc()
        self._stage_seconds(attempt.stage).observe(attempt.seconds)
        if attempt.cost_usd is None:
            self._unpriced(attempt.stage).inc()
        else:
            self._cost(attempt.stage).inc(attempt.cost_usd)
        if attempt.completion is not None and attempt.kind != "cache":
            usage = attempt.completion.usage
            self._tokens(attempt.stage, "input").inc(usage.input_tokens)
            self._tokens(attempt.stage, "output").inc(usage.output_tokens)

    def _counter(self, name: str, text: str, *labels: str) -> Callable[..., Counter]:
        """The counter of given label values; kept, because finding it costs more than counting."""
        return cache(Counter(f"smallfirst_{name}", text, labels, registry=self._registry).labels)

    def _histogram(self, name: str, text: str, *labels: str) -> Callable[..., Histogram]:
        metric = Histogram(f"smallfirst_{name}", text, labels, registry=self._registry, buckets=SECONDS)
        return cache(metric.labels)


class _Tracer:
    """An OpenTelemetry tracer with the provider that owns its exporter."""

    def __init__(self, provider: Any, tracer: Any) -> None:
        self.provider, self.tracer = provider, tracer


def _tracer(endpoint: str) -> _Tracer:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        hint = "pip install 'smallfirst[otel]'"
        raise ConfigError("telemetry.otlp_endpoint needs the OpenTelemetry SDK.", hint=hint) from None
    provider = TracerProvider(resource=Resource.create({"service.name": "smallfirst"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    return _Tracer(provider, provider.get_tracer("smallfirst"))


def _span(tracer: _Tracer, record: Record) -> None:
    """One span for the call and one below it for each attempt, in OpenTelemetry's gen_ai.* words."""
    from opentelemetry.trace import SpanKind, set_span_in_context

    start = int(record.created_at * 1e9)
    served = None if record.served is None else record.attempts[record.served]
    span = tracer.tracer.start_span(f"chat {record.request.model}", start_time=start, kind=SpanKind.SERVER)
    span.set_attributes(
        {
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": record.request.model,
            "gen_ai.response.model": served.model if served else "",
            "smallfirst.record": record.id,
            "smallfirst.task": record.task,
            "smallfirst.decision": record.decision,
            "smallfirst.reason": record.reason,
        }
    )
    if record.cost_usd is not None:
        span.set_attribute("smallfirst.cost_usd", record.cost_usd)
    context, at = set_span_in_context(span), start
    for attempt in record.attempts:
        usage = attempt.completion.usage if attempt.completion else None
        child = tracer.tracer.start_span(f"chat {attempt.model}", context=context, start_time=at, kind=SpanKind.CLIENT)
        child.set_attributes(
            {
                "gen_ai.operation.name": "chat",
                "gen_ai.provider.name": attempt.backend,
                "gen_ai.request.model": attempt.model,
                "gen_ai.usage.input_tokens": usage.input_tokens if usage else 0,
                "gen_ai.usage.output_tokens": usage.output_tokens if usage else 0,
                "smallfirst.decision": attempt.decision,
                "smallfirst.reason": attempt.reason,
            }
        )
        at += int(attempt.seconds * 1e9)
        child.end(end_time=at)
    span.end(end_time=start + int(record.seconds * 1e9))
