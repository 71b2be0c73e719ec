"""What one session did, for people and programs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields

from ..pop3.listing import Message

Progress = Callable[[Sequence[Message], int], None]
"""Called with all that will be fetched and the number of octets that came."""


@dataclass(slots=True)
class Outcome:
    """What one session did."""

    stored: int = 0
    octets: int = 0
    known: int = 0
    """Messages fetched and found to be stored already: they had no unique-id, a crash hid it, or
    they had to be compared."""
    present: int = 0
    """Not fetched, because the destination had them before the ledger did."""
    in_doubt: int = 0
    """Of the stored: maybe twice, since a crash hid the first time."""
    stubs: int = 0
    """Headers stored in place of messages that are too large."""
    deleted: int = 0
    withheld: int = 0
    """Not deleted there yet: more than a new account, or one with a new rule, may delete."""
    later: int = 0
    """Left for another session."""
    later_for: str = ""
    """Why: "the limit", "the day's budget" or "refusals"."""
    skipped: list[str] = field(default_factory=list)
    """What the policy leaves on the server, with the reason."""
    refused: list[str] = field(default_factory=list)
    """What the server did not give or not delete."""
    short: list[str] = field(default_factory=list)
    """Stored, and not deleted there in this session: much less came than was announced."""
    notes: list[str] = field(default_factory=list)
    """What else people should know."""
    unverified: int = 0
    """Not deleted, because the copy here is not what came."""
    may_list_more: bool = False
    """The server lists its mail in parts, and these were done: the next session may list others."""
    may_go_on: bool = False
    """The session was lost, and the next one avoids what it was lost by."""

    def __iadd__(self, later: Outcome) -> Outcome:
        """What two sessions did."""
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(later, each.name))
        self.later, self.later_for = later.later, later.later_for
        self.may_list_more, self.may_go_on = later.may_list_more, later.may_go_on
        return self
