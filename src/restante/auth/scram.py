"""What the server keeps for SCRAM (RFC 5802 §3, RFC 7677): keys made from a password.

Security: the keys let nobody log in, but a guess costs whoever steals them one PBKDF2, which is
less than argon2id asks; so the iteration count is above the 4096 of RFC 7677 §4.  Generated
passwords cannot be guessed either way.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from ..passdb import ScramKey, ScramSecrets

ITERATIONS = 16_384  # some 8 ms for a client; at a login the server computes none of them
SALT = 16  # octets
_MECHANISMS = {"sha256": "SCRAM-SHA-256", "sha1": "SCRAM-SHA-1"}


@dataclass(frozen=True, slots=True)
class Keys:
    """Stored key and server key, one behind the other, by digest; None where there are none."""

    sha256: bytes | None = None
    sha1: bytes | None = None


def make_keys(password: str, salt: bytes, iterations: int) -> Keys:
    """No keys for a password that SASLprep forbids (RFC 4013): it works with PLAIN only."""
    from scramp import ScramException, ScramMechanism  # 20 ms, which most commands need not wait

    made = {}
    for digest, name in _MECHANISMS.items():
        try:
            _, stored, server, _ = ScramMechanism(name).make_auth_info(password, iterations, salt)
        except ScramException:
            return Keys()
        made[digest] = stored + server
    return Keys(**made)


def key(credential: str, both: bytes) -> ScramKey:
    half = len(both) // 2
    return ScramKey(credential, both[:half], both[half:])


def decoy_secrets(secret: bytes, identity: str, digest: str) -> ScramSecrets:
    """What an unknown user is answered: the same at each try, and no proof fits it."""

    def derive(what: str, size: int) -> bytes:
        text = f"{what}\0{identity}".encode("utf-8", "surrogateescape")
        return hmac.digest(secret, text, "sha512")[:size]

    half = 20 if digest == "sha1" else 32
    keys = (key("nobody", derive(digest, 2 * half)),)
    return ScramSecrets(derive("salt", SALT), ITERATIONS, keys)
