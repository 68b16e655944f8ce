"""What operators watch: Prometheus metrics, OpenTelemetry GenAI spans when configured, structured logs.

None of them ever carries message text, tool arguments, user ids or keys.
"""

from __future__ import annotations

import logging
import sys
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import structlog
from prometheus_client import Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.utils import floatToGoString

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


class _Counts:
    """A counter by labels. Counting is an addition to a dictionary; the form of Prometheus is made when it asks."""

    def __init__(self, name: str, text: str, *labels: str) -> None:
        self._about = (f"smallfirst_{name}", text)
        self._labels = labels
        self._totals: defaultdict[tuple[str, ...], float] = defaultdict(float)

    def add(self, amount: float, *labels: str) -> None:
        self._totals[labels] += amount

    def family(self) -> Metric:
        family = CounterMetricFamily(*self._about, labels=self._labels)
        for labels, total in self._totals.items():
            family.add_metric(labels, total)
        return family


class _Levels:
    """A gauge by labels."""

    def __init__(self, name: str, text: str, *labels: str) -> None:
        self._about = (f"smallfirst_{name}", text)
        self._labels = labels
        self._values: dict[tuple[str, ...], float] = {}

    def set(self, value: float, *labels: str) -> None:
        self._values[labels] = value

    def family(self) -> Metric:
        family = GaugeMetricFamily(*self._about, labels=self._labels)
        for labels, value in self._values.items():
            family.add_metric(labels, value)
        return family


class _Durations:
    """A histogram of seconds by one label."""

    def __init__(self, name: str, text: str, label: str) -> None:
        self._about = (f"smallfirst_{name}", text)
        self._label = label
        self._counts: defaultdict[str, list[int]] = defaultdict(lambda: [0] * (len(SECONDS) + 1))
        self._sums: defaultdict[str, float] = defaultdict(float)

    def add(self, seconds: float, label: str) -> None:
        self._counts[label][bisect_left(SECONDS, seconds)] += 1
        self._sums[label] += seconds

    def family(self) -> Metric:
        family = HistogramMetricFamily(*self._about, labels=[self._label])
        bounds = [*map(floatToGoString, SECONDS), "+Inf"]
        for label, counts in self._counts.items():
            family.add_metric([label], list(zip(bounds, accumulate(counts), strict=True)), self._sums[label])
        return family


class Telemetry:
    """Observes finished calls."""

    def __init__(self, settings: config.Telemetry) -> None:
        self._calls = _Counts("calls", "Calls by outcome", "wire", "mode", "decision", "status")
        self._attempts = _Counts("attempts", "Attempts", "stage", "kind", "decision", "reason")
        self._tokens = _Counts("tokens", "Tokens", "stage", "direction")
        self._cost = _Counts("cost_usd", "Cost in USD, local machine time priced", "stage")
        self._unpriced = _Counts("unpriced_attempts", "Attempts whose price is unknown", "stage")
        self._dropped = _Counts(
            "shadow_dropped", "Shadow attempts given up because too many waited or no budget allowed them"
        )
        self._dropped.add(0)
        self._refused = _Counts("refused", "Calls refused before a model was asked", "code")
        self._alarm = _Levels("alarm", "1 while audits show that accepted answers fail too often", "task")
        self._threshold = _Levels("threshold", "Confidence from which a small answer is accepted", "task")
        self._uncalibrated = _Counts("calibrations_refused", "Calibrations that this gateway cannot follow", "task")
        self._share = _Levels("rollout_share", "Share of episodes that a version in a rollout answers", "task")
        self._versions_refused = _Counts("versions_refused", "Versions that this gateway cannot serve", "task")
        self._seconds = _Durations("call_seconds", "Seconds from arrival to durable record", "decision")
        self._stage_seconds = _Durations("attempt_seconds", "Seconds of an attempt", "stage")
        self._tracer = _tracer(settings.otlp_endpoint) if settings.otlp_endpoint else None

    def observe(self, record: Record) -> None:
        """Count a recorded call."""
        self._calls.add(1, record.request.wire, record.mode, record.decision, str(record.status))
        self._seconds.add(record.seconds, record.decision)
        self.attempted(record.attempts)
        if self._tracer is not None:
            _span(self._tracer, record)

    def attempted(self, attempts: Sequence[Attempt]) -> None:
        """Count attempts: those of a recorded call, or those made in shadow after it."""
        for attempt in attempts:
            self._attempts.add(1, attempt.stage, attempt.kind, attempt.decision, attempt.reason)
            self._stage_seconds.add(attempt.seconds, attempt.stage)
            if attempt.cost_usd is None:
                self._unpriced.add(1, attempt.stage)
            else:
                self._cost.add(attempt.cost_usd, attempt.stage)
            if attempt.completion is not None and attempt.kind != "cache":
                usage = attempt.completion.usage
                self._tokens.add(usage.input_tokens, attempt.stage, "input")
                self._tokens.add(usage.output_tokens, attempt.stage, "output")

    def refused(self, code: str) -> None:
        """Count a call that was refused before a model was asked."""
        self._refused.add(1, code)

    def shadow_dropped(self) -> None:
        """Count a shadow attempt that was given up."""
        self._dropped.add(1)

    def monitored(self, task: str, *, alarm: bool, threshold: float) -> None:
        """Show how a calibrated task stands."""
        self._alarm.set(alarm, task)
        self._threshold.set(threshold, task)

    def calibration_refused(self, task: str) -> None:
        """Count a calibration that cannot be followed."""
        self._uncalibrated.add(1, task)

    def rolled_out(self, task: str, share: float) -> None:
        """Show how far a task's rollout has come; 0 without one."""
        self._share.set(share, task)

    def version_refused(self, task: str) -> None:
        """Count a version that cannot be served."""
        self._versions_refused.add(1, task)

    def collect(self) -> Iterator[Metric]:
        """What was counted, as Prometheus asks for it."""
        for metric in vars(self).values():
            if isinstance(metric, _Counts | _Levels | _Durations):
                yield metric.family()

    def exposition(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self)

    def close(self) -> None:
        """Send the spans that wait."""
        if self._tracer is not None:
            self._tracer.provider.shutdown()


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
