"""A Maildir (https://cr.yp.to/proto/maildir.html), in CRLF text as it came."""

from __future__ import annotations

import re
import time
from pathlib import Path

from .folder import Folder

_OURS = re.compile(r"\d+\.([0-9a-f]{32})\.restante")


class Maildir(Folder):
    """Like ``Folder``, with ``tmp`` to work in and ``new`` to deliver to."""

    def __init__(self, path: Path) -> None:
        self._path = path
        super().__init__(path)
        self._inbox, self._workshop = path / "new", path / "tmp"
        here = [each.name for where in ("new", "cur") for each in (path / where).iterdir()]
        # Under any flags that a mail reader has added since.
        self._known = {found[1] for found in map(_OURS.match, here) if found}

    def _prepare(self) -> None:
        for name in ("cur", "new", "tmp"):
            (self._path / name).mkdir(mode=0o700, parents=True, exist_ok=True)

    def _final_name(self, name: str) -> str:
        return f"{int(time.time())}.{name}.restante"

    def _is_here(self, name: str) -> bool:
        return name in self._known

    def _find(self, name: str) -> Path | None:
        found = (each for where in ("cur", "new") for each in (self._path / where).iterdir())
        return next((each for each in found if f".{name}.restante" in each.name), None)

    def commit(self) -> None:
        super().commit()
        self._known.add(self._final.name.split(".")[1])
