"""Code that the verbs share which ask a running server."""

from __future__ import annotations

import argparse
from pathlib import Path

from .. import config
from ..app.control_paths import folder_of


def folder(options: argparse.Namespace) -> Path:
    """Return the directory of the control sockets; the configuration need not be valid."""
    return folder_of(config.runtime(options.config))


def lasting(seconds: float) -> str:
    """Return a duration with its two largest units, such as "3 d 4 h" and "12 s"."""
    rest = int(seconds)
    parts: list[tuple[int, str]] = []
    for unit, name in ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        number, rest = divmod(rest, unit)
        if number or parts:
            parts.append((number, name))
    shown = [f"{number} {name}" for number, name in parts[:2] if number]
    return " ".join(shown) or "0 s"
