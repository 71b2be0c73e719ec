"""What to do with each message of a listing, and which may be deleted: policy alone, without I/O.

A message that was never taken is fetched.  One that was taken is due for deletion when the policy
says so, but being due is not enough: only ``prove`` makes the ``Proved`` without which nothing can
be deleted, from what this very session has seen of that message.

A unique-id names one message only while that message exists (RFC 1939 §7), and servers end
sessions, lose deletions and shorten listings.  So what was taken is known for ever, and a message
that may be another one under a known unique-id is fetched and compared.
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

_ENOUGH = 20  # messages; fewer prove nothing about a server
UNKNOWN_SIZE = -1  # octets, of what another program took
_HEADER = 4096  # octets, of a header whose size is not known yet
_HARDLY_ANY = 0.1  # of what we took is still listed under its unique-id
_DAY = 86_400.0  # seconds


class Doubt(StrEnum):
    """Why a message must be looked at before it counts as the one that was taken."""

    NONE = ""
    SHORT = "short"
    """Much less came than was announced; only its octets can settle that."""
    ANSWER = "answer"
    """It was marked as deleted, and the answer to QUIT is not known."""
    ADDRESS = "address"
    """The account was at another server, or had another login, when it was taken."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What the ledger tells of one message, by the key under which it is known."""

    size: int
    """Octets, as the server announced them, or UNKNOWN_SIZE."""
    at: float | None
    """When it was durable here, in seconds of the ledger's clock; None: it was begun, and a crash
    hid whether it was stored."""
    is_adopted: bool = False
    """It was marked as taken without being fetched, so it is not deleted there."""
    was_held: bool = False
    """The user deleted it here, and it waited in ``held/`` when we last looked."""
    is_gone: bool = False
    """Its deletion was confirmed by QUIT, so it should not be listed any more."""
    is_expected: bool = True
    """The last whole listing showed it."""
    doubt: Doubt = Doubt.NONE
    seen_again: float | None = None
    """When it was listed again after it was gone, by the same clock; its time counts from then."""

    @property
    def since(self) -> float | None:
        """When its time on the server began to count."""
        if self.at is None or self.seen_again is None:
            return self.at
        return max(self.at, self.seen_again)


@dataclass(frozen=True, slots=True)
class Record:
    """What was stored under a key: evidence that ``prove`` compares with what is seen now."""

    size: int
    """Octets, as the server announced them."""
    content: Content
    identity: str
    """The name by which the destination knows it."""


@dataclass(frozen=True, slots=True)
class Used:
    """What was had from a server in the last day."""

    messages: int = 0
    octets: int = 0


@dataclass(frozen=True, slots=True)
class Budget:
    """What a provider gives, or an operator allows; None has no limit."""

    messages: int | None = None
    """In a day."""
    octets: int | None = None
    """In a day."""
    logins: int | None = None
    """In an hour."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What stays on the server, and what is not fetched."""

    keep: float | None = None
    """Seconds after a message was taken until it is deleted there; 0 deletes it in the same
    session, None never."""
    newest: int = 0
    """So many messages of the listing are never deleted: those taken last."""
    verified: bool = False
    """Delete only in a later session, and only if the copy here is still what came."""
    until_deleted: bool = False
    """Delete what the user deleted here, when it is not held here any more."""
    largest: int | None = None
    """Octets; what is announced as larger stays where it is and is reported in every session."""
    limit: int | None = None
    """Messages fetched in one session."""
    stubs: bool = False
    """Of what is too large, its header is fetched, once."""
    whole: frozenset[str] = frozenset()
    """Messages by ``short_name`` that are fetched however large they are, or set aside."""
    budget: Budget = Budget()
    deletions: int | None = None
    """Messages that may be deleted in all on the day after the account's first session, or after
    ``rule`` has changed; None has no limit."""

    @property
    def rule(self) -> str:
        """What decides about deletions, in a form that can be compared with an earlier one."""
        if self.until_deleted or self.verified:
            keep = "until-deleted" if self.until_deleted else "until-verified"
        else:
            keep = "all" if self.keep is None else f"{self.keep:g}s"
        return f"keep={keep} newest={self.newest}"


@dataclass(frozen=True, slots=True)
class Aside:
    """A message that could not be taken."""

    tries: int
    reason: str
    until: float
    """When it is tried again, in seconds of the ledger's clock."""


@dataclass(frozen=True, slots=True)
class Fetch:
    """Store it."""

    message: Message
    key: str | None
    """Under which the ledger knows it; None: no unique-id tells, only its content will."""
    was_begun: bool = False
    """A crash hid whether it was stored already."""


