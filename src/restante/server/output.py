"""Buffer the output of a connection, and write it in few pieces as fast as the client reads.

Limits: a client that stops reading gets no more responses.  Its connection then buffers at most
``HIGH_WATER`` octets in ``Output`` and ``_TRANSPORT_HIGH_WATER`` octets in the transport, in
addition to the kernel's buffer.
"""

from __future__ import annotations

import asyncio
from struct import unpack

from ..posix import NotOnThisSystem, fcntl, termios

HIGH_WATER = 65_536  # octets per connection, of buffered output and of input not yet processed
_TRANSPORT_HIGH_WATER = 16_384  # octets in the transport's buffer at which the transport is full
# Octets written before other connections get a turn.  Writing them takes less than a millisecond.
TURN = 262_144
# Octets that a client must receive between two checks, every 30 s by default.  Any modem transfers
# more, so only a client that does not read at all fails the check.
_MIN_PROGRESS = 1024


class Output:
    """Buffers the output to one client, writes it, and observes whether the client reads."""

    __slots__ = (
        "_acknowledged_before",
        "_collected",
        "_is_lost",
        "_pieces",
        "_writable",
        "_yielded_at",
        "transport",
        "written",
    )

    def __init__(self) -> None:
        self.transport: asyncio.Transport
        """The transport: TCP, or TLS over TCP."""
        self.written = 0
        """Number of octets passed to the transport so far."""
        self._pieces: list[bytes] = []
        self._collected = 0  # octets in ``_pieces``
        self._writable: asyncio.Event | None = None  # None unless the transport is full
        self._yielded_at = 0  # value of ``written`` when other connections last had a turn
        self._acknowledged_before = 0  # octets that the client had acknowledged at the last check
        self._is_lost = False

    def adopt(self, transport: asyncio.Transport) -> None:
        """Write all later output to this transport."""
        self.transport = transport
        transport.set_write_buffer_limits(high=_TRANSPORT_HIGH_WATER)

    @property
    def produced(self) -> int:
        """Number of octets of output so far, whether or not passed to the transport."""
        return self.written + self._collected

    @property
    def collected(self) -> int:
        """Number of octets that have not been passed to the transport yet."""
        return self._collected

    @property
    def is_blocked(self) -> bool:
        """Whether the transport is full, because the client does not read."""
        return self._writable is not None

    def write(self, *pieces: bytes) -> None:
        """Collect octets for the next ``flush``.  Many octets are written immediately."""
        self._pieces += pieces
        for piece in pieces:
            self._collected += len(piece)
        if self._collected >= HIGH_WATER:
            self.flush()

    def flush(self) -> None:
        """Pass all collected octets to the transport in a single piece."""
        if self._pieces and not self._is_lost:
            self.written += self._collected
            self.transport.write(b"".join(self._pieces))
        self._pieces = []
        self._collected = 0

    async def flush_and_wait(self, at_least: int = HIGH_WATER // 2) -> None:
        """Flush, and wait while the transport is full; for use between pieces of a long response.

        Other connections get a turn if ``TURN`` octets have been written since their last one.  If
        fewer than ``at_least`` octets are collected, the call does nothing.
        """
        if 0 < self._collected < at_least:
            return
        self.flush()
        if self._writable is not None:
            await self._writable.wait()
        elif self.written - self._yielded_at >= TURN:
            self._yielded_at = self.written
            await asyncio.sleep(0)

    def count_sent(self, octets: int) -> None:
        """Count octets that were sent by sendfile instead of the transport."""
        self.written += octets

    def require_empty_buffer(self, is_required: bool) -> None:
        """Set whether the transport counts as full unless its buffer is empty."""
        high = 0 if is_required else _TRANSPORT_HIGH_WATER
        self.transport.set_write_buffer_limits(high=high)

    # Notifications from the connection.

    def block(self) -> None:
        """Called when the transport is full."""
        self._writable = asyncio.Event()
        self._acknowledged_before = self._acknowledged()

    def unblock(self) -> None:
        """Called when the transport accepts octets again."""
        if self._writable is not None:
            self._writable.set()
            self._writable = None

    def discard_output(self) -> None:
        """Called when the connection is lost; later output is discarded."""
        self._is_lost = True

    # Observation of the client.

    @property
    def is_waiting(self) -> bool:
        """Whether the transport's buffer contains octets that the kernel has not accepted yet."""
        return self.transport.get_write_buffer_size() > 0

    @property
    def is_acknowledged(self) -> bool:
        """Whether the client has acknowledged all written octets."""
        return self._acknowledged() == self.written

    def start_check(self) -> None:
        """Begin to measure whether the client reads (see ``has_progressed``)."""
        self._acknowledged_before = self._acknowledged()

    def has_progressed(self) -> bool:
        """Return whether the client has read enough since the last check, and start a new check."""
        before, self._acknowledged_before = self._acknowledged_before, self._acknowledged()
        return self._acknowledged_before - before >= _MIN_PROGRESS

    def _acknowledged(self) -> int:
        """Return the number of octets that the client has acknowledged."""
        buffered = self.transport.get_write_buffer_size()
        return self.written - buffered - _unacknowledged(self.transport)


def _unacknowledged(transport: asyncio.Transport) -> int:
    """Return the number of octets in the kernel's buffer for the client (tcp(7), SIOCOUTQ)."""
    client_socket = transport.get_extra_info("socket")
    try:
        return int(unpack("i", fcntl.ioctl(client_socket.fileno(), termios.TIOCOUTQ, bytes(4)))[0])
    except (OSError, AttributeError, ValueError, NotOnThisSystem):
        return 0
