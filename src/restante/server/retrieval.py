"""Send messages from the maildrop to the client.

Promise: the termination octet is sent only after all announced octets.  If a message ends early or
cannot be read to its end, the connection ends instead (``Incomplete``).

There are three ways to send a message, listed from the fastest to the slowest.  A small message in
the page cache is sent in one write (``Reader.cached_texts``).  If a file can be sent unchanged, the
kernel copies it (sendfile, only without TLS).  Any other message is read and byte-stuffed in
pieces.

Security: only a ``Clear`` outlet uses sendfile, and only for a transport without TLS, so no octet
of a file bypasses the encryption.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing

from ..addons import offers
from ..errors import RestanteError, TemporaryFailure
from ..maildrop import Maildrop, RawMessage, RawReading
from ..message import Top
from ..pop3.state import Retrieve
from ..threads import in_thread
from ..wire import TERMINATION, Stuffer
from .output import Output

_SMALL = 65_536  # octets of messages that are read on the loop and sent in one write
_PIECE = 32_768  # octets of a file read at a time
_PAGE = 4096  # octets read if the socket is full; thousands of clients may wait with a page each
_WINDOW = 1_048_576  # octets that the kernel copies at a time, so that others get a turn
_NOWAIT: int = getattr(os, "RWF_NOWAIT", 0)  # Linux


class Incomplete(Exception):
    """The rest of a message cannot be sent, although its first octets were sent."""

    reason = "dropped"


class ReadFailed(Incomplete):
    """The rest of the message could not be read."""

    reason = "read-failed"


class SizeDiffers(Incomplete):
    """The message does not have the announced size."""

    reason = "size-differs"

    def __init__(self, octets: int) -> None:
        """``octets``: the real size minus the announced size; negative if octets are missing."""
        self.octets = octets


class Reader:
    """Reads the messages of one open maildrop."""

    __slots__ = ("_files", "_maildrop")

    def __init__(self, maildrop: Maildrop) -> None:
        self._maildrop = maildrop
        self._files = maildrop if offers(maildrop, RawReading) else None

    def cached_texts(self, action: Retrieve) -> list[bytes]:
        """Return the byte-stuffed text of the first messages, until a read would have to wait."""
        if self._files is None:
            return []
        return self._files.cached_texts(action.entries, _SMALL, action.lines)

    async def send(self, action: Retrieve, output: Output, *, downgrades: bool) -> None:
        """Send the response for the first message of ``action``, and the message.

        ``downgrades``: send a surrogate for a message with UTF-8 in its header (RFC 6858).

        Raises:
            RestanteError: nothing was sent, so the caller can send an error response.
            Incomplete: the connection must be aborted.
        """
        entry = action.entries[0]
        is_as_stored = action.lines is None and not downgrades
        raw = self._files.open_raw(entry) if self._files and is_as_stored else None
        with ExitStack() as opened:
            if raw is not None:
                opened.callback(os.close, raw.descriptor)
                if not raw.has_crlf:
                    opened.close()  # only the size of the file is used
            match outlet(output.transport):
                case Clear() as clear if raw is not None and raw.is_wire_ready:
                    await _send_file(action, output, raw, clear)
                case _:
                    await self._send_pieces(action, output, raw, downgrades=downgrades)

    async def _send_pieces(
        self, action: Retrieve, output: Output, raw: RawMessage | None, *, downgrades: bool
    ) -> None:
        stuffer = Stuffer()
        top = None if action.lines is None else Top(action.lines)
        entry = action.entries[0]
        left = size = entry.size
        added = 0  # octets added by byte-stuffing
        head = action.heads[0]
        has_crlf = raw is not None and raw.has_crlf
        source = pieces(raw) if raw and has_crlf else self._maildrop.read(entry)
        if downgrades:
            source = downgraded(source)
        try:
            async with aclosing(source) as whole:
                async for piece in whole:
                    left -= len(piece)
                    encoded = piece
                    if raw is None or not raw.is_wire_ready:
                        encoded = stuffer.feed(top.feed(piece) if top else piece)
                    added += len(encoded) - len(piece)
                    output.write(head + encoded)
                    head = piece = encoded = b""  # freed, because thousands of clients may wait
                    if top and top.is_finished:
                        break
                    await output.flush_and_wait()
        except RestanteError as error:
            if head:
                raise
            raise ReadFailed(str(error)) from error
        if left and not (top and top.is_finished):
            raise SizeDiffers(-left)
        output.write(head + stuffer.finish())
        if raw is not None and self._files is not None and raw.size == size and not has_crlf:
            self._files.learn(entry, is_wire_ready=not added)


async def _send_file(action: Retrieve, output: Output, raw: RawMessage, clear: Clear) -> None:
    """Let the kernel copy the file.

    If the socket is full, one page is sent through the transport.  When the transport's buffer is
    empty again, the socket accepts more.
    """
    output.write(action.heads[0])
    output.wait_for_empty(True)
    offset = 0
    try:
        while offset < raw.size:
            await output.flush_and_wait(at_least=1)
            await fetch(raw, offset)
            sent = clear.send_file(raw.descriptor, offset, raw.size - offset)
            if sent is None:
                octets = await read(raw, offset, _PAGE)
                output.write(octets)
                sent = len(octets)
            else:
                output.count_sent(sent)
            if not sent:
                raise SizeDiffers(offset - raw.size)
            offset += sent
    except RestanteError as error:
        raise ReadFailed(str(error)) from error
    except OSError as error:  # the client has disconnected, which the transport reports as well
        raise Incomplete from error
    finally:
        if not output.transport.is_closing():
            output.wait_for_empty(False)
    output.write(TERMINATION)


class Outlet:
    """Sends through a transport; used with TLS."""

    __slots__ = ("transport",)

    def __init__(self, transport: asyncio.Transport) -> None:
        self.transport = transport


class Clear(Outlet):
    """Sends through a socket without TLS."""

    __slots__ = ("_descriptor",)

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__(transport)
        self._descriptor: int = transport.get_extra_info("socket").fileno()

    def send_file(self, file: int, offset: int, count: int) -> int | None:
        """Return the number of octets of the file that the socket accepted, or None if it is full.

        The transport's buffer must be empty, because its content would be sent after the file.
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


