"""How much personal data does scrubbing find, how much else does it take, and does a planted canary survive?

Identifiers and names are generated: identifiers in the forms of many countries among numbers that are none, names in
templates and from name lists that the tagger was not trained on. `--data` adds a public set of sentences that nothing
was fitted to (English), `--clean` texts without personal data. A name is found when a finding of its kind covers half
of its characters, an identifier when one covers all; a finding is right when half of it is of its kind. "replaced" is
the share of personal characters that are replaced under whatever kind. Intervals: Wilson, 95 %.

    python bench/scrub.py --data ../shared/data/pii_presidio --clean ../shared/data/tau_bench/airline_wiki.md
"""

from __future__ import annotations

import argparse
import base64
import ipaddress
import json
import random
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import phonenumbers
from rich.console import Console
from rich.table import Table
from stdnum import luhn
from stdnum.iso7064 import mod_11_2, mod_97_10

from smallfirst.learn.pii.corpus import Corpus, Example
from smallfirst.learn.pii.patterns import STRUCTURED, Finding, structured
from smallfirst.learn.pii.tagger import ARTIFACT, KINDS, Tagger, tokenise
from smallfirst.learn.scrub import Scrubber, encode, leaks
from smallfirst.stats import Figure, wilson
from smallfirst.store import StoredRecord
from smallfirst.types import Attempt, Choice, Completion, ToolCall

Row = dict[str, Any]
PRESIDIO = {
    "PERSON": "PERSON", "ADDRESS": "ADDRESS", "STREET_ADDRESS": "ADDRESS", "LOCATION": "LOCATION", "GPE": "LOCATION",
    "ORGANIZATION": "ORG", "PHONE_NUMBER": "PHONE", "CREDIT_CARD": "CARD", "US_SSN": "SSN", "EMAIL_ADDRESS": "EMAIL",
    "IBAN_CODE": "IBAN",
}  # fmt: skip
IBANS = {"DE": "n18", "GB": "a4n14", "FR": "n10c11n2", "NL": "a4n10", "ES": "n20", "CH": "n5c12", "PL": "n24"}
DIGITS, LOWER, UPPER = "0123456789", "abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
AROUND = {
    "EMAIL": """write to {}|{} is my mail|"email":"{}"|<{}>|邮箱是{}。|mailto:{}?subject=x|From: A <{}>""",
    "PHONE": """call me at {}|Phone: {}|"phone": "{}"|tel {} please|我的电话是{}，|mobile={}|({}) is my cell""",
    "CARD": """card {} expires 04/27|"card_number":"{}"|pay with {}.|卡号{}。|Visa: {}|my card, {}, failed""",
    "IBAN": """IBAN {}|transfer to {} today|"iban": "{}"|account {}.|({})|iban={};""",
    "SSN": """SSN {}|my social is {}.|"ssn":"{}"|Social Security: {}|ssn={}&x=1|it is {}, yes""",
    "CN_IDENTITY": """身份证号{}。|"id_card":"{}"|身份证：{}|id {} ok|证件号码为{}，|id={}""",
    "IP": """from {} port 22|"ip":"{}"|host {} is down|IP：{}。|client={}, status=200|ping {}""",
    "SECRET": """use {} for access|the key is {}|"value": "{}"|curl -H 'X-Key: {}'|export KEY={}|密钥{}。""",
}
DISTRACTORS = (
    "order 84{:06} on 2024-0{}-1{}", "total 1,{}{}.{}0 EUR", "v{}.{}.{} at 12:3{}:05", "page {} of {}{}",
    "id {}{}-{}a{}f", "ts=17{:06}{}{}", "SKU-{}{}{}-{}", "size {}x{}x{} cm",
)  # fmt: skip


def pick(rng: random.Random, letters: str, count: int) -> str:
    return "".join(rng.choice(letters) for _ in range(count))


def email(rng: random.Random) -> str:
    local = rng.choice(("{}.{}", "{}{}", "{}_{}", "{}+{}", "{}-{}")).format(
        pick(rng, LOWER, 5), pick(rng, LOWER + DIGITS, 4)
    )
    return f"{local}@{pick(rng, LOWER, 6)}.{rng.choice(('com', 'co.uk', 'de', 'org', 'com.cn', 'io', 'museum'))}"


