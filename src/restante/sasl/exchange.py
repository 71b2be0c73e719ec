"""The parts of a SASL exchange (RFC 4422 §3).

The server's half is a generator: it yields challenges, receives the client's responses, and
returns the credentials.  When it needs a user's keys during the exchange it yields a ``Lookup``,
which holds the answer when the exchange continues.

The client's half is a generator too: it receives challenges and yields ``Answer``\\ s.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import NamedTuple

from ..passdb import ScramSecrets, Shown


@dataclass(frozen=True, slots=True)
class Channel:
    """The properties of the connection that a mechanism may use."""

    end_point: bytes = b""
    """Channel binding of the type tls-server-end-point (RFC 5929 §4); empty outside TLS."""
    identities: tuple[str, ...] = ()
    """Mail addresses in the client's certificate, which has been verified."""


@dataclass(slots=True)
class Lookup:
    """A request for the SCRAM keys of a user; answered by ``Session.found`` or ``failed``."""

    identity: str
    digest: str
    """``sha256`` or ``sha1``."""
    secrets: ScramSecrets | None = None
    """The answer."""


Exchange = Generator[bytes | Lookup, bytes, Shown]


class Answer(NamedTuple):
    """The client's step."""

    response: bytes
    may_be_last: bool = True
    """Whether success may follow; False until the server has proved that it knows the user."""
    is_initial: bool = True
    """Whether it may be sent as the initial response of the AUTH command."""


Reply = Generator[Answer, bytes, None]
