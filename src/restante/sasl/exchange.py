"""Types for SASL exchanges (RFC 4422 §3).

The server's side is a generator that yields challenges, receives the client's responses, and
returns the credentials.  If it needs the keys of a user, it yields a ``Lookup``, and continues when
the caller has set ``Lookup.secrets``.

The client's side is a generator that yields responses as ``ClientStep`` and receives challenges.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

from ..passdb import AnyCredentials, ScramSecrets


@dataclass(frozen=True, slots=True)
class Channel:
    """The properties of the connection that a mechanism may use."""

    end_point: bytes = b""
    """The channel binding of the type tls-server-end-point (RFC 5929 §4); empty without TLS."""
    identities: tuple[str, ...] = ()
    """The mail addresses in the client's certificate, which has been verified."""


@dataclass(slots=True)
class Lookup:
    """A request for the SCRAM keys of a user, answered by ``looked_up`` or ``failed``."""

    identity: str
    digest: str
    """``sha256`` or ``sha1``."""
    secrets: ScramSecrets | None = None
    """The keys, set after the look-up."""


Exchange = Generator[bytes | Lookup, bytes, AnyCredentials]


class Strength(IntEnum):
    """How well a login resists attacks; a client can require a minimum strength."""

    SECRET = 1
    """The client sends the password or the token to the server, inside TLS."""
    PROOF = 2
    """SCRAM: both sides prove that they know the password, which is never sent."""
    BOUND = 3
    """SCRAM with channel binding, or a client certificate: the proof is valid only for this TLS
    connection, which prevents man-in-the-middle attacks."""


@dataclass(frozen=True, slots=True)
class ClientLogin:
    """The user, the credentials and the minimum strength of a client's login."""

    user: str
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    """An OAuth 2 bearer token to use instead of a password."""
    has_certificate: bool = False
    """Whether a client certificate is presented in the TLS handshake."""
    mechanism: str = ""
    """A SASL mechanism, ``USER`` or ``APOP``, to use even if the server does not announce it."""
    strength: Strength = Strength.SECRET

    @property
    def secret(self) -> str:
        """The token; without a token, the password."""
        return self.token or self.password


class ClientStep(NamedTuple):
    """One response of the client."""

    response: bytes
    may_be_last: bool = True
    """Whether the server may accept the login after this response.  False if the server must first
    prove that it knows the password."""
    is_initial: bool = True
    """Whether the response may be sent as the initial response of the AUTH command."""


ClientExchange = Generator[ClientStep, bytes, None]
