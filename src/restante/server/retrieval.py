"""A message on its way from its file to the wire, and where the wire begins.

Security: only a ``Clear`` outlet can have the kernel copy a file, and only a transport without
TLS becomes one, so no octet of a file reaches a TLS socket past the encryption.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import aclosing

from ..errors import TemporaryFailure
from ..maildrop import RawMessage, RawOctets
from ..message import crlf_text
from ..surrogate import Downgrade
from ..threads import in_thread
from ..wire import TERMINATION, stuffed

SMALL = 65_536  # octets of a message that may be read in line
_PIECE = 32_768  # octets
PAGE = 4096  # octets
_WINDOW = 1_048_576  # octets that the kernel may copy at a time, so that others have a turn
_NOWAIT: int = getattr(os, "RWF_NOWAIT", 0)  # Linux


class Outlet:
    """Where output goes.  TLS is this much and no more."""

    __slots__ = ("transport",)

    def __init__(self, transport: asyncio.Transport) -> None:
        self.transport = transport


class Clear(Outlet):
    """A socket on which octets are what they are."""

    __slots__ = ("_descriptor",)

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__(transport)
        self._descriptor: int = transport.get_extra_info("socket").fileno()

    def send_file(self, file: int, offset: int, count: int) -> int | None:
        """How many octets of the file the socket takes at once; None: it is full.

        The caller sees to it that nothing waits in the transport, which would come too late.
        """
        if self.transport.is_closing():
            raise ConnectionResetError
        try:
            return os.sendfile(self._descriptor, file, offset, min(count, _WINDOW))
        except BlockingIOError:
            return None


def outlet(transport: asyncio.Transport) -> Outlet:
    is_secure = transport.get_extra_info("ssl_object") is not None
    has_socket = transport.get_extra_info("socket") is not None
    return Clear(transport) if has_socket and not is_secure else Outlet(transport)


def at_hand(raw: RawOctets, size: int) -> bytes | None:
    """A small message as it goes out, byte-stuffed and with its end.

    None: it has not the ``size`` that was announced, or not all of it is here.
    """
    if raw.is_wire_ready:
        return raw.octets + TERMINATION
    text = raw.octets if raw.has_crlf else crlf_text(raw.octets)
    return stuffed(text) if len(text) == size else None


async def pieces(raw: RawMessage) -> AsyncGenerator[bytes, None]:
    """The octets of the file, no more than ``raw.size``; fewer if it was cut meanwhile."""
    offset = 0
    while octets := await read(raw, offset):
        offset += len(octets)
        yield octets


async def downgraded(source: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """Of a message in CRLF text: its surrogate, which has as many octets, made in a thread.

    Raises:
        NeedsUTF8: there can be none; nothing was given out.
    """
    downgrade = Downgrade()
    async with aclosing(source) as whole:
        async for octets in whole:
            shown = octets
            if downgrade.is_in_header:
                shown = await asyncio.to_thread(downgrade.feed, octets)
            if shown:
                yield shown
    if downgrade.is_in_header and (rest := await asyncio.to_thread(downgrade.finish)):
        yield rest


async def read(raw: RawMessage, offset: int, most: int = _PIECE) -> bytes:
    """Up to ``most`` octets; the disk is waited for in a thread.

    Raises:
        TemporaryFailure: the disk does not give them.
    """
    count = min(most, raw.size - offset)
    octets = _read_cached(raw.descriptor, offset, count)
    if octets is None:
        return await _read(raw.descriptor, offset, count)
    return octets


async def fetch(raw: RawMessage, offset: int) -> None:
    """Bring what the kernel copies next into the page cache, for it would stop the event loop."""
    count = min(_WINDOW, raw.size - offset)
    if count and _read_cached(raw.descriptor, offset + count - 1, 1) is None:
        await _read(raw.descriptor, offset, count)


async def _read(file: int, offset: int, count: int) -> bytes:
    try:
        return await in_thread(os.pread, file, count, offset)
    except OSError as error:
        raise TemporaryFailure(f"mail storage: {error.strerror or 'error'}") from error


def _read_cached(file: int, offset: int, count: int) -> bytes | None:
    """None: the page cache does not have it, or there is no asking."""
    if not _NOWAIT:
        return None
    buffer = bytearray(count)
    try:
        found = os.preadv(file, [buffer], offset, _NOWAIT)
    except OSError:
        return None  # who reads again without the flag will hear it
    # Linux 5.9 and 5.10 say 0 where they mean EAGAIN (preadv2(2), BUGS).
    return bytes(buffer) if found == count else bytes(buffer[:found]) if found else None
