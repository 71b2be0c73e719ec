"""Record when and from which address each credential was last used.

Limits: uses are collected and written at most once a minute.  A crash loses the uses of the last
minute.  A login does not wait for this write, and does not fail if the write fails.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from pathlib import Path

from ..clock import SLACK
from ..errors import RestanteError
from .database import transaction

_INTERVAL = 60.0  # minimum number of seconds between two writes


class LastUse:
    """Collects the uses of credentials and writes them in one transaction."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._pending: dict[tuple[str, str], tuple[float, str]] = {}
        self._timer: threading.Timer | None = None
        self._written_at = -_INTERVAL  # on the monotonic clock

    def record(self, user: str, label: str, address: str) -> None:
        """Record a use.  The first use after a minute without a write is written immediately."""
        with self._lock:
            self._pending[user, label] = (time.time(), address)
            if self._timer is None:
                wait = max(0.0, self._written_at + _INTERVAL - time.monotonic())
                timer = threading.Timer(wait, self._write)
                timer.daemon = True
                with suppress(RuntimeError):  # no thread is available; the next login tries again
                    timer.start()
                    self._timer = timer

    def _write(self) -> None:
        with self._writing:
            with self._lock:
                pending, self._pending = self._pending, {}
                self._timer, self._written_at = None, time.monotonic()
            if not pending:
                return
            future = time.time() + SLACK
            rows = [
                (used_at, address, *key, used_at, future)
                for key, (used_at, address) in pending.items()
            ]
            with suppress(RestanteError), transaction(self._path) as database:
                database.executemany(
                    "UPDATE credentials SET used_at = ?, used_from = ?"
                    # Skip a credential that was created after this use, unless the clock was ahead
                    # when it was created.
                    " WHERE user = ? AND label = ? AND (created_at <= ? OR created_at > ?)",
                    rows,
                )

    def close(self) -> None:
        """Write the remaining uses, and wait for a write that has begun."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
        self._write()
