"""Where a message goes that is read: a durable file, or the parser of the standard library."""

from __future__ import annotations

import os
from contextlib import suppress
from email import policy
from email.feedparser import BytesFeedParser
from email.message import EmailMessage
from pathlib import Path
from secrets import token_hex
from types import TracebackType


class Saving:
    """A new file that has its name only when it is whole and durable.

    Leaving the block by an exception leaves no trace.

    Raises:
        FileExistsError: nothing is ever replaced.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = path.with_name(f".{token_hex(8)}.part")

    def __enter__(self) -> Saving:
        if os.path.lexists(self._path):
            raise FileExistsError(f"{self._path} is there already")
        self._file = open(
            os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb"
        )
        return self

    def write(self, octets: bytes) -> None:
        self._file.write(octets)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self._file.flush()
                os.fsync(self._file.fileno())
                os.link(self._temporary, self._path)
        finally:
            with suppress(OSError):
                self._file.close()  # what it still buffers may find no room
            self._temporary.unlink()
        if error is None:
            fsync_directory(self._path.parent)


def fsync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    opened = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


class Parsing:
    """A message in pieces, or its header alone, for the parser of the standard library."""

    def __init__(self, *, header: bool = False) -> None:
        self._parser = BytesFeedParser(EmailMessage, policy=policy.default)
        self._is_header = header
        self._last = b"\r\n"  # before what is fed: an empty header is a blank line
        self._is_over = False

    def write(self, octets: bytes) -> None:
        if self._is_header:
            octets = self._before_blank_line(octets)
        self._parser.feed(octets)

    def _before_blank_line(self, octets: bytes) -> bytes:
        if self._is_over:
            return b""
        text = self._last + octets
        end = text.find(b"\r\n\r\n")
        self._is_over = end >= 0
        begun, self._last = len(self._last), text[-3:]
        return text[begun : end + 4] if self._is_over else octets

    def close(self) -> EmailMessage:
        return self._parser.close()
