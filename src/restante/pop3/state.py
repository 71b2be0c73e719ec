"""The states of a session (RFC 1939 §3) and the actions that it requests from its driver."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple

from ..maildrop import Entry
from ..passdb import Shown
from ..sasl import Lookup
from .grammar import Challenge, Repeated, Response


class State(Enum):
    AUTHORIZATION = auto()
    TRANSACTION = auto()
    UPDATE = auto()
    CLOSED = auto()


@dataclass(frozen=True, slots=True)
class Login:
    """Verify the login, check permission, open the maildrop; answer ``opened`` or ``failed``."""

    shown: Shown


class Retrieve(NamedTuple):
    """Send messages, each behind its head; there is at least one.

    Answer ``retrieved`` with the number of messages sent, or ``failed`` if the first cannot be
    sent; the others are then requested again.  After its first octet a response cannot be taken
    back: if a message cannot be sent to its end, the connection must be aborted without the
    termination octet.
    """

    numbers: Sequence[int]
    entries: Sequence[Entry]
    heads: Sequence[bytes]
    """The first line of each response."""
    lines: int | None = None
    """Number of body lines to send after the header (TOP); None: the whole message."""

    @property
    def commands(self) -> int:
        return len(self.entries)

    def after(self, count: int) -> Retrieve:
        """Return what is left when ``count`` messages were sent."""
        return Retrieve(self.numbers[count:], self.entries[count:], self.heads[count:], self.lines)


@dataclass(frozen=True, slots=True)
class Update:
    """Remove these durably, release the lock; answer ``updated`` or ``failed`` (RFC 1939 §6)."""

    entries: Sequence[Entry]


@dataclass(frozen=True, slots=True)
class StartTLS:
    """Send ``response``, then read nothing but a TLS handshake; answer ``secured``."""

    response: Response


@dataclass(frozen=True, slots=True)
class Xclient:
    """A trusted proxy has reported its client; answer ``client_changed`` or ``failed``."""

    address: str
    """The client's IP address; empty: not reported."""
    tls: str
    """Whether client and proxy use TLS: ``yes``, ``no``, or empty: not reported."""


@dataclass(frozen=True, slots=True)
class Close:
    """Send all pending responses and close.  Needs no answer."""

    reason: str


Action = Login | Lookup | Retrieve | Update | StartTLS | Xclient | Close
Event = Response | Repeated | Challenge | Action
