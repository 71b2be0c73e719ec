"""Choose the strongest mechanism that both the client and the server support.

Security: only one mechanism is tried.  If a weaker mechanism were tried after a failed login, an
attacker who can make the first login fail could force the use of the weaker one (RFC 5802 §6).
"""

from __future__ import annotations

from collections.abc import Collection

from ..errors import LoginFailed
from .exchange import ClientLogin, Strength
from .mechanisms import MECHANISMS, Binding, Needs

_MAX_LISTED = 8  # mechanisms in an error message; a server may announce any number
USER_AND_PASS = "USER"  # the commands USER and PASS, which are not a SASL mechanism (RFC 1939 §7)


def choose(
    login: ClientLogin,
    offer: Collection[str],
    has_binding: bool,
    *,
    accepts_user: bool = True,
    advice: str = "",
) -> str:
    """Return the name of the mechanism for a login, or ``USER`` for USER and PASS.

    Args:
        offer: the mechanisms that the server announces.
        has_binding: whether channel binding is possible on this connection.
        accepts_user: whether the server may accept USER and PASS.  A server that announces SASL
            without USER does not accept them (RFC 2449 §6.3), so the password must not be sent in
            this way.
        advice: advice for the user if the server accepts USER and PASS without announcing USER.

    Raises:
        LoginFailed: the server offers no suitable mechanism; no credential was sent.
    """
    names = _candidates(login, offer, accepts_user)
    if not names:
        raise _no_candidate(login, offer, advice)
    for name in names:
        if (has_binding or not _requires_binding(name)) and _strength(name) >= login.strength:
            return name
    required = login.strength.name.lower()
    raise LoginFailed("AUTH", f"no login of the required strength ({required}) is possible", None)


def uses_binding(names: Collection[str]) -> bool:
    """Return whether any of these mechanisms uses the channel binding of the connection."""
    return any(MECHANISMS[name].binding is not Binding.NONE for name in names if name in MECHANISMS)


def _candidates(login: ClientLogin, offer: Collection[str], accepts_user: bool) -> list[str]:
    """Return the mechanisms that suit the login and the server's offer, strongest first."""
    if login.mechanism:
        return [login.mechanism.upper()]
    needs = _credential(login)
    names = [
        name
        for name, mechanism in MECHANISMS.items()
        if mechanism.needs is needs and mechanism.is_usual and name in offer
    ]
    return [*names, USER_AND_PASS] if needs is Needs.PASSWORD and accepts_user else names


def _credential(login: ClientLogin) -> Needs:
    if login.token:
        return Needs.TOKEN
    return Needs.CERTIFICATE if login.has_certificate and not login.password else Needs.PASSWORD


def _no_candidate(login: ClientLogin, offer: Collection[str], advice: str) -> LoginFailed:
    needs = _credential(login)
    if needs is not Needs.PASSWORD and not login.password:
        return LoginFailed("AUTH", f"the server does not accept {needs.value}", None)
    announced = ", ".join(sorted(offer)[:_MAX_LISTED])
    text = f"client and server have no mechanism in common: the server announces only {announced}"
    return LoginFailed("AUTH", text, None, advice)


def _requires_binding(name: str) -> bool:
    return name in MECHANISMS and MECHANISMS[name].binding is Binding.REQUIRE


def _strength(name: str) -> Strength:
    return MECHANISMS[name].strength if name in MECHANISMS else Strength.SECRET