@dataclass(frozen=True, slots=True)
class Compare:
    """Fetch it and compare it with what was stored under its key: it may be another message."""

    message: Message
    key: str
    why: str


@dataclass(frozen=True, slots=True)
class Look:
    """Its header tells whether it is what was stored under its key."""

    message: Message
    key: str
    why: str


@dataclass(frozen=True, slots=True)
class Due:
    """It was taken, and the policy does not keep it there any longer.

    That says nothing about which message is listed under this key now: see ``prove``.
    """

    message: Message
    key: str
    why: str


@dataclass(frozen=True, slots=True)
class Stub:
    """Store its header, with a note; the message is left alone."""

    message: Message
    key: str
    """Of the stub: for the ledger it is another message than the one it stands for, so nothing
    that is true of a stub lets that one be deleted."""
    was_begun: bool = False


@dataclass(frozen=True, slots=True)
class Skip:
    """Leave it alone, and report it."""

    message: Message
    reason: str


@dataclass(frozen=True, slots=True)
class Later:
    """It waits for another session."""

    message: Message
    why: str
    """What has no room for it now."""


Step = Fetch | Compare | Look | Due | Stub | Skip | Later


# Which message is that?


class Evidence(StrEnum):
    """How this session has shown which message it is about to delete."""

    FETCHED = "fetched and stored in this session"
    COMPARED = "fetched in this session, and equal to what was stored"
    HEADER = "unique-id, size and header fields are those of what was stored"


class Unproved(Enum):
    """Why a message may not be deleted now."""

    NOT_STORED = "it is not stored here"
    CAME_BACK = "it was gone, and is listed again since this session"
    SHORT = "it was shorter than announced"
    DIFFERENT = "it is another message than the one that was stored"
    UNSEEN = "it was not compared in this session"


@dataclass(frozen=True, slots=True)
class Seen:
    """What this session has seen of one message of its listing."""

    message: Message
    key: str
    header: bytes | None = None
    """The likeness of its header, by TOP."""
    whole: Content | None = None
    """All of it, by RETR."""
    is_new: bool = False
    """What came whole was stored in this session: durable, and in the ledger."""
    is_short: bool = False
    """Much less came than was announced."""
    has_come_back: bool = False
    """It was not expected to be listed."""


class _Seal:
    """Only this module has one."""


_SEAL: Final = _Seal()


@final
class Proved:
    """A message that may be deleted: this session has shown which one it is; see ``prove``."""

    __slots__ = ("evidence", "key", "message", "why")

    def __init__(self, seal: _Seal, seen: Seen, evidence: Evidence, why: str) -> None:
        if seal is not _SEAL:
            raise TypeError("only prove() makes a Proved")
        self.message = seen.message
        self.key = seen.key
        self.evidence = evidence
        self.why = why
        """Why the policy does not keep it."""


def prove(seen: Seen, known: Taken | None, record: Record | None, why: str) -> Proved | Unproved:
    """Show that the message ``seen`` is the one whose octets are durable here, or say what lacks.

    ``known`` and ``record`` are what the ledger holds of its key, durably.  Whether the policy
    lets the message go is another question.
    """
    if known is None or known.at is None or record is None:
        return Unproved.NOT_STORED
    if seen.has_come_back or known.is_gone:
        return Unproved.CAME_BACK
    if seen.is_new and seen.is_short:
        return Unproved.SHORT
    if seen.whole is not None:
        if not record.content.is_same(seen.whole):
            return Unproved.DIFFERENT
        return Proved(_SEAL, seen, Evidence.FETCHED if seen.is_new else Evidence.COMPARED, why)
    if seen.header is None or record.content.likeness is None or known.doubt is Doubt.SHORT:
        return Unproved.UNSEEN
    if seen.header != record.content.likeness or record.size != seen.message.size:
        return Unproved.DIFFERENT
    return Proved(_SEAL, seen, Evidence.HEADER, why)


def suspicion(known: Taken, message: Message) -> str:
    """Why a listed message may not be the one that was taken under its key; empty: it may count as
    that one, until it is to be deleted."""
    if known.is_gone:
        return "it was deleted before"
    if not known.is_expected:
        return "it was not listed for a while"
    if known.size not in (message.size, UNKNOWN_SIZE):
        return f"it had {known.size} octets before"
    return {
        Doubt.NONE: "",
        Doubt.SHORT: "it was shorter than announced",
        Doubt.ANSWER: "it may have been deleted before",
        Doubt.ADDRESS: "the account has moved",
    }[known.doubt]


