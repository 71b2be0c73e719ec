"""How sessions with each account end: streaks of failures, totals, and what people were told.

In the ledger's file, and as durable.
"""

from __future__ import annotations

from typing import NamedTuple

from .ledger import Ledger


class State(NamedTuple):
    """Of one account."""

    failures: int = 0
    """Sessions in a row that failed."""
    failing_since: float | None = None
    """The first of them, in seconds since the epoch."""
    good: int = 0
    bad: int = 0
    """Sessions of all time that went well, and that failed."""
    messages: int = 0
    octets: int = 0
    """What was stored in all of them."""


class Health:
    """All calls block, and raise what the ledger's do."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def failed(self, account: str, at: float, messages: int = 0, octets: int = 0) -> None:
        """It may have stored something before."""
        self.stopped(account, messages, octets)
        with self._ledger.transaction() as database:
            database.execute(
                "UPDATE health SET failures = failures + 1, bad = bad + 1,"
                " failing_since = coalesce(failing_since, ?) WHERE account = ?",
                (at, account),
            )

    def stopped(self, account: str, messages: int, octets: int) -> None:
        """Count what a session stored that the user stopped; it neither failed nor succeeded."""
        with self._ledger.transaction() as database:
            database.execute(
                "INSERT INTO health (account, messages, octets) VALUES (?, ?, ?)"
                " ON CONFLICT DO UPDATE SET messages = messages + excluded.messages,"
                " octets = octets + excluded.octets",
                (account, messages, octets),
            )

    def succeeded(self, account: str, messages: int, octets: int) -> None:
        with self._ledger.transaction() as database:
            database.execute(
                "INSERT INTO health (account, good, messages, octets) VALUES (?, 1, ?, ?)"
                " ON CONFLICT DO UPDATE SET failures = 0, failing_since = NULL, good = good + 1,"
                " messages = messages + excluded.messages, octets = octets + excluded.octets",
                (account, messages, octets),
            )

    def state(self, account: str) -> State:
        with self._ledger.reading() as database:
            row = database.execute(
                "SELECT failures, failing_since, good, bad, messages, octets FROM health"
                " WHERE account = ?",
                (account,),
            ).fetchone()
        return State(*row) if row else State()

    def told(self, account: str, what: str) -> float | None:
        """Of which moment people know, such as that since which it fails; None: of none."""
        with self._ledger.reading() as database:
            row = database.execute(
                "SELECT of_when FROM told WHERE account = ? AND what = ?", (account, what)
            ).fetchone()
        return row[0] if row else None

    def tell(self, account: str, what: str, when: float | None) -> None:
        """They do now; None: that is over."""
        with self._ledger.transaction() as database:
            database.execute("DELETE FROM told WHERE account = ? AND what = ?", (account, what))
            if when is not None:
                database.execute("INSERT INTO told VALUES (?, ?, ?)", (account, what, when))