async def pieces(raw: RawMessage) -> AsyncGenerator[bytes, None]:
    """Yield ``raw.size`` octets of the file, or fewer if the file was truncated."""
    offset = 0
    while octets := await read(raw, offset):
        offset += len(octets)
        yield octets


async def downgraded(source: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """Yield the surrogate of a message in CRLF text.  The surrogate has the same size.

    A thread creates the surrogate.

    Raises:
        NeedsUTF8: no surrogate is possible; nothing was yielded.
    """
    from ..surrogate import Downgrade  # imports parts of ``email`` that few servers need

    downgrade = Downgrade()
    async with aclosing(source) as whole:
        async for octets in whole:
            text = octets
            if downgrade.is_in_header:
                text = await asyncio.to_thread(downgrade.feed, octets)
            if text:
                yield text
    if downgrade.is_in_header and (rest := await asyncio.to_thread(downgrade.finish)):
        yield rest


async def read(raw: RawMessage, offset: int, most: int = _PIECE) -> bytes:
    """Read up to ``most`` octets.  A thread waits for the disk.

    Raises:
        TemporaryFailure: the disk reports an error.
    """
    count = min(most, raw.size - offset)
    octets = _read_cached(raw.descriptor, offset, count)
    if octets is None:
        return await _read(raw.descriptor, offset, count)
    return octets


async def fetch(raw: RawMessage, offset: int) -> None:
    """Read the next octets into the page cache, because sendfile would block the loop."""
    count = min(_WINDOW, raw.size - offset)
    if count and _read_cached(raw.descriptor, offset + count - 1, 1) is None:
        await _read(raw.descriptor, offset, count)


async def _read(file: int, offset: int, count: int) -> bytes:
    try:
        return await in_thread(os.pread, file, count, offset)
    except OSError as error:
        raise TemporaryFailure(f"mail storage: {error.strerror or 'error'}") from error


def _read_cached(file: int, offset: int, count: int) -> bytes | None:
    """Return the octets if they are in the page cache; None if they are not, or if unknown."""
    if not _NOWAIT:
        return None
    buffer = bytearray(count)
    try:
        got = os.preadv(file, [buffer], offset, _NOWAIT)
    except OSError:
        return None  # a read without the flag will report it
    # Linux 5.9 and 5.10 return 0 instead of EAGAIN (preadv2(2), BUGS).
    return bytes(buffer) if got == count else bytes(buffer[:got]) if got else None