def phone(rng: random.Random) -> str:
    """A number of a random country that can exist, in one of its usual writings; China's mobiles also bare."""
    if rng.random() < 0.15:
        return f"1{rng.choice('3456789')}{pick(rng, DIGITS, 9)}"
    while True:
        example = phonenumbers.example_number(rng.choice(sorted(phonenumbers.SUPPORTED_REGIONS)))
        national = str(example.national_number)
        made = phonenumbers.PhoneNumber(example.country_code, int(national[:3] + pick(rng, DIGITS, len(national) - 3)))
        if phonenumbers.is_valid_number(made):
            style = rng.choice((phonenumbers.PhoneNumberFormat.INTERNATIONAL, phonenumbers.PhoneNumberFormat.E164))
            return phonenumbers.format_number(made, style)


def card(rng: random.Random) -> str:
    prefix, length = rng.choice(
        (("4", 16), ("51", 16), ("2221", 16), ("37", 15), ("6011", 16), ("62", 19), ("3530", 16))
    )
    body = prefix + pick(rng, DIGITS, length - len(prefix) - 1)
    number = body + luhn.calc_check_digit(body)
    mark = rng.choice(("", " ", "-"))
    return mark.join(number[at : at + 4] for at in range(0, length, 4))


def iban(rng: random.Random) -> str:
    country, form = rng.choice(sorted(IBANS.items()))
    body, at = "", 0
    while at < len(form):
        end = at + 1
        while end < len(form) and form[end].isdigit():
            end += 1
        body += pick(rng, {"n": DIGITS, "a": UPPER, "c": UPPER + DIGITS}[form[at]], int(form[at + 1 : end]))
        at = end
    number = country + mod_97_10.calc_check_digits(body + country) + body
    return " ".join(number[n : n + 4] for n in range(0, len(number), 4)) if rng.random() < 0.5 else number


def ssn(rng: random.Random) -> str:
    area = rng.choice([n for n in range(1, 900) if n != 666])
    mark = rng.choice("-- ")
    return f"{area:03}{mark}{rng.randint(1, 99):02}{mark}{rng.randint(1, 9999):04}"


def cn_identity(rng: random.Random) -> str:
    birthday = f"{rng.randint(1930, 2015)}{rng.randint(1, 12):02}{rng.randint(1, 28):02}"
    body = rng.choice("12345") + pick(rng, DIGITS, 5) + birthday + pick(rng, DIGITS, 3)
    return body + mod_11_2.calc_check_digit(body)


def ip(rng: random.Random) -> str:
    if rng.random() < 0.7:
        parts = [rng.choice([n for n in range(1, 224) if n != 127]), *(rng.randint(1, 254) for _ in range(3))]
        return ".".join(map(str, parts))
    address = ipaddress.IPv6Address((0x2001 << 112) + rng.getrandbits(rng.choice((16, 64, 100))))
    return rng.choice((address.compressed, address.exploded))


def secret(rng: random.Random) -> str:
    mixed = DIGITS + LOWER + UPPER
    jwt = ".".join(base64.urlsafe_b64encode(pick(rng, mixed, 30).encode()).decode().rstrip("=") for _ in range(3))
    return rng.choice((
        "sk-" + pick(rng, mixed, 40), "AKIA" + pick(rng, UPPER + DIGITS, 16), "ghp_" + pick(rng, mixed, 36),
        "xoxb-" + pick(rng, DIGITS, 12) + "-" + pick(rng, mixed, 24), "AIza" + pick(rng, mixed, 35),
        "glpat-" + pick(rng, mixed, 20), "hf_" + pick(rng, mixed, 34), "sk_live_" + pick(rng, mixed, 24),
        "sk-ant-" + pick(rng, mixed, 60), "npm_" + pick(rng, mixed, 36), "eyJhbGciOiJI" + jwt,
        "SG." + pick(rng, mixed, 22) + "." + pick(rng, mixed, 43),
    ))  # fmt: skip


MAKERS: dict[str, Callable[[random.Random], str]] = {
    "EMAIL": email,
    "PHONE": phone,
    "CARD": card,
    "IBAN": iban,
    "SSN": ssn,
    "CN_IDENTITY": cn_identity,
    "IP": ip,
    "SECRET": secret,
}


