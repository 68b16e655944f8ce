"""What a record adds to the sums (`rollups`): a few numbers when it is written, their measures when many are added up.

A fact is a row: hour, task, key, and the numbers `FIELDS` packed, of one call after another where one transaction
brought several. Making one is in the path of every call, so it only notes; squares and products are left to `measured`,
which does them for hundreds at once.
What is counted is what `rows.RecordSummary` says of a call.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from struct import Struct

import numpy as np
from numpy.typing import NDArray

from smallfirst.store.database import Row
from smallfirst.types import AFTERWARDS

Floats = NDArray[np.float64]

HOUR_S = 3600
FASTEST_S = 1e-3
STEP = 2**0.25
"""Durations are counted in buckets: the first up to `FASTEST_S`, every next one up to `STEP` times the last one's end.
So the geometric middle of a bucket is at most 9.1 % off any duration in it."""

FIELDS = (
    *("sign", "way", "answered", "valid_first", "executable", "escalated", "failed", "priced"),
    *("usd", "usd_local_free", "afterwards_usd", "tokens_in", "tokens_out"),
    *("pair", "w", "c", "r", "l", "t", "small", "audit", "labelled", "right", "bucket"),
)
"""`sign` is -1 in what takes a fact back; `way` the place of the call's way in `MEASURES`, 0 for what is no call.
`pair` and `audit` tell whether there are any: w is the pair's weight, c and l are the costs of the call and of the
large model, r is 1 where both answers are the same, t the large model's tokens; `bucket` counts the call's time (see
`bounds`). Flags are 0 or 1."""

PAIR = ("wc", "wr", "wl", "w")
PRODUCTS = tuple((a, b) for n, a in enumerate(PAIR) for b in PAIR[n:])
_CALLS = (
    *("calls", "cache", "direct", "direct_abstained"),
    *("first_accepted", "first_escalated", "first_abstained"),
    *("repaired_accepted", "repaired_escalated", "repaired_abstained"),
    *FIELDS[2:13],
)
_PAIRS = ("pairs", "pairs_small", *PAIR, *(f"{a}_{b}" for a, b in PRODUCTS), "wt", "wt_small", "usd_var", "tokens_var")
_AUDITS = ("audits", "audit_w", "audit_ww", "audit_wrong")
_LABELS = (
    *("labelled", "right_labelled", "valid_wrong", "small_labelled", "small_wrong"),
    *("cost_n", "cost_c", "cost_r", "cost_cc", "cost_cr"),
)
MEASURES = (*_CALLS, *_PAIRS, *_AUDITS, *_LABELS)
"""Of calls: how many; which way they went ("cache"; the large model asked at once: "direct"; else by the "first" or a
"repaired" small answer, and what was decided); counts; totals over the `priced` ones. `afterwards_usd` is what shadows
and audits cost.

Of pairs with known prices (`RecordSummary.pair`): sums of the four numbers of `PAIR`, of their products, of weighted
tokens of the large model, and of (w^2 - w) (l - c)^2 and (w^2 - w) t^2, which estimate the variance of the totals that
audits tell (Horvitz and Thompson 1952).

Of audits of accepted answers: how many, their weights, squared weights, and weights of those that found another answer.
Of labelled calls ("correct" feedback): counts, and over those with known prices cost c and right r with products."""

RECORD = "id, created_at, task, decision, status, seconds, served, key_id"
ATTEMPT = (
    "record_id, kind, decision, reason, small, answered, violations, probability, cost_usd, cost_usd_local_free, "
    "input_tokens, output_tokens"
)
_AT = {name: n for n, name in enumerate(MEASURES)}
_END = {"accept": "accepted", "escalate": "escalated"}
_ENDS = (*_END.values(), "abstained")
_WAYS = {
    **{(False, False, end): _AT["direct_abstained" if end == "abstained" else "direct"] for end in _ENDS},
    **{(True, False, end): _AT[f"first_{end}"] for end in _ENDS},
    **{(True, True, end): _AT[f"repaired_{end}"] for end in _ENDS},
}
"""Which way a call went, by whether small models were asked, whether they repaired, and how it ended."""
_NO_PAIR = (0.0,) * 8
_PACKED = Struct(f"{len(FIELDS)}d")
SIZE = _PACKED.size
"""The bytes of one call's numbers."""


