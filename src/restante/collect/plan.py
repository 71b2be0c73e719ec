"""Decide what to do with each listed message, and which messages may be deleted.

The module decides but does no I/O.  A message is *collected* when it is stored here and recorded in
the ledger.  A message that was not collected is fetched.  A collected message is due for deletion
when the policy no longer keeps it on the server.  This alone does not allow the deletion: every
deletion requires a ``Proof``, which only ``prove`` creates, from data that the current session
received.

A unique-id identifies a message only while that message exists (RFC 1939 §7), and servers end
sessions early, lose deletions and send incomplete listings.  Therefore the ledger keeps its records
of collected messages for ever.  If a message has a known unique-id but may be a different message,
it is fetched and compared.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, StrEnum
from hashlib import sha256
from typing import Final, final

from ..pop3.listing import Message
from .fingerprint import Content

# Minimum number of messages for which a listing without known unique-ids indicates a migration.  If
# there are fewer, the user may have deleted the old mail and received new mail since the last
# session.
_MIN_MESSAGES = 20
UNKNOWN_SIZE = -1  # octets; another program collected the message and did not record its size
# Octets that a plan reserves for a header, because its size is unknown.  Most headers are smaller.
_HEADER_SIZE = 4096
# If less than this share of the expected messages is listed, this indicates a migration.  After a
# migration, no message has its old unique-id.  The share is not 0, because some servers use numbers
# as unique-ids, and a new number may equal an old one.
_MIN_LISTED_SHARE = 0.1
_DAY = 86_400.0  # seconds


class Doubt(StrEnum):
    """Why a listed message must be checked before it is treated as the collected message."""

    NONE = ""
    SHORT = "short"
    """The server sent much less than it announced.  Only another fetch can settle this doubt."""
    ANSWER = "answer"
    """The message was marked as deleted, and the server's response to QUIT is unknown."""
    ADDRESS = "address"
    """The message was collected when the account had a different server or login."""


@dataclass(frozen=True, slots=True)
class Collected:
    """The state of one message in the ledger, where it is stored under the message's key."""

    size: int
    """Size in octets as announced by the server, or UNKNOWN_SIZE."""
    at: float | None
    """When the message became durable here, in seconds of the ledger's clock.  None: an earlier
    session began to store the message, and it is unknown whether it finished."""
    is_adopted: bool = False
    """Whether the message was recorded as collected without being fetched.  Such a message is
    never deleted on the server."""
    was_held: bool = False
    """Whether the user deleted the message here, and it was in ``held/`` at the last check."""
    is_gone: bool = False
    """Whether QUIT confirmed the deletion, so that the server should no longer list the message."""
    is_expected: bool = True
    """Whether the last complete listing contained the message."""
    doubt: Doubt = Doubt.NONE
    """Why the message listed under this key may be a different one."""
    seen_again: float | None = None
    """When the message was listed again after its deletion, in seconds of the ledger's clock.  The
    time for which it stays on the server starts at this moment."""

    @property
    def since(self) -> float | None:
        """Start of the time for which the message stays on the server, by the ledger's clock."""
        if self.at is None or self.seen_again is None:
            return self.at
        return max(self.at, self.seen_again)


@dataclass(frozen=True, slots=True)
class Record:
    """A stored message; ``prove`` compares it with the message that the session has received."""

    size: int
    """Size in octets as announced by the server."""
    content: Content
    """Fingerprints of the stored octets."""
    identity: str
    """The message's name at the destination."""


@dataclass(frozen=True, slots=True)
class Used:
    """Messages and octets that an account fetched in the last day."""

    messages: int = 0
    """Number of messages, including those that were not stored."""
    octets: int = 0
    """Number of octets received."""


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits of a provider or operator on fetching; None means no limit."""

    messages: int | None = None
    """Maximum number of messages in a day."""
    octets: int | None = None
    """Maximum number of octets in a day."""
    logins: int | None = None
    """Maximum number of logins in an hour."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Rules of one account: which messages stay on the server, and which are not fetched."""

    keep: float | None = None
    """Seconds for which a collected message stays on the server.  0 deletes it in the same session;
    None never deletes it."""
    newest: int = 0
    """Number of the most recently collected messages that are never deleted on the server."""
    verified: bool = False
    """Delete a message only in a later session than the one that stored it, and only if the copy
    here is still intact."""
    until_deleted: bool = False
    """Delete a message only after the user has deleted it here and it is no longer held."""
    largest: int | None = None
    """Maximum announced size in octets.  Larger messages stay on the server and are reported in
    every session."""
    limit: int | None = None
    """Maximum number of messages to fetch in one session."""
    stubs: bool = False
    """Fetch and store the header of each message that is too large."""
    whole: frozenset[str] = frozenset()
    """Messages, by ``short_name``, to fetch even if they are too large or set aside."""
    budget: Budget = Budget()
    """Limits per day and per hour for all sessions of the account."""
    deletions: int | None = None
    """Maximum number of messages to delete within 24 hours after the account's first session, and
    within 24 hours after ``rule`` has changed.  None means no limit."""

    @property
    def rule(self) -> str:
        """The deletion rule as text, for comparison with the rule of an earlier session."""
        if self.until_deleted or self.verified:
            keep = "until-deleted" if self.until_deleted else "until-verified"
        else:
            keep = "all" if self.keep is None else f"{self.keep:g}s"
        return f"keep={keep} newest={self.newest}"


