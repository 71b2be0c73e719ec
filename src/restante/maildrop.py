"""The contract between the server and a store of mail (RFC 1939 §1, §4, §6).

The core contract consists of ``Entry``, ``Maildrop`` and ``Store``.  It does not mention files,
because a store may keep messages anywhere.  All other abilities of a store are separate add-ons,
such as ``Holding`` or ``Journal``, and never new methods of the core classes.
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
    """1 to 70 characters 0x21-0x7E, never used again in the maildrop (RFC 1939 §7)."""
    size: int
    """Number of octets if every line ends with CRLF, before byte-stuffing (RFC 1939 §11)."""
    key: int = field(default=-1, compare=False, repr=False)
    """Private to the store, which can use it to find the message quickly."""


class Maildrop(Protocol):
    """One user's mail under its exclusive-access lock (RFC 1939 §4)."""

    @property
    def listing(self) -> Sequence[Entry]:
        """The messages at the time of opening; later mail is listed in the next session."""

    def read(self, entry: Entry) -> AsyncGenerator[bytes, None]:
        """Yield the message in pieces of CRLF text, ``entry.size`` octets in total.

        Every line, including the last line, ends with CRLF.  No piece is longer than 64 KiB.
        A caller that stops early must close the generator.

        Raises:
            MessageGone: another program removed the message.
            TemporaryFailure: the message cannot be read now; may be raised after some pieces.
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
            TemporaryFailure: the maildrop cannot be opened now.  A store must not return an empty
                listing after a failure.
        """

    async def deliver(self, user: str, message: AsyncIterator[bytes]) -> Entry:
        """Store a message atomically and durably, with its octets unchanged.

        After the method has returned, a crash cannot lose the message.

        Raises:
            TemporaryFailure: the message was not stored, and no part of it is left.
        """


class Presence(Enum):
    """The state of a message that was delivered under a name."""

    HERE = 1
    """The message is in the maildrop, or in a folder to which an IMAP client has moved it."""
    HELD = 2
    """The message was removed, and can still be restored."""
    GONE = 3
    """The message was removed, and later destroyed by the store."""
    UNKNOWN = 4
    """The store has no record: the message was never delivered, or another program removed it."""


class Deliveries(Protocol):
    """Delivers messages to one maildrop, each under a name chosen by the caller.

    A name consists of 32 hexadecimal digits and is always the same for the same message, so that an
    earlier delivery is found when the delivery is repeated after a crash.  All methods block.  They
    must be called in one thread, except for the function that ``group`` returns.

    All methods raise TemporaryFailure if the storage fails, and leave no part of undelivered
    messages.
    """

    def presence(self, name: str) -> Presence:
        """Return the state of the message with this name at the first call for this name."""

    def digest(self, name: str) -> bytes | None:
        """Return the SHA-256 of the octets if the message is stored or held, otherwise None."""

    def begin(self, name: str) -> None:
        """Begin a message.  The caller must check that it has not been delivered yet."""

    def write(self, octets: bytes) -> None:
        """Append octets, in pieces of any size."""

    def end(self) -> None:
        """Finish the message and add it to the current group.

        Raises:
            QuotaExceeded, LargerThanQuota: the quota does not allow this message; the other
                messages of the group are not affected.
        """

    def group(self) -> Callable[[], None]:
        """Close the current group, and return a function that delivers it.

        The function makes either all messages of the group visible and durable, or none of them.
        It may run in any thread while the next group is being written.
        """

    def abort(self) -> None:
        """Discard the message that was begun.  Has no effect after ``end``."""

    def close(self) -> None:
        """Discard all messages that were not delivered."""


@runtime_checkable
class NamedDelivery(Protocol):
    """Add-on of a store that can find delivered messages by the names given at delivery."""

    def deliveries(self, user: str) -> Deliveries:
        """Return an object that delivers messages to a user.

        Raises:
            PermanentFailure: this user cannot have a maildrop in the store.
            TemporaryFailure: the storage is not available.
        """


