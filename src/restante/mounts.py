"""Refuse to write where a disk should be mounted and is not.

Files written below the mount point of an unmounted disk are hidden by the next mount.  For a
collector that is lost mail, because it deletes the mail on its server.  Usually a missing directory
shows the fault, but the mount point itself always exists.

Standards: fstab(5).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress

from .errors import TemporaryFailure

_FSTAB = "/etc/fstab"
_ESCAPED = re.compile(r"\\([0-7]{3})")


def refuse_unmounted(path: str) -> None:
    """Check ``path``, in an existing directory, before anything is made there.

    Raises:
        TemporaryFailure: it is below a mount point of ``/etc/fstab`` whose disk is not mounted.
    """
    place = os.path.realpath(path)
    for point in _mount_points():
        # Other mount points are not touched: their server may not answer.
        if os.path.commonpath([place, point]) == point and not os.path.ismount(point):
            raise TemporaryFailure(
                f"{point} is a mount point in {_FSTAB}, and nothing is mounted there"
            )


def _mount_points() -> Iterator[str]:
    """Yield the mount points of fstab as absolute paths, without the root."""
    with suppress(OSError), open(_FSTAB, encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            words = line.split()
            if len(words) >= 2 and not words[0].startswith("#") and words[1].startswith("/"):
                point = _ESCAPED.sub(lambda match: chr(int(match[1], 8)), words[1])
                if (normal := os.path.normpath(point)) not in ("/", "//"):
                    yield normal
