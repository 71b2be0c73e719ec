"""A Maildir (https://cr.yp.to/proto/maildir.html), in CRLF text as it came."""

from __future__ import annotations

import re
import time
from pathlib import Path

from ...net.saving import fsync_directory
from . import Place, name_of
from .folder import Folder, make_directory

_OURS = re.compile(r"\d+\.([0-9a-f]{32})\.restante")
# In held/, the store puts the time of the deletion in front.
_HELD = re.compile(r"\d+\.\d+\.([0-9a-f]{32})\.restante")


class Maildir(Folder):
    """Like ``Folder``, with ``tmp`` to work in and ``new`` to deliver to."""

    def __init__(self, path: Path) -> None:
        self._path = path
        super().__init__(path)
        here = [each.name for where in ("new", "cur") for each in (path / where).iterdir()]
        # Under any flags that a mail reader has added since.
        self._known = {found[1] for found in map(_OURS.match, here) if found}
        # Of a maildrop of this server: what somebody deleted and may have back.
        held = path / "held"
        waiting = [each.name for each in held.iterdir()] if held.is_dir() else []
        self._held = {found[1] for found in map(_HELD.match, waiting) if found}

    def _prepare(self) -> None:
        self._inbox, self._workshop = self._path / "new", self._path / "tmp"
        for name in ("cur", "new", "tmp"):
            make_directory(self._path / name, 0o700)
            fsync_directory(self._path / name)

    def has(self, identity: str) -> bool:
        return name_of(identity) in self._known

    def place(self, identity: str) -> Place:
        name = name_of(identity)
        if name in self._known:
            return Place.HERE
        return Place.HELD if name in self._held else Place.GONE

    def _place(self, name: str) -> Path:
        return self._inbox / f"{int(time.time())}.{name}.restante"

    def _find(self, name: str) -> Path | None:
        found = (each for where in ("cur", "new") for each in (self._path / where).iterdir())
        return next((each for each in found if f".{name}.restante" in each.name), None)

    def _named(self, final: Path) -> None:
        self._known.add(final.name.split(".")[1])
