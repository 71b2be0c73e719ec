"""Test whether files can be written in a directory."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

_OCTETS = 4096  # a block of most file systems, so that a full disk is noticed


def write_test(directory: Path, name: str) -> None:
    """Write, sync, rename and remove a file in a directory, as a delivery does.

    ``name`` is the beginning of the file's name.  Blocking.

    Raises:
        OSError: the file cannot be written and synced.
    """
    path = directory / f"{name}-{secrets.token_hex(8)}"
    renamed = path.with_suffix(".renamed")
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(b"written by restante\n".ljust(_OCTETS))
            file.flush()
            os.fsync(file.fileno())
        path.rename(renamed)
        opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
    finally:
        for each in (path, renamed):
            with suppress(OSError):
                each.unlink()
