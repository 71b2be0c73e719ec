"""Count the events that cause alerts, in memory that the processes of a server share.

Row 0 of the memory belongs to the supervisor; the other rows belong to the workers.  Each row is
written only by its owner, so no lock between processes is needed.  Counts never decrease.  One
worker takes them and sends the alerts, so each event causes at most one alert, and the events of a
worker that has died are not lost.
"""

from __future__ import annotations

import logging
import mmap
import threading
import time
from typing import Literal, NamedTuple, get_args

from .. import log

Kind = Literal["deletions", "store", "worker"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_EVENTS: dict[str, Kind] = {
    "deletion braked": "deletions",
    "expiry withheld": "deletions",
    "purge withheld": "deletions",
    "adopted unique-ids damaged": "store",
    "clock not saved": "store",
    "journal not written": "store",
    "message not kept": "store",
    "message not removed": "store",
    "partial delivery not noted": "store",
    "purge not recorded": "store",
    "read failed": "store",
    "update failed": "store",
    "users not read": "store",
    "worker ended": "worker",
}
_ON_REASON = ("delivery refused", "expiry failed", "login impossible", "purge failed")
"""Events that are storage errors only if the reason begins with ``_STORAGE``.

So is "update failed" of a session: it also follows an error that the store has logged, and a
deletion that was stopped."""
_STORAGE = "mail storage: "
_MAX_LINE = 400  # octets of the log line that is kept for each kind
_FORMAT = log.Plain(with_time=False)


class Batch(NamedTuple):
    """New events of one kind."""

    events: int
    """Number of events."""
    last: float
    """Time of the last event, in seconds since the epoch."""
    line: str
    """The log line of the last event, in which untrusted text is escaped."""


class Incidents:
    """The events of all processes of one server.  Must be created before the workers are forked."""

    def __init__(self, workers: int) -> None:
        self._rows = range(0, (workers + 1) * len(KINDS), len(KINDS))
        cells = self._rows.stop
        # Each cell has the number of events, and time, length and text of the last one.
        self._counts = memoryview(mmap.mmap(-1, cells * 8)).cast("Q")
        self._times = memoryview(mmap.mmap(-1, cells * 8)).cast("d")
        self._lengths = memoryview(mmap.mmap(-1, cells * 8)).cast("Q")
        self._lines = memoryview(mmap.mmap(-1, cells * _MAX_LINE))
        self._taken = memoryview(mmap.mmap(-1, len(KINDS) * 8)).cast("Q")
        self._row = self._rows[0]
        self._lock = threading.Lock()  # between the threads of the owner of a row
        self._threads = threading.local()

    def serve_as(self, worker: int) -> None:
        """Write to the row of this worker from now on."""
        self._row = self._rows[worker + 1]

    def ignore_this_thread(self) -> None:
        """Ignore events of the current thread, which sends alerts.

        Otherwise an alert that cannot be stored would cause another alert.
        """
        self._threads.is_ignored = True

    def watch(self, record: logging.LogRecord) -> None:
        """Count an event if it should cause an alert; see ``log.watched``."""
        kind = _kind_of(record)
        if kind is not None and not hasattr(self._threads, "is_ignored"):
            self.add(kind, _FORMAT.format(record).split("\n", 1)[0], record.created)

    def add(self, kind: Kind, line: str, at: float | None = None) -> None:
        """Count an event of this process."""
        cell = self._row + KINDS.index(kind)
        text = line.encode("ascii", "replace")[:_MAX_LINE]
        with self._lock:
            start = cell * _MAX_LINE
            self._lines[start : start + len(text)] = text
            self._lengths[cell] = len(text)
            self._times[cell] = time.time() if at is None else at
            self._counts[cell] += 1  # last, because the reader waits for it

    def take(self, kind: Kind) -> Batch | None:
        """Return the events since the last call, or None.  Called by only one worker."""
        index = KINDS.index(kind)
        cells = [row + index for row in self._rows]
        total = sum(self._counts[cell] for cell in cells)
        new, self._taken[index] = total - self._taken[index], total
        if not new:
            return None
        latest = max(cells, key=self._times.__getitem__)
        start = latest * _MAX_LINE
        text = bytes(self._lines[start : start + self._lengths[latest]])
        return Batch(new, self._times[latest], text.decode("ascii", "replace"))


def _kind_of(record: logging.LogRecord) -> Kind | None:
    event, fields = record.getMessage(), getattr(record, "fields", {})
    if event in _ON_REASON or (event == "update failed" and "session" in fields):
        return "store" if str(fields.get("reason", "")).startswith(_STORAGE) else None
    return _EVENTS.get(event)
