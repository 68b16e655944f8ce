"""Rate against distortion of context compression, as `smallfirst compressors compare` measured it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smallfirst.dashboard.queries.values import Unit, Value

FILE = "comparison.json"


@dataclass(frozen=True, slots=True)
class Compressor:
    """A compressor measured on a set of questions (`task`, the folder's name): `rate` is how many bits of information a
    token of it carries, `information` how many bits it keeps, `distortion` the share of wrong answers from it, `tokens`
    what the predictor read. `front`: no other has fewer tokens and fewer wrong answers."""

    task: str
    name: str
    rate: Value
    information: Value
    distortion: Value
    tokens: Value
    usd_per_1000: Value
    front: bool


def compression(folder: Path) -> tuple[Compressor, ...]:
    """What was measured below `folder`, by set and tokens; empty when nothing was."""
    found = [
        _compressor(path.parent.name, point)
        for path in sorted(folder.rglob(FILE))
        for point in json.loads(path.read_text(encoding="utf-8"))["points"]
    ]
    return tuple(sorted(found, key=lambda each: (each.task, each.tokens.value or 0.0, each.name)))


def _compressor(task: str, point: Mapping[str, Any]) -> Compressor:
    right = point["accuracy"]
    wrong = {"n": right["n"]} | {
        name: None if right[other] is None else 1 - right[other]
        for name, other in (("value", "value"), ("low", "high"), ("high", "low"))
    }
    return Compressor(
        task=task,
        name=point["name"],
        rate=_value("rate", "count", "Bits of information that a token carries.", point["rate"]),
        information=_value("information", "count", "Bits that tell which document it is of.", point["information"]),
        distortion=_value("distortion", "rate", "Wrong answers among those asked from it.", wrong),
        tokens=_value("tokens", "tokens", "Tokens that the predictor read for a question.", point["tokens"]),
        usd_per_1000=_value("CPS", "usd", "USD per 1,000 right answers.", _thousand(point["cps"])),
        front=bool(point["front"]),
    )


def _thousand(figure: Mapping[str, Any]) -> Mapping[str, Any]:
    return {name: of if of is None or name == "n" else 1000 * of for name, of in figure.items()}


def _value(name: str, unit: Unit, meaning: str, figure: Mapping[str, Any]) -> Value:
    return Value(name, figure["value"], figure["low"], figure["high"], figure["n"], unit, meaning)
