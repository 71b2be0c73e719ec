"""A run: sessions that share a record of failed messages, so that none can block the others.

If the connection is lost at a message, nothing is deleted, because only QUIT deletes (RFC 1939 §6).
So the run must reach QUIT without that message.  A run is an object and not a period of time: after
a short outage, the message is delayed only within this run, whenever the next run begins.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from ..errors import QuotaExceeded

_TRIES = 2  # tries of one message in one run: the first failure may be an accident


class Run:
    """One or more sessions with an account, each begun at once after the one before."""

    def __init__(self) -> None:
        self.is_last = False
        """Whether no other session of this run follows if the current one is lost."""
        self.full: QuotaExceeded | None = None
        """Why this run fetches no more new messages; None: it does."""
        self.unstored: set[str] = set()
        """Messages, by ``aside_key``, that were received in this run but not stored.

        The server removes at QUIT what it sent, so no other session of this run requests them.
        """
        self._reported: set[str] = set()
        self._failures: Counter[str] = Counter()

    def not_reported(self, keys: Iterable[str]) -> set[str]:
        """Return the messages that no session of this run has reported yet as left on the server.

        They count as reported from now on.  ``keys`` and the result are ``aside_key``s.
        """
        new = set(keys) - self._reported
        self._reported |= new
        return new

    def failed(self, key: str) -> bool:
        """Count a failure of a message; return whether it is the first one in this run.

        ``key`` is its ``aside_key``.
        """
        self._failures[key] += 1
        return self._failures[key] == 1

    def postponed(self, aside: Iterable[str]) -> set[str]:
        """Return the messages that wait for the next run; ``aside`` are all that were set aside.

        In the last session all of ``aside`` wait, so that only a message that never failed before
        can break the connection.
        """
        failed = aside if self.is_last else (key for key in aside if self._failures[key] >= _TRIES)
        return self.unstored.union(failed)
