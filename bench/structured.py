"""Constrained decoding and validation over public schemas: what compiles, what is judged wrongly, and what it costs.

Four readers of the same schemas and instances, each judged by the label that the collection gives an instance:

    validator    jsonschema-rs as a request's answer is checked (`schemas.compiled`)
    incremental  `incremental.JsonPrefix`, the text streamed in pieces of four characters
    gateway      the grammar exactly as the gateway builds it (`toolprompt.grammar`), for response_format and for a tool
    llguidance   the grammar that the library itself makes of the schema, strict as it comes, and lenient

Grammars read the tokens of SmolLM2's vocabulary; no model runs. A grammar fixes white space and the order of keys, so
an instance is written as it wants them before it is judged. The gateway closes objects on purpose (`tightening`):
valid instances outside the closed schema are counted apart. "on held keywords": of schemas of which the grammar leaves
no keyword to the validators. Booleans as schemas, which no request can send, are left out. Times are CPU time.

    python bench/structured.py --data ../shared/data
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import msgspec
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
from rich.console import Console
from rich.progress import track
from rich.table import Table

from smallfirst import models
from smallfirst.backends.tightening import tightened
from smallfirst.backends.toolprompt import constraint_schema, grammar, unheld
from smallfirst.errors import ConstraintUnsupported, SmallfirstError
from smallfirst.incremental import JsonPrefix
from smallfirst.keywords import late, unchecked
from smallfirst.schemas import check_schema, compiled, resolve
from smallfirst.shapes import Parts, Shapes, shapes_of
from smallfirst.stats import Figure, quantile, ratio, wilson
from smallfirst.types import Constraint, Json, Request, ResponseFormat, Tool, ToolChoice

DRAFT_7 = "http://json-schema.org/draft-07/schema#"
PIECE = 4
LENIENT = {"lenient": True}
KEYWORDS = ("unheld by the grammar", "unchecked", "late")
T = TypeVar("T")


@dataclass(frozen=True)
class Case:
    """One schema with its instances and their labels."""

    names: tuple[str, str]
    schema: Any
    instances: list[tuple[Any, bool]]


@dataclass
class Errors:
    """How one reader judged: instances by label, and how many of them it got wrong."""

    valid: int = 0
    rejected: int = 0
    invalid: int = 0
    accepted: int = 0

    def add(self, label: bool, verdict: bool) -> None:
        if label:
            self.valid += 1
            self.rejected += not verdict
        else:
            self.invalid += 1
            self.accepted += verdict

    def __add__(self, other: Errors) -> Errors:
        return Errors(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def row(self, name: str) -> dict[str, Figure]:
        return {
            f"{name}: rejected though valid": wilson(self.rejected, self.valid),
            f"{name}: accepted though invalid": wilson(self.accepted, self.invalid),
        }


@dataclass
class Tally:
    """Counts of one file or set; times in seconds, `bytes_read` and `read_s` of every text that was read to its end."""

    left_out: int = 0
    schemas: int = 0
    tools: int = 0
    compiled: Counter[str] = field(default_factory=Counter)
    validator: Errors = field(default_factory=Errors)
    incremental: Errors = field(default_factory=Errors)
    gateway: Errors = field(default_factory=Errors)
    held: Errors = field(default_factory=Errors)
    direct: Errors = field(default_factory=Errors)
    closed: int = 0
    unheld: Counter[str] = field(default_factory=Counter)
    unchecked: Counter[str] = field(default_factory=Counter)
    late: Counter[str] = field(default_factory=Counter)
    gateway_s: list[float] = field(default_factory=list)
    again_s: list[float] = field(default_factory=list)
    direct_s: list[float] = field(default_factory=list)
    mask_s: list[float] = field(default_factory=list)
    read_s: list[float] = field(default_factory=list)
    bytes_read: list[int] = field(default_factory=list)

    def __add__(self, other: Tally) -> Tally:
        return Tally(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def row(self, name: str) -> dict[str, Any]:
        """All columns."""
        counts = {"set": name, "schemas": self.schemas, "left out": self.left_out}
        shares = {
            f"{who} compiles": wilson(self.compiled[who], self.tools if "tool" in who else self.schemas)
            for who in ("validator", "gateway", "gateway tool", "llguidance tool", "llguidance lenient", "llguidance")
        }
        wrong = self.validator.row("validator") | self.incremental.row("incremental") | self.gateway.row("gateway")
        wrong |= self.held.row("gateway on held keywords") | self.direct.row("llguidance")
        costs = timed("gateway compile ms", self.gateway_s, 1e3) | timed("gateway again ms", self.again_s, 1e3)
        costs |= timed("llguidance compile ms", self.direct_s, 1e3) | timed("mask us per token", self.mask_s, 1e6)
        costs["incremental us per KB"] = ratio([s * 1e6 for s in self.read_s], [b / 1024 for b in self.bytes_read])
        names = dict(zip(KEYWORDS, (self.unheld, self.unchecked, self.late), strict=True))
        return {
            **counts,
            **shares,
            "valid": self.validator.valid,
            "invalid": self.validator.invalid,
            **wrong,
            "valid but closed out": wilson(self.closed, self.gateway.valid + self.closed),
            **costs,
            **{name: dict(found.most_common()) for name, found in names.items()},
        }


def timed(name: str, seconds: list[float], scale: float) -> dict[str, Any]:
    values = [s * scale for s in seconds]
    return {
        f"{name} p50": quantile(values, 0.5),
        f"{name} p95": quantile(values, 0.95),
        f"{name} max": max(values, default=None),
    }


def measured(call: Callable[[], T], into: list[float]) -> T:
    started = time.thread_time()
    result = call()
    into.append(time.thread_time() - started)
    return result


class Vocabulary:
    """The tokens of a GGUF file as llguidance wants them; text is cut greedily."""

    def __init__(self, weights: Path) -> None:
        from gguf import GGUFReader

        found = GGUFReader(weights).fields
        kinds = found["tokenizer.ggml.token_type"]
        names = found["tokenizer.ggml.tokens"]
        printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
        others = [byte for byte in range(256) if byte not in printable]  # byte-level BPE writes them as 256, 257, ...
        unwritten = {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
        texts = [bytes(names.parts[i]).decode() for i in names.data]
        ordinary = [int(kinds.parts[i][0]) == 1 for i in kinds.data]
        self.special_token_ids = [i for i, plain in enumerate(ordinary) if not plain]
        self.tokens = [
            bytes(unwritten[c] for c in text) if plain else text.encode()
            for text, plain in zip(texts, ordinary, strict=True)
        ]
        self.eos_token_id = int(found["tokenizer.ggml.eos_token_id"].parts[-1][0])
        self.bos_token_id = None

        self._ids = {token: i for i, token in enumerate(self.tokens) if ordinary[i]}
        self._longest = max(map(len, self._ids))

    def __call__(self, text: bytes) -> list[int]:
        """The tokens of `text`, the longest that fits first; every byte is a token."""
        found, at = [], 0
        while at < len(text):
            end = next(e for e in range(min(at + self._longest, len(text)), at, -1) if text[at:e] in self._ids)
            found.append(self._ids[text[at:end]])
            at = end
        return found

    def tokenizer(self) -> LLTokenizer:
        return LLTokenizer(TokenizerWrapper(self))


def reads(tokenizer: LLTokenizer, made: str, text: str, masks: list[float] | None = None) -> bool:
    """Whether the grammar `made` accepts `text`; with `masks`, the time of each token's mask goes there."""
    matcher = LLMatcher(tokenizer, made, log_level=0)
    for token in tokenizer.greedy_tokenize(text):
        if masks is not None:
            measured(matcher.compute_bitmask, masks)
        if not matcher.consume_token(token):
            return False
    return bool(matcher.is_accepting())


