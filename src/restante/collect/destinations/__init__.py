"""Destinations of collected mail: a directory, Maildir or mbox, a server, or a program.

A destination stores one message at a time: ``begin`` returns whether the message is new, ``write``
adds octets, ``commit`` makes the message durable, and ``abort`` discards it.  The message may be
deleted on its server only after ``commit``, because a crash can lose it before.  The function
``opening.open_destination`` opens all kinds of destinations.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from typing import Protocol, runtime_checkable

from ...errors import MessageRefused
from ...maildrop import Presence as Presence


class Destination(Protocol):
    """Stores messages in one place."""

    @property
    def is_repeatable(self) -> bool:
        """Whether ``has`` is reliable after a crash, so that no message is stored twice."""

    def has(self, identity: str) -> bool:
        """Return whether this message is durable at the destination."""

    def begin(self, identity: str) -> bool:
        """Begin a message; return False if the destination already has it.

        ``identity`` consists of the account and the message's unique-id, and never changes.
        """

    def write(self, octets: bytes) -> None:
        """Add octets to the current message, as CRLF text."""

    def commit(self) -> None:
        """Store the current message; it is durable on return."""

    def abort(self) -> None:
        """Discard the current message completely; has no effect after ``commit``."""

    def close(self) -> None:
        """Close the destination; it must not be used afterwards."""


class Doubtful(MessageRefused):
    """``commit`` failed, and the cause may be this message or the destination."""


@runtime_checkable
class Verifying(Protocol):
    """Add-on of a destination that can verify stored messages."""

    def holds(self, identity: str, digest: bytes) -> bool:
        """Return whether the message is present and its octets have this SHA-256 digest."""


@runtime_checkable
class Tracing(Protocol):
    """Add-on of a destination that reports whether a message is present, held or purged."""

    def presence(self, identity: str) -> Presence:
        """Return the state of the message.  Only GONE proves that it was removed here."""


@runtime_checkable
class Grouping(Protocol):
    """Add-on of a destination that makes many messages durable at once, which is faster."""

    def end(self) -> None:
        """End the current message, and add it to the current group; it is not durable yet."""

    def group(self) -> Callable[[], None]:
        """Close the current group, and return a function that makes its messages durable.

        The function may run in any thread while the next group is being written.  If the function
        raises an error, it leaves no incomplete message.
        """


def name_of(identity: str) -> str:
    """Return a file name for an identity; the name contains no text from a server."""
    return sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()[:32]


TokenSource = Callable[[bool], str]
"""Returns an access token.  The argument True requests a new token, after the last was refused."""
