"""The results of one session, for output and for programs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields

from ..pop3.listing import Message

Progress = Callable[[Sequence[Message], int], None]
"""Called with the messages to fetch and the number of octets received so far."""


@dataclass(slots=True)
class Outcome:
    """The results of one session; each number counts messages unless stated otherwise."""

    stored: int = 0
    octets: int = 0
    """Octets of the stored messages."""
    known: int = 0
    """Fetched, but already stored: without a unique-id, after a crash, or fetched for
    comparison."""
    present: int = 0
    """Not fetched, because the destination already had them, although the ledger did not."""
    in_doubt: int = 0
    """Stored after a crash, but possibly for the second time."""
    stubs: int = 0
    """Headers stored instead of messages that are too large."""
    deleted: int = 0
    withheld: int = 0
    """Due, but not deleted because of the limit for a new account or a changed rule."""
    later: int = 0
    """Left for a later session."""
    later_for: str = ""
    """The reason: "the limit", "the day's budget" or "refusals"."""
    skipped: list[str] = field(default_factory=list)
    """Messages that the policy leaves on the server, with reasons."""
    refused: list[str] = field(default_factory=list)
    """Messages that the server did not send or did not delete, with reasons."""
    short: list[str] = field(default_factory=list)
    """Messages stored but not deleted, because much less was received than announced."""
    notes: list[str] = field(default_factory=list)
    """Other notes for the user."""
    unverified: int = 0
    """Not deleted, because the copy here differs from what was received."""
    may_list_more: bool = False
    """Whether the next session may list other messages, because the server lists mail in parts."""
    may_go_on: bool = False
    """Whether the connection was lost and the next session can avoid the cause."""

    def __iadd__(self, later: Outcome) -> Outcome:
        """Add the results of a later session."""
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(later, each.name))
        self.later, self.later_for = later.later, later.later_for
        self.may_list_more, self.may_go_on = later.may_list_more, later.may_go_on
        return self
