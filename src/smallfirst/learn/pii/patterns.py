"""Identifiers and secrets that follow a written form: found by expressions, kept when their check holds.

Every expression is bounded, so the time is linear in the text. Check digits are those of python-stdnum, telephone
numbers those of phonenumbers. Expressions are ASCII: next to a Chinese character is a word's edge.
"""

from __future__ import annotations

import ipaddress
import math
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import phonenumbers
from phonenumbers import NumberParseException
from stdnum import iban, luhn
from stdnum.iso7064 import mod_11_2, mod_97_10

REGIONS = ("US", "GB", "DE", "FR", "ES", "IT", "CN", "IN", "NL", "SE", "PL", "CH", "BR", "AU")
"""Whose national telephone numbers are known without a country code."""
_CONTEXT = 40


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """`text` = text[start:end] of the searched text is personal or secret; `kind` is one of `STRUCTURED` or a kind of
    the tagger."""

    start: int
    end: int
    kind: str
    text: str


def structured(text: str) -> list[Finding]:
    """The identifiers and secrets of `text`, in order and apart from each other; an earlier kind of the table wins."""
    taken: list[Finding] = []
    for kind, expression, check in _TABLE:
        fresh = []
        for match in expression.finditer(text):
            start, end = match.span("value" if "value" in expression.groupindex else 0)
            if not _overlaps(taken, start, end) and (length := check(text, start, end)):
                fresh.append(Finding(start, start + length, kind, text[start : start + length]))
        taken = sorted([*taken, *_apart(fresh)])
    return taken


def _apart(findings: list[Finding]) -> Iterator[Finding]:
    last = 0
    for finding in sorted(findings):
        if finding.start >= last:
            yield finding
            last = finding.end


def _overlaps(taken: list[Finding], start: int, end: int) -> bool:
    at = bisect_left(taken, end, key=lambda finding: finding.start) - 1
    return at >= 0 and taken[at].end > start


def digits(text: str) -> str:
    """The ASCII digits of `text`."""
    return "".join(c for c in text if "0" <= c <= "9")


def entropy(text: str) -> float:
    """Shannon entropy of the characters, in bits a character."""
    counts = Counter(text)
    return -sum(n / len(text) * math.log2(n / len(text)) for n in counts.values())


def _whole(_text: str, start: int, end: int) -> int:
    return end - start


