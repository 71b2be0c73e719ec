"""The results of each account's sessions: streaks of failures, totals, and the alerts sent.

They are stored in the ledger's file and are as durable as the ledger.
"""

from __future__ import annotations

from typing import NamedTuple

from .account_ledger import AccountLedger


class AccountHealth(NamedTuple):
    """The results of one account's sessions."""

    failures: int = 0
    """Number of failed sessions since the last successful one."""
    failing_since: float | None = None
    """Time of the first of these failures, in seconds since the epoch."""
    good: int = 0
    """Number of all successful sessions."""
    bad: int = 0
    """Number of all failed sessions."""
    messages: int = 0
    """Number of messages stored in all sessions."""
    octets: int = 0
    """Total size of these messages, in octets."""


class Health:
    """The results of one account's sessions.  All calls block and raise the ledger's errors."""

    def __init__(self, ledger: AccountLedger) -> None:
        self._ledger, self._account = ledger, ledger.name

    def failed(self, at: float, messages: int = 0, octets: int = 0) -> None:
        """Record a failed session, and the messages that it stored before it failed."""
        self.stopped(messages, octets)
        with self._ledger.transaction() as database:
            database.execute(
                "UPDATE health SET failures = failures + 1, bad = bad + 1,"
                " failing_since = coalesce(failing_since, ?) WHERE account = ?",
                (at, self._account),
            )

    def stopped(self, messages: int, octets: int) -> None:
        """Record the messages of a session that the user stopped, without counting the session."""
        with self._ledger.transaction() as database:
            database.execute(
                "INSERT INTO health (account, messages, octets) VALUES (?, ?, ?)"
                " ON CONFLICT DO UPDATE SET messages = messages + excluded.messages,"
                " octets = octets + excluded.octets",
                (self._account, messages, octets),
            )

    def succeeded(self, messages: int, octets: int) -> None:
        """Record a successful session; it ends a streak of failures."""
        with self._ledger.transaction() as database:
            database.execute(
                "INSERT INTO health (account, good, messages, octets) VALUES (?, 1, ?, ?)"
                " ON CONFLICT DO UPDATE SET failures = 0, failing_since = NULL, good = good + 1,"
                " messages = messages + excluded.messages, octets = octets + excluded.octets",
                (self._account, messages, octets),
            )

    def state(self) -> AccountHealth:
        """Return the account's results, all zero before its first session."""
        with self._ledger.reading() as database:
            row = database.execute(
                "SELECT failures, failing_since, good, bad, messages, octets FROM health"
                " WHERE account = ?",
                (self._account,),
            ).fetchone()
        return AccountHealth(*row) if row else AccountHealth()

    def reported(self, topic: str) -> float | None:
        """Return the moment that the last alert on ``topic`` was about; None if none is open.

        For ``failure``, it is the start of the streak.  For ``consent``, it is the time when the
        consent expires.  Both are in seconds since the epoch.
        """
        with self._ledger.reading() as database:
            row = database.execute(
                "SELECT of_when FROM told WHERE account = ? AND what = ?", (self._account, topic)
            ).fetchone()
        return row[0] if row else None

    def set_reported(self, topic: str, moment: float | None) -> None:
        """Record that an alert on ``topic`` was sent; None closes the topic."""
        with self._ledger.transaction() as database:
            database.execute(
                "DELETE FROM told WHERE account = ? AND what = ?", (self._account, topic)
            )
            if moment is not None:
                database.execute(
                    "INSERT INTO told VALUES (?, ?, ?)", (self._account, topic, moment)
                )
