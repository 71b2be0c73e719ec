"""A directory with one ``.eml`` file per message, in CRLF text as it came."""

from __future__ import annotations

import os
from contextlib import suppress
from hashlib import file_digest
from pathlib import Path
from typing import BinaryIO

from . import name_of


class Folder:
    """Names are made from the message's identity, so doing it again repeats nothing."""

    is_repeatable = True

    def __init__(self, path: Path) -> None:
        self._inbox = path
        self._workshop = path
        self._prepare()
        self._file: BinaryIO | None = None
        self._temporary = self._final = Path()

    def _prepare(self) -> None:
        self._inbox.mkdir(parents=True, exist_ok=True)

    def begin(self, identity: str) -> bool:
        name = name_of(identity)
        self._final = self._inbox / self._final_name(name)
        if self._is_here(name):
            return False
        self._temporary = self._workshop / f".{name}.{os.getpid()}"
        self._file = self._temporary.open("wb")
        return True

    def _final_name(self, name: str) -> str:
        return f"{name}.eml"

    def _is_here(self, name: str) -> bool:
        return self._final.exists()

    def write(self, octets: bytes) -> None:
        assert self._file is not None
        self._file.write(octets)

    def commit(self) -> None:
        assert self._file is not None
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._file = None
        self._temporary.rename(self._final)
        fsync_directory(self._inbox)

    def holds(self, identity: str, digest: bytes) -> bool:
        path = self._find(name_of(identity))
        if path is None:
            return False
        with path.open("rb") as file:
            return file_digest(file, "sha256").digest() == digest

    def _find(self, name: str) -> Path | None:
        path = self._inbox / self._final_name(name)
        return path if path.is_file() else None

    def abort(self) -> None:
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            self._file = None
            self._temporary.unlink(missing_ok=True)

    def close(self) -> None:
        self.abort()


def fsync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    opened = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
