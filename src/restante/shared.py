"""Counts, weights and metrics, in one process or in memory that the workers of a server share.

Limits: shared counts are stored in a count-min sketch: a count is the smaller of two cells that a
keyed hash selects.  A count is never too small, and it is too large only if other keys share both
cells.  Clients cannot cause this, because the hash key is secret.  Each worker writes only its own
row, so its counts can be dropped when it ends.  Weights do not belong to a worker and are kept.
"""

from __future__ import annotations

import mmap
import secrets
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from hashlib import blake2b
from math import isnan
from tempfile import TemporaryFile

from . import series
from .clock import SLACK
from .posix import fcntl

# Cells per hash.  With 1,000 addresses, a key shares both cells with other keys in 0.4 % of cases.
# A row takes 128 KiB.
_CELLS = 16_384
_ROW = 1 + 2 * _CELLS  # the total, then the cells
_WAYS = 8  # entries in which a key may be stored, like the ways of a cache
_READ_ATTEMPTS = 1000  # a writer needs a few microseconds; it may have been killed meanwhile
_MIN_WEIGHT = 1 / 128  # smaller weights count as 0; a weight of 1 reaches this in 7 half-lives


class Tally:
    """Counts, in total and by key."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._total = 0

    def lock(self) -> AbstractContextManager[None]:
        """Return a lock for a read and the change that depends on it."""
        return nullcontext()

    def total(self) -> int:
        return self._total

    def count(self, key: str) -> int:
        return self._counts[key]

    def add(self, key: str, change: int, *, in_total: bool = True) -> None:
        """Change the count of a key.  If ``in_total``, also change the total."""
        self._total += change if in_total else 0
        self._counts[key] += change
        if not self._counts[key]:
            del self._counts[key]


class SharedLock:
    """A lock between processes forked from the same parent; it is released if its holder dies.

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
    def lock(self) -> Iterator[None]:
        with self._lock:
            yield

    def total(self) -> int:
        return sum(self._cells[row] for row in self._rows)

    def count(self, key: str) -> int:
        first, second = self._indexes(key)
        cells, rows = self._cells, self._rows
        return min(sum(cells[row + index] for row in rows) for index in (first, second))

    def add(self, key: str, change: int, *, in_total: bool = True) -> None:
        indexes = self._indexes(key)
        for index in (0, *indexes) if in_total else indexes:
            self._cells[self._row + index] += change

    def _indexes(self, key: str) -> tuple[int, int]:
        digest = blake2b(key.encode(), digest_size=4, key=self._key).digest()
        first, second = int.from_bytes(digest[:2], "big"), int.from_bytes(digest[2:], "big")
        return 1 + first % _CELLS, 1 + _CELLS + second % _CELLS


class Counters:
    """The values of all metrics (``series``), in memory that the workers of a server share.

    Must be created before the workers are forked.  There is a row for each worker, which only this
    worker writes, and a last row for the values of ended workers, which only the supervisor writes.
    Incrementing shared memory directly would take several times as long as incrementing ``values``,
    so a worker publishes its values every second.  A worker that is killed loses the increments
    since then, but no value that was ever shown decreases.
    """

    def __init__(self, workers: int) -> None:
        self.values = series.zeros()
        """The values of this process, to be incremented."""
        self.workers = workers
        self._worker = 0
        size = series.SIZE
        cells = memoryview(mmap.mmap(-1, (workers + 1) * size * 8)).cast("d")
        self._rows = [cells[row * size : (row + 1) * size] for row in range(workers + 1)]
        # A version is odd while its row is being written.
        self._versions = memoryview(mmap.mmap(-1, (workers + 1) * 8)).cast("Q")
        for row in self._rows:
            row[:] = array("d", self.values)

    def serve_as(self, worker: int) -> None:
        """Count for a worker from now on.  It continues with the measurements of a predecessor."""
        self._worker = worker
        for cell in _MEASURED:
            self.values[cell] = self._rows[worker][cell]

    def publish(self) -> None:
        """Write the values to this worker's row."""
        with self._writing(self._worker):
            self._rows[self._worker][:] = array("d", self.values)

    def forget(self, worker: int, *, is_expected: bool = False) -> None:
        """Keep the counts of a worker that has ended, and count the end unless it was expected.

        Must be called by the supervisor.
        """
        row, total = self._rows[worker], self._rows[-1]
        with self._writing(self.workers):
            for cell in _COUNTED:
                total[cell] += row[cell]
            total[_WORKERS_ENDED] += not is_expected
            for cell in range(series.SIZE):
                if cell not in _MEASURED:
                    row[cell] = 0.0
            self._versions[worker] = 0  # the worker may have been killed while it was writing

    def totals(self) -> list[float]:
        """Return the values of the whole server."""
        for _ in range(_READ_ATTEMPTS):
            version = self._versions[self.workers]
            rows = [self._read(row) for row in range(self.workers + 1)]
            if not version % 2 and version == self._versions[self.workers]:
                break
        totals = [sum(cells) for cells in zip(*rows, strict=True)]
        for cell in _MAXIMA:
            totals[cell] = max(row[cell] for row in rows)
        for cell in _MEASURED:
            known = [row[cell] for row in rows if not isnan(row[cell])]
            totals[cell] = known[0] if known else float("nan")
        return totals

    def _read(self, row: int) -> list[float]:
        for _ in range(_READ_ATTEMPTS):
            version = self._versions[row]
            values: list[float] = [*self._rows[row]]
            if not version % 2 and version == self._versions[row]:
                break
        return values

    @contextmanager
    def _writing(self, row: int) -> Iterator[None]:
        self._versions[row] += 1
        yield
        self._versions[row] += 1


