"""Recognise a state directory in which a restore is running or was interrupted."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import TemporaryFailure

MARKER = "restore.incomplete"
"""File in the state directory from the first to the last file of a restore."""


def refuse(state: Path) -> None:
    """Refuse to work with files that are not complete yet.

    Raises:
        TemporaryFailure: mail may be missing.  Clients that see this would download it again.
    """
    if os.path.lexists(state / MARKER):
        raise TemporaryFailure(
            f"a restore into {state} is not complete; if it is not running, start the same "
            "`restante restore` again"
        )
