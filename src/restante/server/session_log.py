"""Record the actions of a POP3 session, for the log and for the maildrop's journal."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from time import time

from ..maildrop import Entry, SessionRecord

# Messages that a record lists, in about 100 kB; additional messages are only counted.
_MAX_LISTED = 1000


class SessionLog:
    """Collects data about a session until the session ends and is recorded."""

    __slots__ = ("_began", "_listed", "messages", "octets", "removed", "update")

    def __init__(self, began: float) -> None:
        """``began`` is the time when the connection began, on the loop's clock."""
        self._began = began
        self._listed: list[Entry] = []  # the first ``_MAX_LISTED`` retrieved messages
        self.messages = 0
        """Number of messages that were retrieved completely with RETR."""
        self.octets = 0
        """Total size of these messages, in octets."""
        self.removed: Sequence[Entry] = ()
        """Messages that were removed at QUIT."""
        self.update = ""
        """Result of the deletions at QUIT; empty if the client sent no QUIT."""

    def add(self, entries: Sequence[Entry]) -> int:
        """Record that messages were retrieved, and return their total size in octets."""
        before = self.octets
        for entry in entries:
            if len(self._listed) < _MAX_LISTED:
                self._listed.append(entry)
            self.octets += entry.size
        self.messages += len(entries)
        return self.octets - before

    @property
    def seconds(self) -> float:
        """Seconds since the connection began."""
        return asyncio.get_running_loop().time() - self._began

    def record(self, *, address: str, tls: str, credential: str, end: str) -> SessionRecord:
        """Return the record of the session for the journal."""
        now = time()
        return SessionRecord(
            began_at=now - self.seconds,
            ended_at=now,
            address=address,
            tls=tls,
            credential=credential,
            retrieved=self._listed,
            removed=self.removed,
            end=end,
            unnamed=self.messages - len(self._listed),
        )
