"""The states of a session (RFC 1939 §3) and the actions that it requests from its driver."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto
from typing import NamedTuple

from ..maildrop import Entry
from ..passdb import AnyCredentials
from ..sasl.exchange import Lookup
from .grammar import Challenge, Repeated, Response


class State(Enum):
    """The states of RFC 1939 §3, and ``CLOSED`` after the end of the session."""

    AUTHORIZATION = auto()
    TRANSACTION = auto()
    UPDATE = auto()
    CLOSED = auto()


class Login(NamedTuple):
    """Verify the login, check permission and open the maildrop.

    The driver must answer with ``opened`` or ``failed``.
    """

    credentials: AnyCredentials


class Retrieve(NamedTuple):
    """Send one or more messages, each after the first line of its response.

    The driver must answer with ``retrieved`` and the number of messages that it has sent, or with
    ``failed`` if the first message cannot be sent.  The session then requests the other messages
    again.  A response cannot be withdrawn after its first octet.  If the rest of a message cannot
    be sent, the driver must close the connection without sending the termination octet.
    """

    numbers: Sequence[int]
    entries: Sequence[Entry]
    heads: Sequence[bytes]
    """The first line of each response."""
    lines: int | None = None
    """Number of body lines to send after the header (TOP); None to send the whole message."""

    @property
    def commands(self) -> int:
        """Number of commands that this action answers."""
        return len(self.entries)

    def after(self, count: int) -> Retrieve:
        """Return the action for the remaining messages, after ``count`` messages were sent."""
        return Retrieve(self.numbers[count:], self.entries[count:], self.heads[count:], self.lines)


class Update(NamedTuple):
    """Remove messages durably and release the lock (RFC 1939 §6).

    The driver must answer with ``updated`` or ``failed``.
    """

    entries: Sequence[Entry]


class StartTLS(NamedTuple):
    """Send ``response``, then begin the TLS handshake.

    The driver must answer with ``secured`` after the handshake.
    """

    response: Response


class Xclient(NamedTuple):
    """Continue the session with the client that a trusted proxy has reported.

    The driver must answer with ``client_changed`` or ``failed``.
    """

    address: str
    """The client's IP address; empty if the proxy did not report it."""
    tls: str
    """Whether client and proxy use TLS, ``yes`` or ``no``; empty if the proxy did not report it."""


class Close(NamedTuple):
    """Send all pending responses and close the connection.  No answer is needed."""

    reason: str


Action = Login | Lookup | Retrieve | Update | StartTLS | Xclient | Close
Event = Response | Repeated | Challenge | Action
