"""Code that is shared by the commands for a running server."""

from __future__ import annotations

import argparse
from pathlib import Path

from .. import config
from ..app.control_paths import folder_of


def folder(options: argparse.Namespace) -> Path:
    """Return the directory of the control sockets, even if the configuration is invalid."""
    return folder_of(config.runtime(options.config))


def duration(seconds: float) -> str:
    """Return a duration in its two largest units, such as "3 d 4 h" or "12 s"."""
    rest = int(seconds)
    parts: list[tuple[int, str]] = []
    for unit, name in ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        number, rest = divmod(rest, unit)
        if number or parts:
            parts.append((number, name))
    shown = [f"{number} {name}" for number, name in parts[:2] if number]
    return " ".join(shown) or "0 s"