_KNOWN_TOKENS = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"sk-(?:ant-|proj-|or-|svcacct-)?[A-Za-z0-9_-]{16,200}|(?:AKIA|ASIA|AROA|AIDA)[A-Z0-9]{16}"
    r"|gh[pousr]_[A-Za-z0-9]{20,255}|github_pat_[A-Za-z0-9_]{22,255}|glpat-[A-Za-z0-9_-]{20,64}"
    r"|xox[abeoprs]-[A-Za-z0-9-]{10,200}|xapp-[A-Za-z0-9-]{10,200}|AIza[A-Za-z0-9_-]{35}|ya29\.[A-Za-z0-9_-]{20,300}"
    r"|GOCSPX-[A-Za-z0-9_-]{20,60}|SG\.[A-Za-z0-9_-]{16,32}\.[A-Za-z0-9_-]{30,64}|hf_[A-Za-z0-9]{30,60}"
    r"|npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_-]{40,250}|do[opr]_v1_[a-f0-9]{64}|[sr]k_(?:live|test)_[A-Za-z0-9]{16,250}"
    r"|pk_live_[A-Za-z0-9]{16,250}|whsec_[A-Za-z0-9+/=]{20,100}|shp(?:at|ca|pa|ss)_[a-fA-F0-9]{32}"
    r"|sq0(?:atp|csp)-[A-Za-z0-9_-]{22,60}|key-[a-f0-9]{32}|(?:AC|SK)[a-f0-9]{32}|EAA[A-Za-z0-9]{60,300}"
    r"|lin_api_[A-Za-z0-9]{32,64}|ntn_[A-Za-z0-9]{40,60}|secret_[A-Za-z0-9]{40,60}|gsk_[A-Za-z0-9]{40,80}"
    r"|\d{8,10}:[A-Za-z0-9_-]{35}|eyJ[A-Za-z0-9_-]{8,4000}\.[A-Za-z0-9_-]{8,8000}\.[A-Za-z0-9_-]{0,2000}"
    r")(?![A-Za-z0-9])"
)
_PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----(?P<value>(?:[A-Za-z0-9+/=\s:,]|-(?!-)){20,20000})-----END "
)
_WEBHOOK = re.compile(r"https://hooks\.slack\.com/(?:services|workflows)/(?P<value>[A-Za-z0-9/_-]{20,120})")
_URL_CREDENTIALS = re.compile(r"\b[a-zA-Z][a-zA-Z0-9+.-]{1,20}://(?P<value>[^\s/:@\"'<>]{1,100}:[^\s/@\"'<>]{1,200})@")
_BEARER = re.compile(r"(?i)\b(?:bearer|basic|authorization:\s*token)\s+(?P<value>[A-Za-z0-9._~+/-]{12,4000}={0,2})")
_NAMES = (
    r"(?:api[_ -]?key|apikey|access[_ -]?key(?:[_ -]?id)?|account[_ -]?key|secret(?:[_ -]?(?:access[_ -]?)?key)?|"
    r"client[_ -]?secret|private[_ -]?key|auth[_ -]?token|access[_ -]?token|refresh[_ -]?token|session[_ -]?token|"
    r"(?<![a-z])token|credentials?|signature|sig)"
)
_NAMED_SECRET = re.compile(
    r"(?i)" + _NAMES + r"[\"'`]{0,2}\s{0,3}(?:[:=]|\bis\b|=>)\s{0,3}[\"'`]{0,2}(?P<value>[^\s\"'`,;&<>(){}\[\]]{8,500})"
)
_PASSWORD = re.compile(
    r"(?i)(?:password|passwd|passphrase|\bpwd|\bpasscode|密码|口令)[\"'`]{0,2}\s{0,3}(?:[:=：]|\bis\b|=>|是|为)\s{0,3}"
    r"[\"'`]{0,2}(?P<value>[^\s\"'`,;&<>(){}\[\]，。；]{4,200})"
)
_NOT_A_PASSWORD = re.compile(
    r"(?i)(?:string|str|null|none|true|false|required|optional|text|password|secret|incorrect|correct|wrong|invalid|valid"
    r"|expired|reset|changed|not|too|the|your|set|required|stored|hashed|empty|missing|never|also|always|\*+|x+|\.+)\W*"
)
_EMAIL = re.compile(
    r"(?<![A-Za-z0-9\u00c0-\u024f])[A-Za-z0-9\u00c0-\u024f._%+'-]{1,64}@(?:[A-Za-z0-9\u00c0-\u024f-]{1,63}\.){1,8}"
    r"[A-Za-z\u00c0-\u024f][A-Za-z0-9\u00c0-\u024f-]{1,62}(?![A-Za-z0-9-])"
)
_IBAN = re.compile(r"(?i)(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]){11,30}(?![A-Za-z0-9])")
_CN_IDENTITY = re.compile(r"(?<![A-Za-z0-9])[1-9]\d{16}[\dXx](?![A-Za-z0-9])")
_CARD = re.compile(r"(?<![A-Za-z0-9.])\d(?:[ -]?\d){11,18}(?![A-Za-z0-9])")
_SSN = re.compile(r"(?<![\w-])(?!000|666)\d{3}([- ])(?!00)\d{2}\1(?!0000)\d{4}(?![\w-])", re.ASCII)
_SSN_NAMED = re.compile(r"(?i)\b(?:ssn|social security(?: number| no\.?)?)\b\D{0,12}(?P<value>\d{9})(?!\d)")
_IPV4 = re.compile(r"(?<![\w.-])(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\d)", re.ASCII)
_IPV6 = re.compile(
    r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}(?:(?:\d{1,3}\.){3}\d{1,3}|[0-9A-Fa-f]{1,4})?(?![\w:])", re.ASCII
)
_CN_MOBILE = re.compile(r"(?<![\w.+-])(?:(?:\+|00)86[ -]?)?1[3-9]\d([ -]?)\d{4}\1\d{4}(?![\w-]|\.\d)", re.ASCII)
_EXTENSION = r"(?:\s?(?:x|ext\.?|extension)\s?\d{1,6})?(?![\w%]|[.,:/-]\d)"
_INTERNATIONAL = re.compile(r"(?<![\w+])\+\(?\d(?:[ \u00a0().\-/]{0,3}\d){6,14}" + _EXTENSION, re.ASCII)
_NATIONAL = re.compile(r"(?<![\w./#$€£+-])(?<!\d,)(?:00)?\(?\d(?:[ \u00a0().\-/]{0,3}\d){5,16}" + _EXTENSION, re.ASCII)
_PHONE_BEFORE = re.compile(
    r"(?i)(?:\b(?:phone|tel|telephone|mobile|cell|cellphone|fax|call|dial|text|sms|whatsapp|hotline|landline|reach|ring|"
    r"desk|home|office|work|contact|number at|contact number|handy|telefon|t[ée]l|m[óo]vil)|电话|手机|号码|联系|致电|"
    r"拨打|来电|座机|热线|传真)[\w\s\"'_:.,=(（：-]{0,24}\Z"
)
_PHONE_AFTER = re.compile(
    r"(?i)[ (\\/-]{1,3}(?:phone|tel|mobile|cell|fax|office|home|work|desk|手机|电话|传真)\b(?!\s?[:=：])"
)
_GROUP = re.compile(r"\d+")
_NO_PHONE = re.compile(  # dates, spans of years, IP addresses and versions
    r"(?:19|20)\d\d[-/. ]\d{1,2}[-/. ]\d{1,2}|\d{1,2}[-/. ]\d{1,2}[-/. ](?:19|20)\d\d|"
    r"(?:19|20)\d\d\s?[-/]\s?(?:19|20)\d\d|\d{1,3}(?:\.\d{1,3}){3}\Z"
)
_FICTIONAL = re.compile(r"1 [2-9]\d\d5550\d{3}")
_CARD_PREFIX = re.compile(r"4|5[0-8]|6[0-9]|2[2-7]|3[04-9]|1800|2131")


