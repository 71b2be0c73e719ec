"""Counts and weights, in one process or in memory that the workers of a server share.

Limits: a shared count is a count-min sketch: the smaller of two cells selected by a keyed hash.  A
count is never too small, and it is too large only if other keys share both cells.  Clients cannot
cause this, because the hash key is secret.  Each worker writes only its own row, so its counts are
dropped when it dies.  Weights belong to no worker and are kept.
"""

from __future__ import annotations

import mmap
import secrets
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from hashlib import blake2b
from tempfile import TemporaryFile

from .clock import SLACK
from .posix import fcntl

# Cells per hash.  With 1,000 addresses, a key shares both cells with other keys in 0.4 % of cases.
# A row takes 128 KiB.
_CELLS = 16_384
_ROW = 1 + 2 * _CELLS  # the total, then the cells
_WAYS = 8  # entries in which a key may be stored, like the ways of a cache
_NOTHING = 1 / 128  # a smaller weight counts as 0; a weight of 1 fades to this in seven half-lives


class Tally:
    """Counts, in total and by key."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._all = 0

    def exclusively(self) -> AbstractContextManager[None]:
        """Return a lock for a read and the change that depends on it."""
        return nullcontext()

    def all(self) -> int:
        return self._all

    def of(self, key: str) -> int:
        return self._counts[key]

    def add(self, key: str, change: int, *, in_all: bool = True) -> None:
        """Change the count of a key.  If ``in_all``, also change the total."""
        self._all += change if in_all else 0
        self._counts[key] += change
        if not self._counts[key]:
            del self._counts[key]


class SharedLock:
    """A lock between processes forked from the same parent, which is freed when its holder dies.

    The lock does not exclude other threads of the same process.
    """

    def __init__(self) -> None:
        self._file = TemporaryFile()  # noqa: SIM115  # closed by close

    def __enter__(self) -> None:
        fcntl.lockf(self._file, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        fcntl.lockf(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        self._file.close()


class SharedTally(Tally):
    """Counts shared by workers.

    A tally must be created before the workers are forked.  Each worker then calls ``serve_as``.
    """

    def __init__(self, workers: int) -> None:
        self._rows = range(0, workers * _ROW, _ROW)
        self._row = 0
        self._cells = memoryview(mmap.mmap(-1, workers * _ROW * 4)).cast("I")
        self._key = secrets.token_bytes(16)
        self._lock = SharedLock()

    def close(self) -> None:
        self._lock.close()

    def serve_as(self, worker: int) -> None:
        self._row = self._rows[worker]

    def forget(self, worker: int) -> None:
        """Drop the counts of a worker that has ended."""
        row = self._rows[worker]
        self._cells[row : row + _ROW] = memoryview(bytes(_ROW * 4)).cast("I")

    @contextmanager
    def exclusively(self) -> Iterator[None]:
        with self._lock:
            yield

    def all(self) -> int:
        return sum(self._cells[row] for row in self._rows)

    def of(self, key: str) -> int:
        first, second = self._places(key)
        cells, rows = self._cells, self._rows
        return min(sum(cells[row + at] for row in rows) for at in (first, second))

    def add(self, key: str, change: int, *, in_all: bool = True) -> None:
        places = self._places(key)
        for at in (0, *places) if in_all else places:
            self._cells[self._row + at] += change

    def _places(self, key: str) -> tuple[int, int]:
        digest = blake2b(key.encode(), digest_size=4, key=self._key).digest()
        first, second = int.from_bytes(digest[:2], "big"), int.from_bytes(digest[2:], "big")
        return 1 + first % _CELLS, 1 + _CELLS + second % _CELLS


class Weights:
    """A table of fixed size with a weight for each key; weights halve after each half-life.

    The table must be created before the workers are forked.  Changes require a lock of the workers;
    reading does not.  A key may be stored in one of eight entries, selected by a keyed hash, so
    that an attacker cannot choose which key is evicted.  If all eight entries are in use, the entry
    with the smallest weight is evicted.
    """

    def __init__(
        self,
        places: int,
        half_life: float,
        *,
        clock: Callable[[], float],
        secret: bytes | None = None,
    ) -> None:
        """``half_life`` is in seconds.  ``octets`` can be loaded with the same ``secret`` only."""
        self._memory = mmap.mmap(-1, places * 24)
        whole = memoryview(self._memory)
        self._ids = whole[: places * 8].cast("Q")
        self._weights = whole[places * 8 : places * 16].cast("d")
        self._stamps = whole[places * 16 :].cast("d")
        self._whole = whole
        self._buckets = places // _WAYS
        self._half_life = half_life
        self._clock = clock
        self.secret = secret or secrets.token_bytes(32)

    def of(self, key: bytes) -> float:
        identity, places = self._find(key)
        for at in places:
            if self._ids[at] == identity:
                return self._weight(at, self._clock())
        return 0.0

    def add(self, key: bytes, weight: float, *, most: float = float("inf")) -> None:
        identity, places = self._find(key)
        now = self._clock()
        weights = {at: self._weight(at, now) for at in places}
        at = next((each for each in places if self._ids[each] == identity), None)
        if at is None:
            at = min(places, key=weights.__getitem__)
            weights[at] = 0.0
            self._ids[at] = 0  # the entry counts as empty until it is completely written
        self._weights[at] = min(weights[at] + weight, most)
        self._stamps[at] = now
        self._ids[at] = identity

    def _weight(self, at: int, now: float) -> float:
        if not self._ids[at]:
            return 0.0
        age = now - self._stamps[at]
        # A wrong clock has dated the weight in the future, so that it would not fade until then.
        if age < -SLACK:
            return 0.0
        age = max(0.0, age)
        weight: float = self._weights[at] * 0.5 ** (age / self._half_life)
        return weight if weight > _NOTHING else 0.0

    def _find(self, key: bytes) -> tuple[int, range]:
        digest = blake2b(key, digest_size=12, key=self.secret).digest()
        first = int.from_bytes(digest[8:], "big") % self._buckets * _WAYS
        return int.from_bytes(digest[:8], "big") | 1, range(first, first + _WAYS)

    @property
    def octets(self) -> bytes:
        """The content of the table, so that it can be saved."""
        return bytes(self._whole)

    @octets.setter
    def octets(self, kept: bytes) -> None:
        """Restore saved content.

        Raises:
            ValueError: the size differs.
        """
        self._whole[:] = kept
