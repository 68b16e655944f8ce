"""Templates composed at random: labelled values as programs and people write them, and loose sentences around names.

Both keep the tagger from learning the wording of the written templates by heart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from smallfirst.learn.pii.values import lexicon

if TYPE_CHECKING:
    from smallfirst.learn.pii.corpus import Corpus

Pairs = list[tuple[str, str]]


def english(c: Corpus) -> str:
    """One to three clauses around slots, most of them after a telling word."""
    before, after = lexicon()["before"], lexicon()["after"]
    text = ""
    for _ in range(c.number(1, 3)):
        slot = c.choose("person", *before)
        lead = c.choose(*before[slot]) if slot == "last" or c.chance(0.85) else ""
        tail = c.choose(*after[slot])
        named = c.choose(*[f"{{{slot}}}"] * 5, f"{{{slot}}} and {{{slot}}}", f"{{{slot}}}, {{{slot}}} and {{{slot}}}")
        clause = " ".join(filter(None, (_words(c, c.choose(0, 0, 1, 2, 3, 5)), lead, named)))
        text = f"{text} {clause}{'' if tail in ',.?!:;)' or tail[0] == chr(39) else ' '}{tail}"
        text += " " + _words(c, c.number(0, 4)) if c.chance(0.7) else ""
    text = text.strip()
    return text[0].upper() + text[1:] if c.chance(0.7) else text


def _words(c: Corpus, count: int) -> str:
    return " ".join(c.pick(c.choose("glue", "glue", "lorem", "noun", "adjective", "title_word")) for _ in range(count))


def chinese(c: Corpus) -> str:
    """As `english`, in Chinese."""
    before, after = lexicon()["chinese_before"], lexicon()["chinese_after"]
    filler = lexicon()["chinese_filler"]["words"]
    text = ""
    for _ in range(c.number(1, 3)):
        slot = c.choose(*before)
        lead = c.choose(*before[slot]) if c.chance(0.85) else ""
        text += "".join(c.choose(*filler) for _ in range(c.number(0, 4))) + lead + f"{{{slot}}}"
        text += c.choose(*after[slot]) + "".join(c.choose(*filler) for _ in range(c.number(0, 4)))
    return text + c.choose("。", "？", "", "！")


def form(c: Corpus, held_out: bool, in_chinese: bool) -> str:
    """Labelled values: JSON, lines, a call, markup, a sentence or a table. Every fifth label is held out."""
    keys = lexicon()["chinese_keys"] if in_chinese else lexicon()["keys"] | lexicon()["clean_keys"]
    pairs = []
    for _ in range(c.number(1, 6)):
        slot = c.choose(*keys)
        part = [key for at, key in enumerate(keys[slot]) if (at % 5 == 2) == held_out]
        pairs.append((c.choose(*part), slot))
    return c.choose(_json, _json, _lines, _call, _markup, _inline, _table)(c, pairs)


def _json(c: Corpus, pairs: Pairs) -> str:
    comma, colon = c.choose((", ", ": "), (",", ":"), (",\n  ", ": "))
    inner = comma.join(f'"{key}"{colon}' + (f"{{{slot}}}" if slot == "num" else f'"{{{slot}}}"') for key, slot in pairs)
    key = c.pick("noun")
    return c.choose(f"{{{inner}}}", f"{{{inner}}}", f'{{"{key}": {{{inner}}}}}', f'{{"{key}s": [{{{inner}}}]}}')


def _lines(c: Corpus, pairs: Pairs) -> str:
    spelt = c.chance(0.5)
    mark, start = c.choose(": ", ": ", " = ", "=", " - "), c.choose("", "", "- ", "* ", "  ")
    named = [(key.replace("_", " ").title() if spelt else key, slot) for key, slot in pairs]
    return "\n".join(f"{start}{name}{mark}{{{slot}}}" for name, slot in named)


def _call(c: Corpus, pairs: Pairs) -> str:
    quote = c.choose('"', "'")
    return "{fn}(" + ", ".join(f"{key}={quote}{{{slot}}}{quote}" for key, slot in pairs) + ")"


def _markup(c: Corpus, pairs: Pairs) -> str:
    return c.choose("", "\n").join(f"<{key}>{{{slot}}}</{key}>" for key, slot in pairs)


def _inline(c: Corpus, pairs: Pairs) -> str:
    mark, comma = c.choose(": ", " is ", " "), c.choose(", ", "; ", " | ", " and ")
    return comma.join(f"{key.replace('_', ' ')}{mark}{{{slot}}}" for key, slot in pairs)


def _table(c: Corpus, pairs: Pairs) -> str:
    comma = c.choose(",", ";", " | ", "\t")
    rows = [comma.join(f"{{{slot}}}" for _, slot in pairs)] * c.number(1, 4)
    return "\n".join([comma.join(key for key, _ in pairs), *rows])
