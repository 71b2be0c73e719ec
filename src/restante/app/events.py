"""The events of the log, for clients that follow it through a control socket.

Limits: a client that reads slowly gets the oldest ``MAX_WAITING`` events, or ``MAX_OCTETS``, and
then the number of events that were skipped.  An event that is skipped is not formatted, so a client
that stops reading costs nothing.
"""

from __future__ import annotations

import asyncio
import json
import logging
import mmap
import threading
from collections import deque
from collections.abc import Iterable

from .. import log
from .answers import parse

MAX_WAITING = 1000  # events, some 300 kB; a screen shows about 50
MAX_OCTETS = 1 << 20  # of events; clients of the server choose the length of some fields
_MAX_LINE = 16_384  # octets; only tracebacks are longer, and the log contains them in full


class EventQueue:
    """Events that one client has not received yet.  Must be created in the event loop."""

    def __init__(self, level: int = logging.NOTSET, user: str | None = None) -> None:
        """Accept only events of this level or a higher one, and only those of ``user``, if any."""
        self._level, self._user = level, user
        self._lines: deque[bytes] = deque()
        self._octets = 0  # in ``_lines``
        self._skipped = 0
        self._lock = threading.Lock()  # threads log as well
        self._loop = asyncio.get_running_loop()
        self._is_filled = asyncio.Event()

    def put(self, record: logging.LogRecord) -> None:
        """Add an event of this process; may be called in any thread."""
        fields = getattr(record, "fields", None) or {}
        if record.levelno < self._level:
            return
        if self._user is not None and fields.get("user") != self._user:
            return
        with self._lock:
            if self._is_full:
                self._skipped += 1
                return
            self._add(_line(record))
            is_first = len(self._lines) == 1
        if is_first:
            self._loop.call_soon_threadsafe(self._is_filled.set)

    def put_line(self, line: bytes) -> None:
        """Add a line from another worker; must be called in the event loop."""
        with self._lock:
            if self._is_full:
                self._skipped += 1
            else:
                self._add(line)
        self._is_filled.set()

    def put_lines(self, lines: Iterable[bytes]) -> None:
        """Add the accepted lines of the supervisor; must be called in the event loop."""
        levels = logging.getLevelNamesMapping()
        for line in lines:
            event = parse(line)
            is_of_user = self._user is None or event.get("user") == self._user
            if is_of_user and levels[event["level"].upper()] >= self._level:
                self.put_line(line)

    @property
    def _is_full(self) -> bool:
        return len(self._lines) >= MAX_WAITING or self._octets >= MAX_OCTETS

    def _add(self, line: bytes) -> None:
        self._lines.append(line)
        self._octets += len(line)

    async def take(self) -> bytes:
        """Wait for events and return their lines."""
        await self._is_filled.wait()
        with self._lock:
            self._is_filled.clear()
            lines, self._lines, self._octets = self._lines, deque(), 0
            if self._skipped:
                lines.append(json.dumps({"skipped": self._skipped}).encode())
                self._skipped = 0
        return b"".join(line + b"\n" for line in lines)


class SupervisorEvents:
    """The last events of the supervisor, in memory that its workers read.

    Must be created before the workers are forked.  The supervisor never waits for a reader: an old
    event is overwritten by a new one.  No lock is needed, because the number of events is
    incremented after an event has been written.
    """

    _SLOTS, _SIZE = 64, 4096  # events, and octets for each with its length

    def __init__(self) -> None:
        self._count = memoryview(mmap.mmap(-1, 8)).cast("Q")
        self._memory = mmap.mmap(-1, self._SLOTS * self._SIZE)

    @property
    def count(self) -> int:
        """Number of events so far."""
        return self._count[0]

    def put(self, record: logging.LogRecord) -> None:
        """Add an event; must be called only in the supervisor."""
        line = _line(record, self._SIZE - 4)
        at = self._count[0] % self._SLOTS * self._SIZE
        self._memory[at : at + 4] = len(line).to_bytes(4, "big")
        self._memory[at + 4 : at + 4 + len(line)] = line
        self._count[0] += 1

    def since(self, number: int) -> list[bytes]:
        """Return the lines of the events after the first ``number``, without overwritten ones."""
        lines = []
        for each in range(max(number, self._count[0] - self._SLOTS), self._count[0]):
            at = each % self._SLOTS * self._SIZE
            length = int.from_bytes(self._memory[at : at + 4], "big")
            line = self._memory[at + 4 : at + 4 + length]
            if self._count[0] < each + self._SLOTS:  # it was not overwritten while it was read
                lines.append(line)
        return lines


def _line(record: logging.LogRecord, limit: int = _MAX_LINE) -> bytes:
    line = log.JSON.format(record).encode()
    if len(line) > limit:
        shortened = logging.LogRecord("", record.levelno, "", 0, record.getMessage(), None, None)
        shortened.created = record.created
        line = log.JSON.format(shortened).encode()
    return line
