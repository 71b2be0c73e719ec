"""The messages of one session in the TRANSACTION state, and their deletion marks.

Standards: RFC 1939 §4 (message-numbers), §5 (DELE, RSET).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import overload

from ..errors import NoSuchMessage, ReadOnly
from ..maildrop import Entry, Rendered


class _Selection(Sequence[Entry]):
    """Some messages of a listing.  Each entry is created when it is accessed.

    Creating 100,000 entries takes a tenth of a second, so the caller can do this in a thread.
    """

    def __init__(self, listing: Sequence[Entry], numbers: Sequence[int]) -> None:
        self._listing = listing
        self._numbers = numbers
        self._entries: list[Entry] | None = None

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[Entry]:
        if self._entries is None:  # kept, because several callers need all entries
            self._entries = _entries(self._listing, self._numbers)
        return iter(self._entries)

    @overload
    def __getitem__(self, index: int) -> Entry: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Entry]: ...
    def __getitem__(self, index: int | slice) -> Entry | Sequence[Entry]:
        if isinstance(index, slice):
            return _Selection(self._listing, self._numbers[index])
        return self._listing[self._numbers[index] - 1]


def _entries(listing: Sequence[Entry], numbers: Sequence[int]) -> list[Entry]:
    """Return the entries of these message-numbers, in this order."""
    if len(numbers) > 1 and list(numbers) == list(range(numbers[0], numbers[-1] + 1)):
        return list(listing[numbers[0] - 1 : numbers[-1]])  # takes half the time
    return [listing[number - 1] for number in numbers]


class Transaction:
    """The listing of one session, and the messages in it that are marked as deleted."""

    __slots__ = ("_is_read_only", "_listing", "_marks", "_total", "count", "octets")

    def __init__(self, listing: Sequence[Entry], *, is_read_only: bool = False) -> None:
        self._listing = listing
        self._total = len(listing)
        self._is_read_only = is_read_only
        self._marks: set[int] | None = None  # None saves memory, because few sessions have marks
        self.count = 0
        """Number of messages that are not marked as deleted."""
        self.octets = 0
        """Size of these messages in octets."""
        self._count_all()

    def _count_all(self) -> None:
        self.count = self._total
        self.octets = (
            self._listing.octets
            if isinstance(self._listing, Rendered)
            else sum(entry.size for entry in self._listing)
        )

    def entry(self, number: int) -> Entry:
        """Return the entry of the message with this message-number.

        Raises:
            NoSuchMessage: the message does not exist or is marked as deleted.
        """
        if self._marks and number in self._marks:
            raise NoSuchMessage("message is marked as deleted")
        try:
            return self._listing[number - 1]
        except IndexError:
            raise NoSuchMessage from None

    def entries(self, numbers: Sequence[int]) -> list[Entry]:
        """Return the entries of messages, up to the first one that does not exist or is marked.

        Raises:
            NoSuchMessage: the first message does not exist or is marked as deleted.
        """
        marks, total = self._marks or (), self._total
        valid = list(takewhile(lambda number: number <= total and number not in marks, numbers))
        return _entries(self._listing, valid) or [self.entry(numbers[0])]

    def unmarked(self) -> Iterator[tuple[int, Entry]]:
        """Yield the message-number and the entry of each message that is not marked as deleted."""
        marks = frozenset(self._marks or ())  # marks may change while the listing is sent
        return (
            (number, entry) for number, entry in enumerate(self._listing, 1) if number not in marks
        )

    @property
    def rendered(self) -> Rendered | None:
        """The listing, if its responses are pre-rendered and no message is marked."""
        return self._listing if isinstance(self._listing, Rendered) and not self._marks else None

    def marked(self) -> Sequence[Entry]:
        """Return the messages that QUIT will remove, in the order of the listing."""
        return _Selection(self._listing, sorted(self._marks or ()))

    def mark(self, numbers: Sequence[int]) -> int:
        """Mark messages as deleted, up to the first one that does not exist or is marked.

        Returns the number of messages that were marked.

        Raises:
            NoSuchMessage: the first message does not exist or is already marked.
            ReadOnly: this login may not delete messages.
        """
        entries = self.entries(numbers)
        if self._is_read_only:
            raise ReadOnly
        marks = self._marks = self._marks or set()
        before = len(marks)
        for number, entry in zip(numbers, entries, strict=False):
            if number in marks:  # this call has marked it already
                break
            marks.add(number)
            self.count -= 1
            self.octets -= entry.size
        return len(marks) - before

    def unmark_all(self) -> None:
        """Remove all marks."""
        self._marks = None
        self._count_all()