def _must_be_fetched(known: Taken, message: Message) -> bool:
    """Whether it is suspicious, and its header alone cannot settle that."""
    is_light = known.doubt in (Doubt.ANSWER, Doubt.ADDRESS) and known.is_expected
    is_light = is_light and not known.is_gone and known.size == message.size
    return bool(suspicion(known, message)) and not is_light


# What to do.


def plan(
    listing: Sequence[Message],
    taken: Mapping[str, Taken],
    policy: Policy,
    now: float,
    room: Room | None = None,
    aside: Mapping[str, Aside] | None = None,
    postponed: Container[str] = (),
) -> Iterator[Step]:
    """The steps for one session: new mail in the order of the listing, then what is compared.

    ``taken`` is by unique-id, ``aside`` by ``aside_key``; what of it is ``postponed`` waits for the
    next run.  ``now`` is in seconds of the ledger's clock.  What does not fit into the day's budget
    lets all that is fetched after it wait as well, or a large message would wait for ever.
    """
    unique, room = unique_ids(listing), room or Room(policy)
    newest = newest_of(listing, taken, policy.newest)
    last: list[Message] = []
    for message in _poison_last(listing, aside or {}):
        key = unique.get(message.number)
        known = taken.get(key) if key is not None else None
        if (reason := _why_aside(message, aside or {}, postponed, policy, now)) is not None:
            yield Skip(message, reason)
        elif key is None or known is None or known.at is None:
            yield from _new(message, key, taken, policy, room)
        elif _must_be_fetched(known, message):
            last.append(message)  # new mail comes first
        elif message.number not in newest and is_due(known, policy, now):
            yield Due(message, key, why_due(known, policy, now))
        elif why := suspicion(known, message):
            yield Look(message, key, why)
    for message in last:
        key = unique[message.number]
        why = suspicion(taken[key], message)
        if is_too_large(message, policy):
            yield Skip(message, f"{why}; {_too_large(message, policy, key)}")
        else:
            yield compare(message, key, why, policy, room)


def _new(
    message: Message,
    key: str | None,
    taken: Mapping[str, Taken],
    policy: Policy,
    room: Room,
) -> Iterator[Step]:
    """Of a message that was not taken yet."""
    if room.is_full:
        yield Later(message, "the full destination")
    elif is_too_large(message, policy):
        stub = taken.get(stub_key(key)) if key is not None else None
        if not policy.stubs or key is None:
            yield Skip(message, _too_large(message, policy, key))
        elif stub is None or stub.at is None:
            has_room = room.takes(_HEADER)
            yield (
                Stub(message, stub_key(key), was_begun=stub is not None)
                if has_room
                else Later(message, room.why)
            )
    elif (reason := _too_large_for_a_day(message, policy)) is not None:
        yield Skip(message, reason)
    elif room.takes(message.size):
        yield Fetch(message, key, was_begun=key is not None and key in taken)
    else:
        yield Later(message, room.why)


def compare(
    message: Message, key: str, why: str, policy: Policy, room: Room
) -> Compare | Skip | Later:
    """Fetch all of it to find out whether it is what was taken under this key, if there is room."""
    if (reason := _too_large_for_a_day(message, policy)) is not None:
        return Skip(message, f"{why}; {reason}")
    return Compare(message, key, why) if room.takes(message.size) else Later(message, room.why)


def _too_large(message: Message, policy: Policy, key: str | None) -> str:
    name = f"; to have it: --whole {short_name(message)}" if key is not None else ""
    return f"{message.size} octets, more than {policy.largest}{name}"


def _too_large_for_a_day(message: Message, policy: Policy) -> str | None:
    most = policy.budget.octets
    if most is None or message.size <= most:
        return None
    return f"{message.size} octets, more than the {most} of a day"


class Room:
    """What is left for this session."""

    def __init__(self, policy: Policy, used: Used | None = None, *, is_full: bool = False) -> None:
        """``is_full``: the destination takes no new message."""
        self.is_full = is_full
        budget, used = policy.budget, used or Used()
        limit = math.inf if policy.limit is None else policy.limit
        left = math.inf if budget.messages is None else budget.messages - used.messages
        self._messages = min(limit, left)
        self.why = "the limit" if limit <= left else "the day's budget"
        self._octets = math.inf if budget.octets is None else budget.octets - used.octets

    def takes(self, octets: int) -> bool:
        """Whether a message of this size fits; from the first that does not, none does."""
        if self._messages >= 1 and octets > self._octets:
            self._messages, self.why = 0, "the day's budget"
        if self._messages < 1:
            return False
        self._messages -= 1
        self._octets -= octets
        return True