def writings(schema: Json, value: Any) -> Iterator[str]:
    """`value` with its keys in the order of `schema`, and as it came: as a grammar may want it."""
    shapes = shapes_of(schema)
    yield json.dumps(arranged(schema, shapes, shapes.root, value), ensure_ascii=False)
    yield json.dumps(value, ensure_ascii=False)


def arranged(schema: Json, shapes: Shapes, parts: Parts, value: Any) -> Any:
    """`value`, of which `parts` hold, with the keys of each object in the order of the first alternative it fits."""
    shape = next((shape for shape in shapes.at(parts) if shapes.holds(shape.parts, value)), None)
    if shape is None:
        return value
    if isinstance(value, list):
        items = [(shapes.item(shape, index), item) for index, item in enumerate(value)]
        return [item if inner is None else arranged(schema, shapes, inner, item) for inner, item in items]
    if not isinstance(value, dict):
        return value
    found = [resolve(schema, quote(pointer, safe="#/~")) for pointer in sorted(shape.parts)]
    listed = [name for one in found if isinstance(one, dict) for name in one.get("properties", ())]
    keys = [*(name for name in dict.fromkeys(listed) if name in value), *(name for name in value if name not in listed)]
    inside = {key: shapes.member(shape, key) for key in keys}
    return {k: value[k] if inner is None else arranged(schema, shapes, inner, value[k]) for k, inner in inside.items()}


