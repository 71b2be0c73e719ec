"""Log lines: a stable event name and ``key=value``; part of the public interface.

Security: untrusted text is escaped, so that it cannot forge lines, control a terminal or mislead a
filter.  The peer's address precedes all text from the peer.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from datetime import UTC, datetime

from .config import Log
from .escaping import bounded, escape, printable

_logger = logging.getLogger("restante")


def _fields(record: logging.LogRecord) -> dict[str, object]:
    found = getattr(record, "fields", None)
    return found if isinstance(found, dict) else {}


class Plain(logging.Formatter):
    """``login refused: ip=192.0.2.7 user=ann reason=bad-password``"""

    def __init__(self, *, with_time: bool) -> None:
        super().__init__()
        self._with_time = with_time

    def format(self, record: logging.LogRecord) -> str:
        line, sign = printable(record.getMessage()), ":"
        for key, value in _fields(record).items():
            line += f"{sign} {key}={escape(value)}"
            sign = ""
        if record.exc_info:  # its text may be untrusted as well
            for each in self.formatException(record.exc_info).split("\n"):
                line += f"\n  bug | {printable(each)}"
        return f"{_time(record)} {line}" if self._with_time else line


class Json(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "t": _time(record),
            "level": record.levelname.lower(),
            "event": record.getMessage().replace(" ", "."),
        }
        found: dict[str, object] = dict(line)
        for key, value in _fields(record).items():
            found[key] = bounded(value) if isinstance(value, str) else value
        if record.exc_info:
            found["traceback"] = self.formatException(record.exc_info)
        return json.dumps(found, default=str)


def _time(record: logging.LogRecord) -> str:
    at = datetime.fromtimestamp(record.created, UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class _Handler(logging.StreamHandler):  # type: ignore[type-arg]
    """Keeps the server running if the log cannot be written (full disk, closed pipe)."""

    def handle(self, record: logging.LogRecord) -> bool:
        """Emit without a lock: each line is one write, so threads cannot mix their lines."""
        self.emit(record)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.stream.write(self.format(record) + "\n")
            self.stream.flush()
        except Exception:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        pass


class _Event(logging.LogRecord):
    """What our formatters use of a record; the rest takes longer to make than the line."""

    def __init__(self, level: int, event: str, fields: dict[str, object]) -> None:
        self.levelno, self.levelname = level, logging.getLevelName(level)
        self.msg, self.args, self.exc_info = event, None, None
        self.created, self.fields = time.time(), fields


def write(logger: logging.Logger, level: int, event: str, fields: dict[str, object]) -> None:
    """Log an event, as ``logger.log`` does.

    A session has two.  Those for the handler of ``set_up`` go there directly, because the way
    through ``logging`` costs more than the line.
    """
    if not logger.isEnabledFor(level):
        return
    match _logger.handlers:
        case [_Handler() as handler]:
            handler.emit(_Event(level, event, fields))
        case _:
            logger.log(level, event, extra={"fields": fields})


def set_up(wanted: Log) -> None:
    """Send the log of this process to standard error."""
    # Not logged, so not determined; that saves half of the time (Python's logging, Optimization).
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    handler = _Handler(sys.stderr)
    handler.setFormatter(_formatter(wanted.format))
    for name in ("restante", "asyncio"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.propagate = False
    _logger.setLevel(wanted.level.upper())
    logging.getLogger("asyncio").setLevel(logging.ERROR)


def _formatter(name: str) -> logging.Formatter:
    if name == "auto":
        name = "journal" if _goes_to_the_journal() else "human"
    return Json() if name == "json" else Plain(with_time=name == "human")


def _goes_to_the_journal() -> bool:
    """Return whether standard error is the journal's socket (systemd.exec(5), JOURNAL_STREAM)."""
    try:
        status = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
