"""The states of a session (RFC 1939 §3) and the actions that it requests from its driver."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple

from ..maildrop import Entry
from ..passdb import Shown
from ..sasl import Lookup
from .grammar import Challenge, Response


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
    """Send ``response`` and the message; answer ``retrieved``, or ``failed`` if nothing was sent.

    After the first octet the response cannot be taken back: if the message cannot be sent to its
    end, the connection must be aborted without the termination octet.
    """

    number: int
    entry: Entry
    response: Response
    lines: int | None = None
    """Number of body lines to send after the header (TOP); None: the whole message."""


@dataclass(frozen=True, slots=True)
class Update:
    """Remove these durably, release the lock; answer ``updated`` or ``failed`` (RFC 1939 §6)."""

    entries: tuple[Entry, ...]


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
Event = Response | Challenge | Action
