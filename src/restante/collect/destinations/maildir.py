"""Store mail in a Maildir (https://cr.yp.to/proto/maildir.html), as CRLF text.

A message is recognised by its name even if a mail reader has moved it: with any flags, in a folder
(Maildir++), or in ``held/`` of a maildrop of this server.
"""

from __future__ import annotations

import re
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from ...client.sinks import fsync_directory
from ...scanning import ChangingMaildir, open_maildir, scan_folders
from .folder import Folder, make_directory

# In held/, the name is preceded by the time of the deletion.
_OURS = re.compile(r"(?:\d+\.)?\d+\.([0-9a-f]{32})\.restante")


class Maildir(Folder):
    """A ``Folder`` that writes to ``tmp`` and delivers to ``new``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: _Known | None = None  # None: not scanned yet
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
        """
        Raises:
            TemporaryFailure: another program keeps renaming files, so the message may exist.
        """
        known = self._known()
        path = known.paths.get(name)
        if path is None and known.is_exact:
            return None
        if path is None or not path.exists():  # the file has been renamed
            known = self._seen = _look(self._path)
            path = known.paths.get(name)
        if path is None and not known.is_exact:
            raise ChangingMaildir
        return path

    def _named(self, final: Path) -> None:
        self._known().paths[final.name.split(".")[1]] = final

    def _known(self) -> _Known:
        if self._seen is None:
            self._seen = _look(self._path)
        return self._seen


class _Known(NamedTuple):
    """The result of a scan of all directories."""

    paths: dict[str, Path]
    """Paths of messages by name."""
    is_exact: bool
    """Whether the scan cannot have missed a message."""


def _look(maildir: Path) -> _Known:
    """Scan a Maildir and make its file names durable.

    They must be durable because messages in the Maildir may be deleted on their server.
    """
    with open_maildir(maildir) as root:
        seen = scan_folders(root)
    for directory in seen.names:
        with suppress(FileNotFoundError):
            fsync_directory(maildir / directory)
    matches = ((_OURS.match(file.name), file) for file in seen.files())
    paths = {ours[1]: maildir / file.directory / file.name for ours, file in matches if ours}
    return _Known(paths, seen.is_exact)
