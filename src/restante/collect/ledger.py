"""The ledger: which messages of which account were taken (SQLite; docs/decisions/0100-ledger.md).

Durability: every call is one transaction that is on disk when the call returns.  Taken messages are
never forgotten: an incomplete listing today must not make known mail look new tomorrow.
Security: holds unique-ids, sizes and digests, but no password and no text of a message.
"""

from __future__ import annotations

import sqlite3

from .account_ledger import AccountLedger
from .elapsed import Reading, advance
from .ledger_file import LedgerFile

_DAY, _WEEK = 86_400.0, 604_800.0  # seconds


class Ledger(LedgerFile):
    """The record of taken messages, for all accounts of one user or machine.

    All calls block, and any thread may call them.  They raise TemporaryFailure when the file cannot
    be read or written now, and ConfigurationError when it is damaged or not a ledger.
    """

    def of(self, account: str) -> AccountLedger:
        """Return the ledger of one account; the account need not have any entry yet."""
        return AccountLedger(self, account)

    def now(self, wall: float) -> float:
        """Return the time by the ledger's clock (see ``elapsed``).

        ``wall`` is the machine's clock, in seconds since the epoch.
        """
        with self.transaction() as database:
            row = database.execute(
                "SELECT wall, time, pending, pending_since FROM clock"
            ).fetchone()
            last = Reading(*row) if row else None
            reading = advance(last, wall)
            if last is not None and reading.caught_up:
                _move_stamps(database, last.pending_since, reading.caught_up)
            database.execute(
                "INSERT OR REPLACE INTO clock VALUES (1, ?, ?, ?, ?)", tuple(reading)[:4]
            )
        return reading.time


def _move_stamps(database: sqlite3.Connection, since: float, seconds: float) -> None:
    """Move time stamps from ``since`` on forward, so that these events do not become older."""
    for table, column, ahead in (
        ("messages", "taken_at", 0.0),
        ("messages", "seen_again", 0.0),
        ("removals", "at", 0.0),
        ("accounts", "limited_until", _DAY),  # is set to a day after the event
        ("accounts", "one_by_one_until", _WEEK),
    ):
        database.execute(
            f"UPDATE {table} SET {column} = {column} + ? WHERE {column} - ? >= ?",
            (seconds, ahead, since),
        )
