"""Which mechanisms a passdb can serve, and the right question for what a client has shown."""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import AuthenticationFailed
from ..passdb import (
    Account,
    Certificates,
    Credentials,
    Passdb,
    Proof,
    ScramKeys,
    ScramSecrets,
    Shown,
    Token,
    Tokens,
)
from ..sasl import Lookup

_NEEDS: dict[str, type] = {"EXTERNAL": Certificates, "OAUTHBEARER": Tokens, "XOAUTH2": Tokens}


def offered(passdb: Passdb, wanted: Iterable[str]) -> tuple[str, ...]:
    """Those of the ``wanted`` mechanisms that this passdb can check."""
    return tuple(
        name
        for name in wanted
        if isinstance(passdb, ScramKeys if name.startswith("SCRAM-") else _NEEDS.get(name, object))
    )


async def verify(passdb: Passdb, shown: Shown, passwords: Passdb | None = None) -> Account:
    """``passwords`` is asked in place of ``passdb`` where a password was shown.

    Raises:
        AuthenticationFailed: wrong, for whatever reason.
        TemporaryFailure: cannot be told now; never counts as a guess.
    """
    match shown:
        case Credentials():
            return await (passwords or passdb).verify(shown)
        case Token() if isinstance(passdb, Tokens):
            return await passdb.verify_token(shown)
        case Proof(mechanism="EXTERNAL"):
            if isinstance(passdb, Certificates):
                return await passdb.certified(shown)
        case Proof() if isinstance(passdb, ScramKeys):
            return await passdb.proved(shown)
    raise AuthenticationFailed("no-such-mechanism")


async def look_up(passdb: Passdb, lookup: Lookup) -> ScramSecrets:
    """
    Raises:
        TemporaryFailure: cannot be told now.
    """
    if not isinstance(passdb, ScramKeys):
        raise AuthenticationFailed("no-such-mechanism")
    return await passdb.scram(lookup.identity, lookup.digest)