@dataclass(frozen=True, slots=True)
class SetAside:
    """A message that could not be collected and is not fetched again before a certain time."""

    tries: int
    """Number of runs in which the message could not be collected."""
    reason: str
    """Why the last try failed; for messages to the user."""
    until: float
    """When the message is tried again, in seconds of the ledger's clock."""


@dataclass(frozen=True, slots=True)
class Fetch:
    """Fetch and store a message."""

    message: Message
    key: str | None
    """The message's key in the ledger.  None: the message has no unique-id of its own, so only its
    content can identify it."""
    was_begun: bool = False
    """Whether an earlier run began to store the message, and may not have finished."""


@dataclass(frozen=True, slots=True)
class Compare:
    """Fetch a message, and compare it with the message that is stored under its key."""

    message: Message
    key: str
    why: str


@dataclass(frozen=True, slots=True)
class CheckHeader:
    """Fetch a header to check that the message is the one that is stored under its key."""

    message: Message
    key: str
    why: str


@dataclass(frozen=True, slots=True)
class Due:
    """Delete a collected message that the policy no longer keeps on the server.

    The server may now list a different message under the same key, so the deletion also requires
    ``prove``.
    """

    message: Message
    key: str
    why: str


@dataclass(frozen=True, slots=True)
class Stub:
    """Store the header of a message with a note; the message itself stays on the server."""

    message: Message
    key: str
    """The stub's own key.  The ledger treats the stub and its message as different messages, so
    that no record of a stub allows the message to be deleted."""
    was_begun: bool = False
    """Whether an earlier run began to store the stub, and may not have finished."""


@dataclass(frozen=True, slots=True)
class Skip:
    """Leave a message on the server and report it."""

    message: Message
    reason: str


@dataclass(frozen=True, slots=True)
class Postpone:
    """Leave a message for another session."""

    message: Message
    why: str
    """The limit that prevents the message from being fetched in this session."""


Step = Fetch | Compare | CheckHeader | Due | Stub | Skip | Postpone


# Identity of messages.


class Evidence(StrEnum):
    """How this session has confirmed the identity of a message that it is about to delete."""

    FETCHED = "fetched and stored in this session"
    COMPARED = "fetched in this session, and equal to what was stored"
    HEADER = "unique-id, size and header fields are those of what was stored"


class Unproved(Enum):
    """Why a message may not be deleted now."""

    NOT_STORED = "it is not stored here"
    CAME_BACK = "it was missing, and is listed again in this session"
    SHORT = "it was shorter than announced"
    DIFFERENT = "it is not the message that was stored"
    UNSEEN = "it was not compared in this session"


@dataclass(frozen=True, slots=True)
class Seen:
    """The data of one listed message that this session has received."""

    message: Message
    key: str
    header: bytes | None = None
    """The digest of the header that TOP returned."""
    whole: Content | None = None
    """The fingerprints of the whole message that RETR returned."""
    is_new: bool = False
    """Whether ``whole`` was stored in this session, at the destination and in the ledger."""
    is_short: bool = False
    """Whether the server sent much less than it announced."""
    has_come_back: bool = False
    """Whether the message was deleted or missing before, and is listed again in this session."""


class _Seal:
    """Permission to create a ``Proof``; the only instance is private to this module."""


_SEAL: Final = _Seal()


@final
class Proof:
    """A message that may be deleted, because ``prove`` has confirmed its identity.

    ``Deletions`` accepts no other type, so no other code can cause DELE to be sent.
    """

    __slots__ = ("evidence", "key", "message", "why")

    def __init__(self, seal: _Seal, seen: Seen, evidence: Evidence, why: str) -> None:
        if seal is not _SEAL:
            raise TypeError("only prove() can create a Proof")
        self.message = seen.message
        self.key = seen.key
        self.evidence = evidence
        self.why = why
        """Why the policy no longer keeps the message on the server; for the log."""


