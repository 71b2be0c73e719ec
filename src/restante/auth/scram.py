"""Derive the keys that the server stores for SCRAM from a password (RFC 5802 §3, RFC 7677).

Security: the keys are not sufficient to log in.  However, an attacker who steals them can try each
password at the cost of one PBKDF2, which is less than the cost of argon2id, so the iteration count
is higher than the minimum of 4096 in RFC 7677 §4.  Generated passwords cannot be guessed in either
case.
"""

from __future__ import annotations

import hmac
from typing import NamedTuple

from ..passdb import ScramKey, ScramSecrets

ITERATIONS = 16_384  # about 8 ms for a client; the server does not compute these keys at a login
SALT = 16  # octets
_MECHANISMS = {"sha256": "SCRAM-SHA-256", "sha1": "SCRAM-SHA-1"}


class StoredKeys(NamedTuple):
    """Stored key and server key, concatenated, by digest; None for a password without keys."""

    sha256: bytes | None = None
    sha1: bytes | None = None


def make_keys(password: str, salt: bytes, iterations: int) -> StoredKeys:
    """Derive the keys.  The keys of a password that SASLprep forbids are None (RFC 4013)."""
    from scramp import ScramException, ScramMechanism  # takes 20 ms, which most commands avoid

    keys = {}
    for digest, name in _MECHANISMS.items():
        try:
            _, stored, server, _ = ScramMechanism(name).make_auth_info(password, iterations, salt)
        except ScramException:
            return StoredKeys()
        keys[digest] = stored + server
    return StoredKeys(**keys)


def split_keys(credential: str, keys: bytes) -> ScramKey:
    """Split concatenated keys into stored key and server key; ``credential`` names them."""
    half = len(keys) // 2
    return ScramKey(credential, keys[:half], keys[half:])


def decoy_secrets(secret: bytes, identity: str, digest: str) -> ScramSecrets:
    """Return keys for an unknown user.  They never change, and no proof matches them."""

    def derive(purpose: str, size: int) -> bytes:
        text = f"{purpose}\0{identity}".encode("utf-8", "surrogateescape")
        return hmac.digest(secret, text, "sha512")[:size]

    half = 20 if digest == "sha1" else 32
    keys = (split_keys("nobody", derive(digest, 2 * half)),)
    return ScramSecrets(derive("salt", SALT), ITERATIONS, keys)