def identifiers(rng: random.Random, each: int) -> Iterator[Example]:
    """`each` identifiers of each kind, alone in a short text with numbers that are none."""
    for kind, make in MAKERS.items():
        for _ in range(each):
            before, after = rng.choice(AROUND[kind].split("|")).split("{}")
            noise = rng.choice(DISTRACTORS)
            lead = noise.format(*(rng.randint(1, 9) for _ in range(6))) + rng.choice(("; ", ". ", "\n")) + before
            value = make(rng)
            yield Example(lead + value + after, ((len(lead), len(lead) + len(value), kind),))


def public(folder: Path) -> Iterator[Example]:
    """The sentences of the public set, in our kinds; other kinds keep their names."""
    for item in json.loads((folder / "spans.json").read_text()):
        spans = ((s["start_position"], s["end_position"], s["entity_type"]) for s in item["spans"])
        yield Example(item["full_text"], tuple((start, end, PRESIDIO.get(kind, kind)) for start, end, kind in spans))


class Tally:
    """Counts of one kind: entities and those found, findings and those right, personal characters and those taken."""

    def __init__(self) -> None:
        self.entities = self.found = self.findings = self.right = self.characters = self.taken = 0

    def row(self, name: str, kind: str) -> Row:
        recall, precision = wilson(self.found, self.entities), wilson(self.right, self.findings)
        replaced = self.taken / self.characters
        return {"set": name, "kind": kind, "recall": recall, "precision": precision, "replaced": replaced}


def measured(
    name: str, examples: Iterable[Example], find: Callable[[str], list[Finding]], kinds: Iterable[str]
) -> list[Row]:
    """Recall and precision by kind."""
    tallies = {kind: Tally() for kind in kinds}
    for example in examples:
        findings = [f for f in find(example.text) if f.kind in tallies]
        gold = [span for span in example.spans if span[2] in tallies]
        covered = characters((f.start, f.end) for f in findings)
        for start, end, kind in gold:
            own = characters((f.start, f.end) for f in findings if f.kind == kind)
            tally, needed = tallies[kind], 1.0 if kind in STRUCTURED else 0.5
            tally.entities += 1
            tally.found += len(own.intersection(range(start, end))) >= needed * (end - start)
            tally.characters += end - start
            tally.taken += len(covered.intersection(range(start, end)))
        for f in findings:
            inside = characters((start, end) for start, end, kind in gold if kind == f.kind)
            tallies[f.kind].findings += 1
            tallies[f.kind].right += 2 * len(inside.intersection(range(f.start, f.end))) >= f.end - f.start
    return [tally.row(name, kind) for kind, tally in tallies.items() if tally.entities]


def characters(spans: Iterable[tuple[int, int]]) -> set[int]:
    return {at for start, end in spans for at in range(start, end)}


def over_redaction(name: str, texts: Iterable[str], find: Callable[[str], list[Finding]]) -> Row:
    """The share of tokens that would be replaced though nothing in the texts is personal."""
    tokens = hit = 0
    for text in texts:
        covered = characters((f.start, f.end) for f in find(text))
        starts = tokenise(text).starts
        tokens += len(starts)
        hit += sum(at in covered for at in starts)
    return {"set": name, "clean tokens taken": wilson(hit, tokens)}


def wrapped(rng: random.Random, value: str) -> str:
    """`value` within a text in one of eleven encodings."""
    inner = json.dumps({"note": f"see {value} now", "n": 1})
    plain = f"the value {value} is here".encode()
    return rng.choice((
        f"text with {value} in it", inner, json.dumps({value: True}), json.dumps({"raw": inner}),
        json.dumps({"a": {"raw": json.dumps({"b": inner})}}), base64.b64encode(plain).decode(),
        base64.urlsafe_b64encode(inner.encode()).decode().rstrip("="), quote(quote(inner)),
        json.dumps({"blob": base64.b64encode(inner.encode()).decode()}), "q=" + quote(f"find {value} please", safe=""),
        base64.b64encode(quote(f"x {value} y").encode()).decode(),
    ))  # fmt: skip


