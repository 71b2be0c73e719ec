"""Counts and weights, in one process or in memory that the workers of a server share.

Limits: a shared count is a count-min sketch: the smaller of two cells picked by a keyed hash.  It
is never too small, and too large only if other keys share both cells; clients cannot aim at that,
because the hash key is secret.  Each worker writes only its own row, so its counts are dropped when
it dies.  Weights have no owner and stay.
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

# Cells per hash.  With 1,000 addresses a key shares both cells with others in 0.4 % of cases; a row
# takes 128 KiB.
_CELLS = 16_384
_ROW = 1 + 2 * _CELLS  # the total, then the cells
_WAYS = 8  # places for one key, like the ways of a cache
_NOTHING = 1 / 128  # a weight faded below this counts as 0: seven half-lives of a weight of 1


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
        """``in_all``: change the total as well."""
        self._all += change if in_all else 0
        self._counts[key] += change
        if not self._counts[key]:
            del self._counts[key]


class SharedLock:
    """A lock between processes forked from one; freed when its holder dies.

    It does not keep two threads of one process apart.
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
    """Counts shared by workers.  Create it before the fork; each worker then calls ``serve_as``."""

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
    """A weight for each key that halves every half-life; of fixed size.

    Create it before the workers are forked.  Changes need a lock of the workers; reading does not.
    A key has eight places, picked by a keyed hash, so that an attacker cannot choose which key is
    evicted.  If all are taken, the smallest weight is evicted.
    """

    def __init__(
        self,
        places: int,
        half_life: float,
        *,
        clock: Callable[[], float],
        secret: bytes | None = None,
    ) -> None:
        """``half_life`` is in seconds.  ``octets`` can be used by another server with the same
        ``secret``."""
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
            self._ids[at] = 0  # the place counts as empty until all is written
        self._weights[at] = min(weights[at] + weight, most)
        self._stamps[at] = now
        self._ids[at] = identity

    def _weight(self, at: int, now: float) -> float:
        if not self._ids[at]:
            return 0.0
        age = now - self._stamps[at]
        if (
            age < -SLACK
        ):  # dated in the future by a wrong clock; otherwise it would not fade until then
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
        """The memory, to be saved."""
        return bytes(self._whole)

    @octets.setter
    def octets(self, kept: bytes) -> None:
        """
        Raises:
            ValueError: the size differs.
        """
        self._whole[:] = kept
