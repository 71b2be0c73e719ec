"""A Maildir (https://cr.yp.to/proto/maildir.html), in CRLF text as it came.

A message is known by its name, wherever a mail reader has moved it: under any flags, in a folder
(Maildir++), or in the ``held/`` of a maildrop of this server.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from ...net.saving import fsync_directory
from .folder import Folder, make_directory

# In held/, the store puts the time of the deletion in front.
_OURS = re.compile(r"(?:\d+\.)?\d+\.([0-9a-f]{32})\.restante")
_LOOKS = 10  # at directories in which other programs keep moving mail about


class Maildir(Folder):
    """Like ``Folder``, with ``tmp`` to work in and ``new`` to deliver to."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._paths: dict[str, Path] | None = None  # by name; None: nothing was asked yet
        super().__init__(path)

    def _prepare(self) -> None:
        self._inbox, self._workshop = self._path / "new", self._path / "tmp"
        make_directory(self._path, 0o700)
        for name in ("cur", "new", "tmp"):
            make_directory(self._path / name, 0o700)
            fsync_directory(self._path / name)

    def _place(self, name: str) -> Path:
        return self._inbox / f"{int(time.time())}.{name}.restante"

    def _find(self, name: str) -> Path | None:
        found = self._known().get(name)
        if found is not None and not found.exists():  # renamed since
            self._paths = None
            found = self._known().get(name)
        return found

    def _named(self, final: Path) -> None:
        self._known()[final.name.split(".")[1]] = final

    def _known(self) -> dict[str, Path]:
        if self._paths is None:
            self._paths = _look(self._path)
        return self._paths


def _look(maildir: Path) -> dict[str, Path]:
    """Paths by name.

    A file that is renamed while its directory is read may be missed, so all is read until a look
    meets no change; what one of the looks has seen is here.  The names are made durable, because
    what is here will be deleted on its server.
    """
    found: dict[str, Path] = {}
    for _ in range(_LOOKS):
        directories = list(_directories(maildir))
        before = _stamps(directories)
        for directory in directories:
            with suppress(FileNotFoundError, NotADirectoryError):
                for path in directory.iterdir():
                    if ours := _OURS.match(path.name):
                        found[ours[1]] = path
        if _stamps(directories) == before:
            break
    for directory in directories:
        with suppress(FileNotFoundError, NotADirectoryError):
            fsync_directory(directory)
    return found


def _directories(maildir: Path) -> Iterator[Path]:
    """In the order in which messages move, so that the last place is the one that counts."""
    for folder in (maildir, *maildir.glob(".?*/")):
        yield from (folder / name for name in ("new", "cur", "held"))


def _stamps(directories: Sequence[Path]) -> list[int]:
    """They change whenever a name does."""
    found = []
    for directory in directories:
        with suppress(FileNotFoundError, NotADirectoryError):
            found.append(directory.stat().st_mtime_ns)
    return found
