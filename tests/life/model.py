"""The promises of restante so far, from its documentation.  No I/O, and no code of restante.

A message is identified by its text.  The places where it may be are a set: usually of one, but of
several after a kill, until the next check.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, pairwise
from math import inf

LISTED, HELD, GONE = "listed", "held", "gone"
OWN, JOINT = "own", "joint"
"""Kinds of unique-ids: of a folder shown alone, and of one shown together with others."""

_TRACE = 1000  # most octets of trace fields that a server puts before a message


@dataclass(eq=False, slots=True)
class Message:
    """One message of one maildrop."""

    text: bytes
    """On the wire, without the trace fields that the server put before it."""
    places: frozenset[str] = frozenset({LISTED})
    stored: int | None = None
    """Octets in its file; None if an unknown number of trace fields precedes the text."""
    wire: bytes = b""
    """The message as retrieved; empty until it was read."""
    unique_ids: dict[str, str] = field(default_factory=dict)
    """The unique-ids it was last listed with, by kind."""
    is_old: bool = False
    """Its file name says that it arrived long ago."""
    is_collected: bool = False
    """The collector stored it, with its own kind of file name."""
    is_contested: bool = False
    """Another file name has the same unique part."""
    has_wrong_name: bool = False
    """Its file name announces a wrong size."""
    is_misnamed: bool = False
    """Its file name announces a wrong size, which the store may not have noticed yet."""
    promised: str = ""
    """The unique-id it must have if its folder is shown alone; empty: any new one."""
    may_be_renamed: bool = False
    """It was restored under a new unique-id, which is not known yet."""
    order: Order = field(default_factory=lambda: Order())

    @property
    def is_certain(self) -> bool:
        return len(self.places) == 1

    def may_be(self, place: str) -> bool:
        return place in self.places

    def put(self, *places: str) -> None:
        self.places = frozenset(places)

    @property
    def least(self) -> int:
        """The least number of octets in its file."""
        return len(self.text) if self.stored is None else self.stored

    @property
    def most(self) -> int:
        return len(self.text) + _TRACE if self.stored is None else self.stored

    def read(self, wire: bytes) -> None:
        """Compare the retrieved message with what is known of it."""
        assert not self.wire or self.wire == wire, f"{self} has other octets than before"
        assert wire.endswith(self.text), f"{self} came as {wire[:300]!r}"
        self.wire = wire
        if self.stored is None:
            self.stored = len(wire)

    def __str__(self) -> str:
        ids = ", ".join(sorted(self.unique_ids.values())) or "no unique-id yet"
        return f"the message {self.text[:40]!r} ({ids})"


@dataclass(frozen=True, slots=True)
class Order:
    """The promised position of a message in a listing."""

    adopted: float = inf
    """Its rank among messages imported from other servers, which come first."""
    earliest: float = 0
    latest: float = inf
    """Seconds since the epoch between which it was delivered."""
    arrival: int = 0
    """Its rank among messages that restante delivered; 0 if another program did."""


@dataclass(eq=False, slots=True)
class Box:
    """One folder of one user."""

    user: str
    folder: str
    messages: list[Message] = field(default_factory=list)
    owners: dict[tuple[str, str], Message] = field(default_factory=dict)
    """The first message with each unique-id, which no other may ever have; by kind and id."""
    away: dict[bytes, Message] = field(default_factory=dict)
    """Messages that were moved to another folder, by text; recognised if they come back."""

    def __str__(self) -> str:
        return self.user if self.folder == "INBOX" else f"{self.user}+{self.folder}"

    def at(self, place: str) -> list[Message]:
        """Return the messages that may be at ``place``."""
        return [message for message in self.messages if message.may_be(place)]

    @property
    def is_certain(self) -> bool:
        return all(message.is_certain for message in self.messages)

    def receive(self, message: Message, order: Order) -> None:
        """Add a message that is moved into this folder under the same file name."""
        known = self.away.pop(message.text, None)
        if known is None:
            known = replace(message, unique_ids={}, promised="", order=order)
        known.put(LISTED)
        known.is_misnamed = known.has_wrong_name
        if known not in self.messages:
            self.messages.append(known)

    def forget_gone(self) -> None:
        """Forget messages that are gone, except for their unique-ids."""
        gone = frozenset({GONE})
        self.messages = [message for message in self.messages if message.places != gone]

    def name(self, message: Message, way: str, unique_id: str) -> None:
        """Note that a listing shows this unique-id for this message, and check it."""
        owner = self.owners.setdefault((way, unique_id), message)
        assert owner.text == message.text, (
            f"{self}: the unique-id {unique_id} of {owner} is now that of {message}"
        )
        if way == OWN and message.promised:
            assert unique_id == message.promised, f"{self}: {message} is listed as {unique_id}"
        before = message.unique_ids.get(way)
        if before != unique_id:
            assert before is None or message.may_be_renamed, (
                f"{self}: {message} has another unique-id, {unique_id}"
            )
            if message.may_be_renamed:
                message.unique_ids.clear()
                message.may_be_renamed = False
            message.unique_ids[way] = unique_id


@dataclass(frozen=True, slots=True)
class Shown:
    """A folder in a login, and its kind of unique-ids."""

    box: Box
    way: str


@dataclass(slots=True)
class Quota:
    """How much mail a user may have."""

    limit: int = 0
    """In octets; 0 is unlimited."""
    is_exact: bool = True
    """Other programs have counted all their changes (docs/howto/quota.md)."""

    _counted_for: int = 0
    """The limit at the last full count."""

    def set(self, limit: int) -> None:
        """Set the limit; a new one makes restante recount everything."""
        self.limit = limit
        if limit and limit != self._counted_for:
            self._counted_for, self.is_exact = limit, True

    def verdict(self, messages: Iterable[Message], size: int) -> bool | None:
        """Return whether a message of this size must be accepted; None if either is allowed."""
        if not self.limit:
            return True
        if not self.is_exact:
            return None
        least = most = size
        for message in messages:
            least += message.least if message.is_certain else 0
            most += message.most
        if least > self.limit:
            return False
        return True if most + _TRACE <= self.limit else None


@dataclass(eq=False, slots=True)
class User:
    """A user with passwords, rules and mail."""

    name: str
    passwords: dict[str, str]
    """Passwords by label; ``""`` is the main password."""
    boxes: dict[str, Box] = field(default_factory=dict)
    view: tuple[str, ...] = ()
    """Folders that a login without a folder shows; empty means INBOX."""
    hold: str = "14d"
    quota: Quota = field(default_factory=Quota)
    is_enabled: bool = True
    revoked: list[str] = field(default_factory=list)
    """Passwords that must be refused."""
    is_index_harmed: bool = False
    histories: dict[str, History] = field(default_factory=dict)
    """Histories by login name and view."""

    def box(self, folder: str) -> Box:
        """Return the folder; it is made if missing."""
        return self.boxes.setdefault(folder, Box(self.name, folder))

    def shown(self, folders: Sequence[str]) -> list[Shown]:
        """Return what a login with these folders shows; missing folders are omitted."""
        wanted = list(dict.fromkeys(folders or self.view or ("INBOX",)))
        there = [self.boxes[name] for name in wanted if name in self.boxes]
        own = {"INBOX", *wanted} if len(wanted) == 1 else {"INBOX"}
        return [Shown(box, OWN if box.folder in own else JOINT) for box in there]

    @property
    def messages(self) -> Iterator[Message]:
        for box in self.boxes.values():
            yield from box.messages

    @property
    def is_certain(self) -> bool:
        return all(box.is_certain for box in self.boxes.values())

    def counted(self) -> Iterator[Message]:
        """Return the messages that count towards the quota; held ones do not."""
        return (message for message in self.messages if message.may_be(LISTED))

    def removed(self) -> str:
        """Return where deleted messages go by the current rule."""
        return {"keep": LISTED, "0": GONE}.get(self.hold, HELD)


@dataclass(slots=True)
class History:
    """The order in which messages of one view were listed."""

    last_seen_in: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """The last listing with each unique-id."""

    def check(self, listing: Sequence[str]) -> None:
        """Messages that were listed together must keep their order in later listings."""
        now = set(listing)
        before = {self.last_seen_in[each] for each in listing if each in self.last_seen_in}
        place = {unique_id: at for at, unique_id in enumerate(listing)}
        for old in before:
            for one, other in pairwise(each for each in old if each in now):
                assert place[one] < place[other], (
                    f"{other} was listed after {one} and is now before it"
                )
        self.last_seen_in.update(dict.fromkeys(listing, tuple(listing)))


def check_order(listing: Sequence[Message]) -> None:
    """Imported messages come first, in their old order; the others in order of delivery."""
    orders = [message.order for message in listing]
    for one, other in pairwise(orders):
        assert one.adopted <= other.adopted, "imported mail is not in its old order"
    for _, some in groupby(orders, lambda order: order.adopted is inf):
        earliest = 0.0
        arrival = 0
        for order in some:
            assert order.latest >= earliest, "the listing is not in the order of delivery"
            earliest = max(earliest, order.earliest)
            if order.arrival:
                assert order.arrival >= arrival, "the listing is not in the order of delivery"
                arrival = order.arrival


Pick = Callable[[Sequence[Message]], Sequence[Message]]

PICKS: dict[str, Pick] = {
    "all": lambda found: found,
    "none": lambda found: (),
    "the first": lambda found: found[:1],
    "the last": lambda found: found[-1:],
    "every other": lambda found: found[::2],
    "all but the first": lambda found: found[1:],
    "all but the last": lambda found: found[:-1],
    "the first nine": lambda found: found[:9],
    "the last nine": lambda found: found[-9:],
}
