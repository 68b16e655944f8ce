"""What fills the slots of the templates: how names, addresses and organisations are written, and ordinary words."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from smallfirst.learn.pii.corpus import Corpus

Make = Callable[["Corpus"], str]


@cache
def lexicon() -> dict[str, dict[str, tuple[str, ...]]]:
    """The word lists of `templates/words.toml`, by section and name."""
    text = (files("smallfirst.learn.pii") / "templates" / "words.toml").read_text(encoding="utf-8")
    return {
        section: {name: tuple(words.split("|") if "|" in words else words.split()) for name, words in lists.items()}
        for section, lists in tomllib.loads(text).items()
    }


def person(c: Corpus) -> str:
    first, last = c.invented("first"), surname(c)
    if c.chance(0.12):
        last = f"{last}{c.choose(' ', '-')}{c.invented('last')}"
    style = c.number(0, 19)
    if style < 11:
        return f"{first} {last}"
    if style < 13:
        return f"{first} {letter(c)}{c.choose('.', '')} {last}"
    if style < 14:
        return f"{last}, {first}"
    if style < 15:
        return f"{letter(c)}. {last}"
    if style < 17:
        return first
    return last if style < 19 else f"{first} {c.invented('first')} {last}"


def letter(c: Corpus) -> str:
    return chr(c.number(65, 90))


def surname(c: Corpus) -> str:
    prefix = c.choose("van ", "von ", "de ", "De ", "O'", "Mc", "Mac", "al-", "di ", "de la ") if c.chance(0.07) else ""
    return prefix + c.invented("last")


def city(c: Corpus) -> str:
    name = c.invented("city")
    return (
        f"{c.choose('North', 'New', 'Saint', 'Port', 'East', 'Lake', 'Bad', 'San')} {name}" if c.chance(0.06) else name
    )


def state(c: Corpus) -> str:
    return c.choose(c.pick("state"), c.pick("abbreviation"))


def place(c: Corpus) -> str:
    style = c.number(0, 7)
    if style < 3:
        return city(c)
    if style < 5:
        return c.pick("country")
    return c.choose(c.pick("state"), f"{city(c)}, {c.pick('country')}", f"{city(c)}, {state(c)}")


def postcode(c: Corpus) -> str:
    british = f"{letter(c)}{letter(c)}{c.number(1, 29)} {c.number(1, 9)}{letter(c)}{letter(c)}"
    parts = f"{c.number(100, 999)} {c.number(10, 99)}"
    return c.choose(f"{c.number(501, 99950):05}", f"{c.number(1000, 99999)}", british, parts)


def street(c: Corpus) -> str:
    name = c.choose(c.invented("last"), c.invented("last"), f"{c.number(4, 99)}th")
    kind, foreign = c.pick("street_kind"), c.pick("street_kind_before")
    number = c.choose(f"{c.number(1, 200)}", f"{c.number(1, 9999)}", f"{c.number(1, 99)}{c.choose('A', 'b', 'C')}")
    written = c.choose(
        f"{number} {name} {kind}",
        f"{number} {c.choose('N', 'S', 'East', 'West')} {name} {kind}",
        f"{number}, {name} {kind}",
        f"{foreign} {name} {number}",
        f"{number} {foreign} {name}",
        f"{name}{c.choose('', ' ')}{c.pick('street_ending')} {number}",
        f"P.O. Box {c.number(1, 9999)}",
        c.pick("street_address").replace("\n", ", "),
    )
    unit = c.choose(
        f" Apt {c.number(1, 99)}", f", Suite {c.number(100, 999)}", f" #{c.number(1, 40)}", f", Flat {number}"
    )
    return written + unit if c.chance(0.2) and "Box" not in written else written


def address(c: Corpus) -> str:
    here = street(c)
    return c.choose(
        here,
        f"{here}, {city(c)}",
        f"{here} {city(c)}",
        f"{here}, {city(c)}, {state(c)} {postcode(c)}",
        f"{here}, {city(c)} {postcode(c)}",
        f"{here}, {postcode(c)} {city(c)}",
        f"{here}, {postcode(c)} {city(c)}, {c.pick('country')}",
        f"{here}, {city(c)}, {c.pick('country')}",
        f"{here} {city(c)} {state(c)} {postcode(c)}",
        c.pick("full_address").replace("\n", ", "),
    )


def multiline(c: Corpus) -> str:
    gap = c.choose("\n", "\n", "\n ", "\n   ")
    return c.choose(
        c.pick("full_address"),
        gap.join((street(c), f"{city(c)}, {c.pick('abbreviation')} {postcode(c)}")),
        gap.join((street(c), f"{postcode(c)} {city(c)}", c.pick("country"))),
        gap.join((street(c), city(c), postcode(c))),
    )


def organisation(c: Corpus) -> str:
    brand = c.choose(c.invented("brand"), c.invented("brand"), c.invented("last"))
    partner = c.invented("last")
    return c.choose(
        brand,
        brand,
        f"{brand} {c.pick('suffix')}",
        f"{brand} {c.pick('trade')}",
        f"{brand} {c.pick('trade')} {c.pick('suffix')}",
        f"{c.invented('last')}, {partner} {c.choose('and', '&')} {c.invented('last')}",
        f"{partner} {c.choose('&', 'and')} {c.invented('last')}",
        f"{partner}-{c.invented('last')}",
        f"{c.choose('University', 'Bank', 'Museum', 'Port', 'Institute')} of {city(c)}",
        f"{city(c)} {c.pick('civic')}",
        f"{c.choose('First', 'National', 'American', 'Royal', 'Global')} {brand} {c.pick('trade')}",
        c.pick("org"),
    )


def zperson(c: Corpus) -> str:
    given = c.choose(c.pick("zfirst"), c.pick("zgiven"), c.pick("zgiven") + c.pick("zgiven"))
    return c.pick("zlast") + given


def zplace(c: Corpus) -> str:
    town = c.pick("zcity")
    wide = c.choose(c.pick("zcountry"), c.pick("zprovince"), c.pick("zprovince") + town)
    return c.choose(town, town, town + "市", wide, wide, town + zarea(c), zarea(c))


def zarea(c: Corpus) -> str:
    return c.choose(c.pick("zdistrict") + "区", c.pick("zspot") + "区", c.pick("zspot"))


def zcity(c: Corpus) -> str:
    return c.pick("zcity") + c.choose("市", "")


def zaddress(c: Corpus) -> str:
    region = c.choose("", zcity(c) + zarea(c), zcity(c), zarea(c), c.pick("zprovince") + zcity(c))
    road = c.choose(c.pick("zroad"), c.pick("zgiven") + c.pick("zgiven")) + c.pick("zroad_kind")
    estate = c.choose("", "", c.pick("zestate") + c.choose("花园", "小区", "大厦", "家园", "广场"))
    flat = f"{c.number(1, 30)}栋{c.number(101, 2909)}室"
    door = f"{c.number(1, 40)}号楼{c.number(1, 6)}单元{c.number(101, 1909)}"
    return f"{region}{road}{c.number(1, 999)}号{estate}{c.choose('', '', flat, door)}"


def zorganisation(c: Corpus) -> str:
    brand = c.choose(c.pick("zbrand"), c.pick("zgiven") + c.pick("zgiven"))
    return c.choose(
        c.choose("", "", c.pick("zcity"), zcity(c)) + brand + c.pick("zorg_kind"),
        brand + c.choose("科技", "集团", "公司"),
        c.pick("zorg"),
        c.pick("zcity") + c.choose("大学", "银行", "人民医院", "第一中学"),
    )


def sentence(c: Corpus) -> str:
    lists = ("glue", "noun", "adjective", "verb", "lorem")
    text = " ".join(c.pick(c.choose(*lists)).lower() for _ in range(c.number(3, 9)))
    return (text.capitalize() if c.chance(0.7) else text) + c.choose(".", ".", "!", "")


def title(c: Corpus) -> str:
    words = [c.pick(c.choose("noun", "adjective", "verb", "lorem")).title() for _ in range(c.number(2, 5))]
    return c.choose(" ", " ", " of the ", " and ", ": ").join((words[0], " ".join(words[1:])))


def function_name(c: Corpus) -> str:
    verb, noun = c.pick("verb").lower(), c.pick("noun")
    camel = c.choose(f"{verb}{noun.title()}", f"{noun.title()}{verb.title()}")
    return c.choose(f"{verb}_{noun}", camel, f"{verb}_{c.pick('adjective')}_{noun}s", f"{noun}.{verb}")


def argument_name(c: Corpus) -> str:
    noun = c.pick("noun")
    compound = c.choose(f"{c.pick('adjective')}_{noun}", f"{noun}{c.pick('noun').title()}", f"is_{c.pick('adjective')}")
    return c.choose(noun, f"{noun}_id", compound, f"{noun}_name")


def product(c: Corpus) -> str:
    thing, look = c.pick("thing"), c.pick("adjective").title()
    mark = c.choose("Pro", "Max", "Plus", "X", "Mini", "2.0", "Ultra", "Lite", f"{c.number(2, 900)}")
    return c.choose(f"{look} {thing}", f"{thing} {mark}", f"{look} {c.pick('thing')} {thing}", f"{thing} {look}")


def identifier(c: Corpus) -> str:
    number = c.number(100, 9999999)
    return c.choose("#", "", "#W", "ORD-", f"{letter(c)}{letter(c)}", "INV-2024-") + str(number)


def date(c: Corpus) -> str:
    year, month, day = c.number(1950, 2030), c.number(1, 12), c.number(1, 28)
    name = c.pick("month")
    numbers = c.choose(f"{year}-{month:02}-{day:02}", f"{month}/{day}/{year}")
    return c.choose(numbers, numbers, f"{name} {day}", f"{day} {name} {year}", f"{name} {day}, {year}")


def email(c: Corpus) -> str:
    first, last, host = (c.invented(name).lower().replace(" ", "") for name in ("first", "last", "brand"))
    name = c.choose(f"{first}.{last}", f"{first}{c.number(1, 99)}", f"{first[0]}{last}", first + last.title())
    return f"{name}@{host}.{c.choose('com', 'org', 'de', 'co.uk', 'net')}"


def phone(c: Corpus) -> str:
    area, exchange, line = c.number(201, 989), c.number(200, 999), c.number(1000, 9999)
    other = f"+{c.number(30, 99)} {c.number(10, 999)} {c.number(100000, 9999999)}"
    return c.choose(
        f"+1 {area}-{exchange}-{line}", f"({area}) {exchange}-{line}", other, f"1{c.number(3, 9)}{other[-9:]}"
    )


def do(c: Corpus) -> str:
    some = c.choose("my", "the", "a", "this", "all")
    return f"{c.pick('verb').lower()} {some} {c.choose('', c.pick('adjective') + ' ')}{c.pick('noun')}"


def zsentence(c: Corpus) -> str:
    """Chinese words without a name."""
    filler = lexicon()["chinese_filler"]["words"]
    parts = ["".join(c.choose(*filler) for _ in range(c.number(2, 7))) for _ in range(c.number(1, 3))]
    return "，".join(parts) + c.choose("。", "？", "")


def _pool(name: str) -> Make:
    return lambda c: c.pick(name)


_NAMED: dict[str, tuple[str, Make]] = {
    "person": ("PERSON", person),
    "first": ("PERSON", lambda c: c.invented("first")),
    "last": ("PERSON", surname),
    "address": ("ADDRESS", address),
    "street": ("ADDRESS", street),
    "multiline": ("ADDRESS", multiline),
    "city": ("LOCATION", city),
    "place": ("LOCATION", place),
    "country": ("LOCATION", _pool("country")),
    "state": ("LOCATION", state),
    "org": ("ORG", organisation),
    "zperson": ("PERSON", zperson),
    "zlast": ("PERSON", _pool("zlast")),
    "zaddress": ("ADDRESS", zaddress),
    "zplace": ("LOCATION", zplace),
    "zcity": ("LOCATION", zcity),
    "zorg": ("ORG", zorganisation),
}
_ORDINARY: dict[str, Make] = {
    "zip": postcode,
    "id": identifier,
    "num": lambda c: f"{c.number(1, c.choose(9, 60, 500, 9000))}",
    "date": date,
    "time": lambda c: f"{c.number(0, 23)}:{c.number(0, 59):02}",
    "year": lambda c: f"{c.number(1900, 2030)}",
    "email": email,
    "phone": phone,
    "title": title,
    "product": product,
    "do": do,
    "fn": function_name,
    "arg": argument_name,
    "ARG": lambda c: argument_name(c).upper(),
    "Camel": lambda c: c.pick("adjective").title() + c.pick("noun").title(),
    "tech_lower": lambda c: c.pick("tech").lower(),
    "word": lambda c: c.pick(c.choose("noun", "adjective")),
    "Word": lambda c: c.pick(c.choose("noun", "adjective", "lorem")).capitalize(),
    "sentence": sentence,
    "Sentence": lambda c: sentence(c).capitalize(),
    "SENTENCE": lambda c: sentence(c).upper(),
    "zsentence": zsentence,
}
_POOLS = ("noun", "verb", "tech", "job", "passage", "weekday", "month", "znoun", "zdo", "zdone", "zjob", "zproduct")
SLOTS = _NAMED | {name: ("", make) for name, make in _ORDINARY.items()} | {name: ("", _pool(name)) for name in _POOLS}
"""By slot: the kind of what it holds ("" for what identifies nobody), and how a value is made."""
