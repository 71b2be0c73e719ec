"""Store mail in an mbox file in the mboxrd format: LF line endings, and quoted ``>*From `` lines.

CRLF becomes LF, and one ``>`` is added before each ``>*From `` line; programs that read mboxrd
remove it.  Lines with more than 1,000 ``>`` are not quoted, so that no complete line has to be kept
in memory.  Messages that are already in the file are not recognised.

Other programs use the same file.  It is locked only while a message is appended, so that a mail
reader can store its flags while the next message is downloaded.  If another program replaces the
file between two appends, the next message is appended to the new file.
"""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import BinaryIO

from ...client.sinks import fsync_directory
from ...errors import TemporaryFailure
from ...posix import fcntl
from .dotlock import Dotlock, thread_lock
from .folder import check_parent, remove_left_over

_FROM = re.compile(rb"^(>*From )", re.MULTILINE)
_BEGINNING = re.compile(rb">{0,1000}(?:F(?:r(?:o(?:m)?)?)?)?")
_PIECE = 65_536  # octets
_LOCK_TIMEOUT = 10.0  # seconds; probably enough for a mail reader to rewrite a file
_OFFSET_SIZE = 19  # octets of the journal's first line: an offset of 18 digits, and LF


class Mbox:
    """An mbox file, locked with fcntl, flock and ``FILE.lock`` while a message is appended.

    The order of the locks is that of Debian policy 11.6.  A message is first made durable, with its
    offset, in a journal next to the mbox, and then appended.  After a crash, the next append reads
    the journal and removes an incomplete message, but only if the octets from the offset to the end
    of the file are the beginning of that message.
    """

    is_repeatable = False

    def __init__(self, path: Path) -> None:
        """Create the file if it is missing.

        Raises:
            TemporaryFailure: another program holds the lock, or the directory is missing.
        """
        if not path.exists():
            check_parent(path)
        self._path = path
        self._journal = path.with_name(f".{path.name}.restante")
        self._spool = path.with_name(f".{path.name}.{token_hex(8)}.part")
        self._message: BinaryIO | None = None
        self._quoting = _Quoting()
        with self._locked():
            fsync_directory(path.parent)
        remove_left_over(path.parent, f".{path.name}.*.part")

    def has(self, identity: str) -> bool:
        return False

    def begin(self, identity: str) -> bool:
        file = os.open(self._spool, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        self._message = os.fdopen(file, "wb")
        self._message.write(b"-" * (_OFFSET_SIZE - 1) + b"\n")  # ``commit`` writes the offset here
        self._message.write(f"From MAILER-DAEMON {time.asctime(time.gmtime())}\n".encode())
        self._quoting = _Quoting()
        return True

    def write(self, octets: bytes) -> None:
        assert self._message is not None
        self._message.write(self._quoting.feed(octets))

    def commit(self) -> None:
        assert self._message is not None
        self._message.write(self._quoting.finish() + b"\n")
        with self._locked() as (file, dotlock):
            offset = _add_separator(file)
            self._message.seek(0)
            self._message.write(b"%018d\n" % offset)
            self._message.flush()
            os.fsync(self._message.fileno())
            self._message.close()
            self._message = None
            self._spool.rename(self._journal)  # from now on, ``_repair`` can handle a crash
            fsync_directory(self._journal.parent)
            try:
                with self._journal.open("rb") as message:
                    message.seek(_OFFSET_SIZE)
                    while piece := message.read(_PIECE):
                        _append(file, piece)
                        dotlock.touch()
                os.fsync(file)
            except OSError:
                self._repair(file, even_if_complete=True)
                raise
            self._journal.unlink()

    def abort(self) -> None:
        if self._message is not None:
            with suppress(OSError):
                self._message.close()
            self._message = None
            self._spool.unlink(missing_ok=True)

    def close(self) -> None:
        self.abort()

    @contextmanager
    def _locked(self) -> Iterator[tuple[int, Dotlock]]:
        """Lock the file that is currently at the path, and repair it.

        Raises:
            TemporaryFailure: another program held the lock for too long.
        """
        until = time.monotonic() + _LOCK_TIMEOUT
        with thread_lock(self._path):
            while True:
                with ExitStack() as locks:
                    file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                    locks.callback(os.close, file)
                    dotlock = Dotlock(self._path)
                    locks.callback(dotlock.release)
                    if _lock(file) and _is_at(self._path, file) and dotlock.take():
                        self._repair(file)
                        yield file, dotlock
                        return
                # Release all locks, so that two programs cannot wait for each other.
                if time.monotonic() > until:
                    raise TemporaryFailure(f"{self._path} is locked by another program")
                time.sleep(random.uniform(0.05, 0.2))

    def _repair(self, file: int, *, even_if_complete: bool = False) -> None:
        """Remove the incomplete message that a crash has left at the end of the file.

        With ``even_if_complete``, a complete message is removed as well, because it may not be
        durable.
        """
        try:
            message = self._journal.open("rb")
        except FileNotFoundError:
            return
        with message:
            first_line = message.readline(_OFFSET_SIZE)
            offset = int(first_line) if re.fullmatch(rb"\d{1,18}\n", first_line) else -1
            appended = os.fstat(file).st_size - offset
            size = os.fstat(message.fileno()).st_size - len(first_line)
            if offset >= 0 and 0 < appended <= size:
                is_message, is_damaged = _compare(file, offset, message, appended)
                if is_message and (is_damaged or appended < size or even_if_complete):
                    os.ftruncate(file, offset)
                    os.fsync(file)  # otherwise a power failure may restore the removed octets
        self._journal.unlink()


class _Quoting:
    """Converts a message to mboxrd, in pieces of any size."""

    def __init__(self) -> None:
        self._pending = b""  # octets that may be part of CRLF or of a line to quote
        self._is_inside = False  # whether the beginning of the current line has been returned

    def feed(self, octets: bytes) -> bytes:
        text = self._pending + octets
        end = len(text) - text.endswith(b"\r")
        begin = text.rfind(b"\n", 0, end) + 1
        if (begin or not self._is_inside) and _BEGINNING.fullmatch(text, begin, end):
            end = begin
        self._pending = text[end:]
        return self._quote(text[:end])

    def finish(self) -> bytes:
        """Return the remaining octets, with a line ending if the last line has none."""
        rest = self._quote(self._pending)
        return rest + b"\n" if self._is_inside else rest

    def _quote(self, octets: bytes) -> bytes:
        if not octets:
            return b""
        text = octets.replace(b"\r\n", b"\n")
        inside = (text.find(b"\n") + 1 or len(text)) if self._is_inside else 0
        self._is_inside = not text.endswith(b"\n")
        return text[:inside] + _FROM.sub(rb">\1", text[inside:])


def _lock(file: int) -> bool:
    """Take both locks, or return False.

    The fcntl lock comes first, because all programs on a system must use the same order.
    """
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(path: Path, file: int) -> bool:
    """Return whether the path still refers to this open file.

    A mail reader may have replaced the file.
    """
    try:
        return os.path.samestat(os.stat(path), os.fstat(file))
    except FileNotFoundError:
        return False


def _add_separator(file: int) -> int:
    """End the last message with a blank line if necessary; return the next message's offset."""
    end = os.lseek(file, 0, os.SEEK_END)
    last = os.pread(file, 2, max(end - 2, 0))
    if not end or last == b"\n\n":
        return end
    missing_ends = b"\n" if last.endswith(b"\n") else b"\n\n"
    _append(file, missing_ends)
    return end + len(missing_ends)


def _append(file: int, octets: bytes) -> None:
    os.lseek(file, 0, os.SEEK_END)
    while octets:
        octets = octets[os.write(file, octets) :]


def _compare(file: int, offset: int, message: BinaryIO, octets: int) -> tuple[bool, bool]:
    """Compare the octets at the offset with the beginning of the message.

    Returns:
        Whether they are equal except for NULs, and whether there are NULs, which a power failure
        can leave in the place of octets.
    """
    has_nul = False
    while octets > 0:
        expected = message.read(min(_PIECE, octets))
        actual = os.pread(file, len(expected), offset)
        if not expected or len(actual) < len(expected):
            return False, has_nul
        if actual != expected:
            pairs = zip(actual, expected, strict=True)
            if any(octet not in (0, correct) for octet, correct in pairs):
                return False, has_nul
            has_nul = True
        offset += len(expected)
        octets -= len(expected)
    return True, has_nul
