"""The output of one connection, collected and written in few pieces at the client's speed.

Limits: a client that stops reading gets no more responses.  In that case a connection buffers at
most ``HIGH_WATER`` octets in ``Output``, ``_IN_TRANSPORT`` octets in the transport, and the
kernel's buffer.
"""

from __future__ import annotations

import asyncio
from struct import unpack

from ..posix import NotOnThisSystem, fcntl, termios

HIGH_WATER = 65_536  # octets of output, and of unread input, per connection
_IN_TRANSPORT = 16_384  # octets in the transport's buffer from which on the connection waits
TURN = 262_144  # octets written before other connections get a turn: well below a millisecond
# Octets that a client must receive between two checks, every 30 s by default.  Any modem transfers
# more, so only a client that does not read at all fails the check.
_PROGRESS = 1024


class Output:
    """The output to one client."""

    __slots__ = (
        "_collected",
        "_is_lost",
        "_pieces",
        "_taken_before",
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
        self._collected = 0  # octets in _pieces
        self._writable: asyncio.Event | None = None  # exists while the transport is full
        self._yielded_at = 0  # ``written`` when other connections last had a turn
        self._taken_before = 0  # octets that the client had taken at the last check
        self._is_lost = False

    def adopt(self, transport: asyncio.Transport) -> None:
        """Use this transport from now on."""
        self.transport = transport
        transport.set_write_buffer_limits(high=_IN_TRANSPORT)

    @property
    def produced(self) -> int:
        """Number of octets of output so far, written or not."""
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
        """Collect octets.  They are written at the next ``flush``, or earlier if there are many."""
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
        """Flush and wait for the client, between two pieces of a long response.

        Other connections get a turn.  If fewer than ``at_least`` octets were collected, nothing is
        written and the call returns immediately.
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
        """Count octets that were sent without the transport (sendfile)."""
        self.written += octets

    def wait_for_empty(self, is_on: bool) -> None:
        """If ``is_on``, treat the transport as full while its buffer is not empty."""
        self.transport.set_write_buffer_limits(high=0 if is_on else _IN_TRANSPORT)

    # Called by the connection.

    def block(self) -> None:
        """Called when the transport is full."""
        self._writable = asyncio.Event()
        self._taken_before = self._taken()

    def unblock(self) -> None:
        """Called when the transport accepts octets again."""
        if self._writable is not None:
            self._writable.set()
            self._writable = None

    def lose(self) -> None:
        """Called when the connection is lost; later output is discarded."""
        self._is_lost = True

    # How far the client has read.

    @property
    def is_waiting(self) -> bool:
        """Whether the transport's buffer contains octets that the kernel has not accepted yet."""
        return self.transport.get_write_buffer_size() > 0

    @property
    def is_taken(self) -> bool:
        """Whether the client has received all written octets."""
        return self._taken() == self.written

    def watch(self) -> None:
        """Start to check whether the client reads (see ``has_progressed``)."""
        self._taken_before = self._taken()

    def has_progressed(self) -> bool:
        """Return whether the client has read enough since the last check, and start a new check."""
        before, self._taken_before = self._taken_before, self._taken()
        return self._taken_before - before >= _PROGRESS

    def _taken(self) -> int:
        """Return the number of octets that the client has acknowledged."""
        waiting = self.transport.get_write_buffer_size()
        return self.written - waiting - _unacknowledged(self.transport)


def _unacknowledged(transport: asyncio.Transport) -> int:
    """Return the number of octets in the kernel's buffer for the client (tcp(7), SIOCOUTQ)."""
    connected = transport.get_extra_info("socket")
    try:
        return int(unpack("i", fcntl.ioctl(connected.fileno(), termios.TIOCOUTQ, bytes(4)))[0])
    except (OSError, AttributeError, ValueError, NotOnThisSystem):
        return 0
