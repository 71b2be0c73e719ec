"""SASL mechanisms, one small file each (RFC 4422, RFC 5034)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ..errors import UnsafeArgument
from . import external, login, oauth, plain, scram
from .choice import Login, Strength, choose
from .exchange import Answer, Channel, Exchange, Lookup, Reply

__all__ = [
    "MECHANISMS",
    "Answer",
    "Channel",
    "Exchange",
    "Login",
    "Lookup",
    "Mechanism",
    "Reply",
    "Strength",
    "choose",
    "reply",
]


_TOKEN_LINE = 65_536  # octets of base64: OAuth tokens of 40 kB exist (RFC 5034 §4 sets no limit)


class Mechanism(NamedTuple):
    """One row of ``MECHANISMS``."""

    server: Callable[[Channel], Exchange]
    """Starts an exchange.  Raises BadCommand, AuthenticationFailed."""
    is_possible: Callable[[Channel], bool] = lambda _: True
    refusal: bytes = b""
    """The challenge that reports a failed login before -ERR does (RFC 7628 §3.2.2)."""
    needs_tls: bool = False
    """Required even where passwords are allowed in clear text: a bearer token gives access to more
    than a maildrop."""
    max_line: int = 8192
    """Maximum octets of Base64 in one response; our own limit.  PLAIN carries three texts of at
    most 1 KiB each, which is 4 KiB in Base64."""


def _can_bind(channel: Channel) -> bool:
    return bool(channel.end_point)


def _has_certificate(channel: Channel) -> bool:
    return bool(channel.identities)


MECHANISMS = {
    "EXTERNAL": Mechanism(external.server, _has_certificate),
    "SCRAM-SHA-256-PLUS": Mechanism(scram.server("SCRAM-SHA-256-PLUS"), _can_bind),
    "SCRAM-SHA-1-PLUS": Mechanism(scram.server("SCRAM-SHA-1-PLUS"), _can_bind),
    "SCRAM-SHA-256": Mechanism(scram.server("SCRAM-SHA-256")),
    "SCRAM-SHA-1": Mechanism(scram.server("SCRAM-SHA-1")),
    "OAUTHBEARER": Mechanism(
        oauth.server, refusal=oauth.REFUSAL, needs_tls=True, max_line=_TOKEN_LINE
    ),
    "XOAUTH2": Mechanism(
        oauth.xoauth2, refusal=oauth.REFUSAL, needs_tls=True, max_line=_TOKEN_LINE
    ),
    "PLAIN": Mechanism(plain.server),
    "LOGIN": Mechanism(login.server),
}


def reply(name: str, user: str, secret: str, end_point: bytes = b"") -> Reply:
    """Return the client's half of a mechanism.  ``secret`` is a password or a token.

    Raises:
        UnsafeArgument: unknown mechanism.
    """
    match name:
        case "EXTERNAL":
            return external.client(user)
        case "OAUTHBEARER":
            return oauth.client(user, secret)
        case "XOAUTH2":
            return oauth.xoauth2_client(user, secret)
        case "PLAIN":
            return plain.client(user, secret)
        case "LOGIN":
            return login.client(user, secret)
        case _ if name in MECHANISMS:
            return scram.client(name, user, secret, end_point)
    raise UnsafeArgument(f"unknown mechanism: {name}")