def as_format(schema: Json) -> Request:
    bare = Request("chat", {}, "", (), response_format=ResponseFormat("json_schema", schema))
    return constrained(bare)


def as_tool(schema: Json) -> Request:
    tool, must = Tool("tool", parameters=schema), ToolChoice("required")
    return constrained(Request("chat", {}, "", (), tools=(tool,), tool_choice=must, parallel_tool_calls=False))


def constrained(request: Request) -> Request:
    schema = constraint_schema(request)
    assert schema is not None
    return msgspec.structs.replace(request, constraint=Constraint(schema))


def made_for(request: Request) -> str | None:
    try:
        return grammar(request)
    except ConstraintUnsupported:
        return None


def direct(schema: Json, **options: Any) -> str | None:
    """The library's own grammar, None where it does not compile."""
    made = LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=options)
    failed, _ = LLMatcher.validate_grammar_with_warnings(made)
    return None if failed else made


def measure(case: Case, tokenizer: LLTokenizer, tally: Tally) -> None:
    """Adds one schema and its instances to `tally`."""
    schema = case.schema
    if not isinstance(schema, dict):
        tally.left_out += 1
        return
    tally.schemas += 1
    ours = measured(lambda: made_for(as_format(schema)), tally.gateway_s)
    measured(lambda: made_for(as_format(schema)), tally.again_s)
    theirs = measured(lambda: direct(schema), tally.direct_s)
    lenient = direct(schema, **LENIENT)
    found = {"gateway": ours, "llguidance": theirs, "llguidance lenient": lenient}
    if "object" in schema.get("type", "object"):
        tally.tools += 1
        found |= {"gateway tool": made_for(as_tool(schema)), "llguidance tool": lenient}
    tally.compiled.update(who for who, made in found.items() if made is not None)
    try:
        check_schema(schema, param="schema")
    except SmallfirstError:
        return
    tally.compiled["validator"] += 1
    left = unheld(as_format(schema))
    tally.unheld.update(left)
    tally.unchecked.update(unchecked(schema))
    tally.late.update(late(schema))
    for value, label in case.instances:
        tally.validator.add(label, compiled(schema).is_valid(value))
        tally.incremental.add(label, streamed(schema, value, tally))
    if ours is not None:
        judge_gateway(case, tokenizer, ours, tally, held=not left)
    if theirs is not None:
        for value, label in case.instances:
            tally.direct.add(label, any(reads(tokenizer, theirs, text) for text in writings(schema, value)))


def judge_gateway(case: Case, tokenizer: LLTokenizer, made: str, tally: Tally, *, held: bool) -> None:
    closed = tightened(case.schema)
    timing = True
    for value, label in case.instances:
        if label and not compiled(closed).is_valid(value):
            tally.closed += 1
            continue
        masks = tally.mask_s if label and timing else None
        timing = timing and not label
        first, second = writings(closed, value)
        verdict = reads(tokenizer, made, first, masks) or reads(tokenizer, made, second)
        tally.gateway.add(label, verdict)
        if held:
            tally.held.add(label, verdict)


