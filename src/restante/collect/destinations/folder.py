"""A directory with one ``.eml`` file per message, as CRLF text."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from hashlib import file_digest
from itertools import count
from pathlib import Path
from secrets import token_hex
from typing import BinaryIO, NamedTuple

from ...client.sinks import fsync_directory
from ...errors import TemporaryFailure
from ...mounts import refuse_unmounted
from ...syncing import sync_files
from . import name_of

_LEFT_OVER = 36 * 3600  # seconds, as https://cr.yp.to/proto/maildir.html says


class _Received(NamedTuple):
    """A message that is complete, but not durable yet."""

    file: BinaryIO
    temporary: Path
    final: Path


class Folder:
    """Stores each message under a name derived from its identity.

    Therefore storing a message again has no effect.
    """

    is_repeatable = True

    def __init__(self, path: Path) -> None:
        self._inbox = self._workshop = path
        self._file: BinaryIO | None = None
        self._temporary = self._final = Path()
        self._waiting: list[_Received] = []
        self._groups: list[list[_Received]] = []  # closed, and not durable yet
        self._run, self._numbers = token_hex(8), count()
        self._prepare()
        tidy(self._workshop, ".*.part")

    def _prepare(self) -> None:
        """Make files of an earlier run durable, because ``has`` reports them as durable."""
        make_directory(self._inbox)
        fsync_directory(self._inbox)

    def has(self, identity: str) -> bool:
        return self._find(name_of(identity)) is not None

    def _place(self, name: str) -> Path:
        return self._inbox / f"{name}.eml"

    def begin(self, identity: str) -> bool:
        if self.has(identity):
            return False
        self._final = self._place(name_of(identity))
        self._temporary = self._workshop / f".{self._run}{next(self._numbers):x}.part"
        file = os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        self._file = os.fdopen(file, "wb")
        return True

    def write(self, octets: bytes) -> None:
        assert self._file is not None
        self._file.write(octets)

    def commit(self) -> None:
        self.end()
        self.group()()

    def end(self) -> None:
        assert self._file is not None
        self._file.flush()
        self._waiting.append(_Received(self._file, self._temporary, self._final))
        self._file = None

    def group(self) -> Callable[[], None]:
        waiting, self._waiting = self._waiting, []
        self._groups.append(waiting)
        return partial(self._sync, waiting)

    def _sync(self, waiting: list[_Received]) -> None:
        """Sync the octets of all messages before any message gets its final name."""
        try:
            sync_files([each.file.fileno() for each in waiting])
            while waiting:
                waiting[-1].temporary.rename(waiting[-1].final)
                message = waiting.pop()
                message.file.close()
                self._named(message.final)
            fsync_directory(self._inbox)
        finally:
            _drop(waiting)
            self._groups.remove(waiting)

    def _named(self, final: Path) -> None:
        """Called when a file has its final name."""

    def holds(self, identity: str, digest: bytes) -> bool:
        path = self._find(name_of(identity))
        if path is None:
            return False
        with path.open("rb") as file:
            return file_digest(file, "sha256").digest() == digest

    def _find(self, name: str) -> Path | None:
        """Return the file of a message, or None."""
        path = self._place(name)
        return path if path.is_file() else None

    def abort(self) -> None:
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            self._file = None
            self._temporary.unlink(missing_ok=True)

    def close(self) -> None:
        self.abort()
        for each in (*self._groups, self._waiting):
            _drop(each)


def make_directory(path: Path, mode: int = 0o777) -> None:
    """Create the directory durably, but not its parent directory.

    A parent directory may be missing because a disk is not mounted.  Mail stored below the mount
    point would be hidden by the next mount.

    Raises:
        TemporaryFailure: the parent directory is missing, or its disk is not mounted.
    """
    if not path.is_dir():
        may_be_made(path)
        path.mkdir(mode, exist_ok=True)
    fsync_directory(path.parent)


def may_be_made(path: Path) -> None:
    """Check that the parent directory of ``path`` exists.

    Raises:
        TemporaryFailure: the parent directory is missing, or its disk is not mounted.
        OSError: the parent is not a directory, or permission is denied.
    """
    above = path.absolute().parent
    try:
        os.stat(f"{above}/.")  # fails unless it is a directory
    except FileNotFoundError:
        raise missing(above) from None
    refuse_unmounted(str(path))


def tidy(directory: Path, pattern: str) -> None:
    """Remove old, incomplete files that killed processes have left."""
    for each in directory.glob(pattern):
        with suppress(FileNotFoundError):
            if each.stat().st_mtime < time.time() - _LEFT_OVER:
                each.unlink()


def missing(directory: Path) -> TemporaryFailure:
    return TemporaryFailure(
        f"{directory} does not exist; is its disk mounted? If so: mkdir -p {directory}"
    )


def _drop(waiting: list[_Received]) -> None:
    for message in waiting:
        with suppress(OSError):
            message.file.close()
        message.temporary.unlink(missing_ok=True)
    waiting.clear()
