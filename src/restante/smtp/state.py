"""The states of a session and the actions that it requests (RFC 5321 §3, §4.1.4)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple

from .grammar import Reply


class State(Enum):
    CONNECTED = auto()
    """The client has not sent EHLO, HELO or LHLO, or not again since TLS began."""
    READY = auto()
    MAIL = auto()
    """A transaction has begun: the reverse-path is known, recipients may follow."""
    DATA = auto()
    CLOSED = auto()


class Recipient(NamedTuple):
    """An accepted recipient."""

    address: str
    """The address that the client sent."""
    maildrop: str


@dataclass(frozen=True, slots=True)
class Resolve:
    """Look up the recipient's maildrop; answer ``resolved`` or ``refused``."""

    address: str


@dataclass(frozen=True, slots=True)
class BeginData:
    """Send ``reply`` and prepare to store a message.  Needs no answer."""

    reply: Reply


@dataclass(frozen=True, slots=True)
class Content:
    """Store these octets of the message; if that fails, call ``cannot_keep``.  Needs no answer."""

    octets: bytes


@dataclass(frozen=True, slots=True)
class Deliver:
    """The message is complete.  Deliver it to each recipient in this order, and answer
    ``delivered`` once for each as soon as the result is known."""

    reverse_path: str
    recipients: tuple[Recipient, ...]
    hello: str
    """The client's name for itself; a domain or an address literal."""
    protocol: str
    """The protocol in the ``with`` clause of Received (RFC 3848, RFC 6531 §4.3)."""


@dataclass(frozen=True, slots=True)
class StartTLS:
    """Send ``reply``, then read nothing but a TLS handshake; answer ``secured``."""

    reply: Reply


@dataclass(frozen=True, slots=True)
class Close:
    """Send all pending replies and close.  Needs no answer."""

    reason: str


Event = Reply | Resolve | BeginData | Content | Deliver | StartTLS | Close
