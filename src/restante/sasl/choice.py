"""Which mechanism a client takes: the strongest that both sides know, and never a second one.

Security: there is no fall-back.  Who can make one login fail must not get the next one to be
weaker (RFC 5802 §6).
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
_NAMED = 8  # mechanisms in an error: a server may announce any number
PLAINEST = "USER"  # USER and PASS, which are no mechanism (RFC 1939 §7)


class Strength(IntEnum):
    """How much a login withstands; a client can require as much."""

    SECRET = 1
    """The server is told the password or the token, inside TLS."""
    PROOF = 2
    """Both sides prove that they know the password, and nobody is told it: SCRAM."""
    BOUND = 3
    """The same for this one TLS connection, so that nobody stands between: SCRAM with channel
    binding, or a client certificate."""


@dataclass(frozen=True, slots=True)
class Login:
    """Who logs in, by what, and how strongly at least."""

    user: str
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    """An OAuth 2 bearer token instead of the password."""
    has_certificate: bool = False
    """TLS has shown who we are."""
    mechanism: str = ""
    """A SASL mechanism, ``USER`` or ``APOP`` that is taken whatever the server announces."""
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
    """The name of the mechanism, or ``USER``.

    ``takes_user``: the server may take USER and PASS.  One that announces SASL and no USER has
    said that it does not (RFC 2449 §6.3), so it is not given the password by them.

    Raises:
        LoginFailed: nothing that the server offers will do; no credential was sent.
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
            "if it takes USER and PASS as well, set the quirk add:USER "
            '(in Python Quirks(added=("USER",)))',
        )
    if not found:
        what = "OAuth 2 tokens" if login.token else "client certificates"
        raise LoginFailed("AUTH", f"the server takes no {what}", None)
    for name in found:
        is_possible = can_bind or not name.endswith("-PLUS")
        if is_possible and strength(name) >= login.strength:
            return name
    least = login.strength.name.lower()
    raise LoginFailed("AUTH", f"no login of the required strength ({least}) is possible", None)
