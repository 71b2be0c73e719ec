"""Make many files durable at once.

Standards: fsync of POSIX.1-2008; syncfs(2) of Linux.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from functools import cache

_AT_ONCE = 16  # fsync calls at a time, so that the disk can order its work
_MANY = 16  # files; from this number one syncfs is faster than an fsync for each


def sync_files(files: Sequence[int]) -> None:
    """Make the octets of these open files, all on one file system, durable.

    Raises:
        OSError: at least one file may not be durable.
    """
    if len(files) >= _MANY and (syncfs := _syncfs()) is not None:
        syncfs(files[0])
    elif len(files) > 1:
        from concurrent.futures import ThreadPoolExecutor  # not needed to deliver one message

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(os.fsync, files))
    elif files:
        os.fsync(files[0])


@cache
def _syncfs() -> Callable[[int], None] | None:
    """Return syncfs(2) if it reports write errors, as it does since Linux 5.8."""
    import ctypes

    release = re.match(r"(\d+)\.(\d+)", os.uname().release) if sys.platform == "linux" else None
    if release is None or (int(release[1]), int(release[2])) < (5, 8):
        return None
    system = ctypes.CDLL(None, use_errno=True)

    def syncfs(file: int) -> None:
        if system.syncfs(file):
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))

    return syncfs
