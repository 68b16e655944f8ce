"""Payloads at rest: AES-256-GCM envelopes under named keys, and keyed hashes.

An envelope is one byte of kind, then for kind 0 the plain bytes, for kind 1: length of the key id, key id, 96-bit
random nonce, ciphertext with its tag. The associated data binds an envelope to its row: swapped rows do not open.
"""

from __future__ import annotations

import base64
import hmac
import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from smallfirst.errors import ConfigError

_PLAIN = b"\x00"
_SEALED = b"\x01"
_NONCE_BYTES = 12
_KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class Keyring:
    """Keys by id, 32 bytes each; new payloads are sealed under `active_id`, old ones open under their own."""

    active_id: str
    keys: Mapping[str, bytes] = field(repr=False)

    def __post_init__(self) -> None:
        if self.active_id not in self.keys:
            raise ConfigError(f"The active key {self.active_id!r} is not among the keys {sorted(self.keys)}.")
        for key_id, key in self.keys.items():
            if not key_id or len(key_id.encode()) > 255:
                raise ConfigError(f"The key id {key_id!r} must have 1 to 255 bytes.")
            if len(key) != _KEY_BYTES:
                raise ConfigError(
                    f"The key {key_id!r} has {len(key)} bytes; it must have {_KEY_BYTES}.",
                    hint="Make one with: head -c 32 /dev/urandom | base64",
                )

    @classmethod
    def parse(cls, text: str) -> Keyring:
        """Read "id:base64[,id:base64...]"; the first is active. Raises ConfigError, which never shows key material."""
        keys: dict[str, bytes] = {}
        for number, part in enumerate(text.split(","), start=1):
            key_id, colon, encoded = part.strip().partition(":")
            if not colon or key_id in keys:
                raise ConfigError(
                    f"Entry {number} of the keys must be id:base64, each id once.", hint="Example: k1:...,k0:..."
                )
            try:
                keys[key_id] = base64.b64decode(encoded, validate=True)
            except ValueError as error:  # binascii's, or that of a letter outside ASCII
                raise ConfigError(f"The key {key_id!r} is not base64.") from error
        return cls(next(iter(keys)), keys)


class Sealer:
    """Seals and opens payloads; without a keyring it keeps them plain."""

    def __init__(self, keyring: Keyring | None) -> None:
        keys = keyring.keys if keyring else {}
        self._ciphers = {key_id.encode(): AESGCM(key) for key_id, key in keys.items()}
        self.encrypts = keyring is not None
        self.prefix = _PLAIN
        if keyring:
            active = keyring.active_id.encode()
            self._cipher = self._ciphers[active]
            self.prefix = _SEALED + bytes([len(active)]) + active

    def seal(self, data: bytes, row: str) -> bytes:
        """The envelope of `data`, bound to `row` (table and identity)."""
        if not self.encrypts:
            return _PLAIN + data
        nonce = os.urandom(_NONCE_BYTES)
        return self.prefix + nonce + self._cipher.encrypt(nonce, data, row.encode())

    @staticmethod
    def is_sealed(envelope: bytes) -> bool:
        """Whether the envelope is encrypted under any key."""
        return envelope[:1] == _SEALED

    def open(self, envelope: bytes, row: str) -> bytes:
        """What was sealed for `row`. Raises ConfigError when the key is missing or wrong, or the row was altered."""
        if envelope[:1] == _PLAIN:
            return envelope[1:]
        start = 2 + envelope[1]
        key_id = envelope[2:start]
        cipher = self._ciphers.get(key_id)
        if cipher is None:
            raise ConfigError(
                f"The payload of {row} is encrypted under the key {key_id.decode()!r}; "
                f"configured are {sorted(k.decode() for k in self._ciphers)}.",
                hint="Add that key to the keyring.",
            )
        nonce = envelope[start : start + _NONCE_BYTES]
        try:
            return cipher.decrypt(nonce, envelope[start + _NONCE_BYTES :], row.encode())
        except InvalidTag as error:
            raise ConfigError(
                f"The payload of {row} does not open under the key {key_id.decode()!r}: "
                "the configured key is another one, or the row was altered.",
                hint="Configure the key that it was written with.",
            ) from error


@dataclass(frozen=True, slots=True)
class Hasher:
    """HMAC-SHA-256 under the store's own secret, so that neither messages nor users can be guessed from a copy."""

    secret: bytes = field(repr=False)

    def key(self, purpose: str) -> bytes:
        """A secret of 32 bytes for one purpose, the same for as long as the store lives."""
        return hmac.digest(self.secret, f"key\0{purpose}".encode(), "sha256")

    def content(self, data: bytes) -> bytes:
        """The address of a message or tools list, 32 bytes."""
        return hmac.digest(self.secret, b"content\0" + data, "sha256")

    def origin(self, kind: str, text: str | None) -> str | None:
        """A user's or episode's pseudonym, 128 bits in hex."""
        if text is None:
            return None
        data = f"{kind}\0{text}".encode("utf-8", "surrogatepass")
        return hmac.digest(self.secret, data, "sha256")[:16].hex()
