"""Disks that should be mounted and are not.

What is written below the mount point of a disk that is not mounted is hidden by the next mount, and
for a collector that is mail lost: it is deleted where it came from.  A directory that is missing
shows this as a rule, but a mount point is there in any case.

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
    """Call before something is made at ``path``, in a directory that is there.

    Raises:
        TemporaryFailure: it would lie below a mount point of ``/etc/fstab`` without its disk.
    """
    place = os.path.realpath(path)
    for point in _mount_points():
        # No other point is touched: it may be on a server that does not answer.
        if os.path.commonpath([place, point]) == point and not os.path.ismount(point):
            raise TemporaryFailure(
                f"{point} is a mount point in {_FSTAB}, and nothing is mounted there"
            )


def _mount_points() -> Iterator[str]:
    """As absolute paths, without the root."""
    with suppress(OSError), open(_FSTAB, encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            words = line.split()
            if len(words) >= 2 and not words[0].startswith("#") and words[1].startswith("/"):
                point = _ESCAPED.sub(lambda match: chr(int(match[1], 8)), words[1])
                if (normal := os.path.normpath(point)) not in ("/", "//"):
                    yield normal
