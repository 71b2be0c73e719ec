"""Reading files that the configuration names, without waiting for what is not a regular file.

Opening a FIFO waits for its other end, and reading a device may never end.  A server that reads
such a path while it reloads would serve none of its users meanwhile.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from .posix import flags

MAX_SIZE = 16 * 2**20  # octets, far above any configuration, certificate or secret


def open_regular(path: Path) -> BinaryIO:
    """A regular file, or a symbolic link to one, to read.

    Raises:
        OSError: it cannot be opened, or is not a regular file.
    """
    opened = os.open(path, os.O_RDONLY | flags("O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))
    try:
        if not stat.S_ISREG(os.fstat(opened).st_mode):
            raise OSError(errno.EINVAL, "is not a regular file", str(path))
        return os.fdopen(opened, "rb")
    except BaseException:
        os.close(opened)
        raise


def read_regular(path: Path) -> bytes:
    """The whole content of a regular file.

    Raises:
        OSError: it cannot be read, is not a regular file, or is larger than ``MAX_SIZE``.
    """
    with open_regular(path) as file:
        octets = file.read(MAX_SIZE + 1)
    if len(octets) > MAX_SIZE:
        raise OSError(errno.EFBIG, f"is larger than {MAX_SIZE >> 20} MiB", str(path))
    return octets
