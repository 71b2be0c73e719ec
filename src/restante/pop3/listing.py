"""The client's list of the messages in the maildrop (RFC 1939 §5 LIST, §7 UIDL)."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import overload

from ..words import counted


@dataclass(frozen=True, slots=True)
class Message:
    """One message of the listing."""

    number: int
    """The message-number, valid only in this session (RFC 1939 §4)."""
    unique_id: str | None
    """The unique-id; None if the server does not support UIDL (RFC 1939 §7)."""
    size: int
    """Size in octets as announced by the server; may be wrong."""
    session: object = field(default=None, repr=False, compare=False)
    """The session to which the number belongs.  In another session, the same number may refer to a
    different message."""

    # The dataclass would generate the same method, but type checkers accept ``"AAa3" in listing``
    # only if the class defines it.
    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Message):
            return NotImplemented
        values = (self.number, self.unique_id, self.size)
        return values == (other.number, other.unique_id, other.size)


class Listing(Sequence[Message]):
    """The messages of one session in the order of LIST, indexed by position or by unique-id.

    ``listing[0]`` is the first message, ``listing["AAa3"]`` is the message with the unique-id AAa3,
    and ``"AAa3" in listing`` tests whether it exists.  A million messages with typical unique-ids
    take about 60 MB of memory, and another 8 MB after the first look-up by unique-id.
    """

    def __init__(self, session: object = None) -> None:
        self._session = session
        self._numbers = array("Q")
        self._sizes = array("Q")
        self._unique_ids = bytearray()  # all unique-ids, concatenated
        self._offsets = array("Q")  # offset of each message's unique-id in ``_unique_ids``
        self._lengths = array("H")  # length of each message's unique-id; 0 if it has none
        self._sorted: array[int] | None = None  # positions sorted by unique-id; created when needed

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int | str) -> Message: ...
    @overload
    def __getitem__(self, index: slice) -> list[Message]: ...
    def __getitem__(self, index: int | str | slice) -> Message | list[Message]:
        """Return a message by its position or unique-id, or several messages by a slice.

        Raises:
            IndexError: the position does not exist.
            KeyError: no message has this unique-id.
            LookupError: several messages have this unique-id, for example identical copies
                (RFC 1939 §7).
        """
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        if isinstance(index, str):
            positions = self._positions(index)
            if not positions:
                raise KeyError(index)
            if len(positions) > 1:
                raise LookupError(f"{len(positions)} messages have this unique-id")
            index = positions[0]
        unique_id = self._unique_id(index).decode("utf-8", "surrogateescape")
        return Message(self._numbers[index], unique_id or None, self._sizes[index], self._session)

    def get(self, unique_id: str) -> Message | None:
        """Return the message with this unique-id, or None.

        Raises:
            LookupError: several messages have this unique-id.
        """
        try:
            return self[unique_id]
        except KeyError:
            return None

    def __contains__(self, item: object) -> bool:
        """Return whether a unique-id, or a message of this session, is listed."""
        if isinstance(item, str):
            return bool(self._positions(item))
        if not isinstance(item, Message) or item.session not in (None, self._session):
            return False
        return any(each == item for each in self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {counted(len(self), 'message')}>"

    def _unique_id(self, position: int) -> bytes:
        """Return the unique-id of the message at this position; empty if it has none."""
        begin = self._offsets[position]
        return bytes(self._unique_ids[begin : begin + self._lengths[position]])

    def _positions(self, unique_id: str) -> Sequence[int]:
        """Return the positions of messages with this unique-id.

        This is a binary search, which a server cannot make slow by its choice of unique-ids.
        """
        try:
            octets = unique_id.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            return ()
        if not octets:
            return ()
        if self._sorted is None:
            self._sorted = array("Q", sorted(range(len(self)), key=self._unique_id))
        first = bisect_left(self._sorted, octets, key=self._unique_id)
        return self._sorted[first : bisect_right(self._sorted, octets, first, key=self._unique_id)]


class ListingBuilder(Listing):
    """A listing that is built while the server's responses are read."""

    def __init__(self, session: object = None) -> None:
        super().__init__(session)
        # Position of each message-number, used only if the numbers are not 1, 2, 3 …  The keys are
        # texts, because a server could choose integers that make a dictionary slow.
        self._positions_by_number: dict[str, int] = {}

    def add(self, number: int, size: int) -> bool:
        """Append a message.  Return False if the number is 0 or already listed."""
        position = len(self._numbers)
        if self._positions_by_number or number != position + 1:
            if not self._positions_by_number:
                self._positions_by_number = {
                    str(each): earlier for earlier, each in enumerate(self._numbers)
                }
            if number == 0 or str(number) in self._positions_by_number:
                return False
            self._positions_by_number[str(number)] = position
        for column, value in (
            *((self._numbers, number), (self._sizes, size)),
            *((self._offsets, 0), (self._lengths, 0)),
        ):
            column.append(value)
        return True

    def set_unique_id(self, number: int, unique_id: bytes) -> bool:
        """Set the unique-id of a message.  Return False if the message already has a unique-id.

        The unique-id of a message that is not listed is ignored.
        """
        positions = self._positions_by_number
        position = positions.get(str(number), -1) if positions else number - 1
        if not 0 <= position < len(self._numbers):
            return True
        if self._lengths[position]:
            return False
        self._offsets[position], self._lengths[position] = len(self._unique_ids), len(unique_id)
        self._unique_ids += unique_id
        self._sorted = None
        return True
