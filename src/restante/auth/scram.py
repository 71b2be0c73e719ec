"""The keys that the server stores for SCRAM (RFC 5802 §3, RFC 7677), derived from a password.

Security: the keys are not sufficient to log in, but an attacker who steals them can try passwords
at the cost of one PBKDF2 each, which is less than argon2id; therefore the iteration count is above
the minimum of 4096 in RFC 7677 §4.  Generated passwords cannot be guessed either way.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from ..passdb import ScramKey, ScramSecrets

ITERATIONS = 16_384  # about 8 ms for a client; the server does not compute these keys at a login
SALT = 16  # octets
_MECHANISMS = {"sha256": "SCRAM-SHA-256", "sha1": "SCRAM-SHA-1"}


@dataclass(frozen=True, slots=True)
class StoredKeys:
    """Stored key and server key, concatenated, by digest; None for a password without keys."""

    sha256: bytes | None = None
    sha1: bytes | None = None


def make_keys(password: str, salt: bytes, iterations: int) -> StoredKeys:
    """Derive the keys.  A password that SASLprep forbids has no keys (RFC 4013)."""
    from scramp import ScramException, ScramMechanism  # takes 20 ms, which most commands avoid

    keys = {}
    for digest, name in _MECHANISMS.items():
        try:
            _, stored, server, _ = ScramMechanism(name).make_auth_info(password, iterations, salt)
        except ScramException:
            return StoredKeys()
        keys[digest] = stored + server
    return StoredKeys(**keys)


def key(credential: str, both: bytes) -> ScramKey:
    """Split stored key and server key."""
    half = len(both) // 2
    return ScramKey(credential, both[:half], both[half:])


def decoy_secrets(secret: bytes, identity: str, digest: str) -> ScramSecrets:
    """Return keys for an unknown user.  They never change, and no proof matches them."""

    def derive(what: str, size: int) -> bytes:
        text = f"{what}\0{identity}".encode("utf-8", "surrogateescape")
        return hmac.digest(secret, text, "sha512")[:size]

    half = 20 if digest == "sha1" else 32
    keys = (key("nobody", derive(digest, 2 * half)),)
    return ScramSecrets(derive("salt", SALT), ITERATIONS, keys)
