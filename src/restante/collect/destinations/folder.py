"""Store mail in a directory, with one ``.eml`` file per message, as CRLF text."""

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

_LEFT_OVER_AGE = 36 * 3600  # seconds, as https://cr.yp.to/proto/maildir.html says


class _Received(NamedTuple):
    """A message that is complete, but not durable yet."""

    file: BinaryIO
    temporary: Path
    final: Path


class Folder:
    """Stores each message under a name that is derived from its identity.

    Therefore storing a message again has no effect.
    """

    is_repeatable = True

    def __init__(self, path: Path) -> None:
        self._directory = self._temporary_directory = path
        self._file: BinaryIO | None = None
        self._temporary = self._final = Path()
        self._waiting: list[_Received] = []
        self._groups: list[list[_Received]] = []  # closed, and not durable yet
        self._run, self._numbers = token_hex(8), count()
        self._prepare()
        remove_left_over(self._temporary_directory, ".*.part")

    def _prepare(self) -> None:
        """Create the directories, and make the names of existing files durable.

        A crash may have interrupted an earlier run, and ``has`` reports these files as durable.
        """
        make_directory(self._directory)
        fsync_directory(self._directory)

    def has(self, identity: str) -> bool:
        return self._find(name_of(identity)) is not None

    def _path_for(self, name: str) -> Path:
        return self._directory / f"{name}.eml"

    def begin(self, identity: str) -> bool:
        if self.has(identity):
            return False
        self._final = self._path_for(name_of(identity))
        self._temporary = self._temporary_directory / f".{self._run}{next(self._numbers):x}.part"
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
                self._record_name(message.final)
            fsync_directory(self._directory)
        finally:
            _discard(waiting)
            self._groups.remove(waiting)

    def _record_name(self, final: Path) -> None:
        """Override to record the final name of a file."""

    def holds(self, identity: str, digest: bytes) -> bool:
        path = self._find(name_of(identity))
        if path is None:
            return False
        with path.open("rb") as file:
            return file_digest(file, "sha256").digest() == digest

    def _find(self, name: str) -> Path | None:
        """Return the file of a message, or None."""
        path = self._path_for(name)
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
            _discard(each)


def make_directory(path: Path, mode: int = 0o777) -> None:
    """Create the directory durably, but do not create its parent directory.

    The parent directory may be missing because a disk is not mounted.  If mail were stored in a new
    directory at the mount point, it would be hidden when the disk is mounted.

    Raises:
        TemporaryFailure: the parent directory is missing, or its disk is not mounted.
    """
    if not path.is_dir():
        check_parent(path)
        path.mkdir(mode, exist_ok=True)
    fsync_directory(path.parent)


def check_parent(path: Path) -> None:
    """Check that the parent directory of ``path`` exists.

    Raises:
        TemporaryFailure: the parent directory is missing, or its disk is not mounted.
        OSError: the parent is not a directory, or permission is denied.
    """
    parent = path.absolute().parent
    try:
        os.stat(f"{parent}/.")  # fails if the parent is not a directory
    except FileNotFoundError:
        raise missing_directory(parent) from None
    refuse_unmounted(str(path))


def remove_left_over(directory: Path, pattern: str) -> None:
    """Remove old, incomplete files that were left by killed processes."""
    for each in directory.glob(pattern):
        with suppress(FileNotFoundError):
            if each.stat().st_mtime < time.time() - _LEFT_OVER_AGE:
                each.unlink()


def missing_directory(directory: Path) -> TemporaryFailure:
    return TemporaryFailure(
        f"{directory} does not exist; is its disk mounted? If so: mkdir -p {directory}"
    )


def _discard(waiting: list[_Received]) -> None:
    for message in waiting:
        with suppress(OSError):
            message.file.close()
        message.temporary.unlink(missing_ok=True)
    waiting.clear()
