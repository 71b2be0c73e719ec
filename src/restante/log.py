"""Write the log: each line has a stable event name and ``key=value`` fields.

The names of events and fields are part of the public interface.

Security: untrusted text is escaped, so that it cannot forge lines, control a terminal or mislead a
log filter.  The peer's address precedes all text from the peer.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TextIO

from .config import Log
from .escaping import bounded, escape, printable

_logger = logging.getLogger("restante")
_followers: list[Callable[[logging.LogRecord], None]] = []
_watchers: list[Callable[[logging.LogRecord], None]] = []


def _fields(record: logging.LogRecord) -> dict[str, object]:
    fields = getattr(record, "fields", None)
    return fields if isinstance(fields, dict) else {}


class Plain(logging.Formatter):
    """Formats lines like ``login refused: ip=192.0.2.7 user=ann reason=bad-password``."""

    def __init__(self, *, with_time: bool) -> None:
        super().__init__()
        self._with_time = with_time

    def format(self, record: logging.LogRecord) -> str:
        line, separator = printable(record.getMessage()), ":"
        for key, value in _fields(record).items():
            line += f"{separator} {key}={escape(value)}"
            separator = ""
        if record.exc_info:  # the text of an exception may be untrusted as well
            for each in self.formatException(record.exc_info).split("\n"):
                line += f"\n  bug | {printable(each)}"
        return f"{time_stamp(record.created)} {line}" if self._with_time else line


class Json(logging.Formatter):
    """Formats each event as one line with a JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "t": time_stamp(record.created),
            "level": record.levelname.lower(),
            "event": record.getMessage().replace(" ", "."),
        }
        output: dict[str, object] = dict(line)
        for key, value in _fields(record).items():
            output[key] = bounded(value) if isinstance(value, str) else value
        if record.exc_info:
            output["traceback"] = self.formatException(record.exc_info)
        return json.dumps(output, default=str)


def time_stamp(seconds: float) -> str:
    """Return a time, in seconds since the epoch, as in the log.  Time stamps sort by time."""
    at = datetime.fromtimestamp(seconds, UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class _Handler(logging.StreamHandler):  # type: ignore[type-arg]
    """A handler that ignores errors when the log cannot be written (full disk, closed pipe).

    Watchers get warnings and errors whatever the configured level is.
    """

    def __init__(self, stream: TextIO, minimum: int) -> None:
        """``minimum`` is the lowest level of the events to write."""
        super().__init__(stream)
        self._minimum = minimum

    def handle(self, record: logging.LogRecord) -> bool:
        """Emit without a lock.  One write per line keeps lines from different threads apart."""
        self.emit(record)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            for watch in list(_watchers):
                watch(record)
        if record.levelno < self._minimum:
            return
        try:
            self.stream.write(self.format(record) + "\n")
            self.stream.flush()
        except Exception:
            self.handleError(record)
        for follow in list(_followers):
            follow(record)

    def handleError(self, record: logging.LogRecord) -> None:
        pass


class _Event(logging.LogRecord):
    """A record with only those attributes that our formatters use.

    Creating a complete record takes longer than formatting the line.
    """

    def __init__(self, level: int, event: str, fields: dict[str, object]) -> None:
        self.levelno, self.levelname = level, logging.getLevelName(level)
        self.msg, self.args, self.exc_info = event, None, None
        self.created, self.fields = time.time(), fields


def write(logger: logging.Logger, level: int, event: str, fields: dict[str, object]) -> None:
    """Log an event, as ``logger.log`` does, but faster.

    Each session logs two events.  If ``set_up`` has installed its handler, events are passed
    directly to that handler, because ``logging`` would take longer than formatting and writing the
    line.
    """
    if not logger.isEnabledFor(level):
        return
    match _logger.handlers:
        case [_Handler() as handler]:
            handler.emit(_Event(level, event, fields))
        case _:
            logger.log(level, event, extra={"fields": fields})


def set_up(options: Log) -> None:
    """Send the log of this process to standard error."""
    # Do not determine values that are not logged.  This saves half of the time; see "Optimization"
    # in the documentation of Python's ``logging``.
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    level = logging.getLevelNamesMapping()[options.level.upper()]
    handler = _Handler(sys.stderr, level)
    handler.setFormatter(_formatter(options.format))
    for name in ("restante", "asyncio"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.propagate = False
    _logger.setLevel(min(level, logging.WARNING))  # watchers need warnings
    logging.getLogger("asyncio").setLevel(logging.ERROR)


JSON = Json()


@contextmanager
def following(follow: Callable[[logging.LogRecord], None]) -> Iterator[None]:
    """Call ``follow``, which must not raise or log, for each event of this process.

    It is called in the thread that logs.
    """
    _followers.append(follow)
    try:
        yield
    finally:
        _followers.remove(follow)


@contextmanager
def watched(watch: Callable[[logging.LogRecord], None]) -> Iterator[None]:
    """Call ``watch`` for each warning and error of this process, as ``followed`` does.

    Processes that are forked inside the context call it too.
    """
    _watchers.append(watch)
    try:
        yield
    finally:
        _watchers.remove(watch)


def forget_followers() -> None:
    """Forget the functions that follow the events of the process that forked this one."""
    _followers.clear()


def follower_count() -> int:
    """Return the number of functions that follow the events of this process."""
    return len(_followers)


def _formatter(name: str) -> logging.Formatter:
    if name == "auto":
        name = "journal" if _is_journal() else "human"
    return Json() if name == "json" else Plain(with_time=name == "human")


def _is_journal() -> bool:
    """Return whether standard error is the journal's socket (systemd.exec(5), JOURNAL_STREAM)."""
    try:
        status = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
