"""Check a client's credentials with a ``Passdb``, and determine which mechanisms it supports."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Protocol

from ..addons import offers
from ..errors import AuthenticationFailed
from ..maildrop import View
from ..passdb import (
    AnyCredentials,
    Certificates,
    Credentials,
    Digest,
    Digests,
    FailedProof,
    ImmediateAnswers,
    ImmediateScramKeys,
    Passdb,
    Proof,
    ScramKeys,
    ScramSecrets,
    Token,
    Tokens,
    UserAccount,
)
from ..sasl.exchange import Lookup
from .views import interpret, interpretations

# The contracts of ``passdb`` that mechanisms require.
_REQUIRED_CONTRACTS: dict[str, type] = {
    "APOP": Digests,
    "EXTERNAL": Certificates,
    "OAUTHBEARER": Tokens,
    "XOAUTH2": Tokens,
}
_WHOLE_MAILDROP = View()
_DOMAIN = re.compile(r"[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*")


class Guard(Protocol):
    """Records the results of logins, and slows down guessing."""

    def record_success(
        self, credentials: AnyCredentials, account: UserAccount, *, is_cached: bool = False
    ) -> None:
        """Record a successful login.

        ``is_cached``: the password was not checked again, because a cache contains it.
        """

    def record_failure(self, credentials: AnyCredentials) -> float:
        """Record a failed login; return the seconds between the attempt and its response."""


def supported_mechanisms(passdb: Passdb, names: Iterable[str]) -> tuple[str, ...]:
    """Return those of the named mechanisms that the passdb supports."""

    def contract(name: str) -> type:
        return ScramKeys if name.startswith("SCRAM-") else _REQUIRED_CONTRACTS.get(name, object)

    return tuple(name for name in names if offers(passdb, contract(name)))


def time_stamp(host: str) -> str:
    """Return a new time stamp for APOP, so that a digest is valid only in one connection.

    It has the form of a Message-ID: about 48 octets and the name of this host (RFC 1939 §7).
    """
    domain = host if _DOMAIN.fullmatch(host) else "localhost"
    return f"<{secrets.token_hex(16)}.{int(time.time())}@{domain}>"


def verify_now(
    passdb: Passdb, credentials: AnyCredentials, separator: str, passwords: Passdb | None
) -> UserAccount | None:
    """Return the account for a cached password or for a proof, if this requires no waiting.

    Otherwise, for example if the name may select a folder, returns None.  In this case ``resolve``
    and ``verify`` must be called.

    Raises:
        AuthenticationFailed: the credentials are refused; the reason is only for the log.
    """
    if len(interpretations(credentials.identity, separator)) > 1:
        return None
    match credentials:
        case Credentials() if offers(passwords, ImmediateAnswers):
            return passwords.remembered(credentials)
        case Proof(mechanism=name) if name != "EXTERNAL" and offers(passdb, ImmediateScramKeys):
            return passdb.proved_now(credentials)
    return None


async def resolve(
    passdb: Passdb, credentials: AnyCredentials, separator: str
) -> tuple[AnyCredentials, View]:
    """Split the login name into a user and a view of the maildrop.

    ``separator``: see ``views.interpretations``.  Returns the credentials with the name of the
    user, and the view.

    Raises:
        TemporaryFailure: a back end cannot answer now.
    """
    name, view = await interpret(passdb, credentials.identity, separator)
    if name == credentials.identity:
        return credentials, view
    if (
        isinstance(credentials, Credentials | Proof)
        and credentials.authorization == credentials.identity
    ):
        credentials = replace(credentials, authorization=name)
    return replace(credentials, identity=name), view


async def verify(
    passdb: Passdb,
    credentials: AnyCredentials,
    view: View = _WHOLE_MAILDROP,
    passwords: Passdb | None = None,
) -> UserAccount:
    """Verify credentials, and return the user's account with the view to open.

    ``passwords`` is used instead of ``passdb`` for passwords, for example a cache in front of it.

    Raises:
        AuthenticationFailed: the credentials are refused; the reason is only for the log.
        TemporaryFailure: a back end cannot answer now; this never counts as a guess.
    """
    account = await _verify(passdb, credentials, passwords)
    if view == _WHOLE_MAILDROP:
        return account
    permitted = account.view.folders
    if permitted and not set(view.folders) <= set(permitted):
        raise AuthenticationFailed("folder")
    return account._replace(view=view._replace(folders=view.folders or permitted))


async def _verify(
    passdb: Passdb, credentials: AnyCredentials, passwords: Passdb | None
) -> UserAccount:
    match credentials:
        case Credentials():
            return await (passwords or passdb).verify(credentials)
        case FailedProof():
            raise AuthenticationFailed
        case Digest() if offers(passdb, Digests):
            return await passdb.digested(credentials)
        case Token() if offers(passdb, Tokens):
            return await passdb.verify_token(credentials)
        case Proof(mechanism="EXTERNAL"):
            if offers(passdb, Certificates):
                return await passdb.certified(credentials)
        case Proof() if offers(passdb, ScramKeys):
            return await passdb.proved(credentials)
    raise AuthenticationFailed("no-such-mechanism")


def look_up_now(passdb: Passdb, lookup: Lookup, separator: str) -> ScramSecrets | None:
    """Return the result of ``look_up`` if this requires no waiting, otherwise None."""
    if len(interpretations(lookup.identity, separator)) > 1 or not offers(
        passdb, ImmediateScramKeys
    ):
        return None
    return passdb.scram_now(lookup.identity, lookup.digest)


async def look_up(passdb: Passdb, lookup: Lookup, *, separator: str = "") -> ScramSecrets:
    """Return a user's SCRAM keys; for an unknown user, keys that look like a user's keys.

    Raises:
        AuthenticationFailed: the passdb has no SCRAM keys.
        TemporaryFailure: a back end cannot answer now.
    """
    if not offers(passdb, ScramKeys):
        raise AuthenticationFailed("no-such-mechanism")
    name, _ = await interpret(passdb, lookup.identity, separator)
    return await passdb.scram(name, lookup.digest)