def prove(seen: Seen, known: Collected | None, record: Record | None, why: str) -> Proof | Unproved:
    """Prove that the message ``seen`` in this session is the message that is stored here.

    ``known`` and ``record`` are the ledger's durable records under the message's key.  ``why`` is
    the reason for the deletion; the caller decides whether the message is due.  Returns the
    permission to delete the message, or the reason why there is no proof.
    """
    # The claim to prove: deleting message n of this session destroys only octets that are already
    # durable here.  It has two parts.
    #
    # A. A message was stored.  The ledger gets a row only after the destination made the octets
    #    durable, so ``known.at`` and ``record`` are evidence of that.  An adopted message has no
    #    record, because it was never fetched.  A message whose storing was interrupted has no time.
    #
    # B. The message listed now is that message.  The unique-id alone does not show this: a server
    #    may reuse it after a deletion (RFC 1939 §7), after its maildrop was rebuilt or restored, or
    #    because its unique-ids are consecutive numbers.  So this session must have received the
    #    message, in one of two ways:
    #    - All octets, with RETR: they equal the stored octets, or differ only in header fields that
    #      servers rewrite (``Content.is_same``).  No further assumption is necessary.
    #    - The header, with TOP: unique-id, announced size and the fields written by the sender all
    #      agree.  A different message would need the same Message-ID, Date, From, To, Cc and
    #      Subject *and* the same size *and* the reused unique-id.  A stored header with neither
    #      Message-ID nor Date could belong to many messages, so it is not accepted as evidence.
    #
    # Message-numbers do not change during a session (RFC 1939 §4), so DELE marks the message that
    # this session has received under the same number.  Data from an earlier session proves nothing.
    #
    # Three kinds of messages are excluded, even if A and B seem to be true:
    # - A message that was deleted or missing, and is listed again for the first time in this
    #   session.  A user may have restored it on purpose, so the time for which it stays on the
    #   server starts again.
    # - A message stored in this session that is much shorter than announced.  The server may have
    #   truncated it, so the deletion would destroy the rest.  If a later session receives the same
    #   octets (COMPARED), the announced size was wrong, and the content is complete.
    # - A message that was too short when it was stored, if only its header was received now.  The
    #   header does not show whether the stored body is complete.
    if known is None or known.at is None or record is None:
        return Unproved.NOT_STORED
    if seen.has_come_back or known.is_gone:
        return Unproved.CAME_BACK
    if seen.is_new and seen.is_short:
        return Unproved.SHORT
    if seen.whole is not None:
        if not record.content.is_same(seen.whole):
            return Unproved.DIFFERENT
        return Proof(_SEAL, seen, Evidence.FETCHED if seen.is_new else Evidence.COMPARED, why)
    if seen.header is None or record.content.header_digest is None or known.doubt is Doubt.SHORT:
        return Unproved.UNSEEN
    if seen.header != record.content.header_digest or record.size != seen.message.size:
        return Unproved.DIFFERENT
    return Proof(_SEAL, seen, Evidence.HEADER, why)


def suspicion(known: Collected, message: Message) -> str:
    """Return why a listed message may differ from the message that was collected under its key.

    If the text is empty, the two are treated as the same message.  A deletion still requires
    ``prove``.
    """
    if known.is_gone:
        return "it was deleted before"
    if not known.is_expected:
        return "it was not listed for a while"
    if known.size not in (message.size, UNKNOWN_SIZE):
        return f"its size was {known.size} octets before"
    return {
        Doubt.NONE: "",
        Doubt.SHORT: "it was shorter than announced",
        Doubt.ANSWER: "it may have been deleted before",
        Doubt.ADDRESS: "the account's server or login has changed",
    }[known.doubt]


def _must_be_fetched(known: Collected, message: Message) -> bool:
    """Return whether the message may differ, and its header is not enough to check it."""
    is_header_enough = known.doubt in (Doubt.ANSWER, Doubt.ADDRESS) and known.is_expected
    is_header_enough = is_header_enough and not known.is_gone and known.size == message.size
    return bool(suspicion(known, message)) and not is_header_enough


# Steps.