class View(NamedTuple):
    """The part of a user's mail that a session shows as the maildrop."""

    folders: tuple[str, ...] = ()
    """Folders to show, in this order.  Missing folders are skipped.  If empty, the store shows its
    default folders."""
    recent: float = 0.0
    """Show only mail that arrived within this number of seconds; 0 for all mail."""


@runtime_checkable
class OpensImmediately(Protocol):
    """Add-on of a store that opens and closes most maildrops without waiting.

    With this add-on, the server opens maildrops without creating a task.  ``asyncio.timeout`` and
    ``TaskGroup`` fail outside a task, so a store that uses them must not have this add-on.
    """

    @property
    def opens_immediately(self) -> bool:
        """Always True; a store without this add-on does not have the property."""


@runtime_checkable
class Viewing(Protocol):
    """Add-on of a store that has folders."""

    def open_view(self, user: str, view: View) -> AbstractAsyncContextManager[Maildrop]:
        """Open the shown part of a maildrop, like ``open``.  Hidden messages are never changed.

        The locks of all folders are held until the context ends.  Each message has the same
        unique-id as with ``open``, and messages in different folders have different unique-ids.

        Raises:
            PermanentFailure: no folder to show exists.
            MaildropInUse: another session holds the lock.
            TemporaryFailure: the maildrop cannot be opened now.
        """


class Rendered(Sequence[Entry]):
    """Add-on of a listing with pre-rendered responses for sessions without marked messages."""

    octets: int
    """Sum of all sizes."""

    @abstractmethod
    def scan_listing(self) -> bytes:
        """Return the lines of the response to LIST with CRLF, without the termination octet."""

    @abstractmethod
    def unique_id_listing(self) -> bytes:
        """Return the lines of the response to UIDL with CRLF, without the termination octet."""


class RawMessage(NamedTuple):
    """A message as an open file.  The caller must close the descriptor."""

    descriptor: int
    size: int
    """Octets in the file when it was opened."""
    is_wire_ready: bool
    """Whether the file can be sent unchanged: every line ends with CRLF, no line starts with a dot,
    and ``size`` equals the size of the entry.  Only the line with the termination octet must be
    added."""
    has_crlf: bool
    """Whether every line ends with CRLF and ``size`` equals the size of the entry.  Lines may start
    with a dot."""


@runtime_checkable
class RawReading(Protocol):
    """Add-on of a maildrop whose messages are files."""

    def cached_texts(
        self, entries: Sequence[Entry], max_octets: int, lines: int | None = None
    ) -> list[bytes]:
        """Return the byte-stuffed text of the first messages, until a read would block.

        Each message had ``entry.size`` octets before byte-stuffing.  The total size is at most
        about ``max_octets``.  If ``lines`` is given, only the header and this number of lines of
        the body are returned (TOP).  The first message that is not returned must be read with
        ``open_raw`` or ``read``.
        """

    def open_raw(self, entry: Entry) -> RawMessage | None:
        """Open the message's file, or return None if the caller must use ``read`` instead.

        The call looks up one file name and reads no octets.  It does not raise; ``read`` raises the
        reason for a failure.  Another program may change the file later.  If the file becomes
        shorter, the connection must be aborted.  Octets after ``size`` must not be sent.
        """

    def record_form(self, entry: Entry, *, is_wire_ready: bool) -> None:
        """Record that the message's file was read completely, and that ``has_crlf`` is true of it.

        ``is_wire_ready`` has the same meaning as in ``RawMessage``.
        """


DELETION_LIMITED = "braked"


class SessionRecord(NamedTuple):
    """The record of a session for the journal.  It contains no passwords and no message text."""

    began_at: float
    """Start of the session, in seconds since the epoch."""
    ended_at: float
    """End of the session, in seconds since the epoch."""
    address: str
    """The client's address."""
    tls: str
    """Version of TLS, or ``no``."""
    credential: str
    """Name of the user's credential."""
    retrieved: Sequence[Entry]
    """Retrieved messages in the order of RETR.  If there are very many, later messages are
    omitted."""
    removed: Sequence[Entry]
    """Messages that UPDATE removed."""
    end: str
    """How the session ended: ``quit``, ``dropped``, ``autologout`` and others.  ``braked`` means
    that the deletion limit refused the removal.  ``crash`` means that a later session finished the
    UPDATE; nothing else is known about the session, not even the sizes of the messages."""
    unnamed: int = 0
    """Number of retrieved messages that ``retrieved`` omits."""


