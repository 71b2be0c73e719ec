"""One row of the table of commands."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from .state import Event, State


class Verb(NamedTuple):
    """What a command does and where it is allowed."""

    run: Callable[..., Event]
    """Takes the session and the argument."""
    states: tuple[State, ...]
    is_lmtp: bool | None = None
    """Whether the command exists only in LMTP (True), only in SMTP (False) or in both (None)."""
