"""A run: sessions that share a record of failed messages, so that no message blocks the others.

If the connection is lost during the download of a message, nothing is deleted, because the server
deletes messages only at QUIT (RFC 1939 §6).  Another session of the run must therefore reach QUIT
without this message.  If the cause was a short outage, the message is delayed only until the next
run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from ..errors import QuotaExceeded

_TRIES = 2  # for each message in one run, because the first failure may be a coincidence


class Run:
    """State that is shared by sessions of an account that follow each other without a pause."""

    def __init__(self) -> None:
        self.is_last = False
        """Whether the run ends even if the connection of the current session is lost."""
        self.full: QuotaExceeded | None = None
        """Why this run fetches no more new messages; None if it still fetches them."""
        self.unstored: set[str] = set()
        """Messages, by ``aside_key``, that were received in this run but not stored.

        If QUIT removes all messages that were sent, the next session of this run does not request
        these messages, so that it can reach QUIT.
        """
        self._reported: set[str] = set()
        self._failures: Counter[str] = Counter()

    def report_once(self, keys: Iterable[str]) -> set[str]:
        """Return the messages that this run has not reported yet, and record them as reported.

        ``keys`` and the result are ``aside_key``s of messages that are left on the server.
        """
        new = set(keys) - self._reported
        self._reported |= new
        return new

    def count_failure(self, key: str) -> bool:
        """Count a failure of a message; return whether it is the message's first one in this run.

        ``key`` is the message's ``aside_key``.
        """
        self._failures[key] += 1
        return self._failures[key] == 1

    def postponed(self, aside: Iterable[str]) -> set[str]:
        """Return the messages that wait for the next run, by ``aside_key``.

        ``aside`` contains the keys of all messages that are set aside.  In the last session of a
        run, all of them wait.  Then only a message that has never failed before can break the
        connection.
        """
        failed = aside if self.is_last else (key for key in aside if self._failures[key] >= _TRIES)
        return self.unstored.union(failed)