def streamed(schema: Json, value: Any, tally: Tally) -> bool:
    """Whether the incremental validator lets the instance pass."""
    text = json.dumps(value, ensure_ascii=False)
    JsonPrefix(schema)  # the schema's shapes are cached, as they are from a task's second call on
    started = time.thread_time()
    reader = JsonPrefix(schema)
    stopped = any(reader.feed(text[at : at + PIECE]) for at in range(0, len(text), PIECE)) or reader.finish()
    if not stopped:
        tally.read_s.append(time.thread_time() - started)
        tally.bytes_read.append(len(text.encode()))
    return not stopped


def cases(data: Path) -> Iterator[Case]:
    """Everything under `data`."""
    for path in sorted((data / "jsonschemabench").glob("*.jsonl.gz")):
        with gzip.open(path, "rt") as lines:
            for entry in map(json.loads, lines):
                labelled = [(test["data"], test["valid"]) for test in entry["tests"]]
                yield Case(("jsonschemabench", path.name.removesuffix(".jsonl.gz")), entry["schema"], labelled)
    for draft in ("draft7", "draft2020-12"):
        folder = data / "json_schema_test_suite" / "tests" / draft
        for path in sorted(folder.rglob("*.json")):
            for group in json.loads(path.read_text()):
                schema = group["schema"]
                if isinstance(schema, dict) and draft == "draft7":
                    schema = {"$schema": DRAFT_7, **schema}
                labelled = [(test["data"], test["valid"]) for test in group["tests"]]
                yield Case((draft, path.relative_to(folder).as_posix().removesuffix(".json")), schema, labelled)


TABLES: dict[str, Callable[[str], bool]] = {
    "schemas that compile": lambda name: name in ("schemas", "left out") or name.endswith(" compiles"),
    "instances judged wrongly": lambda name: ": " in name or name == "valid but closed out",
    "cost on this machine": lambda name: " ms " in name or " us " in name,
    "schemas by keyword that is": lambda name: name in KEYWORDS,
}


def tables(rows: list[dict[str, Any]]) -> Iterator[Table]:
    """The rows in parts that a terminal can show."""
    for title, belongs in TABLES.items():
        columns = list(filter(belongs, rows[0]))
        table = Table("set", *(name.removesuffix(" compiles") for name in columns), title=title)
        for row in rows:
            table.add_row(row["set"], *(shown(name, row[name]) for name in columns))
        yield table


def plain(cell: Any) -> Any:
    """A cell for --json."""
    if isinstance(cell, Figure):
        return {"value": cell.value, "low": cell.low, "high": cell.high, "n": cell.n}
    return cell


def shown(name: str, cell: Any) -> str:
    """A cell for the terminal; rates as counts."""
    if isinstance(cell, dict):
        return ", ".join(f"{key} {count}" for key, count in list(cell.items())[:8])
    if not isinstance(cell, Figure):
        return "-" if cell is None else f"{cell:.3g}" if isinstance(cell, float) else str(cell)
    if cell.value is None:
        return "-"
    if " us " in name or " ms " in name:
        return f"{cell.value:.3g}"
    return f"{round(cell.value * cell.n)}/{cell.n}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of jsonschemabench and json_schema_test_suite")
    parser.add_argument("--weights", default=models.DEFAULT_MODEL, help="name or GGUF file whose tokens are used")
    parser.add_argument("--only", default="", help="only files of this set or name, such as jsonschemabench or BFCL")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    arguments = parser.parse_args()
    found = [case for case in cases(arguments.data) if arguments.only in (*case.names, "")]
    if not found:
        parser.error(f"no schemas of {arguments.only or 'any set'} under {arguments.data}")
    tokenizer = Vocabulary(models.locate(arguments.weights)).tokenizer()
    tallies: dict[tuple[str, str], Tally] = {}
    for case in track(found, "schemas", console=Console(stderr=True)):
        measure(case, tokenizer, tallies.setdefault(case.names, Tally()))
    rows = [tally.row("/".join(names)) for names, tally in tallies.items()]
    for name in dict.fromkeys(names[0] for names in tallies):
        whole = sum((tally for names, tally in tallies.items() if names[0] == name), Tally())
        rows.append(whole.row(f"{name} (all)"))
    if arguments.json:
        print(json.dumps([{name: plain(cell) for name, cell in row.items()} for row in rows], indent=2))
        return
    for table in tables(rows):
        Console().print(table)


if __name__ == "__main__":
    main()