@runtime_checkable
class Journal(Protocol):
    """Add-on of a maildrop that records its sessions."""

    async def record(self, session: SessionRecord) -> None:
        """Record a session; called once at its end, after the removal, while the lock is held.

        If messages were removed, the record is durable on return.  A session that neither retrieved
        nor removed any message is not recorded, unless the deletion limit refused the removal.  The
        method must not raise; if the journal cannot be written, it must log the error.
        """

    async def past(self, credential: str) -> Sequence[SessionRecord]:
        """Return the recorded sessions with this credential, the oldest first.

        Raises:
            TemporaryFailure: the journal cannot be read now.
        """


@runtime_checkable
class Paced(Protocol):
    """Add-on of a maildrop that knows when its user last logged in (RFC 2449 §6.5)."""

    async def pace(self, delay: float) -> float:
        """Return how long the user must wait until ``delay`` seconds after the last login.

        The result is in seconds.  If it is 0, the login is allowed, and is recorded as the last
        login.  Logins in all processes are taken into account.
        """


class HeldMessage(NamedTuple):
    """A message that was removed from a maildrop and can still be restored."""

    name: str
    """Identifies the message among the held messages of the maildrop."""
    unique_id: str
    """The unique-id before the message was removed."""
    size: int
    """Number of stored octets."""
    removed_at: float
    """Seconds since the epoch."""


class Usage(NamedTuple):
    """The size of a user's mail in all folders, without held messages."""

    octets: int
    """Number of stored octets."""
    messages: int
    limit: int
    """Maximum number of octets; 0 for no limit."""


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

        By default the messages get new unique-ids.  Otherwise clients that have downloaded the
        messages before would not download them again.
        """

    async def purge(self, user: str, removed_before: float) -> int:
        """Destroy messages removed before a time (seconds since the epoch); return the number."""

    def users(self) -> AsyncIterator[str]:
        """Yield every user who has a maildrop in the store."""


class Remembering(Protocol):
    """Add-on of a store whose maildrops keep a journal."""

    async def sessions(self, user: str) -> Sequence[SessionRecord]:
        """Return the recorded sessions, the oldest first."""


class Sweep(NamedTuple):
    """Number of messages that expired and were removed or destroyed."""

    messages: int = 0
    doubtful: int = 0
    """Number of messages that were kept because the clock may be wrong.  If the clock is right,
    they have expired."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """Messages that will be removed earlier than expected, because a rule has changed."""

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
    """Add-on of a store that expires mail without a request from a client.

    If a time limit is shortened, the new limit applies to existing mail only a day after
    ``note_rules`` was called, so that a mistake can be corrected.  Therefore ``note_rules`` must be
    called each time a rule has changed.  All times are in seconds since the epoch.  ``now`` is the
    time of the clock, and ``until`` is the latest time that is known to have passed.
    """

    async def expire(self, user: str, days: int | None, *, until: float, now: float) -> Sweep:
        """Remove messages older than this number of days, or none if ``days`` is None.

        The messages are removed as by QUIT, so they are held if the store holds removed mail
        (RFC 2449 §6.7).

        Raises:
            MaildropInUse: a session is open, so no message was removed.
        """

    async def purge_due(self, user: str, *, until: float, now: float) -> Sweep:
        """Destroy the held messages whose hold time is over."""

    async def note_rules(self, user: str, days: int | None, now: float) -> Forecast:
        """Record the current rules, and return what will be removed because a rule has changed.

        The forecast is empty if the rules have already been recorded.  The method also stores the
        quota, so that other programs can read it.
        """

    async def forecast(self, user: str, days: int | None, now: float) -> Forecast:
        """Return the forecast of ``note_rules``, including rule changes of the last day.

        The rules are not recorded.
        """


class ServableStore(Store, Holding, Remembering, Expiring, Protocol):
    """A store with all add-ons that the server program requires."""

    hold: Callable[[str], float]
    """Returns the number of seconds for which a user's removed mail is held.  May block."""
