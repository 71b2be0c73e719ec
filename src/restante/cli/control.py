"""Code that is shared by the commands for a running server."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from urllib.parse import urlencode

from .. import config
from ..app import asking
from ..app.control_paths import folder_of

_NO_QUERY: Mapping[str, str | None] = {}


def ask(
    options: argparse.Namespace,
    method: str,
    path: str,
    query: Mapping[str, str | None] = _NO_QUERY,
    *,
    timeout: float = asking.TIMEOUT,
    accept: int = 200,
) -> asking.Reply:
    """Send a request to the running server, even if the configuration is invalid.

    Parameters whose value is None are left out.  See ``asking.ask`` for the others and for errors.
    """
    folder = folder_of(config.runtime(options.config))
    given = {name: value for name, value in query.items() if value is not None}
    target = f"{path}?{urlencode(given)}" if given else path
    return asking.ask(folder, method, target, timeout=timeout, accept=accept)


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
