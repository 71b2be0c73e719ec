"""Recipients that already have a message whose sender will send it again.

This implements ``server.intake.PartialDeliveries``.

SMTP has a single reply for all recipients (RFC 5321 §4.2.5).  So a sender that gets an error for
one recipient sends the message again to all recipients, for up to five days (§4.5.4.1).  Without
this record, each attempt would store another copy for the recipients that already have the message.

Durability: a row is on disk before the sender gets the reply to try again.  If the file is lost,
the next attempt stores a second copy, and no message is lost.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from ..errors import ConfigurationError, TemporaryFailure

_RETENTION = 7 * 86_400  # seconds; senders give up after 4 to 5 days (RFC 5321 §4.5.4.1)
_MAX_ROWS = 100_000  # about 10 MB; limited, because senders cause the rows
_LOCK_TIMEOUT = 5.0  # seconds for another worker to finish writing
_VERSION = 1
_SCHEMA = """
    CREATE TABLE IF NOT EXISTS stored (
        message BLOB NOT NULL,
        maildrop TEXT NOT NULL,
        at REAL NOT NULL,
        PRIMARY KEY (message, maildrop)
    ) STRICT, WITHOUT ROWID
"""


class PartialDeliveries:
    """A small SQLite database that the workers of one server share."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock

    async def recipients(self, message: bytes) -> Collection[str]:
        """Return the maildrops that have this message.

        ``message`` is the digest of reverse-path and octets.

        Raises:
            TemporaryFailure: the file cannot be read now.
        """
        if not self._path.exists():  # usually true, because partial deliveries are rare
            return ()
        return await asyncio.to_thread(self._recipients, message)

    def _recipients(self, message: bytes) -> Collection[str]:
        with self._database() as database:
            rows = database.execute("SELECT maildrop FROM stored WHERE message = ?", (message,))
            return frozenset(name for (name,) in rows)

    async def remember(self, message: bytes, maildrops: Collection[str]) -> None:
        """Record that these maildrops have the message.  Durable on return.

        Raises:
            TemporaryFailure: the file cannot be written now.
        """
        await asyncio.to_thread(self._remember, message, maildrops)

    def _remember(self, message: bytes, maildrops: Collection[str]) -> None:
        now = self._clock()
        with self._database() as database, database:
            database.execute(
                "DELETE FROM stored WHERE at < ? OR at > ?", (now - _RETENTION, now + _RETENTION)
            )
            database.executemany(
                "INSERT OR REPLACE INTO stored VALUES (?, ?, ?)",
                [(message, name, now) for name in maildrops],
            )
            database.execute(
                "DELETE FROM stored WHERE (message, maildrop) IN (SELECT message, maildrop"
                " FROM stored ORDER BY at DESC LIMIT -1 OFFSET ?)",
                (_MAX_ROWS,),
            )

    async def forget(self, message: bytes, maildrops: Collection[str]) -> None:
        """Forget these maildrops after success was reported.

        If the same octets arrive again later, they are a new message.

        Raises:
            TemporaryFailure: the file cannot be written now.
        """
        await asyncio.to_thread(self._forget, message, maildrops)

    def _forget(self, message: bytes, maildrops: Collection[str]) -> None:
        with self._database() as database, database:
            database.executemany(
                "DELETE FROM stored WHERE message = ? AND maildrop = ?",
                [(message, name) for name in maildrops],
            )

    @contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        """Open the database for a single use, because it is rarely needed."""
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            with closing(sqlite3.connect(self._path, timeout=_LOCK_TIMEOUT)) as database:
                database.execute("PRAGMA synchronous = FULL")
                (version,) = database.execute("PRAGMA user_version").fetchone()
                if version > _VERSION:
                    raise ConfigurationError(f"{self._path} was written by a newer restante")
                if version < _VERSION:
                    database.execute(_SCHEMA)
                    database.execute(f"PRAGMA user_version = {_VERSION}")
                    database.commit()
                yield database
        except (sqlite3.Error, OSError) as error:
            raise TemporaryFailure(f"{self._path}: {error}") from error
