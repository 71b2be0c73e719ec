"""An mbox file in the mboxrd form: LF line ends, ``>`` before every ``>*From `` line.

That is what it rewrites: CRLF becomes LF, and the quoted lines get one ``>`` that readers of
mboxrd take away again.  It keeps no list of what it holds, so nothing is known to be here already.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from .folder import fsync_directory

_FROM = re.compile(rb"^(>*From )", re.MULTILINE)
_PIECE = 65_536  # octets


class Mbox:
    """Locked (fcntl and flock) from the first message to ``close``.

    A message is first durable in a file of its own beside the mbox, with the place where it goes,
    and then appended.  After a crash the next run finds that file and cuts off a torn append, but
    only if what stands there is a beginning of that very message.
    """

    is_repeatable = False

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._journal = path.with_name(f".{path.name}.restante")
        is_new = not path.exists()
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        if is_new:
            fsync_directory(path.parent)
        self._message: BinaryIO | None = None
        self._line = b""  # the last line, as long as it has no end
        self._mend()

    def begin(self, identity: str) -> bool:
        self._message = self._journal.open("wb")
        self._message.write(b"%d\n" % os.lseek(self._file, 0, os.SEEK_END))
        self._message.write(f"From MAILER-DAEMON {time.asctime(time.gmtime())}\n".encode())
        self._line = b""
        return True

    def write(self, octets: bytes) -> None:
        assert self._message is not None
        text = self._line + octets
        whole = text.rfind(b"\n") + 1
        self._line = text[whole:]
        self._message.write(_quoted(text[:whole]))

    def commit(self) -> None:
        assert self._message is not None
        self._message.write(_quoted(self._line) + (b"\n\n" if self._line else b"\n"))
        self._message.flush()
        os.fsync(self._message.fileno())
        self._message.close()
        fsync_directory(self._journal.parent)
        with self._journal.open("rb") as message:
            offset = int(message.readline())
            try:
                while piece := message.read(_PIECE):
                    _append(self._file, piece)
                os.fsync(self._file)
            except OSError:
                os.ftruncate(self._file, offset)
                raise
        self._forget()

    def abort(self) -> None:
        if self._message is not None:
            with suppress(OSError):
                self._message.close()
            self._forget()

    def close(self) -> None:
        self.abort()
        os.close(self._file)

    def _forget(self) -> None:
        self._message = None
        self._journal.unlink(missing_ok=True)

    def _mend(self) -> None:
        """Cut off what a crash left of the last append."""
        if not self._journal.exists():
            return
        with self._journal.open("rb") as message:
            head = message.readline()
            offset = int(head) if re.fullmatch(rb"\d{1,18}\n", head) else -1
            tail = os.fstat(self._file).st_size - offset
            whole = os.fstat(message.fileno()).st_size - len(head)
            if offset >= 0 and 0 < tail < whole and _same(self._file, offset, message, tail):
                os.ftruncate(self._file, offset)
                os.fsync(self._file)
        self._forget()


def _quoted(text: bytes) -> bytes:
    return _FROM.sub(rb">\1", text.replace(b"\r\n", b"\n"))


def _append(file: int, octets: bytes) -> None:
    os.lseek(file, 0, os.SEEK_END)
    while octets:
        octets = octets[os.write(file, octets) :]


def _same(file: int, offset: int, message: BinaryIO, octets: int) -> bool:
    while octets > 0:
        wanted = message.read(min(_PIECE, octets))
        if not wanted or os.pread(file, len(wanted), offset) != wanted:
            return False
        offset += len(wanted)
        octets -= len(wanted)
    return True
