"""The storage contract: Entry, Maildrop, Store (RFC 1939 §1, §4, §6).

Nothing here knows files: a store may keep messages anywhere.  What a store can do
beyond this contract is an add-on interface (``Holding``, ``Rendered``, ``RawReading``,
``Journal``, ``Remembering``, ``Paced``, ``Expiring``, ``NamedDelivery``), never a new method here.
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
    """Where the store that made the entry finds it quickly; nobody else looks at it."""


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


class Place(Enum):
    """Where a message is that was delivered under a name."""

    HERE = 1
    """In the maildrop, or in a folder that an IMAP client has moved it to."""
    HELD = 2
    """Removed, and still to be given back."""
    GONE = 3
    """It was here, it was removed, and the store itself has destroyed it after that."""
    UNKNOWN = 4
    """Nothing is known of it: it was never here, or it left in another way."""


class Deliveries(Protocol):
    """Messages on their way into one maildrop, each under a name that its sender chose.

    A name is 32 hexadecimal digits, always the same for the same message, so a delivery that is
    repeated after a crash can find the first one.  All calls block.  One thread calls them, but
    what ``group`` returns.

    All raise TemporaryFailure when the storage fails, and leave no trace of what is not durable.
    """

    def place(self, name: str) -> Place:
        """Where the message of this name is now, or was when it was first asked for."""

    def digest(self, name: str) -> bytes | None:
        """SHA-256 of the octets, as they are stored here or held; None: neither."""

    def begin(self, name: str) -> None:
        """A message follows; that it is not here yet is for the caller to find out."""

    def write(self, octets: bytes) -> None:
        """More of it, in whatever pieces."""

    def end(self) -> None:
        """It is whole, and waits for its group.

        Raises:
            QuotaExceeded, LargerThanQuota: this message has no room; the others of its group stay.
        """

    def group(self) -> Callable[[], None]:
        """Closes the group of those that were ended.

        The call makes them visible and durable, all or none, in any thread, while the next group
        is begun.
        """

    def abort(self) -> None:
        """Leave no trace of the message that was begun; harmless after ``end``."""

    def close(self) -> None:
        """No more messages; what was not delivered leaves no trace."""


@runtime_checkable
class NamedDelivery(Protocol):
    """Add-on of a store that finds messages again by the names their senders gave them."""

    def deliveries(self, user: str) -> Deliveries:
        """A way in that delivers many messages in one go.

        Raises:
            PermanentFailure: this user cannot have a maildrop here.
            TemporaryFailure: the storage is not there.
        """


@dataclass(frozen=True, slots=True)
class View:
    """What of a user's mail a session shows as the maildrop."""

    folders: tuple[str, ...] = ()
    """In this order, and of several those that are there; empty: as the store has it."""
    recent: float = 0.0
    """Only what arrived in the last so many seconds; 0: all."""


@runtime_checkable
class Viewing(Protocol):
    """Add-on of a store that knows folders."""

    def open_view(self, user: str, view: View) -> AbstractAsyncContextManager[Maildrop]:
        """As ``open``, and all that is not shown stays as it is.  The locks of all folders are
        taken.  Unique-ids are those of ``open``; of several folders, no two are the same.

        Raises:
            PermanentFailure: there is none of these folders.
            MaildropInUse, TemporaryFailure: as ``open``.
        """


class Rendered(Sequence[Entry]):
    """Add-on of a listing that keeps its answers ready for sessions without marks."""

    octets: int
    """Sum of all sizes."""

    @abstractmethod
    def scan_listing(self) -> bytes:
        """All lines of the answer to LIST, CRLF included, without the termination octet's."""

    @abstractmethod
    def unique_id_listing(self) -> bytes:
        """All lines of the answer to UIDL, likewise."""


class RawMessage(NamedTuple):
    """A message as an open file.  Who asked for it closes the descriptor."""

    descriptor: int
    size: int
    """Octets in the file, when it was opened."""
    is_wire_ready: bool
    """It can go to the wire as it lies: CRLF throughout and at the end, no line begins with
    a dot, ``size`` is the entry's.  Only the termination octet's line is to be added."""
    has_crlf: bool
    """CRLF throughout and at the end, ``size`` is the entry's; lines may begin with dots."""


class RawOctets(NamedTuple):
    """All octets of a small message, as its file has them; the rest as in ``RawMessage``."""

    octets: bytes
    is_wire_ready: bool
    has_crlf: bool


@runtime_checkable
class RawReading(Protocol):
    """Add-on of a maildrop whose messages are files."""

    def read_cached(self, entry: Entry) -> RawOctets | None:
        """The message's file, if that takes no waiting; None: ask again by ``open_raw``.

        What the page cache has only in part may come in part, and of a longer file comes one
        octet more than ``entry.size``: who takes it looks at its size on the wire.
        """

    def open_raw(self, entry: Entry) -> RawMessage | None:
        """The message's file; None: use ``read``, which also tells what is wrong.

        Looks up one name and reads nothing.  Another program may cut the file meanwhile: if
        it ends early, the connection is aborted; octets beyond ``size`` are not sent.
        """

    def learn(self, entry: Entry, *, is_wire_ready: bool) -> None:
        """All of the file was read, and it is what ``RawMessage.has_crlf`` says, or even ready."""


