"""The states of a session (RFC 1939 §3) and what it asks of the world around it."""

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
    """Verify, ask for permission, open the maildrop; answer ``opened`` or ``failed``."""

    shown: Shown


class Retrieve(NamedTuple):
    """Send ``response`` and the message; answer ``retrieved``, or ``failed`` if nothing was sent.

    Once the first octet was sent there is no way back: if the message cannot be sent to its
    end, the connection must be aborted without the termination octet.
    """

    number: int
    entry: Entry
    response: Response
    lines: int | None = None
    """Only the header and so many lines of the body (TOP), or None: all."""


@dataclass(frozen=True, slots=True)
class Update:
    """Remove these durably, release the lock; answer ``updated`` or ``failed`` (RFC 1939 §6)."""

    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class StartTLS:
    """Send ``response``, then read nothing but a TLS handshake; answer ``secured``."""

    response: Response


@dataclass(frozen=True, slots=True)
class Relay:
    """A trusted proxy has told who its client is; answer ``relayed`` or ``failed``."""

    address: str
    """IP address; empty: not told."""
    tls: str
    """Between client and proxy: ``yes``, ``no``, or empty: not told."""


@dataclass(frozen=True, slots=True)
class Close:
    """Send what was said so far and close.  Takes no answer."""

    reason: str


Action = Login | Lookup | Retrieve | Update | StartTLS | Relay | Close
Event = Response | Challenge | Action
