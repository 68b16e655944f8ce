"""Identifiers and secrets by their written form."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stdnum import luhn
from stdnum.iso7064 import mod_11_2, mod_97_10

from smallfirst.learn.pii.patterns import STRUCTURED, structured


def kinds(text: str) -> list[tuple[str, str]]:
    return [(finding.kind, finding.text) for finding in structured(text)]


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("write to anna.b+c@mail.example.co.uk.", "EMAIL", "anna.b+c@mail.example.co.uk"),
        ("邮箱zhang@x.com。", "EMAIL", "zhang@x.com"),
        ("tel +49 30 901820 please", "PHONE", "+49 30 901820"),
        ("+358 18 1068562", "PHONE", "+358 18 1068562"),
        ("reach me: (212) 555-0187", "PHONE", "(212) 555-0187"),
        ('{"phone": 6469381234}', "PHONE", "6469381234"),
        ("手机13812345678，", "PHONE", "13812345678"),
        ("pay 4111 1111 1111 1111 now", "CARD", "4111 1111 1111 1111"),
        ("IBAN DE89 3704 0044 0532 0130 00 AND more", "IBAN", "DE89 3704 0044 0532 0130 00"),
        ("my SSN is 123-45-6789", "SSN", "123-45-6789"),
        ("social security number: 123456789", "SSN", "123456789"),
        ("身份证11010519491231002X", "CN_IDENTITY", "11010519491231002X"),
        ("from 81.2.69.142:80", "IP", "81.2.69.142"),
        ("from 2001:db9::7 port", "IP", "2001:db9::7"),
        ("postgres://bob:s3cr@db/x", "SECRET", "bob:s3cr"),
        ("Authorization: Bearer abcdef0123456789xyz", "SECRET", "abcdef0123456789xyz"),
        ("my password is hunter2!", "SECRET", "hunter2!"),
        ("api_key = 'a8f7s9d8f7a9s8d7'", "SECRET", "a8f7s9d8f7a9s8d7"),
        ("AKIAIOSFODNN7EXAMPLE", "SECRET", "AKIAIOSFODNN7EXAMPLE"),
        ("use ghp_" + "a1B2" * 9, "SECRET", "ghp_" + "a1B2" * 9),
    ],
)
def test_known_forms_are_found(text: str, kind: str, value: str) -> None:
    """Each kind is found exactly where it stands, next to punctuation and Chinese characters too."""
    assert kinds(text) == [(kind, value)]


@pytest.mark.parametrize(
    "text",
    [
        "order 1234567890 on 2024-01-15 at 10:30, total 1,234.56 EUR",
        "version 10.2.3.4 and v1.2.3.4 on 127.0.0.1 with mask 255.255.255.0",
        "std::vector and a::b at 12:30:45",
        "card 4111 1111 1111 1112",
        "id 110105194912310021",
        "max_tokens: 1000, next_token: page_1, password: string, token=null",
        "The password is required and the token is invalid.",
        "123e4567-e89b-12d3-a456-426614174000",
        "1763803599123456789",
        "2010-2015 and 13813 3784 Archwood",
    ],
)
def test_what_only_looks_alike_stays(text: str) -> None:
    """Numbers with wrong check digits, dates, versions, ids and placeholders are nothing."""
    assert kinds(text) == []


@settings(deadline=None)
@given(st.from_regex(r"4[0-9]{14}", fullmatch=True), st.sampled_from(["", " ", "-"]))
def test_any_card_is_found_and_no_wrong_one(body: str, mark: str) -> None:
    """A 16-digit number is a card exactly when its Luhn digit holds, in groups or not."""
    check = luhn.calc_check_digit(body)
    wrong = str((int(check) + 1) % 10)
    right, other = (mark.join((body + c)[at : at + 4] for at in range(0, 16, 4)) for c in (check, wrong))
    assert ("CARD", right) in kinds(f"x {right} y")
    assert "CARD" not in [kind for kind, _ in kinds(f"x {other} y")]


@settings(deadline=None)
@given(st.from_regex(r"[0-9]{18}", fullmatch=True))
def test_any_german_iban_is_found(account: str) -> None:
    """An IBAN with right check digits is found, with two digits exchanged it is not."""
    number = "DE" + mod_97_10.calc_check_digits(account + "DE") + account
    assert kinds(f"to {number}.") == [("IBAN", number)]
    broken = number[:2] + f"{(int(number[2:4]) + 1) % 100:02}" + number[4:]
    assert "IBAN" not in [kind for kind, _ in kinds(f"to {broken}.")]


@settings(deadline=None)
@given(st.from_regex(r"[1-5][0-9]{5}", fullmatch=True), st.dates(), st.integers(0, 999))
def test_any_chinese_identity_is_found(region: str, born: object, serial: int) -> None:
    """Region, plausible birthday, serial number and check digit make an identity number."""
    body = f"{region}19{str(born).replace('-', '')[2:]}{serial:03}"
    number = body + mod_11_2.calc_check_digit(body)
    assert ("CN_IDENTITY", number) in kinds(f"身份证号{number}。")


@settings(deadline=None)
@given(st.text(max_size=300))
def test_findings_are_apart_and_in_order(text: str) -> None:
    """Whatever the text, findings are slices of it, ordered, apart and of a known kind."""
    last = 0
    for finding in structured(text):
        assert finding.start >= last
        assert finding.text == text[finding.start : finding.end]
        assert finding.kind in STRUCTURED
        last = finding.end


@pytest.mark.parametrize(
    "piece", ["a", "1", "1 ", "a@", "1.1.", "a:", "password ", "+1", "-----BEGIN PRIVATE KEY-----"]
)
def test_hostile_repetition_comes_to_an_end(piece: str) -> None:
    """Repeated beginnings of a form are read through; a search that backtracks over the text would not return."""
    text = piece * (200_000 // len(piece))
    assert all(finding.text == text[finding.start : finding.end] for finding in structured(text))