def plan(
    listing: Sequence[Message],
    collected: Mapping[str, Collected],
    policy: Policy,
    now: float,
    allowance: Allowance | None = None,
    aside: Mapping[str, SetAside] | None = None,
    postponed: Container[str] = (),
) -> Iterator[Step]:
    """Yield the steps for one session: new mail in the order of the listing, then comparisons.

    ``collected`` is keyed by unique-id, ``aside`` by ``aside_key``.  Messages whose ``aside_key``
    is in ``postponed`` wait for the next run.  ``now`` is in seconds of the ledger's clock.

    If a message does not fit into the day's budget, all messages after it wait as well.  Otherwise
    smaller messages could use up the budget every day, and a large message would never be fetched.
    """
    unique, allowance = unique_ids(listing), allowance or Allowance(policy)
    newest = newest_of(listing, collected, policy.newest)
    suspicious: list[Message] = []
    for message in _set_aside_last(listing, aside or {}):
        key = unique.get(message.number)
        known = collected.get(key) if key is not None else None
        if (reason := _why_aside(message, aside or {}, postponed, policy, now)) is not None:
            yield Skip(message, reason)
        elif key is None or known is None or known.at is None:
            yield from _new(message, key, collected, policy, allowance)
        elif _must_be_fetched(known, message):
            suspicious.append(message)  # compared after new mail has been fetched
        elif message.number not in newest and is_due(known, policy, now):
            yield Due(message, key, why_due(known, policy, now))
        elif why := suspicion(known, message):
            yield CheckHeader(message, key, why)
    for message in suspicious:
        key = unique[message.number]
        why = suspicion(collected[key], message)
        if is_too_large(message, policy):
            yield Skip(message, f"{why}; {_too_large(message, policy, key)}")
        else:
            yield compare(message, key, why, policy, allowance)


def _new(
    message: Message,
    key: str | None,
    collected: Mapping[str, Collected],
    policy: Policy,
    allowance: Allowance,
) -> Iterator[Step]:
    """Yield the step for a message that has not been collected, or none if its stub is stored."""
    if allowance.is_full:
        yield Postpone(message, "the full destination")
    elif is_too_large(message, policy):
        stub = collected.get(stub_key(key)) if key is not None else None
        if not policy.stubs or key is None:
            yield Skip(message, _too_large(message, policy, key))
        elif stub is None or stub.at is None:
            is_allowed = allowance.reserve(_HEADER_SIZE)
            yield (
                Stub(message, stub_key(key), was_begun=stub is not None)
                if is_allowed
                else Postpone(message, allowance.why)
            )
    elif (reason := _too_large_for_a_day(message, policy)) is not None:
        yield Skip(message, reason)
    elif allowance.reserve(message.size):
        yield Fetch(message, key, was_begun=key is not None and key in collected)
    else:
        yield Postpone(message, allowance.why)


def compare(
    message: Message, key: str, why: str, policy: Policy, allowance: Allowance
) -> Compare | Skip | Postpone:
    """Return the step that compares the whole message with the message collected under its key."""
    if (reason := _too_large_for_a_day(message, policy)) is not None:
        return Skip(message, f"{why}; {reason}")
    if allowance.reserve(message.size):
        return Compare(message, key, why)
    return Postpone(message, allowance.why)


def _too_large(message: Message, policy: Policy, key: str | None) -> str:
    hint = f"; to fetch it: --whole {short_name(message)}" if key is not None else ""
    return f"{message.size} octets, more than {policy.largest}{hint}"


def _too_large_for_a_day(message: Message, policy: Policy) -> str | None:
    limit = policy.budget.octets
    if limit is None or message.size <= limit:
        return None
    return f"{message.size} octets, more than the {limit} allowed per day"


class Allowance:
    """The messages and octets that this session may still fetch.

    They are limited by ``Policy.limit`` and the daily budget.
    """

    def __init__(self, policy: Policy, used: Used | None = None, *, is_full: bool = False) -> None:
        """``used`` is subtracted from the daily budget; ``is_full``: the destination is full."""
        self.is_full = is_full
        budget, used = policy.budget, used or Used()
        limit = math.inf if policy.limit is None else policy.limit
        left = math.inf if budget.messages is None else budget.messages - used.messages
        self._messages = min(limit, left)
        self.why = "the limit" if limit <= left else "the day's budget"
        self._octets = math.inf if budget.octets is None else budget.octets - used.octets

    def reserve(self, octets: int) -> bool:
        """Reserve a message of this size; after one refusal, always return False."""
        if self._messages >= 1 and octets > self._octets:
            self._messages, self.why = 0, "the day's budget"
        if self._messages < 1:
            return False
        self._messages -= 1
        self._octets -= octets
        return True


def _set_aside_last(listing: Sequence[Message], aside: Mapping[str, SetAside]) -> Iterator[Message]:
    """Yield the messages in ``aside`` last, because they may break the connection again."""
    if not aside:
        yield from listing
        return
    yield from (each for each in listing if aside_key(each) not in aside)
    yield from (each for each in listing if aside_key(each) in aside)


