"""Where fetched mail goes: a directory, a Maildir, an mbox; or on to a server or a program.

A destination takes one message at a time: ``begin`` says whether it is new, ``write`` adds
octets, ``commit`` makes it durable, ``abort`` leaves no trace.  After ``commit`` a crash cannot
lose the message, so only then may it be deleted on its server.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from typing import Protocol, runtime_checkable

from ...errors import MessageRefused
from ...maildrop import Presence as Presence


class Destination(Protocol):
    """One place for mail."""

    @property
    def is_repeatable(self) -> bool:
        """Whether no message is stored twice if ``has`` is asked after a crash."""

    def has(self, identity: str) -> bool:
        """Whether this message is here already, and durable."""

    def begin(self, identity: str) -> bool:
        """Whether this message is wanted; False: it is here already.

        ``identity`` is account and unique-id; the same message has the same one, always.
        """

    def write(self, octets: bytes) -> None:
        """CRLF text of the message that was begun."""

    def commit(self) -> None:
        """Durable on return."""

    def abort(self) -> None:
        """Leave no trace of the message that was begun; harmless after ``commit``."""

    def close(self) -> None:
        """No more messages."""


class Doubtful(MessageRefused):
    """``commit`` failed, and it may be the fault of this message or of the destination."""


@runtime_checkable
class Verifying(Protocol):
    """Add-on of a destination that can look at what it stored."""

    def holds(self, identity: str, digest: bytes) -> bool:
        """Whether the message is there, and its octets have this SHA-256."""


@runtime_checkable
class Tracing(Protocol):
    """Add-on of a destination that knows what became of a message."""

    def presence(self, identity: str) -> Presence:
        """Where it is.  Only GONE is evidence that it was removed here."""


@runtime_checkable
class Grouping(Protocol):
    """Add-on of a destination where many messages become durable in one go, which is faster."""

    def end(self) -> None:
        """The message that was begun is whole; like ``commit``, but not durable yet."""

    def group(self) -> Callable[[], None]:
        """Closes the group of those that were ended.

        The call makes them durable, in any thread, while the next group is begun; an error leaves
        no part of any.
        """


def name_of(identity: str) -> str:
    """A file name; nothing that a server says becomes part of a path."""
    return sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()[:32]


TokenSource = Callable[[bool], str]
"""Gives an access token; True: another than the last, which was refused."""
