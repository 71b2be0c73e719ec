"""Find the mechanisms that a passdb supports, and check a client's proof with it."""

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
    Certificates,
    Credentials,
    Digest,
    Digests,
    Disproof,
    Passdb,
    PromptAnswers,
    PromptScramKeys,
    Proof,
    ScramKeys,
    ScramSecrets,
    Shown,
    Token,
    Tokens,
    UserAccount,
)
from ..sasl.exchange import Lookup
from .views import readings, understand

_NEEDS: dict[str, type] = {
    "APOP": Digests,
    "EXTERNAL": Certificates,
    "OAUTHBEARER": Tokens,
    "XOAUTH2": Tokens,
}
_WHOLE = View()
_DOMAIN = re.compile(r"[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*")


class Guard(Protocol):
    """Records the results of logins, and slows down guessing."""

    def record_success(
        self, shown: Shown, account: UserAccount, *, is_cached: bool = False
    ) -> None:
        """Record a successful login; ``is_cached``: the result came from a cache."""

    def record_failure(self, shown: Shown) -> float:
        """Record a failed login.  Returns the seconds from the attempt to its answer."""


def offered(passdb: Passdb, wanted: Iterable[str]) -> tuple[str, ...]:
    """Return the ``wanted`` mechanisms that this passdb can check."""
    return tuple(
        name
        for name in wanted
        if offers(passdb, ScramKeys if name.startswith("SCRAM-") else _NEEDS.get(name, object))
    )


def time_stamp(host: str) -> str:
    """Return a new time stamp, so that a digest is valid in one connection only (RFC 1939 §7).

    It has the form of a Message-ID: some 48 octets and the name of this host.
    """
    domain = host if _DOMAIN.fullmatch(host) else "localhost"
    return f"<{secrets.token_hex(16)}.{int(time.time())}@{domain}>"


def known_now(
    passdb: Passdb, shown: Shown, separator: str, passwords: Passdb | None
) -> UserAccount | None:
    """Return the account of a remembered password or of a proof, if that needs no wait.

    None: ``resolve`` and ``verify`` must check it, for example because the name may mean a folder.

    Raises:
        AuthenticationFailed: as ``verify``.
    """
    if len(readings(shown.identity, separator)) > 1:
        return None
    match shown:
        case Credentials() if offers(passwords, PromptAnswers):
            return passwords.remembered(shown)
        case Proof(mechanism=name) if name != "EXTERNAL" and offers(passdb, PromptScramKeys):
            return passdb.proved_now(shown)
    return None


async def resolve(passdb: Passdb, shown: Shown, separator: str) -> tuple[Shown, View]:
    """Return the credentials with the user's own name, and the part of the mail to open.

    ``separator``: see ``views.readings``.

    Raises:
        TemporaryFailure: a back end cannot answer now.
    """
    name, view = await understand(passdb, shown.identity, separator)
    if name == shown.identity:
        return shown, view
    if isinstance(shown, Credentials | Proof) and shown.authorization == shown.identity:
        shown = replace(shown, authorization=name)
    return replace(shown, identity=name), view


async def verify(
    passdb: Passdb, shown: Shown, view: View = _WHOLE, passwords: Passdb | None = None
) -> UserAccount:
    """Return the account that these credentials open.

    ``passwords`` is used instead of ``passdb`` for passwords, for example a cache in front of it.

    Raises:
        AuthenticationFailed: they are refused; the reason is for the log only.
        TemporaryFailure: a back end cannot answer now; never counts as a guess.
    """
    account = await _verify(passdb, shown, passwords)
    if view == _WHOLE:
        return account
    permitted = account.view.folders
    if permitted and not set(view.folders) <= set(permitted):
        raise AuthenticationFailed("folder")
    return replace(account, view=replace(view, folders=view.folders or permitted))


async def _verify(passdb: Passdb, shown: Shown, passwords: Passdb | None) -> UserAccount:
    match shown:
        case Credentials():
            return await (passwords or passdb).verify(shown)
        case Disproof():
            raise AuthenticationFailed
        case Digest() if offers(passdb, Digests):
            return await passdb.digested(shown)
        case Token() if offers(passdb, Tokens):
            return await passdb.verify_token(shown)
        case Proof(mechanism="EXTERNAL"):
            if offers(passdb, Certificates):
                return await passdb.certified(shown)
        case Proof() if offers(passdb, ScramKeys):
            return await passdb.proved(shown)
    raise AuthenticationFailed("no-such-mechanism")


def look_up_now(passdb: Passdb, lookup: Lookup, separator: str) -> ScramSecrets | None:
    """Return what ``look_up`` would return, if that needs no wait; None: call that."""
    if len(readings(lookup.identity, separator)) > 1 or not offers(passdb, PromptScramKeys):
        return None
    return passdb.scram_now(lookup.identity, lookup.digest)


async def look_up(passdb: Passdb, lookup: Lookup, *, separator: str = "") -> ScramSecrets:
    """Return a user's SCRAM keys, or indistinguishable ones for an unknown user.

    Raises:
        AuthenticationFailed: the passdb has no SCRAM keys.
        TemporaryFailure: a back end cannot answer now.
    """
    if not offers(passdb, ScramKeys):
        raise AuthenticationFailed("no-such-mechanism")
    name, _ = await understand(passdb, lookup.identity, separator)
    return await passdb.scram(name, lookup.digest)
