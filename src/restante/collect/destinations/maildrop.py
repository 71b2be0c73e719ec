"""Store mail in a maildrop of this server.

The store is used in the same way as for all other deliveries.  Therefore the quota applies, and
nothing is written where a disk is not mounted.  Messages are recognised even if an IMAP client has
moved them, or if they were removed and are still held.
"""

from __future__ import annotations

from collections.abc import Callable

from ...maildrop import Deliveries, Presence
from . import name_of


class LocalMaildrop:
    """Stores each message under a name that is derived from its identity.

    Therefore storing a message again has no effect.
    """

    is_repeatable = True

    def __init__(self, deliveries: Deliveries, end: Callable[[], None] = lambda: None) -> None:
        """``end`` is called when the destination is closed."""
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
        """Deliver the current message; it is durable on return.

        Raises:
            QuotaExceeded: the maildrop is full.
            LargerThanQuota: the message would not fit into an empty maildrop.
        """
        self.end()
        self.group()()

    def end(self) -> None:
        """Add the message to the current group; raises the same errors as ``commit``."""
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