def _why_aside(
    message: Message,
    aside: Mapping[str, SetAside],
    postponed: Container[str],
    policy: Policy,
    now: float,
) -> str | None:
    """Return why the message is not tried in this session, or None if it may be tried."""
    key = aside_key(message)
    earlier = aside.get(key)
    if earlier is not None and earlier.until > now:
        name = short_name(message)
        if name not in policy.whole:
            hours = math.ceil((earlier.until - now) / 3600)
            return (
                f"set aside after {earlier.tries} tries ({earlier.reason}); "
                f"tried again in {hours} h, or now: --whole {name}"
            )
    if key in postponed:
        reason = earlier.reason if earlier is not None else "not all of it is stored here"
        name = short_name(message)
        return f"set aside ({reason}); tried again in the next run, or now: --whole {name}"
    return None


def aside_key(message: Message) -> str:
    """Return the key under which a message is set aside.

    If the message has no unique-id, the key is its size, so all messages of this size wait.
    """
    return message.unique_id or f" size {message.size}"


def is_too_large(message: Message, policy: Policy) -> bool:
    """Return whether the message stays on the server because of its size."""
    if policy.largest is None or message.size <= policy.largest:
        return False
    return short_name(message) not in policy.whole


def short_name(message: Message) -> str:
    """Return a name for the command line, which is the same in every session.

    The name is a digest, so that no text from a hostile server reaches a terminal or a shell.
    """
    identity = f"{message.unique_id} {message.size}".encode("utf-8", "surrogateescape")
    return sha256(identity).hexdigest()[:12]  # 48 bits: a collision requires millions of messages


def stub_key(key: str) -> str:
    """Return the key of a message's stub in the ledger.

    The key begins with a space, which no unique-id contains (RFC 1939 §7), so no server lists it.
    """
    return f" stub {key}"


def is_due(known: Collected, policy: Policy, now: float) -> bool:
    """Return whether the policy no longer keeps a collected message on the server.

    The server may now list a different message under the same key; see ``prove``.
    """
    if known.is_gone or known.is_adopted or known.since is None or policy.keep is None:
        return False
    return policy.keep == 0 or now - known.since >= policy.keep


def why_due(known: Collected, policy: Policy, now: float) -> str:
    """Return why the message is due, for the log."""
    assert known.since is not None
    if policy.until_deleted:
        return "deleted here"
    if policy.verified:
        return "the copy here is verified"
    if not policy.keep:
        return "the account keeps no mail on the server"
    return f"taken {(now - known.since) / _DAY:.1f} days ago"


def unique_ids(listing: Sequence[Message]) -> dict[int, str]:
    """Return the unique-ids by message-number, without those that are listed more than once.

    RFC 1939 §7 allows unique-ids that are hashes of the messages, so identical messages may have
    the same unique-id.
    """
    counts = Counter(message.unique_id for message in listing)
    return {
        message.number: message.unique_id
        for message in listing
        if message.unique_id and counts[message.unique_id] == 1
    }


def lists_hardly_any(
    listing: Sequence[Message], collected: Mapping[str, Collected], expected: int
) -> bool:
    """Return whether hardly any of the ``expected`` messages are listed.

    ``expected`` is the number of collected messages that were not deleted.  If hardly any of them
    are listed, messages that look new may be old mail under new unique-ids.
    """
    return _count_known(listing, collected) < expected * _MIN_LISTED_SHARE


def looks_moved(
    listing: Sequence[Message], collected: Mapping[str, Collected], expected: int
) -> bool:
    """Return whether nearly every message looks new although many should be known.

    After a migration, the provider's new server lists old mail under new unique-ids.  The user must
    decide whether to fetch all of it again.
    """
    new = len(listing) - _count_known(listing, collected)
    return min(expected, new) >= _MIN_MESSAGES and lists_hardly_any(listing, collected, expected)


def _count_known(listing: Sequence[Message], collected: Mapping[str, Collected]) -> int:
    ids = unique_ids(listing).values()
    return sum(1 for each in ids if each in collected or stub_key(each) in collected)


def newest_of(
    listing: Sequence[Message], collected: Mapping[str, Collected], count: int
) -> frozenset[int]:
    """Return the message-numbers of the ``count`` messages that were collected last.

    Messages that have not been collected yet are treated as newer than all collected messages.
    """
    if not count:
        return frozenset()

    def sort_key(message: Message) -> tuple[float, int]:
        known = collected.get(message.unique_id or "")
        at = math.inf if known is None or known.since is None else known.since
        return at, message.number

    return frozenset(message.number for message in sorted(listing, key=sort_key)[-count:])
