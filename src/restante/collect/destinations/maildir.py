"""Store mail in a Maildir (https://cr.yp.to/proto/maildir.html), as CRLF text.

A message is recognised by its name even if a mail reader has changed its flags or moved it to a
folder (Maildir++), and even if it is in ``held/`` of a maildrop of this server.
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

# The name of a file that restante stored.  In held/, the time of the deletion precedes the name.
_FILE_NAME = re.compile(r"(?:\d+\.)?\d+\.([0-9a-f]{32})\.restante")


class Maildir(Folder):
    """A ``Folder`` that writes to ``tmp`` and delivers to ``new``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._scanned: _Known | None = None  # None: not scanned yet
        super().__init__(path)

    def _prepare(self) -> None:
        self._directory, self._temporary_directory = self._path / "new", self._path / "tmp"
        make_directory(self._path, 0o700)
        for name in ("cur", "new", "tmp"):
            make_directory(self._path / name, 0o700)
            fsync_directory(self._path / name)

    def _path_for(self, name: str) -> Path:
        return self._directory / f"{int(time.time())}.{name}.restante"

    def _find(self, name: str) -> Path | None:
        """Return the file of a message, or None.

        Raises:
            TemporaryFailure: the file was not found, but may exist, because another program keeps
                renaming files.
        """
        known = self._known()
        path = known.paths.get(name)
        if path is None and known.is_exact:
            return None
        if path is None or not path.exists():  # the file has been renamed
            known = self._scanned = _scan(self._path)
            path = known.paths.get(name)
        if path is None and not known.is_exact:
            raise ChangingMaildir
        return path

    def _record_name(self, final: Path) -> None:
        self._known().paths[final.name.split(".")[1]] = final

    def _known(self) -> _Known:
        if self._scanned is None:
            self._scanned = _scan(self._path)
        return self._scanned


class _Known(NamedTuple):
    """The result of a scan of all directories."""

    paths: dict[str, Path]
    """Paths of messages by name."""
    is_exact: bool
    """Whether the scan cannot have missed a message."""


def _scan(maildir: Path) -> _Known:
    """Scan a Maildir and make its file names durable.

    The names must be durable because ``has`` reports these messages as stored, so they may be
    deleted on their server.
    """
    with open_maildir(maildir) as root:
        scan = scan_folders(root)
    for directory in scan.names:
        with suppress(FileNotFoundError):
            fsync_directory(maildir / directory)
    matches = ((_FILE_NAME.match(file.name), file) for file in scan.files())
    paths = {match[1]: maildir / file.directory / file.name for match, file in matches if match}
    return _Known(paths, scan.is_exact)
