"""The storage contract: Entry, Maildrop, Store (RFC 1939 §1, §4, §6).

Nothing here knows files: a store may keep messages anywhere.  What a store can do
beyond this contract is an add-on interface (``Holding``), never a new method here.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Entry:
    """One message of a listing."""

    unique_id: str
    """1 to 70 characters 0x21-0x7E, unique in the maildrop for ever (RFC 1939 §7)."""
    size: int
    """Octets on the wire: every line ends with CRLF, before byte-stuffing (RFC 1939 §11)."""


class Maildrop(Protocol):
    """One user's mail under its exclusive-access lock (RFC 1939 §4)."""

    @property
    def listing(self) -> Sequence[Entry]:
        """A snapshot; mail that arrives later waits for the next session."""

    def read(self, entry: Entry) -> AsyncGenerator[bytes, None]:
        """The message in pieces of CRLF text, ``entry.size`` octets in all.

        Every line, the last one included, ends with CRLF.  No piece is longer than 64 KiB.
        Who stops early closes the generator.

        Raises:
            MessageGone: another program removed it.
            TemporaryFailure: it cannot be read (now); maybe after some pieces.
        """

    async def remove(self, entries: Collection[Entry]) -> Collection[Entry]:
        """Remove for good; returns what could not be removed.  Durable on return.

        A message that is gone already counts as removed.
        """


class Store(Protocol):
    """Where maildrops live.  Two verbs: open one, or put a message into one."""

    def open(self, user: str) -> AbstractAsyncContextManager[Maildrop]:
        """Take the exclusive-access lock for as long as the context lasts.

        A user without mail yet has an empty maildrop.

        Raises:
            MaildropInUse: another session holds it.
            TemporaryFailure: it cannot be opened now; never an empty listing instead.
        """

    async def deliver(self, user: str, message: AsyncIterator[bytes]) -> Entry:
        """Atomic and durable: when this returns, a crash cannot lose the message.

        The octets are stored as they come.

        Raises:
            TemporaryFailure: not stored; no trace of it is left.
        """


@dataclass(frozen=True, slots=True)
class HeldMessage:
    """A message that was removed from a maildrop and can still be given back."""

    name: str
    """Names it among the held messages of its maildrop."""
    unique_id: str
    """What it had before it was removed."""
    size: int
    """Octets, as stored."""
    removed_at: float
    """Seconds since the epoch."""


class Holding(Protocol):
    """Add-on of a store that holds removed mail for a while."""

    async def held(self, user: str) -> Sequence[HeldMessage]:
        """What can be given back, the oldest removal first."""

    def read_held(self, user: str, held: HeldMessage) -> AsyncIterator[bytes]:
        """Its octets as stored, in pieces of at most 64 KiB."""

    async def undelete(
        self, user: str, held: Collection[HeldMessage], *, same_unique_ids: bool = False
    ) -> int:
        """Give messages back; returns how many.  Durable on return.

        By default they get new unique-ids, so that clients which keep a list of seen
        ids download them again.
        """

    async def purge(self, user: str, removed_before: float) -> int:
        """Destroy what was removed before that moment (seconds since the epoch)."""

    def users(self) -> AsyncIterator[str]:
        """Every user who has a maildrop here."""