_COUNTED = (*series.cells_of(series.Kind.COUNTER), *series.cells_of(series.Kind.HISTOGRAM))
_MAXIMA = series.cells_of(series.Kind.MAXIMUM)
_MEASURED = frozenset(series.cells_of(series.Kind.MEASURED))
_WORKERS_ENDED = series.cell("workers_ended_total")


class Weights:
    """A table of fixed size with a weight for each key; weights halve after each half-life.

    The table must be created before the workers are forked.  Changes require a lock of the workers;
    reading does not.  A key may be stored in one of eight entries, selected by a keyed hash, so
    that an attacker cannot choose which key is evicted.  If all eight entries are in use, the entry
    with the smallest weight is evicted.
    """

    def __init__(
        self,
        entries: int,
        half_life: float,
        *,
        clock: Callable[[], float],
        secret: bytes | None = None,
    ) -> None:
        """``half_life`` is in seconds.  Saved ``octets`` require the same ``secret``."""
        self._memory = mmap.mmap(-1, entries * 24)
        table = memoryview(self._memory)
        self._ids = table[: entries * 8].cast("Q")
        self._weights = table[entries * 8 : entries * 16].cast("d")
        self._stamps = table[entries * 16 :].cast("d")
        self._table = table
        self._buckets = entries // _WAYS
        self._half_life = half_life
        self._clock = clock
        self.secret = secret or secrets.token_bytes(32)

    def weight(self, key: bytes) -> float:
        identity, bucket = self._find(key)
        for index in bucket:
            if self._ids[index] == identity:
                return self._weight(index, self._clock())
        return 0.0

    def add(self, key: bytes, weight: float, *, maximum: float = float("inf")) -> None:
        identity, bucket = self._find(key)
        now = self._clock()
        weights = {index: self._weight(index, now) for index in bucket}
        index = next((each for each in bucket if self._ids[each] == identity), None)
        if index is None:
            index = min(bucket, key=weights.__getitem__)
            weights[index] = 0.0
            self._ids[index] = 0  # the entry counts as empty until it is completely written
        self._weights[index] = min(weights[index] + weight, maximum)
        self._stamps[index] = now
        self._ids[index] = identity

    def _weight(self, index: int, now: float) -> float:
        if not self._ids[index]:
            return 0.0
        age = now - self._stamps[index]
        # The clock was wrong when the weight was stored.  Ignore the weight, because it would not
        # decrease before that time.
        if age < -SLACK:
            return 0.0
        age = max(0.0, age)
        weight: float = self._weights[index] * 0.5 ** (age / self._half_life)
        return weight if weight > _MIN_WEIGHT else 0.0

    def _find(self, key: bytes) -> tuple[int, range]:
        digest = blake2b(key, digest_size=12, key=self.secret).digest()
        first = int.from_bytes(digest[8:], "big") % self._buckets * _WAYS
        return int.from_bytes(digest[:8], "big") | 1, range(first, first + _WAYS)

    @property
    def octets(self) -> bytes:
        """The content of the table, so that it can be saved."""
        return bytes(self._table)

    @octets.setter
    def octets(self, saved: bytes) -> None:
        """Restore saved content.

        Raises:
            ValueError: the size differs.
        """
        self._table[:] = saved
