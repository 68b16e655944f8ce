"""What stands in: of the same kind and form, the same within an episode, unrelated across episodes."""

from __future__ import annotations

import ipaddress

import phonenumbers
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stdnum import luhn
from stdnum.iso7064 import mod_11_2, mod_97_10

from smallfirst.learn.pii.patterns import digits, structured
from smallfirst.learn.pii.surrogates import Surrogates

ONE, OTHER = Surrogates(b"1" * 32), Surrogates(b"2" * 32)
SAMPLES = [
    ("EMAIL", "anna.kowalska92@mail.acme.co.uk"),
    ("PHONE", "+49 30 901820"),
    ("PHONE", "(212) 555-0187"),
    ("PHONE", "13812345678"),
    ("CARD", "4111-1111-1111-1111"),
    ("IBAN", "DE89 3704 0044 0532 0130 00"),
    ("SSN", "123-45-6789"),
    ("CN_IDENTITY", "11010519491231002X"),
    ("IP", "81.2.69.142"),
    ("IP", "2a00:1450:4001::71"),
    ("SECRET", "sk-ant-abcdefghijklmnop1234"),
]


@pytest.mark.parametrize(("kind", "value"), SAMPLES)
def test_a_surrogate_is_found_as_the_same_kind_again(kind: str, value: str) -> None:
    """Scrubbing what was scrubbed finds the same kinds, and again makes valid values of them."""
    made = value
    for _ in range(3):
        made = ONE(kind, made)
        assert made != value
        assert [(f.kind, f.text) for f in structured(f"phone {made} .")] == [(kind, made)]


@pytest.mark.parametrize(("kind", "value"), [*SAMPLES, ("PERSON", "Anna Kowalska"), ("LOCATION", "北京市朝阳区")])
def test_one_episode_one_surrogate(kind: str, value: str) -> None:
    """The same key gives the same surrogate, another key another."""
    assert ONE(kind, value) == Surrogates(b"1" * 32)(kind, value)
    assert ONE(kind, value) != OTHER(kind, value)


@settings(deadline=None)
@given(st.from_regex(r"[2-6][0-9]{12,17}", fullmatch=True), st.sampled_from(["", " ", "-"]))
def test_cards_keep_luhn_network_and_grouping(body: str, mark: str) -> None:
    """Luhn holds, the first two digits and the separators stay."""
    number = body + luhn.calc_check_digit(body)
    text = mark.join(number[at : at + 4] for at in range(0, len(number), 4))
    made = ONE("CARD", text)
    assert luhn.is_valid(digits(made))
    assert made[:2] == text[:2]
    assert [c.isdigit() for c in made] == [c.isdigit() for c in text]


@settings(deadline=None)
@given(st.from_regex(r"[0-9]{10,24}", fullmatch=True), st.sampled_from(["DE", "GB", "PL", "NO"]))
def test_ibans_keep_check_digits_and_country(account: str, country: str) -> None:
    """The check digits are right for the invented account."""
    made = ONE("IBAN", country + mod_97_10.calc_check_digits(account + country) + account)
    assert made[:2] == country
    assert mod_97_10.is_valid(made[4:] + made[:4])


@settings(deadline=None)
@given(st.from_regex(r"[1-5][0-9]{5}19[0-9]{2}(0[1-9]|1[0-2])(0[1-9]|1[0-9]|2[0-8])[0-9]{3}", fullmatch=True))
def test_chinese_identities_keep_their_check_digit(body: str) -> None:
    """An identity number stays one."""
    assert mod_11_2.is_valid(ONE("CN_IDENTITY", body + mod_11_2.calc_check_digit(body)))


@settings(deadline=None)
@given(st.sampled_from(["US", "GB", "DE", "FR", "CN", "IN", "BR"]), st.sampled_from([0, 1, 2]))
def test_phones_keep_country_form_and_validity(region: str, form: int) -> None:
    """A valid number becomes a valid number of the same country in the same grouping."""
    example = phonenumbers.example_number(region)
    text = phonenumbers.format_number(example, form)
    made = ONE("PHONE", text)
    assert [c.isdigit() for c in made] == [c.isdigit() for c in text]
    if form < 2:
        assert phonenumbers.parse(made).country_code == example.country_code
        assert phonenumbers.is_valid_number(phonenumbers.parse(made))


def test_a_phone_is_one_number_in_every_writing() -> None:
    """With and without country code and separators the subscriber's digits agree."""
    national = digits(ONE("PHONE", "(212) 555-0187"))
    assert digits(ONE("PHONE", "+1 212 555 0187")) == "1" + national
    assert digits(ONE("PHONE", "212.555.0187")) == national


@settings(deadline=None)
@given(st.ip_addresses())
def test_addresses_become_addresses_of_a_test_block(address: object) -> None:
    """The version stays; a public address becomes one that nobody has."""
    made = ipaddress.ip_address(ONE("IP", str(address)))
    assert made.version == ipaddress.ip_address(str(address)).version
    assert made.is_private


@settings(deadline=None)
@given(st.text(min_size=1))
def test_secrets_keep_length_and_classes(secret: str) -> None:
    """Digits for digits, letters for letters, signs as they are."""
    made = ONE("SECRET", secret)
    assert len(made) == len(secret)
    assert all(a == b for a, b in zip(made, secret, strict=True) if not b.isalnum())


def test_parts_of_a_name_agree() -> None:
    """Full name, first name, capitals and the address made of the name share their surrogates."""
    first, last = ONE("PERSON", "Anna Kowalska").split()
    assert ONE("PERSON", "Anna") == first
    assert ONE("PERSON", "KOWALSKA") == last.upper()
    assert ONE("EMAIL", "anna.kowalska@acme.com").split("@")[0] == f"{first}.{last}".lower()


def test_words_that_identify_nobody_stay() -> None:
    """Forms of address, legal forms, kinds of street and particles stay, in English and Chinese."""
    assert ONE("ORG", "Miller & Sons Ltd.").endswith(" & Sons Ltd.")
    assert " Street Apt " in ONE("ADDRESS", "12 Elm Street Apt 5")
    assert ONE("LOCATION", "朝阳区").endswith("区")
    assert ONE("ORG", "华讯科技有限公司").endswith("科技有限公司")


@pytest.mark.parametrize("day", ["8th", "March 12th, 2019", "8th of march", "Monday the 3rd", "May 4"])
def test_a_day_is_no_address(day: str) -> None:
    """What a tagger may take for a street is left; with the street's kind, and without a number, it is replaced."""
    assert ONE.words(day) == day
    assert ONE.words("12th Street") != "12th Street"
    assert ONE.words("May") != "May"


@settings(deadline=None)
@given(st.text(alphabet=st.characters(categories=["Lu", "Ll", "Lo", "Nd", "Zs", "Po"]), min_size=1, max_size=40))
def test_words_keep_separators(text: str) -> None:
    """Whatever a tagger hands over, signs and white space stay, and quotes never appear."""
    made = ONE.words(text)
    assert [c for c in made if not c.isalnum()] == [c for c in text if not c.isalnum()]
