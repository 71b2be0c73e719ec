"""The sessions of one run share what failed, so that a bad message does not keep it from its end.

A connection that is lost at a message deletes nothing: only QUIT does (RFC 1939 §6).  So a run in
which this happened has to reach QUIT without that message.  Time cannot say which run it is: the
outage of a minute must cost the message no more than this run, whenever the next one begins.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from ..errors import QuotaExceeded

_TRIES = 2  # of one message in one run


class Run:
    """One or more sessions with an account, each begun at once after the one before."""

    def __init__(self) -> None:
        self.is_last = False
        """If the session that begins now is lost, no other one follows in this run."""
        self.full: QuotaExceeded | None = None
        """Why no new message is fetched in this run any more."""
        self.unstored: set[str] = set()
        """By ``aside_key``, messages that came in this run and are not stored, from a server that
        removes at QUIT what it sent: no other session of this run asks for them."""
        self._reported: set[str] = set()
        self._failures: Counter[str] = Counter()

    def not_reported(self, keys: Iterable[str]) -> set[str]:
        """Return which of these messages, by ``aside_key``, no earlier session of this run has
        reported as left on the server, and count them as reported."""
        new = set(keys) - self._reported
        self._reported |= new
        return new

    def failed(self, key: str) -> bool:
        """Count that a message could not be taken, by its ``aside_key``; return whether this is its
        first failure in this run."""
        self._failures[key] += 1
        return self._failures[key] == 1

    def postponed(self, aside: Iterable[str]) -> set[str]:
        """Return which messages wait for the next run; ``aside``: all that were ever set aside.

        In the last session all of those do, so that it can only be lost at a message that never
        failed before.
        """
        failed = aside if self.is_last else (key for key in aside if self._failures[key] >= _TRIES)
        return self.unstored.union(failed)
