"""Text within text: decoded, edited, encoded again the same way."""

from __future__ import annotations

import base64
import json
import re
from urllib.parse import quote, unquote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smallfirst.learn.pii.encodings import Edit, rewrite

FOUND, PUT = "jön@x.com", "mär@y.ex"


def editor(text: str) -> list[Edit]:
    return [Edit(match.start(), match.end(), PUT) for match in re.finditer(re.escape(FOUND), text)]


def nested(value: str, times: int) -> str:
    for _ in range(times):
        value = json.dumps({"a": value})
    return value


@pytest.mark.parametrize(
    "wrap",
    [
        str,
        lambda t: json.dumps({"k": f'"{t}"\n'}),
        lambda t: json.dumps({t: [t]}, ensure_ascii=False, indent=3),
        lambda t: nested(t, 5),
        quote,
        lambda t: quote(quote(json.dumps(t), safe=""), safe=""),
        lambda t: base64.b64encode(f"see {t} there".encode()).decode(),
        lambda t: json.dumps({"b": base64.urlsafe_b64encode(json.dumps([t]).encode()).decode()}),
        lambda t: base64.encodebytes(b"padding and more " * 5 + t.encode() + b" tail" * 20).decode(),
    ],
)
def test_a_value_is_reached_in_every_encoding(wrap: object) -> None:
    """What comes out is what the same wrapping of the edited text would have been."""
    assert callable(wrap)
    assert rewrite(wrap(FOUND), editor) == wrap(PUT)


def test_what_is_not_edited_keeps_its_spelling() -> None:
    """White space, escapes and number formats around an edit stay, byte for byte."""
    text = '{ "a" :1.50, "b":"\\u0041\\/ ' + json.dumps(FOUND)[1:-1] + '", "path": "C:\\\\temp"}  100%25'
    assert rewrite(text, editor) == text.replace(json.dumps(FOUND)[1:-1], json.dumps(PUT)[1:-1])


def test_unpadded_base64_stays_unpadded() -> None:
    """Padding and alphabet are as they were."""
    blob = base64.urlsafe_b64encode(f"??>>> {FOUND}".encode()).decode().rstrip("=")
    edited = rewrite(blob, editor)
    assert "=" not in edited
    assert base64.urlsafe_b64decode(edited + "=" * (-len(edited) % 4)).decode() == f"??>>> {PUT}"


@settings(deadline=None)
@given(st.text())
def test_without_edits_nothing_changes(text: str) -> None:
    """Reading through encodings is free of effects."""
    assert rewrite(text, lambda _: []) == text


@settings(deadline=None)
@given(st.recursive(st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20))
def test_json_stays_json(value: object) -> None:
    """Editing words within JSON text gives the JSON of the edited value."""
    seen: list[str] = []

    def upper(text: str) -> list[Edit]:
        seen.append(text)
        return [Edit(m.start(), m.end(), "Q" * len(m.group())) for m in re.finditer(r"[a-zà-ÿ]+", text)]

    text = json.dumps({"k": value})
    assert isinstance(json.loads(rewrite(text, upper)), dict)


@settings(deadline=None)
@given(st.text(max_size=60), st.text(max_size=60))
def test_percent_encoding_decodes_to_the_edited_text(before: str, after: str) -> None:
    """A query keeps everything but the value."""
    try:
        text = quote(f"{before} {FOUND} {after}", safe="")
    except UnicodeEncodeError:
        return
    assert unquote(rewrite(text, editor)).count(PUT) >= 1


def test_absurd_nesting_does_not_crash() -> None:
    """Deep JSON, endless backslashes and percent signs are read to a bounded depth."""
    for text in ("[" * 100_000 + "]" * 100_000, "\\" * 50_000, "%25" * 20_000, '{"a":' * 20_000):
        assert rewrite(text, lambda _: []) == text
