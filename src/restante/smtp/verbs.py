"""The type of the rows in the table of commands (``commands.VERBS``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from .state import Event, State


class Verb(NamedTuple):
    """A command: its function, and the states and protocols in which it is allowed."""

    run: Callable[..., Event]
    """Called with the session and the command's argument; returns a reply or an action."""
    states: tuple[State, ...]
    """The states in which the command is allowed."""
    is_lmtp: bool | None = None
    """True if the command exists only in LMTP, False if only in SMTP, None if in both."""
