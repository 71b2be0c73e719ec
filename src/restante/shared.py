"""Counts, in one process or in memory that the workers of one server share.

Limits: a shared count is a sketch: of two sums over cells that a keyed hash picks, the smaller.
It is never too small, and too large only if strangers, who cannot know the key, share both cells.
A worker writes into its own row alone, so what one counted is forgotten when it dies.
"""

from __future__ import annotations

import mmap
import secrets
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from fcntl import LOCK_EX, LOCK_UN, lockf
from hashlib import blake2b
from tempfile import TemporaryFile

_CELLS = 16_384  # of each hash
_ROW = 1 + 2 * _CELLS  # the sum of all, then the cells


class Tally:
    """How many there are, in all and of each key."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._all = 0

    def exclusively(self) -> AbstractContextManager[None]:
        """Nobody else counts between a look and the change that follows from it."""
        return nullcontext()

    def all(self) -> int:
        return self._all

    def of(self, key: str) -> int:
        return self._counts[key]

    def add(self, key: str, change: int) -> None:
        self._all += change
        self._counts[key] += change
        if not self._counts[key]:
            del self._counts[key]


class SharedTally(Tally):
    """Make it before the workers are forked; each then calls ``serve_as``."""

    def __init__(self, workers: int) -> None:
        self._rows = range(0, workers * _ROW, _ROW)
        self._row = 0
        self._cells = memoryview(mmap.mmap(-1, workers * _ROW * 4)).cast("I")
        self._key = secrets.token_bytes(16)
        self._lock = TemporaryFile()  # noqa: SIM115  # for its lock, which dies with its holder

    def close(self) -> None:
        self._lock.close()

    def serve_as(self, worker: int) -> None:
        self._row = self._rows[worker]

    def forget(self, worker: int) -> None:
        """All that a worker counted, which has ended."""
        row = self._rows[worker]
        self._cells[row : row + _ROW] = memoryview(bytes(_ROW * 4)).cast("I")

    @contextmanager
    def exclusively(self) -> Iterator[None]:
        lockf(self._lock, LOCK_EX)
        try:
            yield
        finally:
            lockf(self._lock, LOCK_UN)

    def all(self) -> int:
        return sum(self._cells[row] for row in self._rows)

    def of(self, key: str) -> int:
        first, second = self._places(key)
        cells, rows = self._cells, self._rows
        return min(sum(cells[row + at] for row in rows) for at in (first, second))

    def add(self, key: str, change: int) -> None:
        for at in (0, *self._places(key)):
            self._cells[self._row + at] += change

    def _places(self, key: str) -> tuple[int, int]:
        digest = blake2b(key.encode(), digest_size=4, key=self._key).digest()
        first, second = int.from_bytes(digest[:2], "big"), int.from_bytes(digest[2:], "big")
        return 1 + first % _CELLS, 1 + _CELLS + second % _CELLS
