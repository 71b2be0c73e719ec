"""The ledger of the collected messages of all accounts (SQLite; docs/decisions/0100-ledger.md).

Durability: every call is one transaction that is on disk when the call returns.  Records of
collected messages are not removed when a listing does not contain the messages.  Otherwise an
incomplete listing would make known mail look new in the next session.
Security: the ledger stores unique-ids, sizes and digests, but no passwords and no message text.
"""

from __future__ import annotations

import sqlite3

from .account_ledger import AccountLedger
from .elapsed import Reading, advance
from .ledger_file import LedgerFile

_DAY, _WEEK = 86_400.0, 604_800.0  # seconds


class Ledger(LedgerFile):
    """The records of the collected messages of all accounts of one user or machine.

    All methods block and are thread-safe.  They raise TemporaryFailure if the file cannot be read
    or written now, and ConfigurationError if it is damaged or not a ledger.
    """

    def of(self, account: str) -> AccountLedger:
        """Return the ledger of one account, which may be empty."""
        return AccountLedger(self, account)

    def now(self, wall: float) -> float:
        """Return the ledger's time (see ``elapsed``).

        ``wall`` is the machine's clock, in seconds since the epoch.
        """
        with self.transaction() as database:
            row = database.execute(
                "SELECT wall, time, pending, pending_since FROM clock"
            ).fetchone()
            last = Reading(*row) if row else None
            reading = advance(last, wall)
            if last is not None and reading.caught_up:
                _shift_times(database, last.pending_since, reading.caught_up)
            database.execute(
                "INSERT OR REPLACE INTO clock VALUES (1, ?, ?, ?, ?)", tuple(reading)[:4]
            )
        return reading.time


def _shift_times(database: sqlite3.Connection, since: float, seconds: float) -> None:
    """Add ``seconds`` to the time stamps of all events at or after ``since``.

    The ledger's time has increased by this amount, and these events must not look older.
    """
    for table, column, offset in (
        ("messages", "taken_at", 0.0),
        ("messages", "seen_again", 0.0),
        ("removals", "at", 0.0),
        ("accounts", "limited_until", _DAY),  # the column is set to a day after the event
        ("accounts", "one_by_one_until", _WEEK),
    ):
        database.execute(
            f"UPDATE {table} SET {column} = {column} + ? WHERE {column} - ? >= ?",
            (seconds, offset, since),
        )
