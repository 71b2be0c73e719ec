"""Destinations for the pieces of a message body: memory, a durable file, or a parser."""

from __future__ import annotations

import os
from contextlib import suppress
from email.message import EmailMessage
from io import BufferedWriter
from operator import index
from pathlib import Path
from secrets import token_hex
from types import TracebackType
from typing import SupportsIndex

from ..errors import MessageTooLarge, UnsafeArgument

WRITE_SIZE = 1_048_576  # octets per call in a thread, because each call takes about 0.1 ms
_BINARY: int = getattr(os, "O_BINARY", 0)  # without this flag, Windows changes line endings


class FileSink:
    """A new file that gets its name only when it is complete and durable.

    After an exception in the block, no file remains.

    Raises:
        FileExistsError: the path exists; an existing file is never replaced.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = path.with_name(f".{token_hex(8)}.part")
        self._file: BufferedWriter | None = None

    def __enter__(self) -> FileSink:
        if os.path.lexists(self._path):
            raise FileExistsError(f"{self._path} already exists")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY
        self._file = open(os.open(self._temporary, flags, 0o600), "wb")
        return self

    def write(self, octets: bytes) -> None:
        assert self._file is not None
        self._file.write(octets)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is None:
            return  # the file was never created
        try:
            if error is None:
                self._file.flush()
                os.fsync(self._file.fileno())
                os.link(self._temporary, self._path)
        finally:
            with suppress(OSError):
                self._file.close()  # flushing its buffer may fail on a full disk
            self._temporary.unlink()
        if error is None:
            fsync_directory(self._path.parent)


def fsync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    if not hasattr(os, "O_DIRECTORY"):
        return  # Windows: directories cannot be opened, and NTFS keeps a journal of names
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class SizeLimit:
    """The maximum size of a message that a program accepts."""

    def __init__(self, max_size: int | None = None) -> None:
        """``max_size`` is in octets; None: no limit.

        Raises:
            TypeError, UnsafeArgument: not a whole number, at least 0.
        """
        if isinstance(max_size, bool) or not isinstance(max_size, SupportsIndex | None):
            raise TypeError("max_size must be a whole number of octets, or None")
        if max_size is not None and index(max_size) < 0:
            raise UnsafeArgument("max_size must be at least 0 octets, or None")
        self._max_size = None if max_size is None else index(max_size)

    def check(self, octets: int) -> None:
        """
        Raises:
            MessageTooLarge: ``octets`` exceeds the limit.
        """
        if self._max_size is not None and octets > self._max_size:
            raise MessageTooLarge(self._max_size)


class MemorySink:
    """Collects the octets of one message in memory; the caller must limit the size."""

    def __init__(self) -> None:
        self._octets = bytearray()

    def write(self, octets: bytes) -> None:
        self._octets += octets

    def octets(self) -> bytes:
        return bytes(self._octets)


class ParserSink(MemorySink):
    """Parses a message, or only its header, from pieces whose total size is limited."""

    def __init__(self, limit: SizeLimit, *, header: bool = False) -> None:
        super().__init__()
        self._limit = limit
        self._is_header = header
        # The last octets of the previous pieces.  At first this is CRLF, so that an empty header,
        # which is only a blank line, is recognised.
        self._last = b"\r\n"
        self._has_header_ended = False

    def write(self, octets: bytes) -> None:
        """
        Raises:
            MessageTooLarge: the header exceeds the limit.
        """
        super().write(self._before_blank_line(octets) if self._is_header else octets)
        self._limit.check(len(self._octets))

    def _before_blank_line(self, octets: bytes) -> bytes:
        if self._has_header_ended:
            return b""
        text = self._last + octets
        end = text.find(b"\r\n\r\n")
        self._has_header_ended = end >= 0
        begun, self._last = len(self._last), text[-3:]
        return text[begun : end + 4] if self._has_header_ended else octets

    def close(self) -> EmailMessage:
        """Return the parsed message; blocks for seconds if the message is large."""
        from .. import mime  # imported late, because this takes longer than the rest of the client

        return mime.parse(self.octets(), header_only=self._is_header)
