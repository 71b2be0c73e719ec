"""The states of a session and the actions that it requests (RFC 5321 §3, §4.1.4)."""

from __future__ import annotations

from enum import Enum, auto
from typing import NamedTuple

from .grammar import Reply


class State(Enum):
    """The state of a session."""

    CONNECTED = auto()
    """EHLO, HELO or LHLO is required, at the beginning and after a TLS handshake."""
    READY = auto()
    """A transaction can begin."""
    MAIL = auto()
    """A transaction has begun with MAIL; recipients can be added."""
    DATA = auto()
    """The message is being received or delivered."""
    CLOSED = auto()


class Recipient(NamedTuple):
    """An accepted recipient."""

    address: str
    """The address that the client sent."""
    maildrop: str


class Resolve(NamedTuple):
    """Look up the recipient's maildrop, then call ``resolved`` or ``refused``."""

    address: str


class BeginData(NamedTuple):
    """Send ``reply``, and prepare to store a message."""

    reply: Reply


class Content(NamedTuple):
    """Store these octets of the message; call ``storing_failed`` only if this fails."""

    octets: bytes


class Deliver(NamedTuple):
    """Deliver the message, which is complete, to the recipients in this order.  Call ``delivered``
    after each delivery, whether or not it succeeded."""

    reverse_path: str
    recipients: tuple[Recipient, ...]
    hello: str
    """The name that the client gave in EHLO, HELO or LHLO."""
    protocol: str
    """The protocol in the ``with`` clause of Received (RFC 3848, RFC 6531 §4.3)."""


class StartTLS(NamedTuple):
    """Send ``reply``, do the TLS handshake, then call ``secured``."""

    reply: Reply


class Close(NamedTuple):
    """Send all pending replies, and close the connection."""

    reason: str


Event = Reply | Resolve | BeginData | Content | Deliver | StartTLS | Close
