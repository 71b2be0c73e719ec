"""The storage contract: Entry, Maildrop, Store (RFC 1939 §1, §4, §6).

The contract does not mention files: a store may keep messages anywhere.  Further abilities of a
store are add-on interfaces (``Holding``, ``Rendered``, ``RawReading``, ``Journal``,
``Remembering``, ``Paced``, ``Expiring``, ``NamedDelivery``), never new methods of these classes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from enum import Enum
from math import inf
from typing import NamedTuple, Protocol, runtime_checkable


@dataclass(frozen=True, slots=True)
class Entry:
    """One message of a listing."""

    unique_id: str
    """1 to 70 characters 0x21-0x7E, unique in the maildrop for ever (RFC 1939 §7)."""
    size: int
    """Octets on the wire: every line ends with CRLF, before byte-stuffing (RFC 1939 §11)."""
    key: int = field(default=-1, compare=False, repr=False)
    """The position at which the store finds the message quickly; private to that store."""


class Maildrop(Protocol):
    """One user's mail under its exclusive-access lock (RFC 1939 §4)."""

    @property
    def listing(self) -> Sequence[Entry]:
        """The messages at the time of opening; mail that arrives later is for the next session."""

    def read(self, entry: Entry) -> AsyncGenerator[bytes, None]:
        """Yield the message in pieces of CRLF text, ``entry.size`` octets in total.

        Every line, the last one included, ends with CRLF.  No piece is longer than 64 KiB.
        A caller that stops early must close the generator.

        Raises:
            MessageGone: another program removed the message.
            TemporaryFailure: the message cannot be read now; possibly after some pieces.
        """

    async def remove(self, entries: Collection[Entry]) -> Collection[Entry]:
        """Remove messages durably, and return those that could not be removed.

        A message that is already gone counts as removed.
        """


class Store(Protocol):
    """Stores maildrops: opens a maildrop, or delivers a message to it."""

    def open(self, user: str) -> AbstractAsyncContextManager[Maildrop]:
        """Open a maildrop and hold its exclusive-access lock until the context ends.

        A user without mail has an empty maildrop.

        Raises:
            MaildropInUse: another session holds the lock.
            TemporaryFailure: it cannot be opened now; a failure must not return an empty listing.
        """

    async def deliver(self, user: str, message: AsyncIterator[bytes]) -> Entry:
        """Store a message atomically and durably: after the return a crash cannot lose it.

        The octets are stored unchanged.

        Raises:
            TemporaryFailure: not stored; no part of the message is left.
        """


class Presence(Enum):
    """The state of a message that was delivered under a name."""

    HERE = 1
    """In the maildrop, or in a folder that an IMAP client has moved it to."""
    HELD = 2
    """Removed, and can still be restored."""
    GONE = 3
    """Removed, and later destroyed by the store."""
    UNKNOWN = 4
    """No record: it was never delivered, or another program removed it."""


class Deliveries(Protocol):
    """Messages being delivered to one maildrop, each under a name chosen by the caller.

    A name is 32 hexadecimal digits, always the same for the same message, so that a delivery
    repeated after a crash finds the first one.  All calls block.  They must come from one thread,
    except for the function that ``group`` returns.

    All raise TemporaryFailure if the storage fails, and leave no part of undelivered messages.
    """

    def presence(self, name: str) -> Presence:
        """Return where the message of this name is, or was at the first call for this name."""

    def digest(self, name: str) -> bytes | None:
        """Return the SHA-256 of the octets if the message is stored or held, or else None."""

    def begin(self, name: str) -> None:
        """Start a message; the caller has checked that it is not delivered yet."""

    def write(self, octets: bytes) -> None:
        """Append octets, in pieces of any size."""

    def end(self) -> None:
        """Finish the message and add it to the current group.

        Raises:
            QuotaExceeded, LargerThanQuota: no room for this message; its group is unaffected.
        """

    def group(self) -> Callable[[], None]:
        """Close the current group, and return a function that delivers it.

        The function makes all finished messages of the group visible and durable, or none.  It may
        run in any thread, while the next group is being written.
        """

    def abort(self) -> None:
        """Discard the message that was started; does nothing after ``end``."""

    def close(self) -> None:
        """Discard all messages that were not delivered."""


@runtime_checkable
class NamedDelivery(Protocol):
    """Add-on of a store that finds messages again by the names their senders gave them."""

    def deliveries(self, user: str) -> Deliveries:
        """Start delivering messages to a user.

        Raises:
            PermanentFailure: this user cannot have a maildrop here.
            TemporaryFailure: the storage is not available.
        """


