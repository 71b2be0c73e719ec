"""The table of SASL mechanisms.

To add a mechanism, add a module to this package, a row to ``MECHANISMS``, and the name to
``auth.choices``.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

from ..errors import UnsafeArgument
from . import external, login, oauth, plain, scram
from .exchange import Channel, ClientExchange, ClientLogin, Exchange, Strength

# Maximum number of octets of Base64 in one response.  Our own limits, because RFC 5034 §4 has none.
# PLAIN transfers three texts of at most 1 KiB each, which is 4 KiB in Base64.  Some OAuth tokens
# have 40 kB.
_MAX_LINE = 8192
_MAX_TOKEN_LINE = 65_536


_Client = Callable[[ClientLogin, bytes], ClientExchange]


class Needs(Enum):
    """The kind of credential that a mechanism requires."""

    PASSWORD = "passwords"
    TOKEN = "OAuth 2 tokens"
    CERTIFICATE = "client certificates"


class Binding(Enum):
    """How a mechanism uses the channel binding of a TLS connection (RFC 5929)."""

    NONE = "none"
    DETECT = "detect"
    """The mechanism detects if an attacker has removed the mechanisms with channel binding from the
    server's offer (RFC 5802 §6)."""
    REQUIRE = "require"
    """The mechanism works only with channel binding."""


class Mechanism(NamedTuple):
    """One row of ``MECHANISMS``."""

    server: Callable[[Channel], Exchange]
    """Starts the server's side.  The exchange may raise BadCommand or AuthenticationFailed."""
    client: _Client
    """Starts the client's side.  The second argument is the channel binding, which may be empty."""
    strength: Strength = Strength.SECRET
    needs: Needs = Needs.PASSWORD
    binding: Binding = Binding.NONE
    is_usual: bool = True
    """If False, the mechanism must be configured: servers do not offer it by default, and clients
    do not choose it automatically."""
    refusal: bytes = b""
    """The challenge that reports a failed login before the -ERR response (RFC 7628 §3.2.2)."""
    needs_tls: bool = False
    """Whether TLS is required even if passwords are allowed without TLS.  This applies to bearer
    tokens, because they give access to more than a maildrop."""
    max_line: int = _MAX_LINE
    """Maximum number of octets of Base64 in one response."""

    def is_possible(self, channel: Channel) -> bool:
        """Return whether a server can offer the mechanism on this connection."""
        if self.needs is Needs.CERTIFICATE and not channel.identities:
            return False
        return self.binding is not Binding.REQUIRE or bool(channel.end_point)


def _by_secret(client: Callable[[str, str], ClientExchange]) -> _Client:
    return lambda login, _: client(login.user, login.secret)


def _scram(name: str) -> Mechanism:
    is_bound = name.endswith("-PLUS")
    return Mechanism(
        scram.server(name),
        lambda login, end_point: scram.client(name, login.user, login.secret, end_point),
        strength=Strength.BOUND if is_bound else Strength.PROOF,
        binding=Binding.REQUIRE if is_bound else Binding.DETECT,
    )


def _oauth(
    server: Callable[[Channel], Exchange], client: Callable[[str, str], ClientExchange]
) -> Mechanism:
    return Mechanism(
        server,
        _by_secret(client),
        needs=Needs.TOKEN,
        refusal=oauth.REFUSAL,
        needs_tls=True,
        max_line=_MAX_TOKEN_LINE,
    )


# The strongest mechanisms come first: clients use the first one that suits the login and the
# server's offer.
MECHANISMS = {
    "EXTERNAL": Mechanism(
        external.server,
        lambda login, _: external.client(login.user),
        strength=Strength.BOUND,
        needs=Needs.CERTIFICATE,
    ),
    "SCRAM-SHA-256-PLUS": _scram("SCRAM-SHA-256-PLUS"),
    "SCRAM-SHA-1-PLUS": _scram("SCRAM-SHA-1-PLUS"),
    "SCRAM-SHA-256": _scram("SCRAM-SHA-256"),
    "SCRAM-SHA-1": _scram("SCRAM-SHA-1"),
    "OAUTHBEARER": _oauth(oauth.server, oauth.client),
    "XOAUTH2": _oauth(oauth.xoauth2, oauth.xoauth2_client),
    "PLAIN": Mechanism(plain.server, _by_secret(plain.client)),
    "LOGIN": Mechanism(login.server, _by_secret(login.client), is_usual=False),
}


def client_exchange(name: str, login: ClientLogin, end_point: bytes = b"") -> ClientExchange:
    """Start the client's side of a mechanism.

    Raises:
        UnsafeArgument: the mechanism is unknown.
    """
    if name not in MECHANISMS:
        raise UnsafeArgument(f"unknown mechanism: {name}")
    mechanism = MECHANISMS[name]
    if login.mechanism and mechanism.binding is not Binding.REQUIRE:
        # A mechanism that the user has chosen is not a downgrade by an attacker (RFC 5802 §6).
        end_point = b""
    return mechanism.client(login, end_point)
