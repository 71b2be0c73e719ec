"""Open the ledger's file, run transactions on it, and lock its accounts.

Durability: a transaction is on disk when it ends.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from ..client.sinks import fsync_directory
from ..errors import ConfigurationError, TemporaryFailure
from ..posix import fcntl
from .schema import prepare

# Seconds to wait while another process writes to the ledger.  A transaction takes milliseconds, and
# a sync of a slow disk takes a second or two.
_LOCK_TIMEOUT = 10.0


class AccountBusy(TemporaryFailure):
    """Another process is collecting this account."""

    def __init__(self, account: str) -> None:
        super().__init__(f"another process is collecting the account {account}")


class LedgerFile:
    """A ledger's database, with the transactions that read and write it."""

    def __init__(self, path: Path | None) -> None:
        """Open the ledger, and create it if it is missing.

        If ``path`` is None, the ledger is in memory: it has no locks and is lost when it is closed.
        """
        self._path = path
        # The threads share one connection, so only one transaction may run at a time.
        self._thread_lock = threading.RLock()
        with _errors():
            is_new = path is not None and _create(path)
            # ``prepare`` sets synchronous=FULL, so the write-ahead log is synced at each commit.
            self._database = sqlite3.connect(
                path or ":memory:",
                timeout=_LOCK_TIMEOUT,
                isolation_level=None,
                check_same_thread=False,
            )
            try:
                prepare(self._database, path)
            except BaseException:
                self._database.close()
                raise
            if path is not None and is_new:
                fsync_directory(path.parent)

    def close(self) -> None:
        self._database.close()

    @contextmanager
    def lock(self, account: str) -> Iterator[None]:
        """Lock the account, so that no other process collects it while the context lasts.

        Raises:
            AccountBusy: another process holds the lock.
        """
        if self._path is None:
            yield
            return
        with _errors():
            lock = _Lock(self._path, account)
        with closing(lock):
            yield

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Yield the database for queries; the block must not write."""
        with self._thread_lock, _errors():
            yield self._database

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Run the block as one transaction: all or nothing, and on disk when the block ends."""
        with self._thread_lock, _errors():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise


def _create(path: Path) -> bool:
    """If the file is missing, create it, readable only by its owner.  Return whether it is new."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    is_new = not path.exists()
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    return is_new


class _Lock:
    """A lock file next to the ledger; the kernel releases the lock when the process ends."""

    def __init__(self, ledger: Path, account: str) -> None:
        name = f"{ledger.name}.{account.encode().hex()[:200]}.lock"
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._file = os.open(ledger.with_name(name), flags, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._file)
            raise AccountBusy(account) from None

    def close(self) -> None:
        os.close(self._file)


@contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            text = "the ledger is damaged; without it, no mail can be fetched or deleted"
            raise ConfigurationError(text) from error
        raise TemporaryFailure(f"ledger: {error}") from error
    except OSError as error:
        raise TemporaryFailure(f"ledger: {error.strerror}") from error
