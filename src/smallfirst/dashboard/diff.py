"""Where two texts differ, word by word."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import SequenceMatcher

_WORDS = re.compile(r"\w+|\s+|[^\w\s]")
_LONGEST = 1500


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of text; `differs`: the other text does not have it here."""

    text: str
    differs: bool


def differences(left: str, right: str) -> tuple[list[Piece], list[Piece]]:
    """Both texts in pieces. Texts of more than 1,500 words are compared as wholes."""
    ours, theirs = _WORDS.findall(left), _WORDS.findall(right)
    if max(len(ours), len(theirs)) > _LONGEST:
        return [Piece(left, left != right)], [Piece(right, left != right)]
    steps = SequenceMatcher(None, ours, theirs, autojunk=False).get_opcodes()
    return (
        [Piece("".join(ours[a:b]), kind != "equal") for kind, a, b, _, _ in steps if a < b],
        [Piece("".join(theirs[a:b]), kind != "equal") for kind, _, _, a, b in steps if a < b],
    )