def _secret(text: str, start: int, end: int) -> int:
    """Random enough for a key: letters and digits mixed, at least 2.5 bits a character."""
    value = text[start:end].rstrip(".:!?")
    mixed = len(digits(value)) > 1 and bool(re.search(r"[A-Za-z]", value))
    return len(value) if mixed and entropy(value) >= 2.5 and "://" not in value else 0


def _password(text: str, start: int, end: int) -> int:
    value = text[start:end].rstrip(".:") or text[start:end]
    return 0 if _NOT_A_PASSWORD.fullmatch(value) or value.startswith(("$", "%", "process.env", "os.")) else len(value)


def _bearer(text: str, start: int, end: int) -> int:
    return end - start if re.search(r"\d", text[start:end]) and entropy(text[start:end]) >= 3.0 else 0


def _email(text: str, start: int, end: int) -> int:
    return 0 if ".." in text[start:end] else end - start


def _iban(text: str, start: int, end: int) -> int:
    """The longest beginning that is an IBAN of its country, else all of it if its check digits hold."""
    stops = [
        at for at in range(end, start + 14, -1) if text[at - 1].isalnum() and (at == end or not text[at].isalnum())
    ]
    for stop in stops:
        if iban.is_valid(text[start:stop], check_country=False):
            return stop - start
    compact = re.sub(r"[ -]", "", text[start:end]).upper()
    return end - start if mod_97_10.is_valid(compact[4:] + compact[:4]) and re.search(r"\d{6}", compact) else 0


