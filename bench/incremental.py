"""How early does the incremental validator stop a wrong stream, is it ever wrong, and what does it cost?

Instances of public schema collections are streamed into `JsonPrefix` in pieces of four characters. Valid ones (three
writings each: compact, indented, keys reversed) must pass; of the invalid ones the table says how many stop before
their last character. "valid" means: jsonschema-rs accepts, whatever the collection says. Schemas that a request could
not use (they refer elsewhere) are left out and counted.

    python bench/incremental.py --data ../shared/data
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from smallfirst.errors import RequestError
from smallfirst.incremental import JsonPrefix
from smallfirst.schemas import check_schema, compiled
from smallfirst.stats import Figure, mean, ratio, wilson

DRAFT_7 = "http://json-schema.org/draft-07/schema#"
PIECE = 4
Case = tuple[str, dict[str, Any], Any]


@dataclass
class Tally:
    """Counts of one collection; `seconds` and `kilobytes` of every text that was read to its end."""

    refused: int = 0
    valid: int = 0
    unsound: int = 0
    invalid: int = 0
    early: int = 0
    found: int = 0
    positions: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    kilobytes: list[float] = field(default_factory=list)

    def __add__(self, other: Tally) -> Tally:
        return Tally(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def add(self, schema: dict[str, Any], value: Any) -> None:
        """Streams one instance."""
        try:
            check_schema(schema, param="schema")
        except RequestError:
            self.refused += 1
            return
        if compiled(schema).is_valid(value):
            for text in writings(value):
                self.valid += 1
                self.unsound += self.read(schema, text) is not None
        else:
            text = json.dumps(value)
            at = self.read(schema, text)
            self.invalid += 1
            self.found += at is not None
            self.early += at is not None and at < len(text) - 1
            self.positions.append((len(text) if at is None else at) / len(text))

    def read(self, schema: dict[str, Any], text: str) -> int | None:
        """Where the stream of `text` was stopped. Timed in CPU seconds, the schema being known (it is cached)."""
        JsonPrefix(schema)
        started = time.thread_time()
        reader = JsonPrefix(schema)
        for begin in range(0, len(text), PIECE):
            if reader.feed(text[begin : begin + PIECE]):
                return reader.position
        stopped = reader.finish()
        self.seconds.append(time.thread_time() - started)
        self.kilobytes.append(len(text.encode()) / 1024)
        return reader.position if stopped else None

    def row(self, name: str) -> dict[str, Any]:
        """Columns of the table."""
        cost = ratio([s * 1e6 for s in self.seconds], self.kilobytes)
        return {
            "set": name,
            "valid texts": self.valid,
            "rejected though valid": wilson(self.unsound, self.valid),
            "invalid": self.invalid,
            "rejected before the end": wilson(self.early, self.invalid),
            "rejected at all": wilson(self.found, self.invalid),
            "median position": median(self.positions) if self.positions else None,
            "us per KB": cost,
            "us per text": mean([s * 1e6 for s in self.seconds]),
            "left out": self.refused,
        }


def writings(value: Any) -> Iterator[str]:
    """The same value as three texts."""
    yield json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    yield json.dumps(value, indent=2)
    yield json.dumps(reversed_keys(value))


def reversed_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: reversed_keys(value[key]) for key in reversed(value)}
    return [reversed_keys(item) for item in value] if isinstance(value, list) else value


def cases(data: Path) -> Iterator[Case]:
    """(collection, schema, instance) of everything under `data`."""
    for path in sorted((data / "jsonschemabench").glob("*.jsonl.gz")):
        with gzip.open(path, "rt") as lines:
            for entry in map(json.loads, lines):
                yield from ((path.name.removesuffix(".jsonl.gz"), entry["schema"], t["data"]) for t in entry["tests"])
    for draft in ("draft7", "draft2020-12"):
        for path in sorted((data / "json_schema_test_suite" / "tests" / draft).rglob("*.json")):
            for group in json.loads(path.read_text()):
                schema = group["schema"]
                if isinstance(schema, dict):
                    schema = {"$schema": DRAFT_7, **schema} if draft == "draft7" else schema
                    yield from ((f"test suite {draft}", schema, test["data"]) for test in group["tests"])


def plain(cell: Any) -> Any:
    """A cell for --json."""
    if isinstance(cell, Figure):
        return {"value": cell.value, "low": cell.low, "high": cell.high, "n": cell.n}
    return cell


def shown(name: str, cell: Any) -> str:
    """A cell for the terminal; rates in percent."""
    if not isinstance(cell, Figure):
        return f"{cell:.2f}" if isinstance(cell, float) else "-" if cell is None else str(cell)
    if cell.value is None:
        return "-"
    scale, unit = (1, "") if name.startswith("us") else (100, " %")
    low, high = (("-" if end is None else f"{end * scale:.1f}") for end in (cell.low, cell.high))
    return f"{cell.value * scale:.1f}{unit} [{low}, {high}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of jsonschemabench and json_schema_test_suite")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    arguments = parser.parse_args()
    tallies: dict[str, Tally] = {}
    for name, schema, value in cases(arguments.data):
        tallies.setdefault(name, Tally()).add(schema, value)
    tallies["all"] = sum(tallies.values(), Tally())
    rows = [tally.row(name) for name, tally in tallies.items() if tally.valid + tally.invalid]
    if not rows:
        parser.error(f"no instances under {arguments.data}")
    if arguments.json:
        print(json.dumps([{name: plain(cell) for name, cell in row.items()} for row in rows], indent=2))
        return
    table = Table(*rows[0], title="incremental validation of streamed JSON")
    for row in rows:
        table.add_row(*(shown(name, cell) for name, cell in row.items()))
    Console().print(table)


if __name__ == "__main__":
    main()
