from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallfirst.errors import NotFoundError
from smallfirst.store import KeyLimits, parse_key

LIMITS = KeyLimits(requests_per_minute=60, usd_per_day=2.5)


async def test_a_key_is_listed_and_accepts_its_own_secret_only(store):
    """The text shown once holds the public id and the secret that the stored key accepts."""
    key, text = await store.add_key("ci", "agent", LIMITS)
    key_id, secret = parse_key(text)
    [found] = await store.list_keys()
    assert (found, found.id) == (key, key_id)
    assert (found.name, found.role, found.limits) == ("ci", "agent", LIMITS)
    assert found.accepts(secret)
    assert not found.accepts(secret[:-1] + ("a" if secret[-1] != "a" else "b"))
    assert not found.accepts("é")
    assert secret not in repr(found)


async def test_a_revoked_key_accepts_nothing(store):
    """A revoked key stays listed with the time and is refused from then on."""
    key, text = await store.add_key("old", "viewer")
    other, _ = await store.add_key("other", "admin")
    await store.revoke_key(key.id)
    found, _ = await store.list_keys()
    assert not found.accepts(parse_key(text)[1])
    await store.revoke_key(key.id)
    assert [(k.id, k.revoked_at) for k in await store.list_keys()] == [(key.id, found.revoked_at), (other.id, None)]


async def test_an_unknown_key_is_not_found(store):
    """Revoking an unknown key says so."""
    with pytest.raises(NotFoundError, match="'nope'"):
        await store.revoke_key("nope")


@given(st.text(max_size=80))
def test_other_text_is_no_key(text):
    """What is not of the form sf-<id>-<secret> is refused before the database is asked."""
    assert parse_key(text) is None
    assert parse_key(f"sf-{text}") is None
