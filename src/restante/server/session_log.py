"""The actions of one POP3 session, for the log and for the journal of its maildrop."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from time import time

from ..maildrop import Entry, SessionRecord

_NAMED = 1000  # messages listed in a record, at most about 100 kB; further ones are only counted


class SessionLog:
    """Collects the actions of a session for the record at its end."""

    __slots__ = ("_began", "_named", "messages", "octets", "removed", "update")

    def __init__(self, began: float) -> None:
        """``began`` is the beginning of the connection, on the loop's clock."""
        self._began = began
        self._named: list[Entry] = []  # the first retrieved messages
        self.messages = 0
        """Number of completely retrieved messages, without TOP."""
        self.octets = 0
        """Total size of the retrieved messages, in octets."""
        self.removed: Sequence[Entry] = ()
        self.update = ""
        """Result of the deletions at QUIT; empty if the client sent no QUIT."""

    def add(self, entries: Sequence[Entry]) -> None:
        """Record that messages were retrieved."""
        for entry in entries:
            if len(self._named) < _NAMED:
                self._named.append(entry)
            self.octets += entry.size
        self.messages += len(entries)

    @property
    def seconds(self) -> float:
        """Time since the connection began."""
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
            retrieved=self._named,
            removed=self.removed,
            end=end,
            unnamed=self.messages - len(self._named),
        )