@dataclass(frozen=True, slots=True)
class View:
    """The part of a user's mail that a session shows as the maildrop."""

    folders: tuple[str, ...] = ()
    """Folders to show, in this order; missing ones are skipped; empty: the store's default."""
    recent: float = 0.0
    """Show only mail that arrived within this number of seconds; 0: all."""


@runtime_checkable
class Prompt(Protocol):
    """Add-on of a store that opens and closes most maildrops without waiting.

    The server then needs no task for it.  Outside a task, ``asyncio.timeout`` and ``TaskGroup``
    fail, so a store that uses them must not have this add-on.
    """

    @property
    def is_prompt(self) -> bool:
        """True."""


@runtime_checkable
class Viewing(Protocol):
    """Add-on of a store that has folders."""

    def open_view(self, user: str, view: View) -> AbstractAsyncContextManager[Maildrop]:
        """Open the shown part of a maildrop, like ``open``; hidden messages are never changed.

        The locks of all folders are taken.  Unique-ids are those of ``open``; those of several
        folders differ from each other.

        Raises:
            PermanentFailure: none of the folders exists.
            MaildropInUse, TemporaryFailure: as ``open``.
        """


class Rendered(Sequence[Entry]):
    """Add-on of a listing with pre-rendered answers for sessions without marked messages."""

    octets: int
    """Sum of all sizes."""

    @abstractmethod
    def scan_listing(self) -> bytes:
        """Return all lines of the answer to LIST with CRLF, but not the termination octet's."""

    @abstractmethod
    def unique_id_listing(self) -> bytes:
        """Return all lines of the answer to UIDL in the same form."""


class RawMessage(NamedTuple):
    """A message as an open file.  The caller must close the descriptor."""

    descriptor: int
    size: int
    """Octets in the file when it was opened."""
    is_wire_ready: bool
    """The file can be sent unchanged: CRLF throughout and at the end, no line starts with a dot,
    and ``size`` is the entry's.  Only the termination octet's line must be added."""
    has_crlf: bool
    """CRLF throughout and at the end, and ``size`` is the entry's; lines may start with dots."""


@runtime_checkable
class RawReading(Protocol):
    """Add-on of a maildrop whose messages are files."""

    def cached_texts(
        self, entries: Sequence[Entry], most: int, lines: int | None = None
    ) -> list[bytes]:
        """Return the first of these messages, byte-stuffed, as far as reading them does not block.

        Each message had ``entry.size`` octets before byte-stuffing.  All together have about
        ``most`` octets or fewer.  ``lines``: only the header and that many lines of the body (TOP).
        The first message that is not returned needs ``open_raw`` or ``read``.
        """

    def open_raw(self, entry: Entry) -> RawMessage | None:
        """Open the message's file; None: use ``read``, which also raises the reason.

        Looks up one name and reads nothing.  Another program may truncate the file later: if it
        ends early, the connection must be aborted; octets beyond ``size`` must not be sent.
        """

    def learn(self, entry: Entry, *, is_wire_ready: bool) -> None:
        """Record that the whole file was read and has ``RawMessage.has_crlf``, or is wire-ready."""


BRAKED = "braked"


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """The record of one session for the journal; contains no password and no text of messages."""

    began_at: float
    """Seconds since the epoch, like ``ended_at``."""
    ended_at: float
    address: str
    tls: str
    """Version of TLS, or ``no``."""
    credential: str
    """Name of the user's credential."""
    retrieved: Sequence[Entry]
    """In the order of RETR; if there are very many, the first of them."""
    removed: Sequence[Entry]
    """Messages that UPDATE removed."""
    end: str
    """How it ended: ``quit``, ``dropped``, ``autologout`` …; ``braked``: the deletion limit refused
    the removal; ``crash``: a later session finished its UPDATE, and nothing else is known about it,
    not even the sizes."""
    unnamed: int = 0
    """Number of further retrieved messages that ``retrieved`` does not list."""


@runtime_checkable
class Journal(Protocol):
    """Add-on of a maildrop that records its sessions."""

    async def record(self, session: SessionRecord) -> None:
        """Called once at the end of a session, after the removal, while the lock is held.

        Durable on return if messages were removed.  A session that neither retrieved nor removed
        any message is not recorded, unless the deletion limit refused its removal.
        Must not raise: a journal that cannot be written is reported in the log.
        """

    async def past(self, credential: str) -> Sequence[SessionRecord]:
        """Return the recorded sessions with that credential, the oldest first.

        Raises:
            TemporaryFailure: the journal cannot be read now.
        """


