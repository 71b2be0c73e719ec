"""The parts of a SASL exchange (RFC 4422 §3).

The server's side is a generator that yields challenges, receives the client's responses, and
returns the credentials.  If it needs a user's keys during the exchange, it yields a ``Lookup``,
which contains the keys when the exchange continues.

The client's side is a generator that receives challenges and yields ``ClientStep`` values.
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
    """Channel binding of the type tls-server-end-point (RFC 5929 §4); empty outside TLS."""
    identities: tuple[str, ...] = ()
    """Mail addresses in the client's certificate, which has been verified."""


@dataclass(slots=True)
class Lookup:
    """A request for the SCRAM keys of a user, answered by ``looked_up`` or ``failed``."""

    identity: str
    digest: str
    """``sha256`` or ``sha1``."""
    secrets: ScramSecrets | None = None
    """The keys, after the look-up."""


Exchange = Generator[bytes | Lookup, bytes, AnyCredentials]


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
class ClientLogin:
    """The user, the credentials and the minimum strength of a client's login."""

    user: str
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    """An OAuth 2 bearer token instead of the password."""
    has_certificate: bool = False
    """TLS presents a client certificate."""
    mechanism: str = ""
    """A SASL mechanism, ``USER`` or ``APOP``, to be used whether or not the server announces it."""
    strength: Strength = Strength.SECRET

    @property
    def secret(self) -> str:
        return self.token or self.password


class ClientStep(NamedTuple):
    """One response of the client."""

    response: bytes
    may_be_last: bool = True
    """Whether the login may succeed after this response; False until the server has proved that it
    knows the user."""
    is_initial: bool = True
    """Whether the response may be sent as the initial response of the AUTH command."""


ClientExchange = Generator[ClientStep, bytes, None]
