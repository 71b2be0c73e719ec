"""An mbox file in the mboxrd form: LF line ends, ``>`` before every ``>*From `` line.

That is what it rewrites: CRLF becomes LF, and the quoted lines get one ``>`` that readers of
mboxrd take away again (but not after more than 1,000 of them, so that no line need be kept whole).
It keeps no list of what it holds, so nothing is known to be here already.
"""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from ...errors import TemporaryFailure
from ...net.saving import fsync_directory
from ...posix import fcntl
from .folder import missing

_FROM = re.compile(rb"^(>*From )", re.MULTILINE)
_BEGINNING = re.compile(rb">{0,1000}(?:F(?:r(?:o(?:m)?)?)?)?")
_PIECE = 65_536  # octets


class Mbox:
    """Locked (fcntl and flock) from the first message to ``close``.

    A message is first durable in a file of its own beside the mbox, with the place where it goes,
    and then appended.  After a crash the next run finds that file and cuts off a torn append, but
    only if what stands there is a beginning of that very message.
    """

    is_repeatable = False

    def __init__(self, path: Path) -> None:
        if not path.parent.is_dir():
            raise missing(path.parent)
        self._path = path
        self._journal = path.with_name(f".{path.name}.restante")
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._message: BinaryIO | None = None
        self._quoting = _Quoting()
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fsync_directory(path.parent)
            self._mend()
        except BlockingIOError as error:
            os.close(self._file)
            raise TemporaryFailure(f"{path} is locked by another program") from error
        except BaseException:
            os.close(self._file)
            raise

    def has(self, identity: str) -> bool:
        return False

    def begin(self, identity: str) -> bool:
        self._mend()  # where even that failed which the last error needed
        end = os.lseek(self._file, 0, os.SEEK_END)
        last = os.pread(self._file, 2, max(end - 2, 0))
        # What stands there may lack its line end, or the blank line behind it.
        missing = b"\n\n" if end and not last.endswith(b"\n") else b""
        if end and last.endswith(b"\n") and last != b"\n\n":
            missing = b"\n"
        file = os.open(self._journal, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        self._message = os.fdopen(file, "wb")
        self._message.write(b"%d\n" % end + missing)
        self._message.write(f"From MAILER-DAEMON {time.asctime(time.gmtime())}\n".encode())
        self._quoting = _Quoting()
        return True

    def write(self, octets: bytes) -> None:
        assert self._message is not None
        self._message.write(self._quoting.feed(octets))

    def commit(self) -> None:
        assert self._message is not None
        self._message.write(self._quoting.finish() + b"\n")
        self._message.flush()
        os.fsync(self._message.fileno())
        self._message.close()
        fsync_directory(self._journal.parent)
        self._message = None  # from here on only ``_mend`` knows what to do
        with self._journal.open("rb") as message:
            end = int(message.readline())
            try:
                while piece := message.read(_PIECE):
                    _append(self._file, piece)
                os.fsync(self._file)
            except OSError:
                os.ftruncate(self._file, end)
                os.fsync(self._file)  # or a power failure may bring the torn end back
                self._journal.unlink()
                raise
        self._journal.unlink()

    def abort(self) -> None:
        if self._message is not None:
            with suppress(OSError):
                self._message.close()
            self._message = None
            self._journal.unlink(missing_ok=True)

    def close(self) -> None:
        self.abort()
        os.close(self._file)

    def _mend(self) -> None:
        """Cut off what a crash left of the last append."""
        if not self._journal.exists():
            return
        with self._journal.open("rb") as message:
            head = message.readline()
            offset = int(head) if re.fullmatch(rb"\d{1,18}\n", head) else -1
            tail = os.fstat(self._file).st_size - offset
            whole = os.fstat(message.fileno()).st_size - len(head)
            is_begun = offset >= 0 and 0 < tail <= whole
            if is_begun and _is_torn(self._file, offset, message, tail, whole):
                os.ftruncate(self._file, offset)
                os.fsync(self._file)
        self._journal.unlink()


class _Quoting:
    """Lines of mboxrd, in whatever pieces they come."""

    def __init__(self) -> None:
        self._held = b""  # may become CRLF, or a line to quote
        self._is_inside = False  # a line, of which the beginning has left

    def feed(self, octets: bytes) -> bytes:
        text = self._held + octets
        end = len(text) - text.endswith(b"\r")
        begin = text.rfind(b"\n", 0, end) + 1
        if (begin or not self._is_inside) and _BEGINNING.fullmatch(text, begin, end):
            end = begin
        self._held = text[end:]
        return self._quoted(text[:end])

    def finish(self) -> bytes:
        """What is held, and a line end where it is missing."""
        rest = self._quoted(self._held)
        return rest + b"\n" if self._is_inside else rest

    def _quoted(self, octets: bytes) -> bytes:
        if not octets:
            return b""
        text = octets.replace(b"\r\n", b"\n")
        inside = (text.find(b"\n") + 1 or len(text)) if self._is_inside else 0
        self._is_inside = not text.endswith(b"\n")
        return text[:inside] + _FROM.sub(rb">\1", text[inside:])


def _append(file: int, octets: bytes) -> None:
    os.lseek(file, 0, os.SEEK_END)
    while octets:
        octets = octets[os.write(file, octets) :]


def _is_torn(file: int, offset: int, message: BinaryIO, octets: int, whole: int) -> bool:
    """Whether it is this message, but less of it, or NULs where a power failure lost some."""
    is_torn = octets < whole
    while octets > 0:
        wanted = message.read(min(_PIECE, octets))
        found = os.pread(file, len(wanted), offset)
        if not wanted or len(found) < len(wanted):
            return False
        if found != wanted:
            if any(there not in (0, ours) for there, ours in zip(found, wanted, strict=True)):
                return False
            is_torn = True
        offset += len(wanted)
        octets -= len(wanted)
    return is_torn
