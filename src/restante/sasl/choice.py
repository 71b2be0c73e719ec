"""Choose the client's mechanism: the strongest that both sides support, without a fallback.

Security: an attacker who can make one login fail must not be able to make the next one weaker
(RFC 5802 §6), so no second mechanism is tried.
"""

from __future__ import annotations

from collections.abc import Collection

from ..errors import LoginFailed
from .exchange import ClientLogin, Strength
from .mechanisms import MECHANISMS, Binding, Needs

_MAX_LISTED = 8  # mechanisms in an error; a server may announce any number
USER_AND_PASS = "USER"  # the commands USER and PASS, which are not a SASL mechanism (RFC 1939 §7)


def choose(
    login: ClientLogin,
    offered: Collection[str],
    can_bind: bool,
    *,
    takes_user: bool = True,
    advice: str = "",
) -> str:
    """Return the name of the mechanism, or ``USER``.

    Args:
        offered: the mechanisms that the server announces.
        can_bind: whether the connection has a channel binding.
        takes_user: whether the server may accept USER and PASS.  A server that announces SASL
            without USER does not accept them (RFC 2449 §6.3), so the password is not sent that
            way.
        advice: advice for the user if the server accepts USER and PASS without announcing USER.

    Raises:
        LoginFailed: the server offers no suitable mechanism; no credential was sent.
    """
    names = _candidates(login, offered, takes_user)
    if not names:
        raise _nothing_in_common(login, offered, advice)
    for name in names:
        if (can_bind or not _requires_binding(name)) and _strength(name) >= login.strength:
            return name
    least = login.strength.name.lower()
    raise LoginFailed("AUTH", f"no login of the required strength ({least}) is possible", None)


def uses_binding(names: Collection[str]) -> bool:
    """Return whether any of these mechanisms uses the channel binding of the connection."""
    return any(MECHANISMS[name].binding is not Binding.NONE for name in names if name in MECHANISMS)


def _candidates(login: ClientLogin, offered: Collection[str], takes_user: bool) -> list[str]:
    if login.mechanism:
        return [login.mechanism.upper()]
    needs = _credential(login)
    names = [
        name
        for name, row in MECHANISMS.items()
        if row.needs is needs and row.is_usual and name in offered
    ]
    return [*names, USER_AND_PASS] if needs is Needs.PASSWORD and takes_user else names


def _credential(login: ClientLogin) -> Needs:
    if login.token:
        return Needs.TOKEN
    return Needs.CERTIFICATE if login.has_certificate and not login.password else Needs.PASSWORD


def _nothing_in_common(login: ClientLogin, offered: Collection[str], advice: str) -> LoginFailed:
    needs = _credential(login)
    if needs is not Needs.PASSWORD and not login.password:
        return LoginFailed("AUTH", f"the server does not accept {needs.value}", None)
    announced = ", ".join(sorted(offered)[:_MAX_LISTED])
    text = f"no mechanism in common: the server announces only {announced}"
    return LoginFailed("AUTH", text, None, advice)


def _requires_binding(name: str) -> bool:
    return name in MECHANISMS and MECHANISMS[name].binding is Binding.REQUIRE


def _strength(name: str) -> Strength:
    return MECHANISMS[name].strength if name in MECHANISMS else Strength.SECRET
