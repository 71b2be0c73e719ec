"""Choose the client's mechanism: the strongest that both sides support, without a fall-back.

Security: an attacker who can make one login fail must not be able to make the next one weaker
(RFC 5802 §6), so no second mechanism is tried.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from enum import IntEnum

from ..errors import LoginFailed

TOKEN_MECHANISMS = ("OAUTHBEARER", "XOAUTH2")
PASSWORD_MECHANISMS = (
    "SCRAM-SHA-256-PLUS",
    "SCRAM-SHA-1-PLUS",
    "SCRAM-SHA-256",
    "SCRAM-SHA-1",
    "PLAIN",
)
_NAMED = 8  # mechanisms listed in an error; a server may announce any number
PLAINEST = "USER"  # USER and PASS, which are not a SASL mechanism (RFC 1939 §7)


class Strength(IntEnum):
    """How well a login resists attacks; a client can require a minimum."""

    SECRET = 1
    """The client sends the password or the token to the server, inside TLS."""
    PROOF = 2
    """Both sides prove that they know the password, which is never sent: SCRAM."""
    BOUND = 3
    """The proof is bound to this TLS connection, which rules out a man in the middle: SCRAM with
    channel binding, or a client certificate."""


@dataclass(frozen=True, slots=True)
class Login:
    """The user, the credentials and the minimum strength of a login."""

    user: str
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    """An OAuth 2 bearer token instead of the password."""
    has_certificate: bool = False
    """TLS presents a client certificate."""
    mechanism: str = ""
    """A SASL mechanism, ``USER`` or ``APOP`` to use whatever the server announces."""
    strength: Strength = Strength.SECRET

    @property
    def secret(self) -> str:
        return self.token or self.password


def strength(mechanism: str) -> Strength:
    if mechanism == "EXTERNAL" or mechanism.endswith("-PLUS"):
        return Strength.BOUND
    return Strength.PROOF if mechanism.startswith("SCRAM-") else Strength.SECRET


def choose(
    login: Login, offered: Collection[str], can_bind: bool, *, takes_user: bool = True
) -> str:
    """Return the name of the mechanism, or ``USER``.

    ``takes_user``: the server may accept USER and PASS.  A server that announces SASL without USER
    does not accept them (RFC 2449 §6.3), so the password is not sent that way.

    Raises:
        LoginFailed: the server offers no suitable mechanism; no credential was sent.
    """
    if login.mechanism:
        found = [login.mechanism.upper()]
    elif login.token:
        found = [name for name in TOKEN_MECHANISMS if name in offered]
    elif login.has_certificate and not login.password:
        found = ["EXTERNAL"] if "EXTERNAL" in offered else []
    else:
        found = [name for name in PASSWORD_MECHANISMS if name in offered]
        found += [PLAINEST] if takes_user else []
    if not found and login.password:
        announced = ", ".join(sorted(offered)[:_NAMED])
        raise LoginFailed(
            "AUTH",
            f"no mechanism in common: the server announces only {announced}",
            None,
            "if it also accepts USER and PASS, set the quirk add:USER "
            '(in Python Quirks(added=("USER",)))',
        )
    if not found:
        what = "OAuth 2 tokens" if login.token else "client certificates"
        raise LoginFailed("AUTH", f"the server does not accept {what}", None)
    for name in found:
        is_possible = can_bind or not name.endswith("-PLUS")
        if is_possible and strength(name) >= login.strength:
            return name
    least = login.strength.name.lower()
    raise LoginFailed("AUTH", f"no login of the required strength ({least}) is possible", None)