def fact(record: Row, attempts: Sequence[Row], correct: float | None = None) -> Row:
    """What a record adds: rows that begin with its columns `RECORD` and with those `ATTEMPT` of its attempts in order,
    and its latest label."""
    _, created_at, task, decision, status, seconds, served, key = record[:8]
    answer = None if served is None else attempts[served]
    cached = answer is not None and answer[1] == "cache"
    small = decision == "accept" and not cached
    usd: float | None = 0.0
    free: float | None = 0.0
    afterwards = tokens_in = tokens_out = 0.0
    asked, repaired, escalated, late = small, False, False, False
    for attempt in attempts:
        _, kind, decided, _, is_small, _, _, _, cost, cost_free, input_tokens, output_tokens = attempt[:12]
        if late or decided in AFTERWARDS:
            late, afterwards = True, afterwards + (cost or 0.0)
            continue
        usd = None if usd is None or cost is None else usd + cost
        free = None if free is None or cost_free is None else free + cost_free
        tokens_in, tokens_out = tokens_in + input_tokens, tokens_out + output_tokens
        if kind != "cache" and decided != "evidence":
            asked, escalated = asked or is_small, escalated or not is_small
            repaired = repaired or (is_small and kind == "repair")
    priced = usd is not None and free is not None
    packed = _PACKED.pack(
        1.0,
        _AT["cache"] if cached else _WAYS[asked, repaired, _END.get(decision, "abstained")],
        answer is not None,
        bool(attempts) and attempts[0][2] not in AFTERWARDS and _ok(attempts[0]),
        answer is not None and _ok(answer),
        escalated,
        status >= 400,
        priced,
        usd if priced else 0.0,
        free if priced else 0.0,
        afterwards,
        tokens_in,
        tokens_out,
        *_pair(attempts, answer, cached, small, usd),
        correct is not None,
        correct or 0.0,
        bucket_of(seconds),
    )
    return (int(created_at // HOUR_S), task, key, packed)


def shadow(created_at: float, task: str, key: str, usd: float) -> Row:
    """What a shadow of a record adds."""
    numbers = [0.0] * len(FIELDS)
    numbers[0], numbers[FIELDS.index("afterwards_usd")] = 1.0, usd
    return (int(created_at // HOUR_S), task, key, _PACKED.pack(*numbers))


def taken_back(row: Row) -> Row:
    """What undoes the fact of one call."""
    sign, *numbers = _PACKED.unpack(row[3])
    return (*row[:3], _PACKED.pack(-sign, *numbers))


def together(rows: Iterable[Row]) -> list[Row]:
    """The same facts in as few rows as hold them."""
    cells: dict[Row, list[bytes]] = {}
    for *cell, numbers in rows:
        cells.setdefault(tuple(cell), []).append(numbers)
    return [(*cell, b"".join(packed)) for cell, packed in cells.items()]


def bucket_of(seconds: float) -> int:
    """The bucket of a duration."""
    return max(0, math.ceil(math.log(seconds / FASTEST_S, STEP))) if seconds > FASTEST_S else 0


def bounds(bucket: int) -> tuple[float, float]:
    """From above which to up to which duration a bucket goes, in seconds."""
    return (FASTEST_S * STEP ** (bucket - 1) if bucket else 0.0), FASTEST_S * STEP**bucket


def measured(packed: bytes) -> tuple[Floats, NDArray[np.int64]]:
    """The measures of facts, shape (measures, facts), and their buckets."""
    numbers = np.frombuffer(packed).reshape(-1, len(FIELDS)).T.copy()  # each field in one piece
    f = dict(zip(FIELDS, numbers, strict=True))
    found = np.zeros((len(MEASURES), numbers.shape[1]))
    way, every = f["way"].astype(int), np.arange(numbers.shape[1])
    found[way, every] = found[0] = way > 0
    found[10:21] = numbers[2:13]
    found[_AT["pairs"] : _AT["audits"]] = f["pair"] * _of_pairs(f)
    weight = np.where(f["audit"] > 0, f["w"], 0.0)
    found[_AT["audits"] : _AT["labelled"]] = (f["audit"], weight, weight**2, weight * (1 - f["r"]))
    found[_AT["labelled"] :] = f["labelled"] * _of_labels(f)
    found *= f["sign"]
    return found, f["bucket"].astype(np.int64)


def _of_pairs(f: dict[str, Floats]) -> Floats:
    w, c, r, large, t, small = (f[name] for name in ("w", "c", "r", "l", "t", "small"))
    four = dict(zip(PAIR, (w * c, w * r, w * large, w), strict=True))
    spread = w**2 - w
    products = [four[a] * four[b] for a, b in PRODUCTS]
    weighted = (w * t, w * t * small, spread * (large - c) ** 2, spread * t**2)
    return np.stack([np.ones_like(w), small, *four.values(), *products, *weighted])


def _of_labels(f: dict[str, Floats]) -> Floats:
    one, right, wrong, c, known = np.ones_like(f["right"]), f["right"], 1 - f["right"], f["usd"], f["priced"]
    counts = (one, right, f["executable"] * wrong, f["small"], f["small"] * wrong)
    return np.stack([*counts, known, known * c, known * right, known * c**2, known * c * right])


def _ok(attempt: Row) -> bool:
    return bool(attempt[5]) and not attempt[6]


def _pair(
    attempts: Sequence[Row], answer: Row | None, cached: bool, small: bool, usd: float | None
) -> tuple[float, ...]:
    """The fields from `pair` to `audit`."""
    audit = next((a for a in attempts if a[2] == "audit" and a[3] != "not_told"), None) if small else None
    if audit is not None and audit[7] is not None:
        large, weight, same = audit, 1 / audit[7], audit[3] != "different"
    elif answer is None or answer[4] or cached:
        return (*_NO_PAIR[:6], small, 0.0)
    else:
        large, weight, same, audit = answer, 1.0, True, None
    known = usd is not None and large[8] is not None
    c, cost = (usd, large[8]) if known else (0.0, 0.0)
    return (known, weight, c or 0.0, same, cost, large[10] + large[11], small, audit is not None)