def _poison_last(listing: Sequence[Message], aside: Mapping[str, Aside]) -> Iterator[Message]:
    """What ended a session before is tried when all else is safe."""
    if not aside:
        yield from listing
        return
    yield from (each for each in listing if aside_key(each) not in aside)
    yield from (each for each in listing if aside_key(each) in aside)


def _why_aside(
    message: Message,
    aside: Mapping[str, Aside],
    postponed: Container[str],
    policy: Policy,
    now: float,
) -> str | None:
    key = aside_key(message)
    found = aside.get(key)
    if found is not None and found.until > now:
        name = short_name(message)
        if name not in policy.whole:
            hours = math.ceil((found.until - now) / 3600)
            return (
                f"set aside after {found.tries} tries ({found.reason}); tried again in {hours} h, "
                f"or now: --whole {name}"
            )
    if key in postponed:
        reason = found.reason if found is not None else "not all of it is stored here"
        name = short_name(message)
        return f"set aside ({reason}); tried again in the next run, or now: --whole {name}"
    return None


def aside_key(message: Message) -> str:
    """Under which a message is set aside.  Where there is no unique-id, its size has to do: another
    message of that size waits with it."""
    return message.unique_id or f" size {message.size}"


def is_too_large(message: Message, policy: Policy) -> bool:
    """Whether it stays on its server for its size alone."""
    if policy.largest is None or message.size <= policy.largest:
        return False
    return short_name(message) not in policy.whole


def short_name(message: Message) -> str:
    """A name for people to use, the same in every session; nothing of it is a stranger's text."""
    seen = f"{message.unique_id} {message.size}".encode("utf-8", "surrogateescape")
    return sha256(seen).hexdigest()[:12]


def stub_key(key: str) -> str:
    """Under which the ledger knows the stub of a message; no unique-id begins with a space."""
    return f" stub {key}"


def is_due(known: Taken, policy: Policy, now: float) -> bool:
    """Whether the policy lets go of a message that was taken, if it is that message."""
    if known.is_gone or known.is_adopted or known.since is None or policy.keep is None:
        return False
    return policy.keep == 0 or now - known.since >= policy.keep


def why_due(known: Taken, policy: Policy, now: float) -> str:
    """For the log: why the policy lets go of a message that is due."""
    assert known.since is not None
    if policy.until_deleted:
        return "deleted here"
    if policy.verified:
        return "the copy here is verified"
    if not policy.keep:
        return "nothing is kept there"
    return f"taken {(now - known.since) / _DAY:.1f} days ago"


def unique_ids(listing: Sequence[Message]) -> dict[int, str]:
    """Unique-ids by message-number, without those that stand for two messages (RFC 1939 §7)."""
    seen = Counter(message.unique_id for message in listing)
    return {
        message.number: message.unique_id
        for message in listing
        if message.unique_id and seen[message.unique_id] == 1
    }


def is_strange(listing: Sequence[Message], taken: Mapping[str, Taken], expected: int) -> bool:
    """Whether hardly any of the ``expected`` messages, taken before and not deleted, is listed.

    What then seems to be new may be old mail under other unique-ids.
    """
    return _known(listing, taken) < expected * _HARDLY_ANY


def looks_moved(listing: Sequence[Message], taken: Mapping[str, Taken], expected: int) -> bool:
    """Whether nearly everything looks new where much should be known.

    Servers give new unique-ids to old mail when a provider migrates; to fetch all of it again is a
    decision for people.
    """
    new = len(listing) - _known(listing, taken)
    return min(expected, new) >= _ENOUGH and is_strange(listing, taken, expected)


def _known(listing: Sequence[Message], taken: Mapping[str, Taken]) -> int:
    ids = unique_ids(listing).values()
    return sum(1 for each in ids if each in taken or stub_key(each) in taken)


def newest_of(listing: Sequence[Message], taken: Mapping[str, Taken], count: int) -> frozenset[int]:
    """Message-numbers of the messages taken last; what was not taken yet is newer than all."""
    if not count:
        return frozenset()

    def age(message: Message) -> tuple[float, int]:
        known = taken.get(message.unique_id or "")
        at = math.inf if known is None or known.since is None else known.since
        return at, message.number

    return frozenset(message.number for message in sorted(listing, key=age)[-count:])
