"""What to do with each message of a listing: policy alone, without I/O.

A message that was never taken is fetched and never deleted; one that was taken is deleted when the
policy says so.  Nothing is inferred from a message's absence: a listing may be short today and
whole tomorrow, so what was taken once is known for ever.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

from ..pop3.listing import Message

_ENOUGH = 20  # messages; fewer prove nothing about a server
UNKNOWN_SIZE = -1  # octets, of what another program took
_HEADER = 4096  # octets, of a header whose size is not known yet
_HARDLY_ANY = 0.1  # of what we took is still listed under its unique-id


@dataclass(frozen=True, slots=True)
class Taken:
    """What the ledger tells of one message."""

    size: int
    """Octets, as the server announced them, or UNKNOWN_SIZE."""
    at: float | None
    """When it was durable here, in seconds since the epoch; None: it was begun, and a crash hid
    whether it was stored."""
    is_adopted: bool = False
    """It was marked as taken without being fetched, so it is not deleted there."""
    was_held: bool = False
    """Somebody deleted it here, and it waited in ``held/`` when we last looked."""
    is_gone: bool = False
    """Its deletion was confirmed by QUIT, so it should not be listed any more."""


@dataclass(frozen=True, slots=True)
class Used:
    """What was had from a server in the last day."""

    messages: int = 0
    octets: int = 0


@dataclass(frozen=True, slots=True)
class Budget:
    """What a provider gives, or somebody wants to take; None is without end."""

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
    """Delete what somebody deleted here, when it is not held here any more."""
    largest: int | None = None
    """Octets; what is announced as larger stays where it is and is told in every session."""
    limit: int | None = None
    """Messages fetched in one session."""
    stubs: bool = False
    """Of what is too large, its header is fetched, once."""
    whole: frozenset[str] = frozenset()
    """Messages by ``short_name`` that are fetched however large they are."""
    budget: Budget = Budget()


@dataclass(frozen=True, slots=True)
class Fetch:
    """Store it."""

    message: Message
    key: str | None
    """Under which the ledger knows it; None: no unique-id tells, only its content will."""
    was_begun: bool = False
    """A crash hid whether it was stored already."""


@dataclass(frozen=True, slots=True)
class Stub:
    """Store its header, with a note; the message is left alone."""

    message: Message
    key: str
    """Of the stub: for the ledger it is another message than the one it stands for, so nothing
    that is true of a stub lets that one be deleted."""
    was_begun: bool = False


@dataclass(frozen=True, slots=True)
class Delete:
    """Mark it as deleted: it is safe here."""

    message: Message
    key: str


@dataclass(frozen=True, slots=True)
class Skip:
    """Leave it alone, and say so."""

    message: Message
    reason: str


@dataclass(frozen=True, slots=True)
class Later:
    """It is wanted, and waits for another session."""

    message: Message
    why: str
    """What has no room for it now."""


Step = Fetch | Stub | Delete | Skip | Later


def plan(
    listing: Sequence[Message],
    taken: Mapping[str, Taken],
    policy: Policy,
    now: float,
    used: Used | None = None,
) -> Iterator[Step]:
    """The steps for one session, in the order of the listing.

    ``taken`` is by unique-id; ``now`` in seconds since the epoch.  What does not fit into the day's
    budget lets all that is fetched after it wait as well, or a large message would wait for ever.
    """
    unique = unique_ids(listing)
    newest = _newest(listing, taken, policy.newest)
    room = _Room(policy, used or Used())
    for message in listing:
        key = unique.get(message.number)
        known = taken.get(key) if key is not None else None
        if key is not None and known is not None and known.at is not None:
            if known.size not in (message.size, UNKNOWN_SIZE) and not known.is_gone:
                known = None  # a server that gives old unique-ids to new mail: its content decides
            elif message.number not in newest and is_due(known, policy, now):
                yield Delete(message, key)
                continue
            else:
                continue
        if is_too_large(message, policy):
            stub = taken.get(stub_key(key)) if key is not None else None
            if not policy.stubs or key is None:
                name = f"; to have it: --whole {short_name(message)}" if key is not None else ""
                yield Skip(message, f"{message.size} octets, more than {policy.largest}{name}")
            elif stub is None or stub.at is None:
                has_room = room.takes(_HEADER)
                yield (
                    Stub(message, stub_key(key), was_begun=stub is not None)
                    if has_room
                    else Later(message, room.why)
                )
        elif policy.budget.octets is not None and message.size > policy.budget.octets:
            reason = f"{message.size} octets, more than the {policy.budget.octets} of a day"
            yield Skip(message, reason)
        elif room.takes(message.size):
            yield Fetch(message, key, was_begun=known is not None)
        else:
            yield Later(message, room.why)


class _Room:
    """What is left for this session."""

    def __init__(self, policy: Policy, used: Used) -> None:
        budget = policy.budget
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


def is_too_large(message: Message, policy: Policy) -> bool:
    """Whether it stays on its server for its size alone."""
    if policy.largest is None or message.size <= policy.largest:
        return False
    return short_name(message) not in policy.whole


def short_name(message: Message) -> str:
    """For people to name a message by, the same in every session; nothing of a stranger's."""
    seen = f"{message.unique_id} {message.size}".encode("utf-8", "surrogateescape")
    return sha256(seen).hexdigest()[:12]


def stub_key(key: str) -> str:
    """Under which the ledger knows the stub of a message; no unique-id begins with a space."""
    return f" stub {key}"


def is_due(known: Taken, policy: Policy, now: float) -> bool:
    """Whether a message that is safe here has been on its server for long enough.

    One whose deletion was confirmed before and that is listed again was forgotten by the server.
    """
    if known.is_gone or known.is_adopted:
        return known.is_gone
    return known.at is not None and policy.keep is not None and now - known.at >= policy.keep


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


def _newest(listing: Sequence[Message], taken: Mapping[str, Taken], count: int) -> frozenset[int]:
    """Message-numbers of the messages taken last; what was not taken yet is newer than all."""
    if not count:
        return frozenset()

    def age(message: Message) -> tuple[float, int]:
        known = taken.get(message.unique_id or "")
        at = math.inf if known is None or known.at is None else known.at
        return at, message.number

    return frozenset(message.number for message in sorted(listing, key=age)[-count:])