@runtime_checkable
class Paced(Protocol):
    """Add-on of a maildrop that knows when its user last logged in (RFC 2449 §6.5)."""

    async def pace(self, delay: float) -> float:
        """Return the seconds until a login is allowed, ``delay`` seconds after the last one.

        0: allowed; the time of the last login is now this moment.  Applies to all processes.
        """


@dataclass(frozen=True, slots=True)
class HeldMessage:
    """A message that was removed from a maildrop and can still be restored."""

    name: str
    """Identifies it among the held messages of its maildrop."""
    unique_id: str
    """Its unique-id before it was removed."""
    size: int
    """Octets, as stored."""
    removed_at: float
    """Seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class Usage:
    """The space that a user's mail takes: all folders, without held messages."""

    octets: int
    """As stored."""
    messages: int
    limit: int
    """Maximum number of octets; 0: unlimited."""


class Holding(Protocol):
    """Add-on of a store that holds removed mail for a while, so that it can be restored."""

    async def held(self, user: str) -> Sequence[HeldMessage]:
        """Return the messages that can be restored, the oldest removal first."""

    def read_held(self, user: str, held: HeldMessage) -> AsyncIterator[bytes]:
        """Yield the octets of a held message as stored, in pieces of at most 64 KiB."""

    async def restore(
        self, user: str, held: Collection[HeldMessage], *, same_unique_ids: bool = False
    ) -> int:
        """Restore messages durably, and return their number.

        By default they get new unique-ids, so that clients which keep a list of seen
        ids download them again.
        """

    async def purge(self, user: str, removed_before: float) -> int:
        """Destroy messages removed before a time (seconds since the epoch); return the number."""

    def users(self) -> AsyncIterator[str]:
        """Yield every user who has a maildrop here."""


class Remembering(Protocol):
    """Add-on of a store whose maildrops keep a journal."""

    async def sessions(self, user: str) -> Sequence[SessionRecord]:
        """Return the recorded sessions, the oldest first."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """Number of messages that expired and were removed or destroyed."""

    messages: int = 0
    doubtful: int = 0
    """Messages that were kept because they have expired only if a doubtful clock is right."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """Messages that will be removed earlier than before because a rule has changed."""

    held: int = 0
    """Held messages that will be destroyed."""
    expiring: int = 0
    """Messages in the maildrop that will expire."""
    at: float = inf
    """The earliest time of a removal; seconds since the epoch."""

    def __bool__(self) -> bool:
        return bool(self.held or self.expiring)

    def __add__(self, other: Forecast) -> Forecast:
        held, expiring = self.held + other.held, self.expiring + other.expiring
        return Forecast(held, expiring, min(self.at, other.at))


class Expiring(Protocol):
    """Add-on of a store that expires mail without being asked by a client.

    A shortened rule applies to older mail only a day after it was noted, which leaves time to
    correct a mistake; so call ``note_rules`` after changing a rule.  All times are seconds since
    the epoch.  ``now`` is the time of the clock, ``until`` the latest time that has certainly
    passed.
    """

    async def expire(self, user: str, days: int | None, *, until: float, now: float) -> Sweep:
        """Remove messages older than this number of days (RFC 2449 §6.7); None: never.

        They are removed as by QUIT, so they are held if the store holds removed mail.

        Raises:
            MaildropInUse: a session is open; nothing is removed during it.
        """

    async def purge_due(self, user: str, *, until: float, now: float) -> Sweep:
        """Destroy the held messages whose time has expired."""

    async def note_rules(self, user: str, days: int | None, now: float) -> Forecast:
        """Record the rules in force, and return what will be removed because one has changed.

        Empty if the rules were recorded before.  Also stores the quota for other programs.
        """

    async def forecast(self, user: str, days: int | None, now: float) -> Forecast:
        """Return what ``note_rules`` would, and what changes of the last day remove; changes
        nothing."""


class ServableStore(Store, Holding, Remembering, Expiring, Protocol):
    """A store that a server can run on: it also restores, remembers, expires and purges."""

    hold: Callable[[str], float]
    """Seconds for which the removed mail of a user is held.  It may block."""
