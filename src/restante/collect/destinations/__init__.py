"""Destinations of collected mail: a directory, Maildir or mbox, a server, or a program.

A destination takes one message at a time: ``begin`` says whether it is new, ``write`` adds
octets, ``commit`` makes it durable, ``abort`` leaves no trace.  After ``commit`` a crash cannot
lose the message, so only then may it be deleted on its server.  ``opening`` has the table of kinds.
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
        """Return whether the destination has this message durably."""

    def begin(self, identity: str) -> bool:
        """Begin a message; return False if the destination has it already.

        ``identity`` names the message by account and unique-id; it is always the same for a
        message.
        """

    def write(self, octets: bytes) -> None:
        """Add octets to the current message, as CRLF text."""

    def commit(self) -> None:
        """Store the current message; it is durable on return."""

    def abort(self) -> None:
        """Discard the current message without a trace; has no effect after ``commit``."""

    def close(self) -> None:
        """Close the destination; no more messages follow."""


class Doubtful(MessageRefused):
    """``commit`` failed; the cause may be this message or the destination."""


@runtime_checkable
class Verifying(Protocol):
    """Add-on of a destination that can verify stored messages."""

    def holds(self, identity: str, digest: bytes) -> bool:
        """Return whether the message is there and its octets have this SHA-256."""


@runtime_checkable
class Tracing(Protocol):
    """Add-on of a destination that knows what became of a message."""

    def presence(self, identity: str) -> Presence:
        """Return where the message is.  Only GONE proves that it was removed here."""


@runtime_checkable
class Grouping(Protocol):
    """Add-on of a destination that makes many messages durable at once, which is faster."""

    def end(self) -> None:
        """End the current message; like ``commit``, but it is not durable yet."""

    def group(self) -> Callable[[], None]:
        """Close the group of ended messages, and return a function that makes them durable.

        The function may run in any thread while the next group is begun.  After an error no part of
        any of these messages is left.
        """


def name_of(identity: str) -> str:
    """Return a file name for an identity; no text of a server becomes part of a path."""
    return sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()[:32]


TokenSource = Callable[[bool], str]
"""Returns an access token; True requests a new one, because the last one was refused."""
