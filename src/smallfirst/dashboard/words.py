"""Numbers, times and decisions as people read them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime

from smallfirst.dashboard.queries import Test, Value
from smallfirst.types import Attempt

UNKNOWN = "–"

_REASONS: Mapping[str, str] = {
    "calibrated": "The small model's answer was confident enough for what the task promises.",
    "low_confidence": "The small model's answer was valid, but not confident enough, so the large model answered.",
    "validity_only": "The task has no calibration, and the configuration lets valid small answers be accepted.",
    "uncalibrated": "The task has no calibration, so the large model answers and the small one runs in shadow.",
    "observe": "The task is only observed: the large model answers and the small one runs in shadow.",
    "alarm": "Audits found that accepted answers fail too often, so the large model answers.",
    "unpromising": "The request does not look worth a small attempt, so the large model was asked at once.",
    "small_only": "The task is answered by small models only.",
    "no_large_model": "No large model is configured.",
    "no_small_model": "No small model is configured.",
    "small_incapable": "No small model is capable of this request.",
    "model_named": "The client named this model.",
    "cache": "The answer came from the response cache.",
    "budget": "The call's budget did not allow another attempt.",
    "truncated": "The answer was cut off at the length that the request allows.",
    "cancelled": "The client went away before the answer was complete.",
    "client_gone": "The client went away before the answer was complete.",
    "same": "The audit found the same answer.",
    "different": "The audit found another answer.",
    "not_told": "The audit's answer cannot be compared with the one served.",
}


_SPANS = (
    ((1.0, 120.0), "s"),
    ((60.0, 7200.0), "min"),
    ((3600.0, 172_800.0), "h"),
    ((86_400.0, float("inf")), "days"),
)
"""(seconds in the unit, seconds below which it is used), the unit."""


def why(reason: str) -> str:
    """A decision's recorded reason as a sentence; reasons with a detail ("invalid:enum") keep it."""
    kind, _, detail = reason.partition(":")
    if kind == "invalid":
        return f"The answer breaks the request's rules ({detail})."
    if kind == "error":
        return f"The model did not answer ({detail})."
    if kind == "fallback":
        return f"No answer met the bar; the last valid one was served. {why(detail)}"
    return _REASONS.get(reason, reason)


def judged(attempt: Attempt) -> str:
    """Why an attempt was accepted or not, as a sentence. Nobody judges a large model's answer; the reason that is on
    record for it tells why the large model was asked."""
    if not attempt.small and attempt.decision == "accept" and attempt.reason != "truncated":
        return "The large model's answer stands as it is."
    return why(attempt.reason)


def number(value: float | None, unit: str = "") -> str:
    """`value` in its unit: rates in percent, money, ratios and what is no whole number to three digits."""
    if value is None:
        return UNKNOWN
    if unit == "rate":
        return f"{100 * value:.1f} %"
    if unit == "usd":
        return _money(value)
    if unit == "seconds":
        return seconds(value)
    if unit == "ratio":
        return _digits(value)
    if unit == "bytes":
        return size(value)
    if unit == "count" and not float(value).is_integer():
        return _digits(value)
    return f"{value:,.0f}"


def interval(value: Value) -> str:
    """A figure's interval at 95 % and its n; one-sided where the records bound one side only."""
    low, high = (None if bound is None else number(bound, value.unit) for bound in (value.low, value.high))
    n = f"n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{value.n:,}"
    if value.value is None:
        return f"not known, {n}"
    if low is None and high is None:
        return f"no interval, {n}"
    if value.low == value.high:
        return f"counted, {n}"
    if low is None or high is None:
        return f"≤ {high}, {n}" if low is None else f"≥ {low}, {n}"
    shared = " %" if low.endswith(" %") else ""
    return f"{low.removesuffix(shared)} to {high}, {n}"


def seconds(value: float | None) -> str:
    """A duration in milliseconds, seconds, minutes, hours or days, to three digits."""
    if value is None:
        return UNKNOWN
    if value < 1:
        return f"{1000 * value:.0f} ms"
    span, unit = next((s, u) for s, u in _SPANS if value < s[1])
    return f"{_digits(value / span[0])} {unit}"


def size(count: float) -> str:
    """Bytes in the largest unit of which there is one at least."""
    for unit in ("bytes", "KB", "MB", "GB"):
        if count < 1024 or unit == "GB":
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"
        count /= 1024
    raise AssertionError


def moment(at: float) -> str:
    """Seconds since the epoch as an ISO time in UTC, which the page's script shows in the reader's zone."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def plain_moment(at: float) -> str:
    """The same for readers without the script."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC")


def capital(text: str) -> str:
    """`text` with its first letter large."""
    return text[:1].upper() + text[1:]


def progress(test: Test) -> float:
    """How far a test has come, in percent of what its stake has to grow by, on a logarithmic scale."""
    return 100 * min(math.log(max(test.capital, 1.0)) / math.log(test.needed), 1.0)


def count(n: int, one: str, many: str = "") -> str:
    """ "1 call", "2 calls"."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def _money(value: float) -> str:
    sign, size_of = ("-" if value < 0 else ""), abs(value)
    if size_of >= 1000:
        return f"{sign}${size_of:,.0f}"
    if size_of >= 1 or size_of == 0:
        return f"{sign}${size_of:.2f}"
    return f"{sign}${_digits(size_of)}"


def _digits(value: float) -> str:
    """Three significant digits, without an exponent where that is short."""
    text = f"{float(f'{value:.3g}'):.10f}".rstrip("0").rstrip(".")
    return text if len(text) < 12 else f"{value:.2e}"
