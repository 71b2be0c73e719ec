"""How sessions with each account end: streaks of failures, totals, and what people were told.

In the ledger's file, and as durable.
"""

from __future__ import annotations

from typing import NamedTuple

from .account_ledger import AccountLedger


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
    """How sessions with one account end.  All calls block, and raise the ledger's errors."""

    def __init__(self, ledger: AccountLedger) -> None:
        self._ledger, self._account = ledger, ledger.name

    def failed(self, at: float, messages: int = 0, octets: int = 0) -> None:
        """It may have stored something before."""
        self.stopped(messages, octets)
        with self._ledger.transaction() as database:
            database.execute(
                "UPDATE health SET failures = failures + 1, bad = bad + 1,"
                " failing_since = coalesce(failing_since, ?) WHERE account = ?",
                (at, self._account),
            )

    def stopped(self, messages: int, octets: int) -> None:
        """Count what a session stored that the user stopped; it neither failed nor succeeded."""
        with self._ledger.transaction() as database:
            database.execute(
                "INSERT INTO health (account, messages, octets) VALUES (?, ?, ?)"
                " ON CONFLICT DO UPDATE SET messages = messages + excluded.messages,"
                " octets = octets + excluded.octets",
                (self._account, messages, octets),
            )

    def succeeded(self, messages: int, octets: int) -> None:
        with self._ledger.transaction() as database:
            database.execute(
                "INSERT INTO health (account, good, messages, octets) VALUES (?, 1, ?, ?)"
                " ON CONFLICT DO UPDATE SET failures = 0, failing_since = NULL, good = good + 1,"
                " messages = messages + excluded.messages, octets = octets + excluded.octets",
                (self._account, messages, octets),
            )

    def state(self) -> State:
        with self._ledger.reading() as database:
            row = database.execute(
                "SELECT failures, failing_since, good, bad, messages, octets FROM health"
                " WHERE account = ?",
                (self._account,),
            ).fetchone()
        return State(*row) if row else State()

    def told(self, what: str) -> float | None:
        """Of which moment people know, such as that since which it fails; None: of none."""
        with self._ledger.reading() as database:
            row = database.execute(
                "SELECT of_when FROM told WHERE account = ? AND what = ?", (self._account, what)
            ).fetchone()
        return row[0] if row else None

    def tell(self, what: str, when: float | None) -> None:
        """They do now; None: that is over."""
        with self._ledger.transaction() as database:
            database.execute(
                "DELETE FROM told WHERE account = ? AND what = ?", (self._account, what)
            )
            if when is not None:
                database.execute("INSERT INTO told VALUES (?, ?, ?)", (self._account, what, when))
