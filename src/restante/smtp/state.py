"""The states of a session and what it asks of the world around it (RFC 5321 §3, §4.1.4)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple

from .grammar import Reply


class State(Enum):
    CONNECTED = auto()
    """No EHLO, HELO or LHLO yet, or not again since TLS began."""
    READY = auto()
    MAIL = auto()
    """A transaction has begun: the reverse-path is known, recipients may follow."""
    DATA = auto()
    CLOSED = auto()


class Recipient(NamedTuple):
    """One that was accepted."""

    address: str
    """As the client gave it."""
    maildrop: str


@dataclass(frozen=True, slots=True)
class Resolve:
    """Find the recipient's maildrop; answer ``resolved`` or ``refused``."""

    address: str


@dataclass(frozen=True, slots=True)
class BeginData:
    """Send ``reply`` and make room for a message.  Takes no answer."""

    reply: Reply


@dataclass(frozen=True, slots=True)
class Content:
    """Keep these octets of the message; if that fails, call ``cannot_keep``.  Takes no answer."""

    octets: bytes


@dataclass(frozen=True, slots=True)
class Deliver:
    """The message is whole.  Deliver it to each recipient in this order, and answer ``delivered``
    once for each as soon as its fate is known."""

    reverse_path: str
    recipients: tuple[Recipient, ...]
    hello: str
    """What the client calls itself; a domain or an address literal."""
    protocol: str
    """For the ``with`` clause of Received (RFC 3848, RFC 6531 §4.3)."""


@dataclass(frozen=True, slots=True)
class StartTLS:
    """Send ``reply``, then read nothing but a TLS handshake; answer ``secured``."""

    reply: Reply


@dataclass(frozen=True, slots=True)
class Close:
    """Send what was said so far and close.  Takes no answer."""

    reason: str


Event = Reply | Resolve | BeginData | Content | Deliver | StartTLS | Close
