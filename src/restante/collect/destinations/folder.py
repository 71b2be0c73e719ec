"""A directory with one ``.eml`` file per message, in CRLF text as it came."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import file_digest
from pathlib import Path
from secrets import token_hex
from typing import BinaryIO

from ...net.saving import fsync_directory
from . import name_of

_AT_ONCE = 16  # files that are synced side by side, so that the disk can order its work
_LEFT_OVER = 36 * 3600  # seconds, as https://cr.yp.to/proto/maildir.html says


class Folder:
    """Names are made from the message's identity, so doing it again repeats nothing."""

    is_repeatable = True

    def __init__(self, path: Path) -> None:
        self._inbox = self._workshop = path
        self._file: BinaryIO | None = None
        self._temporary = self._final = Path()
        self._waiting: list[tuple[BinaryIO, Path, Path]] = []  # whole, and not durable yet
        self._prepare()
        self._tidy()

    def _prepare(self) -> None:
        """What an earlier run named may not be durable yet, and ``has`` will say that it is."""
        make_directory(self._inbox)
        fsync_directory(self._inbox)

    def _tidy(self) -> None:
        """Remove what killed processes left unfinished long ago."""
        for each in self._workshop.glob(".*.part"):
            with suppress(FileNotFoundError):
                if each.stat().st_mtime < time.time() - _LEFT_OVER:
                    each.unlink()

    def has(self, identity: str) -> bool:
        return self._place(name_of(identity)).exists()

    def _place(self, name: str) -> Path:
        return self._inbox / f"{name}.eml"

    def begin(self, identity: str) -> bool:
        if self.has(identity):
            return False
        self._final = self._place(name_of(identity))
        self._temporary = self._workshop / f".{token_hex(8)}.part"
        file = os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        self._file = os.fdopen(file, "wb")
        return True

    def write(self, octets: bytes) -> None:
        assert self._file is not None
        self._file.write(octets)

    def commit(self) -> None:
        self.end()
        self.sync()

    def end(self) -> None:
        assert self._file is not None
        self._file.flush()
        self._waiting.append((self._file, self._temporary, self._final))
        self._file = None

    def sync(self) -> None:
        """Nothing has its name before the octets of all of them are safe."""
        try:
            if len(self._waiting) > 1:
                with ThreadPoolExecutor(_AT_ONCE) as pool:
                    list(pool.map(os.fsync, [file.fileno() for file, _, _ in self._waiting]))
            elif self._waiting:
                os.fsync(self._waiting[0][0].fileno())
            while self._waiting:
                file, temporary, final = self._waiting[-1]
                temporary.rename(final)
                self._waiting.pop()
                file.close()
                self._named(final)
            fsync_directory(self._inbox)
        finally:
            self._drop_waiting()

    def _named(self, final: Path) -> None:
        """A file has its name now."""

    def _drop_waiting(self) -> None:
        for file, temporary, _ in self._waiting:
            with suppress(OSError):
                file.close()
            temporary.unlink(missing_ok=True)
        self._waiting.clear()

    def holds(self, identity: str, digest: bytes) -> bool:
        path = self._find(name_of(identity))
        if path is None:
            return False
        with path.open("rb") as file:
            return file_digest(file, "sha256").digest() == digest

    def _find(self, name: str) -> Path | None:
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
        self._drop_waiting()


def make_directory(path: Path, mode: int = 0o777) -> None:
    """The directory and those above it, durably."""
    if not path.is_dir():
        make_directory(path.parent)
        path.mkdir(mode, exist_ok=True)
    fsync_directory(path.parent)
