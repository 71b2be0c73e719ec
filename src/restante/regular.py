"""Read files named in the configuration, and refuse anything but regular files.

Opening a FIFO waits for its other end, and reading a device may never end.  A server that reads
such a path during a reload would not respond to any user until then.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from .posix import flags

MAX_SIZE = 16 * 2**20  # octets; far more than any configuration, certificate or secret


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file, or a symbolic link to one, for reading.

    Raises:
        OSError: the file cannot be opened, or is not a regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | flags("O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "is not a regular file", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


@dataclass(frozen=True)
class RegularFile:
    """A regular file that was read.  Its content may be secret, so it is not part of ``repr``."""

    path: Path
    status: os.stat_result = field(repr=False, compare=False)
    """Status of the file that was opened; another file may be at its path by now."""
    octets: bytes = field(repr=False, compare=False)


def read_file(path: Path) -> RegularFile:
    """Read a regular file, and return its content with its status.

    Raises:
        OSError: the file cannot be read, is not a regular file, or is larger than ``MAX_SIZE``.
    """
    with open_regular(path) as file:
        status = os.fstat(file.fileno())
        octets = file.read(MAX_SIZE + 1)
    if len(octets) > MAX_SIZE:
        raise OSError(errno.EFBIG, f"is larger than {MAX_SIZE >> 20} MiB", str(path))
    return RegularFile(path, status, octets)


def read_regular(path: Path) -> bytes:
    """Return the content of a regular file.

    Raises:
        OSError: as ``read_file``.
    """
    return read_file(path).octets
