"""The messages of one session in our client (RFC 1939 §5 LIST, §7 UIDL)."""

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
    """The session to which the number belongs.  In other sessions it may mean another message."""

    # Defined although a dataclass has the same method: type checkers accept ``"AAa3" in listing``
    # only if the class defines its equality.
    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Message):
            return NotImplemented
        mine = (self.number, self.unique_id, self.size)
        return mine == (other.number, other.unique_id, other.size)


class Listing(Sequence[Message]):
    """The messages of one session in the order of LIST, indexed by position or by unique-id.

    ``listing[0]`` is the first message, ``listing["AAa3"]`` is the message with this unique-id, and
    ``"AAa3" in listing`` tests whether this message exists.  A million messages with typical
    unique-ids take about 60 MB, and another 8 MB after the first look-up by unique-id.
    """

    def __init__(self, session: object = None) -> None:
        self._session = session
        self._numbers = array("Q")
        self._sizes = array("Q")
        self._texts = bytearray()  # all unique-ids
        self._begins = array("Q")  # offset of each message's unique-id in ``_texts``
        self._lengths = array("H")  # length of each unique-id; 0: none
        self._sorted: array[int] | None = None  # positions sorted by unique-id; created when needed

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, at: int | str) -> Message: ...
    @overload
    def __getitem__(self, at: slice) -> list[Message]: ...
    def __getitem__(self, at: int | str | slice) -> Message | list[Message]:
        """Return a message by position or unique-id, or several by a slice.

        Raises:
            IndexError: the position does not exist.
            KeyError: no message has this unique-id.
            LookupError: several messages have this unique-id, such as copies (RFC 1939 §7).
        """
        if isinstance(at, slice):
            return [self[each] for each in range(*at.indices(len(self)))]
        if isinstance(at, str):
            positions = self._positions(at)
            if not positions:
                raise KeyError(at)
            if len(positions) > 1:
                raise LookupError(f"{len(positions)} messages have this unique-id")
            at = positions[0]
        unique_id = self._text(at).decode("utf-8", "surrogateescape")
        return Message(self._numbers[at], unique_id or None, self._sizes[at], self._session)

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

    def _text(self, at: int) -> bytes:
        """Return the unique-id of the message at this position; empty if it has none."""
        begin = self._begins[at]
        return bytes(self._texts[begin : begin + self._lengths[at]])

    def _positions(self, unique_id: str) -> Sequence[int]:
        """Return the positions of messages with this unique-id.

        This is a binary search, so that a server cannot make it slow by its choice of unique-ids.
        """
        try:
            text = unique_id.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            return ()
        if not text:
            return ()
        if self._sorted is None:
            self._sorted = array("Q", sorted(range(len(self)), key=self._text))
        first = bisect_left(self._sorted, text, key=self._text)
        return self._sorted[first : bisect_right(self._sorted, text, first, key=self._text)]


class ListingBuilder(Listing):
    """Builds a listing while it is read from the server."""

    def __init__(self, session: object = None) -> None:
        super().__init__(session)
        # Used if the numbers are not 1, 2, 3 …  The keys are texts, because a server could choose
        # integers that make a dictionary slow.
        self._places: dict[str, int] = {}

    def add(self, number: int, size: int) -> bool:
        """Append a message.  Return False if its number is 0 or already listed."""
        at = len(self._numbers)
        if self._places or number != at + 1:
            if not self._places:
                self._places = {str(each): place for place, each in enumerate(self._numbers)}
            if number == 0 or str(number) in self._places:
                return False
            self._places[str(number)] = at
        for column, value in (
            *((self._numbers, number), (self._sizes, size)),
            *((self._begins, 0), (self._lengths, 0)),
        ):
            column.append(value)
        return True

    def name(self, number: int, unique_id: bytes) -> bool:
        """Set a message's unique-id.  Return False if it already has a unique-id.

        Messages that are not listed are ignored.
        """
        at = self._places.get(str(number), -1) if self._places else number - 1
        if not 0 <= at < len(self._numbers):
            return True
        if self._lengths[at]:
            return False
        self._begins[at], self._lengths[at] = len(self._texts), len(unique_id)
        self._texts += unique_id
        self._sorted = None
        return True
