"""The events of the log, for clients that follow it through a control socket.

Limits: a client that reads slowly gets the oldest ``MAX_WAITING`` events and then the number of
events that were skipped.  An event that is skipped is not formatted, so a client that stops reading
costs nothing.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections import deque

from .. import log

MAX_WAITING = 1000  # events, some 300 kB; a screen shows about 50
_MAX_LINE = 16_384  # octets; only tracebacks are longer, and the log contains them in full


class EventQueue:
    """Events that one client has not received yet.  Must be created in the event loop."""

    def __init__(self, level: int = logging.NOTSET, user: str | None = None) -> None:
        """Accept only events of this level or a higher one, and only those of ``user``, if any."""
        self._level, self._user = level, user
        self._lines: deque[bytes] = deque()
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
            if len(self._lines) >= MAX_WAITING:
                self._skipped += 1
                return
            self._lines.append(_line(record))
            is_first = len(self._lines) == 1
        if is_first:
            self._loop.call_soon_threadsafe(self._is_filled.set)

    def put_line(self, line: bytes) -> None:
        """Add a line from another worker; must be called in the event loop."""
        with self._lock:
            if len(self._lines) >= MAX_WAITING:
                self._skipped += 1
            else:
                self._lines.append(line)
        self._is_filled.set()

    async def take(self) -> bytes:
        """Wait for events and return their lines."""
        await self._is_filled.wait()
        with self._lock:
            self._is_filled.clear()
            lines, self._lines = self._lines, deque()
            if self._skipped:
                lines.append(json.dumps({"skipped": self._skipped}).encode())
                self._skipped = 0
        return b"".join(line + b"\n" for line in lines)


def _line(record: logging.LogRecord) -> bytes:
    line = log.JSON.format(record).encode()
    if len(line) > _MAX_LINE:
        shortened = logging.LogRecord("", record.levelno, "", 0, record.getMessage(), None, None)
        shortened.created = record.created
        line = log.JSON.format(shortened).encode()
    return line
