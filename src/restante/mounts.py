"""Refuse to write below a mount point whose disk is not mounted.

Files that are written there are hidden when the disk is mounted.  The mail in them would be lost,
because the collector has deleted it on its server.  Usually a missing directory reveals that the
disk is not mounted, but the mount point itself always exists.

Standards: fstab(5).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress

from .errors import TemporaryFailure

_FSTAB = "/etc/fstab"
_ESCAPE = re.compile(r"\\([0-7]{3})")


def refuse_unmounted(path: str) -> None:
    """Check ``path`` before a file or directory is created at it.  Its parent must exist.

    Raises:
        TemporaryFailure: ``path`` is below a mount point of ``/etc/fstab`` whose disk is not
            mounted.
    """
    real_path = os.path.realpath(path)
    for point in _mount_points():
        # Other mount points are not accessed, because a network file system may not respond.
        if os.path.commonpath([real_path, point]) == point and not os.path.ismount(point):
            raise TemporaryFailure(
                f"{point} is a mount point in {_FSTAB}, and nothing is mounted there"
            )


def _mount_points() -> Iterator[str]:
    """Yield the mount points in fstab, except for the root directory, as absolute paths."""
    with suppress(OSError), open(_FSTAB, encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            words = line.split()
            if len(words) >= 2 and not words[0].startswith("#") and words[1].startswith("/"):
                point = _ESCAPE.sub(lambda match: chr(int(match[1], 8)), words[1])
                if (normal := os.path.normpath(point)) not in ("/", "//"):
                    yield normal
