"""A maildrop of this server, through the door that its store opens to all mail.

So its quota counts, a disk that is not mounted is noticed, and a message that was removed here and
is still held is known, wherever an IMAP client has moved the others.
"""

from __future__ import annotations

from collections.abc import Callable

from ...maildrop import Deliveries, Presence
from . import name_of


class LocalMaildrop:
    """Names are made from the message's identity, so doing it again repeats nothing."""

    is_repeatable = True

    def __init__(self, deliveries: Deliveries, end: Callable[[], None] = lambda: None) -> None:
        """``end`` is called when it is closed."""
        self._deliveries = deliveries
        self._end = end

    def has(self, identity: str) -> bool:
        return self.presence(identity) in (Presence.HERE, Presence.HELD)

    def presence(self, identity: str) -> Presence:
        return self._deliveries.presence(name_of(identity))

    def holds(self, identity: str, digest: bytes) -> bool:
        return self._deliveries.digest(name_of(identity)) == digest

    def begin(self, identity: str) -> bool:
        if self.has(identity):
            return False
        self._deliveries.begin(name_of(identity))
        return True

    def write(self, octets: bytes) -> None:
        self._deliveries.write(octets)

    def commit(self) -> None:
        """
        Raises:
            QuotaExceeded: no room now.
            LargerThanQuota: there never will be.
        """
        self.end()
        self.group()()

    def end(self) -> None:
        """As ``commit``."""
        self._deliveries.end()

    def group(self) -> Callable[[], None]:
        return self._deliveries.group()

    def abort(self) -> None:
        self._deliveries.abort()

    def close(self) -> None:
        try:
            self._deliveries.close()
        finally:
            self._end()