def _cn_identity(text: str, start: int, end: int) -> int:
    value = text[start:end].upper()
    year, month, day = int(value[6:10]), int(value[10:12]), int(value[12:14])
    plausible = 1850 <= year <= 2100 and 1 <= month <= 12 and 1 <= day <= 31
    return end - start if plausible and mod_11_2.is_valid(value) else 0


def _card(text: str, start: int, end: int) -> int:
    number = digits(text[start:end])
    return end - start if _CARD_PREFIX.match(number) and len(set(number)) > 1 and luhn.is_valid(number) else 0


def _address_v4(text: str, start: int, end: int) -> int:
    try:
        address = ipaddress.IPv4Address(text[start:end])
    except ValueError:
        return 0
    version = re.search(r"(?i)(?:\bv|version|release|==|>=|~=|\^)\s?$", text[max(0, start - 12) : start])
    return 0 if version or _generic(address) else end - start


def _address_v6(text: str, start: int, end: int) -> int:
    value = text[start:end]
    try:
        address = ipaddress.IPv6Address(value)
    except ValueError:
        return 0
    return end - start if len(digits(value)) and len(value) > 5 and not _generic(address) else 0


def _generic(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Addresses that name no machine: loopback, unspecified, netmasks and broadcast."""
    mask = isinstance(address, ipaddress.IPv4Address) and int(address) >> 24 == 255
    return address.is_loopback or address.is_unspecified or mask


def _international(text: str, start: int, end: int) -> int:
    try:
        return (end - start) * phonenumbers.is_possible_number(phonenumbers.parse(text[start:end]))
    except NumberParseException:
        return 0


def _national(text: str, start: int, end: int) -> int:
    """Numbers beside a word such as "phone"; others must be valid somewhere and grouped as telephone numbers are."""
    value = text[start:end]
    number = re.split(r"(?i)\s?(?:x|ext)", value)[0]
    count = len(digits(number))
    if _NO_PHONE.match(value) or not 6 <= count <= 17 or value.count("(") != value.count(")"):
        return 0
    if count <= 15 and (_PHONE_BEFORE.search(text, max(0, start - _CONTEXT), start) or _PHONE_AFTER.match(text, end)):
        return end - start
    grouped = number.startswith(("(", "0")) or len(_GROUP.findall(number)) > 2
    return end - start if grouped and "/" not in number and 8 <= count <= 15 and national(value) else 0


@lru_cache(4096)
def national(value: str) -> phonenumbers.PhoneNumber | None:
    """The number that `value` writes, with or without a country code; None when it is valid nowhere known."""
    for region in (None,) if value.startswith("+") else REGIONS:
        try:
            number = phonenumbers.parse(value, region)
        except NumberParseException:
            continue
        if phonenumbers.is_valid_number(number) or _FICTIONAL.fullmatch(
            f"{number.country_code} {number.national_number}"
        ):
            return number
    return None


_TABLE: tuple[tuple[str, re.Pattern[str], Callable[[str, int, int], int]], ...] = (
    ("SECRET", _PRIVATE_KEY, _whole),
    ("SECRET", _KNOWN_TOKENS, _whole),
    ("SECRET", _WEBHOOK, _whole),
    ("SECRET", _URL_CREDENTIALS, _whole),
    ("SECRET", _BEARER, _bearer),
    ("SECRET", _PASSWORD, _password),
    ("EMAIL", _EMAIL, _email),
    ("SECRET", _NAMED_SECRET, _secret),
    ("IBAN", _IBAN, _iban),
    ("PHONE", _INTERNATIONAL, _international),
    ("CN_IDENTITY", _CN_IDENTITY, _cn_identity),
    ("CARD", _CARD, _card),
    ("SSN", _SSN, _whole),
    ("SSN", _SSN_NAMED, _whole),
    ("IP", _IPV6, _address_v6),
    ("IP", _IPV4, _address_v4),
    ("PHONE", _CN_MOBILE, _whole),
    ("PHONE", _NATIONAL, _national),
)
STRUCTURED = tuple(dict.fromkeys(kind for kind, _, _ in _TABLE))
"""The kinds that `structured` finds."""
