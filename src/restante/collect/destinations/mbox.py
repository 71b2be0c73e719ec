"""Store mail in an mbox file in the mboxrd format: LF line ends, and quoted ``>*From `` lines.

CRLF becomes LF, and one ``>`` is added before each ``>*From `` line; readers of mboxrd remove it.
Lines with more than 1,000 ``>`` are not quoted, so that no complete line has to be kept in memory.
There is no list of the messages in the file, so messages that are already stored are not
recognised.

Mail readers and servers share the file.  It is locked only during each append, so that a reader can
write its flags while the next message is downloaded.  Another program may replace the file between
two appends; the next message is then appended to the new file.
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
from .folder import may_be_made, tidy

_FROM = re.compile(rb"^(>*From )", re.MULTILINE)
_BEGINNING = re.compile(rb">{0,1000}(?:F(?:r(?:o(?:m)?)?)?)?")
_PIECE = 65_536  # octets
# Seconds.  An estimate, because rewriting a large file takes another program a long time.
_LOCK_TIMEOUT = 10.0
_OFFSET = 19  # octets of the journal's first line; an offset fits into 18 digits


class Mbox:
    """An mbox file, locked with fcntl, flock and ``FILE.lock`` while a message is appended.

    The order of the locks is that of Debian policy 11.6.  A message is first made durable, with its
    offset, in a journal next to the mbox, and then appended.  After a crash, the next append reads
    the journal and removes an incomplete message, but only if the octets from the offset to the end
    of the file are the beginning of that message.
    """

    is_repeatable = False

    def __init__(self, path: Path) -> None:
        """
        Raises:
            TemporaryFailure: another program holds the lock, or the directory is missing.
        """
        if not path.exists():
            may_be_made(path)
        self._path = path
        self._journal = path.with_name(f".{path.name}.restante")
        self._spool = path.with_name(f".{path.name}.{token_hex(8)}.part")
        self._message: BinaryIO | None = None
        self._quoting = _Quoting()
        with self._locked():
            fsync_directory(path.parent)
        tidy(path.parent, f".{path.name}.*.part")

    def has(self, identity: str) -> bool:
        return False

    def begin(self, identity: str) -> bool:
        file = os.open(self._spool, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        self._message = os.fdopen(file, "wb")
        self._message.write(b"-" * (_OFFSET - 1) + b"\n")  # the offset is written at the end
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
            offset = _separated(file)
            self._message.seek(0)
            self._message.write(b"%018d\n" % offset)
            self._message.flush()
            os.fsync(self._message.fileno())
            self._message.close()
            self._message = None
            self._spool.rename(self._journal)  # after this, ``_repair`` handles a crash
            fsync_directory(self._journal.parent)
            try:
                with self._journal.open("rb") as message:
                    message.seek(_OFFSET)
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
                with ExitStack() as held:
                    file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                    held.callback(os.close, file)
                    dotlock = Dotlock(self._path)
                    held.callback(dotlock.release)
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
            head = message.readline(_OFFSET)
            offset = int(head) if re.fullmatch(rb"\d{1,18}\n", head) else -1
            tail = os.fstat(file).st_size - offset
            whole = os.fstat(message.fileno()).st_size - len(head)
            if offset >= 0 and 0 < tail <= whole:
                is_ours, is_torn = _compare(file, offset, message, tail)
                if is_ours and (is_torn or tail < whole or even_if_complete):
                    os.ftruncate(file, offset)
                    os.fsync(file)  # otherwise the removed end may reappear after a power failure
        self._journal.unlink()


class _Quoting:
    """Converts a message to mboxrd, in pieces of any size."""

    def __init__(self) -> None:
        self._held = b""  # octets that may be part of CRLF or of a line to quote
        self._is_inside = False  # whether the beginning of the current line has been returned

    def feed(self, octets: bytes) -> bytes:
        text = self._held + octets
        end = len(text) - text.endswith(b"\r")
        begin = text.rfind(b"\n", 0, end) + 1
        if (begin or not self._is_inside) and _BEGINNING.fullmatch(text, begin, end):
            end = begin
        self._held = text[end:]
        return self._quoted(text[:end])

    def finish(self) -> bytes:
        """Return the remaining octets, with a line end if the last line has none."""
        rest = self._quoted(self._held)
        return rest + b"\n" if self._is_inside else rest

    def _quoted(self, octets: bytes) -> bytes:
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


def _separated(file: int) -> int:
    """Add the blank line before the next message if it is missing; return the message's offset."""
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
    """Return whether the octets are the beginning of this message, and whether a power failure has
    replaced some of them with NULs."""
    has_nul = False
    while octets > 0:
        wanted = message.read(min(_PIECE, octets))
        stored = os.pread(file, len(wanted), offset)
        if not wanted or len(stored) < len(wanted):
            return False, has_nul
        if stored != wanted:
            if any(there not in (0, ours) for there, ours in zip(stored, wanted, strict=True)):
                return False, has_nul
            has_nul = True
        offset += len(wanted)
        octets -= len(wanted)
    return True, has_nul
