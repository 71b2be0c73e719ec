"""What the two sides of an exchange are made of (RFC 4422 §3).

The server's half is a generator: it yields challenges, receives the client's responses, and
returns what was shown.  Where it must know something of the user in the middle of the exchange it
yields a ``Lookup``, which holds the answer when the exchange goes on.

The client's half is a generator too: it receives challenges and yields ``Answer``\\ s.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import NamedTuple

from ..passdb import ScramSecrets, Shown


@dataclass(frozen=True, slots=True)
class Channel:
    """What a mechanism may know of the connection around it."""

    end_point: bytes = b""
    """Channel binding of the type tls-server-end-point (RFC 5929 §4); empty outside TLS."""
    identities: tuple[str, ...] = ()
    """Addresses in the client's certificate, which was verified."""


@dataclass(slots=True)
class Lookup:
    """Asks for the SCRAM keys of a user; answer ``Session.found`` or ``failed``."""

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
    """Whether success may follow; False while the server has still to prove itself."""
    is_initial: bool = True
    """Whether it may go with the AUTH command."""


Reply = Generator[Answer, bytes, None]
