"""Record reloads of a server and their results, in memory that its workers share.

Reloads are numbered from 1.  Row 0 of the memory belongs to the process that reads the
configuration first and accepts or refuses it: the supervisor, or a server without workers.  The
other rows belong to the workers.  No lock is needed: each row is written only by its owner.  The
owner of row 0 counts a refusal after writing it, and never overwrites the last refusal.
"""

from __future__ import annotations

import mmap
import struct
import time
from dataclasses import dataclass

_TEXT = 2000  # maximum octets of a reason, which names a file, a line and an option
_REFUSAL = struct.Struct(f"QQQ{_TEXT}s")  # number, time in ticks, length and text of the reason
_TICKS = 1_000_000  # per second, because a file may be changed in the second in which it is read
_CELLS = 7
_BEGUN, _BEGUN_AT, _ACCEPTED, _ACCEPTED_AT, _REQUESTED = range(5)
_ACCEPTED_COUNT, _REFUSED_COUNT = range(5, _CELLS)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A reload that was refused."""

    number: int
    at: float
    """Time in seconds since the epoch."""
    reason: str


class Reloads:
    """The reloads of one server.  Must be created before the workers are forked."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._cells = memoryview(mmap.mmap(-1, (workers + 1) * _CELLS * 8)).cast("Q")
        self._refusals = mmap.mmap(-1, 2 * _REFUSAL.size)  # the last two; belong to row 0
        self._cells[_ACCEPTED_AT] = int(time.time() * _TICKS)

    # Called by the owner of row 0.

    def begin(self) -> int:
        """Count a reload, before any file is read, and return its number."""
        self._cells[_BEGUN_AT] = int(time.time() * _TICKS)
        self._cells[_BEGUN] += 1
        return self._cells[_BEGUN]

    def end(self, refusal: str | None) -> None:
        """Record that the reload in progress was refused for this reason, or accepted if None."""
        if refusal is None:
            self._cells[_ACCEPTED_AT] = self._cells[_BEGUN_AT]
            self._cells[_ACCEPTED_COUNT] += 1
            self._cells[_ACCEPTED] = self._cells[_BEGUN]
        else:
            self._refuse(refusal)

    def _refuse(self, reason: str) -> None:
        octets = reason.encode("utf-8", "replace")[:_TEXT]
        count = self._cells[_REFUSED_COUNT] + 1
        at = int(time.time() * _TICKS)
        _REFUSAL.pack_into(
            self._refusals, _place(count), self._cells[_BEGUN], at, len(octets), octets
        )
        self._cells[_REFUSED_COUNT] = count

    # Called by workers.

    def request(self, worker: int) -> int:
        """Request a new reload and return its number."""
        number = self._cells[_BEGUN] + 1
        self._cells[(worker + 1) * _CELLS + _REQUESTED] = number
        return number

    def adopt(self, worker: int, number: int) -> None:
        """Record that a worker uses the configuration of this reload."""
        self._cells[(worker + 1) * _CELLS + _ACCEPTED] = number

    # Called by all processes.

    @property
    def is_requested(self) -> bool:
        """Whether a worker has requested a reload that has not begun yet."""
        rows = range(_CELLS, len(self._cells), _CELLS)
        return any(self._cells[row + _REQUESTED] > self._cells[_BEGUN] for row in rows)

    @property
    def accepted(self) -> int:
        """Number of the last accepted reload; 0 for the configuration at startup."""
        return self._cells[_ACCEPTED]

    @property
    def accepted_count(self) -> int:
        """Number of reloads that were accepted."""
        return self._cells[_ACCEPTED_COUNT]

    @property
    def refused_count(self) -> int:
        """Number of reloads that were refused."""
        return self._cells[_REFUSED_COUNT]

    @property
    def loaded_at(self) -> float:
        """When the accepted configuration was read, in seconds since the epoch."""
        return self._cells[_ACCEPTED_AT] / _TICKS

    def adopted(self, worker: int) -> int:
        """Return the number of the last reload that this worker has adopted."""
        return self._cells[(worker + 1) * _CELLS + _ACCEPTED]

    def refusal(self) -> Refusal | None:
        """Return the last refusal, or None if no reload was refused."""
        while count := self._cells[_REFUSED_COUNT]:
            number, at, length, text = _REFUSAL.unpack_from(self._refusals, _place(count))
            if self._cells[_REFUSED_COUNT] == count:
                return Refusal(number, at / _TICKS, text[:length].decode("utf-8", "replace"))
        return None

    def result(self, number: int) -> Refusal | bool:
        """Return the refusal of a reload, True if it was accepted, or False if it has not ended.

        If a later reload has ended too, its result may be returned instead.
        """
        refusal = self.refusal()
        if self.accepted >= number:
            return True
        if refusal is not None and refusal.number >= number:
            return refusal
        return False


def _place(count: int) -> int:
    """Return where a refusal is stored."""
    return count % 2 * _REFUSAL.size
