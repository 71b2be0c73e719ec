"""A run: sessions that share a record of failed messages, so that no message blocks the others.

If the connection is lost during the download of a message, nothing is deleted, because only QUIT
deletes messages (RFC 1939 §6).  So the run must reach QUIT without that message.  A run is an
object instead of a period of time, so a short outage delays the message only until the next run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from ..errors import QuotaExceeded

_TRIES = 2  # attempts for one message in one run, because the first failure may be a coincidence


class Run:
    """One or more sessions with an account, without a pause between them."""

    def __init__(self) -> None:
        self.is_last = False
        """Whether the run ends even if the connection of the current session is lost."""
        self.full: QuotaExceeded | None = None
        """Why this run fetches no more new messages; None if it still fetches them."""
        self.unstored: set[str] = set()
        """Messages, by ``aside_key``, that were received in this run but not stored.

        At QUIT the server removes all messages that it sent, so no other session of this run
        requests these.
        """
        self._reported: set[str] = set()
        self._failures: Counter[str] = Counter()

    def not_reported(self, keys: Iterable[str]) -> set[str]:
        """Return the messages left on the server that this run has not reported yet.

        The call records them as reported.  ``keys`` and the result are ``aside_key``s.
        """
        new = set(keys) - self._reported
        self._reported |= new
        return new

    def failed(self, key: str) -> bool:
        """Count a failure of a message; return whether it is the message's first in this run.

        ``key`` is the message's ``aside_key``.
        """
        self._failures[key] += 1
        return self._failures[key] == 1

    def postponed(self, aside: Iterable[str]) -> set[str]:
        """Return the messages that wait for the next run; ``aside`` contains all set aside.

        In the last session, all of ``aside`` wait, so that only a message that has never failed
        before can break the connection.
        """
        failed = aside if self.is_last else (key for key in aside if self._failures[key] >= _TRIES)
        return self.unstored.union(failed)
