"""The results of one session, for output and for programs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields

from ..pop3.listing import Message

Progress = Callable[[Sequence[Message], int], None]
"""Called with the messages to fetch at the beginning, and then with the number of octets of each
received piece."""


@dataclass(slots=True)
class Outcome:
    """The results of one session."""

    stored: int = 0
    """Number of new messages that were stored."""
    octets: int = 0
    """Number of octets received for these messages."""
    known: int = 0
    """Number of messages that were fetched but had already been stored: they have no unique-id, or
    were fetched after a crash or for comparison."""
    present: int = 0
    """Number of messages that were not fetched, because the destination already had them."""
    in_doubt: int = 0
    """Number of messages that were stored after a crash, and may be stored twice."""
    stubs: int = 0
    """Number of headers that were stored instead of messages that are too large."""
    deleted: int = 0
    """Number of messages that were deleted on the server."""
    withheld: int = 0
    """Number of messages that were due but not deleted, because of the limit for a new account or a
    changed rule."""
    later: int = 0
    """Number of messages that were left for a later session."""
    later_for: str = ""
    """Why these messages were left: "the limit", "the day's budget", "the full destination" or
    "refusals"."""
    skipped: list[str] = field(default_factory=list)
    """Messages that the policy leaves on the server, with reasons."""
    refused: list[str] = field(default_factory=list)
    """Messages that could not be fetched, stored or deleted, with reasons."""
    short: list[str] = field(default_factory=list)
    """Messages that were stored but not deleted, because they were much shorter than announced."""
    notes: list[str] = field(default_factory=list)
    """Other notes for the user."""
    unverified: int = 0
    """Number of messages that were not deleted, because the copy here is missing or changed."""
    may_list_more: bool = False
    """Whether the next session may list other messages, because the server lists mail in parts."""
    may_go_on: bool = False
    """Whether the session failed, and another session of the same run may succeed."""

    def __iadd__(self, later: Outcome) -> Outcome:
        """Add the results of a later session."""
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(later, each.name))
        self.later, self.later_for = later.later, later.later_for
        self.may_list_more, self.may_go_on = later.may_list_more, later.may_go_on
        return self
