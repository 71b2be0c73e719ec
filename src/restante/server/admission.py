"""Count and limit connections, and evict old connections for new ones.

Each connection occupies a slot from its acceptance to its end.  There are two limits: the total
number of connections (``limits.sessions``), and the number of connections from one source
(``limits.per_address``).  Connections are counted before the TLS handshake and before any password
check, because these are the most expensive parts of a flood of connections.

If no slot is free, a new connection gets the slot of the oldest connection that has not logged in.
Otherwise a few hundred idle connections would exclude all users until the login deadline, a
minute later.  With eviction, an attacker loses the slots of idle connections, and a client can
log in if it is faster than the flood replaces connections.  Three kinds of connections are never
evicted:

- connections that are logged in, because the user may have marked messages;
- connections whose password is being checked, because the password may be correct;
- connections that wait for the response to a failed login.  If the slot were freed immediately, an
  address could guess as fast as it can connect, instead of ``per_address`` times in each delay.

The oldest connection is evicted instead of a random one, so that no legitimate client is evicted
until the flood is faster than its login.  A source at its own limit evicts its own connections
first, so that it cannot evict others.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache
from ipaddress import IPv6Address, ip_address

from ..shared import Tally


class Slot:
    """One counted connection."""

    __slots__ = ("_admission", "_counts_in_total", "_source")

    def __init__(self, admission: Admission, source: str) -> None:
        self._admission: Admission | None = admission
        self._source = source
        self._counts_in_total = True

    def make_evictable(self, evict: Callable[[], object]) -> None:
        """Allow new connections to take this slot; ``evict`` must end the current connection."""
        if self._admission is not None:
            self._admission.make_evictable(self, self._source, evict)

    def protect(self) -> Callable[[], object] | None:
        """Make the slot non-evictable.  Returns the ``evict`` function that it had, or None."""
        return self._admission.protect(self, self._source) if self._admission else None

    def move(self, address: str) -> bool:
        """Count the connection for the client that a proxy has reported.

        Returns False, and changes nothing, if that client's source is at its limit.
        """
        if self._admission is None:
            return True
        evict = self.protect()
        moved = self._admission.admit(address, replaces=self._source)
        if moved is not None:
            self._source = moved._source
            if evict is not None:
                self.make_evictable(evict)
        return moved is not None

    def release(self) -> None:
        """Free the slot.  Calling it again has no effect."""
        if self._admission is not None:
            self.protect()
            self._admission.release(self._source, in_total=self._counts_in_total)
            self._admission = None

    def release_total(self) -> None:
        """Free the slot for other sources.  It counts for its own source until ``release``."""
        if self._admission is not None and self._counts_in_total:
            self.protect()
            self._admission.release_total(self._source)
            self._counts_in_total = False


class Admission:
    """Counts and limits the connections of a server, in total and by source.

    A source is an IPv4 address or an IPv6 /64, because providers assign a /64 to each customer
    (RFC 6177).  Connections through a Unix socket have no source and count only in the total.

    Connections of other workers are counted, but a worker can evict only its own connections.
    """

    def __init__(self, sessions: int, per_address: int, tally: Tally | None = None) -> None:
        """
        Args:
            sessions: the maximum number of connections in total.
            per_address: the maximum number of connections from one source.
            tally: the counts, which are shared with the other workers of the server.
        """
        self.sessions = sessions
        self.per_address = per_address
        self.reserved: Callable[[str], bool] | None = None
        """Returns whether an address may use the last tenth of all slots.  During a flood, they
        are reserved for networks from which users have logged in."""
        self._tally = tally or Tally()
        self._evictable: OrderedDict[Slot, Callable[[], object]] = OrderedDict()
        self._evictable_by_source: dict[str, OrderedDict[Slot, None]] = {}

    @property
    def is_crowded(self) -> bool:
        """Whether more than four fifths of all slots are occupied, so they may soon run out."""
        return self._tally.total() * 5 > self.sessions * 4

    def admit(self, address: str, *, replaces: str | None = None) -> Slot | None:
        """Return a slot for a client, or None if no slot is free or can be freed.

        ``replaces`` is the source of a slot that is released in exchange.
        """
        source, limit = _source(address), self.sessions
        if self.reserved is not None and self.is_crowded and not self.reserved(address):
            limit -= limit // 10
        is_admitted = self._occupy(source, limit, replaces) or (
            # The new connection replaces an evicted connection, so the reserved tenth does not
            # shrink and the full limit applies.
            self._evict_oldest(source) and self._occupy(source, self.sessions, replaces)
        )
        return Slot(self, source) if is_admitted else None

    def is_source_full(self, address: str) -> bool:
        """Return whether the client's source is at its limit."""
        return self._is_full(_source(address))

    def _is_full(self, source: str) -> bool:
        return bool(source) and self._tally.count(source) >= self.per_address

    def _occupy(self, source: str, limit: int, replaces: str | None) -> bool:
        # Workers share the counts, so the lock keeps others from changing them after the check.
        with self._tally.lock():
            if self._tally.total() - (replaces is not None) >= limit:
                return False
            if source and self._tally.count(source) - (replaces == source) >= self.per_address:
                return False
            if replaces is not None:
                self._tally.add(replaces, -1)
            self._tally.add(source, 1)
        return True

    def _evict_oldest(self, source: str) -> bool:
        """Evict the oldest evictable connection, and return whether there was one.

        If the source is at its limit, only connections from the source are considered.
        """
        own = self._evictable_by_source.get(source, ())
        slot = next(iter(own if self._is_full(source) else self._evictable), None)
        if slot is None:
            return False
        evict = self._evictable[slot]
        slot.release()  # before the new connection is counted
        evict()
        return True

    # Called by ``Slot``.

    def make_evictable(self, slot: Slot, source: str, evict: Callable[[], object]) -> None:
        self._evictable[slot] = evict
        self._evictable_by_source.setdefault(source, OrderedDict())[slot] = None

    def protect(self, slot: Slot, source: str) -> Callable[[], object] | None:
        evict = self._evictable.pop(slot, None)
        if evict is not None:
            del self._evictable_by_source[source][slot]
            if not self._evictable_by_source[source]:
                del self._evictable_by_source[source]
        return evict

    def release(self, source: str, *, in_total: bool) -> None:
        with self._tally.lock():
            self._tally.add(source, -1, in_total=in_total)

    def release_total(self, source: str) -> None:
        with self._tally.lock():
            self._tally.add(source, -1)
            self._tally.add(source, 1, in_total=False)


@lru_cache(4096)  # addresses, about 0.5 MB; the same clients connect repeatedly
def _source(address: str) -> str:
    """Return the source of an address: see ``Admission``."""
    parsed = ip_address(address) if address else None
    if isinstance(parsed, IPv6Address):
        return parsed.packed[:8].hex()
    return address