def planted(rng: random.Random, number: int, values: list[str]) -> StoredRecord:
    """A call with each value in another place: prompts, tool arguments and results, a description, the answer."""
    texts = [wrapped(rng, value) for value in values]
    description = f"Looks things up, for instance {values[4]}"
    messages = (
        {"role": "system", "content": f"Be brief. {texts[0]}"},
        {"role": "user", "content": [{"type": "text", "text": texts[1]}]},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": json.dumps({"q": texts[2]})}},
        ]},
        {"role": "tool", "tool_call_id": "c1", "content": json.dumps({"result": [texts[3]]}, ensure_ascii=False)},
    )  # fmt: skip
    tool = {
        "name": "look_up",
        "description": description,
        "parameters": {"type": "object", "properties": {"q": {"type": "string"}}},
    }
    body = {
        "model": "large",
        "messages": list(messages),
        "tools": [{"type": "function", "function": tool}],
        "user": values[0],
    }
    choice = Choice(texts[5], (ToolCall("c2", "look_up", json.dumps({"q": texts[6]})),))
    attempt = Attempt("large", "b", "large", "generate", "accept", "", Completion((choice,)))
    return StoredRecord(
        id=f"{number}", created_at=0.0, task="t", mode="observe", decision="accept", reason="", status=200, seconds=1.0,
        config_hash="", served=0, wire="chat", model="large", key="k", user=None, episode=f"{number}", captured=True,
        body=body, messages=messages, attempts=(attempt,),
    )  # fmt: skip


def canaries(rng: random.Random, scrubber: Scrubber, count: int) -> Row:
    """How many of `count` planted identifiers and secrets are left in the export."""
    kinds = sorted(MAKERS)
    left: list[str] = []
    for number in range(-(-count // 7)):
        values = [MAKERS[rng.choice(kinds)](rng) for _ in range(7)]
        left += leaks(encode(scrubber.record(planted(rng, number, values))).decode(), values)
    return {"set": "planted canaries", "n": 7 * -(-count // 7), "left": len(left)}


def speed(name: str, work: Callable[[str], object], text: str) -> Row:
    started = time.thread_time()
    work(text)
    return {"set": name, "characters/s": round(len(text) / (time.thread_time() - started))}


def rows(arguments: argparse.Namespace) -> Iterator[Row]:
    rng = random.Random(arguments.seed)
    tagger = Tagger.load(arguments.tagger)
    scrubber = Scrubber(b"a key for measuring", tagger)
    corpus = Corpus(arguments.seed + 1, held_out=True)
    held_out = list(corpus.examples(arguments.examples))
    yield from measured("generated", identifiers(rng, 500), scrubber.findings, STRUCTURED)
    yield from measured("held-out templates and names", held_out, scrubber.findings, KINDS)
    yield from measured("held-out labels and names", corpus.forms(arguments.examples // 4), scrubber.findings, KINDS)
    if arguments.data:
        yield from measured("public, unseen", public(arguments.data), scrubber.findings, (*KINDS, *STRUCTURED))
    clean = [example.text for example in held_out if not example.spans]
    yield over_redaction("held-out clean templates", clean, tagger)
    for path in arguments.clean:
        yield over_redaction(path.name, [path.read_text()], scrubber.findings)
    yield canaries(rng, scrubber, 1000)
    text = "\n".join(example.text for example in held_out)
    yield speed("patterns", structured, text)
    yield speed("tagger", tagger, text)
    yield speed("whole", lambda t: scrubber.text(t, "e"), text)


def shown(cell: Any) -> str:
    """A cell for the terminal."""
    if isinstance(cell, Figure):
        return "-" if cell.value is None else f"{cell.value:.1%} [{cell.low:.1%}, {cell.high:.1%}] n={cell.n}"
    return f"{cell:.1%}" if isinstance(cell, float) else "" if cell is None else str(cell)


def plain(cell: Any) -> Any:
    """A cell for --json."""
    if isinstance(cell, Figure):
        return {"value": cell.value, "low": cell.low, "high": cell.high, "n": cell.n}
    return cell


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of pii_presidio")
    parser.add_argument("--clean", type=Path, nargs="*", default=[], help="text files without personal data")
    parser.add_argument("--tagger", type=Path, default=ARTIFACT, help="another artifact than the shipped one")
    parser.add_argument("--examples", type=int, default=4000, help="held-out examples")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    arguments = parser.parse_args()
    table = list(rows(arguments))
    if arguments.json:
        print(json.dumps([{name: plain(cell) for name, cell in row.items()} for row in table]))
        return
    names = list(dict.fromkeys(name for row in table for name in row))
    drawn = Table(*names)
    for row in table:
        drawn.add_row(*(shown(row.get(name)) for name in names))
    Console(width=200).print(drawn)


if __name__ == "__main__":
    main()
