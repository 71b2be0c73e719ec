"""What one POP3 session did, for the log and for the journal of its maildrop."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from time import time

from ..maildrop import Entry, SessionRecord

_NAMED = 1000  # messages that a record names, some 100 kB at most; further ones are counted


class SessionLog:
    """Collected while the session lasts, and recorded at its end."""

    __slots__ = ("_began", "_named", "messages", "octets", "removed", "update")

    def __init__(self, began: float) -> None:
        """``began``: when the connection began, on the loop's clock."""
        self._began = began
        self._named: list[Entry] = []  # the first messages that were retrieved
        self.messages = 0
        """Number of messages that were retrieved completely; TOP does not count."""
        self.octets = 0
        """Their size."""
        self.removed: tuple[Entry, ...] = ()
        self.update = ""
        """What became of the deletions at QUIT; empty: there was no QUIT."""

    def add(self, entries: Sequence[Entry]) -> None:
        """Messages were retrieved."""
        if len(self._named) < _NAMED:
            self._named += entries[: _NAMED - len(self._named)]
        self.messages += len(entries)
        self.octets += sum([entry.size for entry in entries])

    @property
    def seconds(self) -> float:
        """Time since the connection began."""
        return asyncio.get_running_loop().time() - self._began

    def record(self, *, address: str, tls: str, credential: str, end: str) -> SessionRecord:
        """Return the line of the journal."""
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
