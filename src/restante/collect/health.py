"""The results of each account's sessions: consecutive failures, totals, and the alerts sent.

The results are stored in the ledger's file.
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
    """Total number of successful sessions."""
    bad: int = 0
    """Total number of failed sessions."""
    messages: int = 0
    """Total number of messages that all sessions stored."""
    octets: int = 0
    """Total size of these messages, in octets."""


class Health:
    """The results of one account's sessions.

    All methods block, and raise the errors of ``Ledger``.
    """

    def __init__(self, ledger: AccountLedger) -> None:
        self._ledger, self._account = ledger, ledger.name

    def record_failure(self, at: float, messages: int = 0, octets: int = 0) -> None:
        """Record a failed session, and the messages that it stored before it failed."""
        self.record_stop(messages, octets)
        with self._ledger.transaction() as database:
            database.execute(
                "UPDATE health SET failures = failures + 1, bad = bad + 1,"
                " failing_since = coalesce(failing_since, ?) WHERE account = ?",
                (at, self._account),
            )

    def record_stop(self, messages: int, octets: int) -> None:
        """Record the messages that a session stored before the user stopped it.

        The session itself counts neither as successful nor as failed.
        """
        with self._ledger.transaction() as database:
            database.execute(
                "INSERT INTO health (account, messages, octets) VALUES (?, ?, ?)"
                " ON CONFLICT DO UPDATE SET messages = messages + excluded.messages,"
                " octets = octets + excluded.octets",
                (self._account, messages, octets),
            )

    def record_success(self, messages: int, octets: int) -> None:
        """Record a successful session, and reset the number of consecutive failures."""
        with self._ledger.transaction() as database:
            database.execute(
                "INSERT INTO health (account, good, messages, octets) VALUES (?, 1, ?, ?)"
                " ON CONFLICT DO UPDATE SET failures = 0, failing_since = NULL, good = good + 1,"
                " messages = messages + excluded.messages, octets = octets + excluded.octets",
                (self._account, messages, octets),
            )

    def state(self) -> AccountHealth:
        """Return the account's results; all numbers are 0 before its first session."""
        with self._ledger.reading() as database:
            row = database.execute(
                "SELECT failures, failing_since, good, bad, messages, octets FROM health"
                " WHERE account = ?",
                (self._account,),
            ).fetchone()
        return AccountHealth(*row) if row else AccountHealth()

    def reported(self, topic: str) -> float | None:
        """Return the moment that was passed to ``set_reported``; None if no alert is open.

        For the topic ``failure``, this is the time of the first consecutive failure.  For
        ``consent``, it is the time when the consent expires.  Both are in seconds since the epoch.
        """
        with self._ledger.reading() as database:
            row = database.execute(
                "SELECT of_when FROM told WHERE account = ? AND what = ?", (self._account, topic)
            ).fetchone()
        return row[0] if row else None

    def set_reported(self, topic: str, moment: float | None) -> None:
        """Record that an alert about ``topic`` was sent; if ``moment`` is None, close the alert."""
        with self._ledger.transaction() as database:
            database.execute(
                "DELETE FROM told WHERE account = ? AND what = ?", (self._account, topic)
            )
            if moment is not None:
                database.execute(
                    "INSERT INTO told VALUES (?, ?, ?)", (self._account, topic, moment)
                )
