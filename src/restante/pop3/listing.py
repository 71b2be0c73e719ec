"""The messages of one session as our client keeps them (RFC 1939 §5 LIST, §7 UIDL)."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import overload


@dataclass(frozen=True, slots=True)
class Message:
    """One message of the listing."""

    number: int
    """Its message-number; good for this session only (RFC 1939 §4)."""
    unique_id: str | None
    """None when the server has no UIDL (RFC 1939 §7)."""
    size: int
    """Octets as the server announces them; a hint."""
    session: object = field(default=None, repr=False, compare=False)
    """The session whose number it is; in another one the number may be another message's."""


class Listing(Sequence[Message]):
    """Messages in the order of LIST.  A million of them, with usual unique-ids, take some 60 MB."""

    def __init__(self, session: object) -> None:
        self._session = session
        self._numbers = array("Q")
        self._sizes = array("Q")
        self._texts = bytearray()  # all unique-ids
        self._begins = array("Q")  # where a message's is in there
        self._lengths = array("H")  # 0: it has none
        # Of numbers, where these are not 1, 2, 3 …, as texts: whoever picks the integers that a
        # dictionary is keyed by can make it slow.
        self._places: dict[str, int] = {}

    def add(self, number: int, size: int) -> bool:
        """Whether this number is a new one."""
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
        """Whether the message had no unique-id so far; one that is not listed is passed over."""
        at = self._places.get(str(number), -1) if self._places else number - 1
        if not 0 <= at < len(self._numbers):
            return True
        if self._lengths[at]:
            return False
        self._begins[at], self._lengths[at] = len(self._texts), len(unique_id)
        self._texts += unique_id
        return True

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, at: int) -> Message: ...
    @overload
    def __getitem__(self, at: slice) -> list[Message]: ...
    def __getitem__(self, at: int | slice) -> Message | list[Message]:
        if isinstance(at, slice):
            return [self[each] for each in range(*at.indices(len(self)))]
        begin, length = self._begins[at], self._lengths[at]
        unique_id = self._texts[begin : begin + length].decode("utf-8", "surrogateescape")
        return Message(self._numbers[at], unique_id or None, self._sizes[at], self._session)
