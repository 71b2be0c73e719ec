"""Make many files durable at once.

Standards: fsync (POSIX.1-2008) and Linux's syncfs(2).
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from functools import cache

_MAX_CALLS = 16  # simultaneous fsync calls; enough for the disk to reorder its work
_SYNCFS_MIN = 16  # files; for this many files or more, one syncfs is faster than many fsyncs


class SyncFailed(OSError):
    """The content of a file or directory may not be durable."""


def sync(descriptor: int) -> None:
    """Make the content of an open file or directory durable.

    The call must not be repeated after an error, because the kernel has dropped the octets, and a
    second fsync would succeed nevertheless.

    Raises:
        SyncFailed: the content may not be durable.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        raise SyncFailed(error.errno, error.strerror) from error


def sync_files(files: Sequence[int]) -> None:
    """Make the content of these open files durable.  All files must be on the same file system.

    Raises:
        SyncFailed: at least one file may not be durable.
    """
    if len(files) >= _SYNCFS_MIN and (syncfs := _syncfs()) is not None:
        syncfs(files[0])
    elif len(files) > 1:
        from concurrent.futures import ThreadPoolExecutor  # not needed to deliver one message

        with ThreadPoolExecutor(_MAX_CALLS) as pool:
            list(pool.map(sync, files))
    elif files:
        sync(files[0])


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
            raise SyncFailed(error, os.strerror(error))

    return syncfs
