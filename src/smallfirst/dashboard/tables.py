"""Figures as CSV: a row for each thing, a figure's interval and n in columns of their own."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from smallfirst.dashboard.queries import Value
from smallfirst.errors import NotFoundError

Row = dict[str, Any]
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def figure_rows(page: Any, name: str, at: int | None) -> list[Row]:
    """The rows of the field `name` of a page's data, only those of its member `at` where that is given.

    Raises NotFoundError for what is no figure of the page.
    """
    if name not in {field.name for field in fields(page)}:
        raise NotFoundError(f"There is no figure {name!r:.100} on this page.", hint="Use the page's own links.")
    found = getattr(page, name)
    if at is not None:
        found = found[at : at + 1] if isinstance(found, tuple) else ()
    return rows_of(found)


def rows_of(found: Any) -> list[Row]:
    """A dataclass or a sequence of such as rows."""
    members = found if isinstance(found, Sequence) and not isinstance(found, str) else [found]
    return [_value_row(member) if isinstance(member, Value) else _row(member) for member in members]


def to_csv(rows: Iterable[Row]) -> str:
    """CSV (RFC 4180) with a header; text that a spreadsheet would take for a formula gets a quote in front."""
    kept = list(rows)
    columns = list(dict.fromkeys(name for row in kept for name in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, columns)
    writer.writeheader()
    writer.writerows({name: _safe(value) for name, value in row.items()} for row in kept)
    return out.getvalue()


def _value_row(value: Value) -> Row:
    return {field.name: getattr(value, field.name) for field in fields(value)}


def _row(member: Any) -> Row:
    """One row; figures within become four columns, other things within are prefixed or counted."""
    if not is_dataclass(member):
        return {"value": member}
    row: Row = {}
    for field in fields(member):
        found = getattr(member, field.name)
        if isinstance(found, Value):
            row[field.name] = found.value
            row |= {f"{field.name}_{part}": getattr(found, part) for part in ("low", "high", "n")}
        elif is_dataclass(found):
            row |= {f"{field.name}_{name}": value for name, value in _row(found).items()}
        elif isinstance(found, Mapping):
            row |= {f"{field.name}_{name}": value for name, value in found.items()}
        else:
            row[field.name] = " ".join(map(str, found)) if isinstance(found, tuple) else found
    return row


def _safe(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