BRAKED = "braked"


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """What one session did, for the journal.  Never a password, never text of a message."""

    began_at: float
    """Seconds since the epoch, like ``ended_at``."""
    ended_at: float
    address: str
    tls: str
    """Version of TLS, or ``no``."""
    credential: str
    """Which of the user's credentials was shown."""
    retrieved: Sequence[Entry]
    """In the order of RETR; of very many the first."""
    removed: Sequence[Entry]
    """What UPDATE removed."""
    end: str
    """How it ended: ``quit``, ``dropped``, ``autologout`` …; ``braked``: it was not allowed to
    remove so many messages yet; ``crash``: a later session finished its UPDATE, and nothing else
    is known of it, not even the sizes."""
    unnamed: int = 0
    """Messages that were retrieved besides those."""


@runtime_checkable
class Journal(Protocol):
    """Add-on of a maildrop that remembers its sessions."""

    async def record(self, session: SessionRecord) -> None:
        """Called once, at the end, while the lock is held and after the removal.

        Durable on return if something was removed.  A session that neither retrieved nor
        removed anything leaves no trace and costs nothing, unless it was braked.
        Never raises: a journal that cannot be written is told to the log.
        """

    async def past(self, credential: str) -> Sequence[SessionRecord]:
        """What sessions with that credential are remembered, the oldest first.

        Raises:
            TemporaryFailure: cannot be told now.
        """


@runtime_checkable
class Paced(Protocol):
    """Add-on of a maildrop that knows when its user last logged in (RFC 2449 §6.5)."""

    async def pace(self, delay: float) -> float:
        """Seconds until the maildrop may be opened again, ``delay`` after the last time.

        0: now, and this moment is the last time from here on.  Holds across processes.
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


@dataclass(frozen=True, slots=True)
class Usage:
    """How full the mail of a user is: all folders, without what is held."""

    octets: int
    """As stored."""
    messages: int
    limit: int
    """Octets that there may be; 0: as many as the disk takes."""


class Holding(Protocol):
    """Add-on of a store that holds removed mail for a while, so that it can be restored."""

    async def held(self, user: str) -> Sequence[HeldMessage]:
        """What can be given back, the oldest removal first."""

    def read_held(self, user: str, held: HeldMessage) -> AsyncIterator[bytes]:
        """Its octets as stored, in pieces of at most 64 KiB."""

    async def restore(
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


class Remembering(Protocol):
    """Add-on of a store whose maildrops keep a journal."""

    async def sessions(self, user: str) -> Sequence[SessionRecord]:
        """Those that retrieved or removed something, the oldest first, as far as remembered."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """What was removed, or destroyed, because its time was over."""

    messages: int = 0
    doubtful: int = 0
    """Messages that stayed, because only a clock that may be wrong says that their time is over."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What will go because a rule was changed, and would have stayed longer otherwise."""

    held: int = 0
    """Held messages that will be destroyed."""
    expiring: int = 0
    """Messages in the maildrop that will expire."""
    at: float = inf
    """When the first of them may go; seconds since the epoch."""

    def __bool__(self) -> bool:
        return bool(self.held or self.expiring)

    def __add__(self, other: Forecast) -> Forecast:
        held, expiring = self.held + other.held, self.expiring + other.expiring
        return Forecast(held, expiring, min(self.at, other.at))


class Expiring(Protocol):
    """Add-on of a store that expires mail without being asked by a client.

    A rule that was made shorter applies to older mail only a day after that was noted, so
    whoever changes a rule calls ``note_rules``.  All moments are seconds since the epoch.  ``now``
    is what the clock says, and ``until`` the latest moment that has certainly come.
    """

    async def expire(self, user: str, days: int | None, *, until: float, now: float) -> Sweep:
        """Remove what has been in the maildrop for so many days (RFC 2449 §6.7); None: for ever.

        Removed as by QUIT, so it is held where removed mail is.

        Raises:
            MaildropInUse: a session is under way, and nothing is removed under it.
        """

    async def purge_due(self, user: str, *, until: float, now: float) -> Sweep:
        """Destroy the held messages whose time is over."""

    async def note_rules(self, user: str, days: int | None, now: float) -> Forecast:
        """Remember which rules are in force; what will go because one of them has changed.

        Nothing if they were known.  Other programs read the quota that is in force afterwards.
        """

    async def forecast(self, user: str, days: int | None, now: float) -> Forecast:
        """As ``note_rules``, and of what was noted less than a day ago; changes nothing."""


class ServableStore(Store, Holding, Remembering, Expiring, Protocol):
    """A store that a server can run on: it also restores, remembers, expires and purges."""

    hold: Callable[[str], float]
    """Seconds for which the removed mail of a user is held.  It may block."""
