"""Send messages from the maildrop to the client.

Promise: the termination octet is sent only after all announced octets.  If a message ends early or
cannot be read to its end, the connection ends instead (``Incomplete``).

There are three ways to send a message, from the fastest to the slowest:

- Small messages in the page cache are sent together in one write (``Reader.cached_texts``).
- Without TLS, the kernel copies a file that can be sent unchanged (sendfile).
- Any other message is read, byte-stuffed and sent in pieces.

Security: only ``SocketOutlet`` uses sendfile, and only for a transport without TLS, so no octet of
a file bypasses the encryption.
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

_MAX_CACHED = 65_536  # octets of messages that are read in the event loop and sent in one write
_PIECE = 32_768  # octets of a file that are read at a time
_PAGE = 4096  # octets read at a time for a client whose socket is full, because many may wait
_MAX_COPIED = 1_048_576  # octets that the kernel copies at a time, so that other clients get a turn
_NOWAIT: int = getattr(os, "RWF_NOWAIT", 0)  # Linux


class Incomplete(Exception):
    """A part of the response was sent, but the rest cannot be sent."""

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
        """Return the byte-stuffed texts of the first messages that can be read without waiting."""
        if self._files is None:
            return []
        return self._files.cached_texts(action.entries, _MAX_CACHED, action.lines)

    async def send(self, action: Retrieve, output: Output, *, downgrades: bool) -> None:
        """Send the first message of ``action``, with the first line of the response.

        ``downgrades``: send a surrogate for a message with UTF-8 in its header (RFC 6858).

        Raises:
            RestanteError: nothing was sent, so the caller can send an error response.
            Incomplete: the connection must be aborted.
        """
        entry = action.entries[0]
        is_unchanged = action.lines is None and not downgrades
        raw = self._files.open_raw(entry) if self._files and is_unchanged else None
        with ExitStack() as stack:
            if raw is not None:
                stack.callback(os.close, raw.descriptor)
                if not raw.has_crlf:
                    stack.close()  # only the size of the file is used
            match outlet(output.transport):
                case SocketOutlet() as socket if raw is not None and raw.is_wire_ready:
                    await _send_file(action, output, raw, socket)
                case _:
                    await self._send_pieces(action, output, raw, downgrades=downgrades)

    async def _send_pieces(
        self, action: Retrieve, output: Output, raw: RawMessage | None, *, downgrades: bool
    ) -> None:
        stuffer = Stuffer()
        top = None if action.lines is None else Top(action.lines)
        entry = action.entries[0]
        remaining = size = entry.size
        added = 0  # octets added by byte-stuffing
        head = action.heads[0]
        has_crlf = raw is not None and raw.has_crlf
        source = pieces(raw) if raw and has_crlf else self._maildrop.read(entry)
        if downgrades:
            source = downgraded(source)
        try:
            async with aclosing(source) as text:
                async for piece in text:
                    remaining -= len(piece)
                    encoded = piece
                    if raw is None or not raw.is_wire_ready:
                        encoded = stuffer.feed(top.feed(piece) if top else piece)
                    added += len(encoded) - len(piece)
                    output.write(head + encoded)
                    head = piece = encoded = b""  # free memory: thousands of clients may wait
                    if top and top.is_finished:
                        break
                    await output.flush_and_wait()
        except RestanteError as error:
            if head:
                raise
            raise ReadFailed(str(error)) from error
        if remaining and not (top and top.is_finished):
            raise SizeDiffers(-remaining)
        output.write(head + stuffer.finish())
        if raw is not None and self._files is not None and raw.size == size and not has_crlf:
            self._files.record_form(entry, is_wire_ready=not added)


async def _send_file(
    action: Retrieve, output: Output, raw: RawMessage, socket: SocketOutlet
) -> None:
    """Send a message whose file the kernel copies to the socket.

    If the socket is full, one page is sent through the transport.  When the transport's buffer is
    empty again, the socket accepts more octets.
    """
    output.write(action.heads[0])
    output.require_empty_buffer(True)
    offset = 0
    try:
        while offset < raw.size:
            await output.flush_and_wait(at_least=1)
            await read_ahead(raw, offset)
            sent = socket.send_file(raw.descriptor, offset, raw.size - offset)
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
    except OSError as error:  # the client has disconnected, which the transport also reports
        raise Incomplete from error
    finally:
        if not output.transport.is_closing():
            output.require_empty_buffer(False)
    output.write(TERMINATION)


class Outlet:
    """Sends only through the transport, which may use TLS."""

    __slots__ = ("transport",)

    def __init__(self, transport: asyncio.Transport) -> None:
        self.transport = transport


class SocketOutlet(Outlet):
    """Can also send files directly through the socket of a transport without TLS."""

    __slots__ = ("_descriptor",)

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__(transport)
        self._descriptor: int = transport.get_extra_info("socket").fileno()

    def send_file(self, file: int, offset: int, count: int) -> int | None:
        """Send part of a file; return the number of octets sent, or None if the socket is full.

        The transport's buffer must be empty, because its content would be sent after the file.
        """
        if self.transport.is_closing():
            raise ConnectionResetError
        try:
            return os.sendfile(self._descriptor, file, offset, min(count, _MAX_COPIED))
        except BlockingIOError:
            return None


def outlet(transport: asyncio.Transport) -> Outlet:
    """Return the outlet for a transport: a ``SocketOutlet`` if it has a socket and no TLS."""
    is_secure = transport.get_extra_info("ssl_object") is not None
    has_socket = transport.get_extra_info("socket") is not None
    return SocketOutlet(transport) if has_socket and not is_secure else Outlet(transport)


async def pieces(raw: RawMessage) -> AsyncGenerator[bytes, None]:
    """Yield ``raw.size`` octets of the file, or fewer if the file was truncated."""
    offset = 0
    while octets := await read(raw, offset):
        offset += len(octets)
        yield octets


async def downgraded(source: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """Yield the surrogate (RFC 6858) of a message, which has the same size as the message.

    ``source`` yields the message with CRLF line endings.  A thread creates the surrogate.

    Raises:
        NeedsUTF8: no surrogate is possible; nothing was yielded.
    """
    from ..surrogate import Downgrade  # imports parts of ``email`` that few servers need

    downgrade = Downgrade()
    async with aclosing(source) as original:
        async for octets in original:
            converted = octets
            if downgrade.is_in_header:
                converted = await asyncio.to_thread(downgrade.feed, octets)
            if converted:
                yield converted
    if downgrade.is_in_header and (rest := await asyncio.to_thread(downgrade.finish)):
        yield rest


async def read(raw: RawMessage, offset: int, max_octets: int = _PIECE) -> bytes:
    """Read octets of a message's file, in a thread if they are not in the page cache.

    Raises:
        TemporaryFailure: the disk reports an error.
    """
    count = min(max_octets, raw.size - offset)
    octets = _read_cached(raw.descriptor, offset, count)
    if octets is None:
        return await _read(raw.descriptor, offset, count)
    return octets


async def read_ahead(raw: RawMessage, offset: int) -> None:
    """Read the next octets into the page cache, so that sendfile does not block the event loop."""
    count = min(_MAX_COPIED, raw.size - offset)
    if count and _read_cached(raw.descriptor, offset + count - 1, 1) is None:
        await _read(raw.descriptor, offset, count)


async def _read(file: int, offset: int, count: int) -> bytes:
    try:
        return await in_thread(os.pread, file, count, offset)
    except OSError as error:
        raise TemporaryFailure(f"mail storage: {error.strerror or 'error'}") from error


def _read_cached(file: int, offset: int, count: int) -> bytes | None:
    """Return the octets if they are known to be in the page cache, otherwise None."""
    if not _NOWAIT:
        return None
    buffer = bytearray(count)
    try:
        length = os.preadv(file, [buffer], offset, _NOWAIT)
    except OSError:
        return None  # a read without the flag will report the error
    # Linux 5.9 and 5.10 return 0 instead of EAGAIN (preadv2(2), BUGS).
    return bytes(buffer) if length == count else bytes(buffer[:length]) if length else None
