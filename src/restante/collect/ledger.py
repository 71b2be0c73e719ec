"""The ledger: which messages of which account were taken (SQLite; docs/decisions/0100-ledger.md).

Durability: every call is one transaction that is on disk when it returns.  What was taken is never
forgotten: a listing that is short today must not make tomorrow's mail look new.
Security: holds unique-ids, sizes and digests; no password, no text of a message.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path

from ..errors import ConfigurationError, LoginWithheld, TemporaryFailure
from ..net.saving import fsync_directory
from .plan import Taken, Used

_VERSION = 5  # of the schema, in user_version
_PATIENCE = 10.0  # seconds for another account's collector to finish writing
_AT_ONCE = 500  # unique-ids in one query
_SCHEMA = """
CREATE TABLE messages (
    account TEXT NOT NULL,
    key BLOB NOT NULL,
    size INTEGER NOT NULL,
    digest BLOB,
    taken_at REAL,
    is_gone INTEGER NOT NULL DEFAULT 0,
    was_held INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (account, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX messages_by_digest ON messages (account, digest) WHERE digest IS NOT NULL;
CREATE TABLE sessions (
    account TEXT PRIMARY KEY,
    began_at REAL NOT NULL,
    login_delay REAL NOT NULL DEFAULT 0,
    succeeded_at REAL
) STRICT, WITHOUT ROWID;
"""
_RUNS = """
CREATE TABLE runs (
    number INTEGER PRIMARY KEY,
    account TEXT NOT NULL,
    tried_at REAL NOT NULL,
    used_at REAL NOT NULL,
    messages INTEGER NOT NULL DEFAULT 0,
    octets INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX runs_by_account ON runs (account, tried_at);
"""
_REFUSALS = """
ALTER TABLE sessions ADD COLUMN refusals INTEGER NOT NULL DEFAULT 0;
ALTER TABLE sessions ADD COLUMN refused_at REAL NOT NULL DEFAULT 0
"""
_HEALTH = """
CREATE TABLE health (
    account TEXT PRIMARY KEY,
    failures INTEGER NOT NULL DEFAULT 0,
    failing_since REAL,
    good INTEGER NOT NULL DEFAULT 0,
    bad INTEGER NOT NULL DEFAULT 0,
    messages INTEGER NOT NULL DEFAULT 0,
    octets INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;
CREATE TABLE told (
    account TEXT NOT NULL,
    what TEXT NOT NULL,
    of_when REAL NOT NULL,
    PRIMARY KEY (account, what)
) STRICT, WITHOUT ROWID;
"""
_SCHEMA += ";".join((_RUNS, _REFUSALS, _HEALTH))

# What each older version lacks.
_CHANGES = {
    1: "ALTER TABLE messages ADD COLUMN was_held INTEGER NOT NULL DEFAULT 0",
    2: _RUNS,
    3: _REFUSALS,
    4: _HEALTH,
}
_HOUR, _DAY = 3600.0, 86_400.0  # seconds
_PENANCE = 600.0  # seconds after a login was refused; twice as long after each further one


class AccountBusy(TemporaryFailure):
    """Another collector works on this account."""

    def __init__(self, account: str) -> None:
        super().__init__(f"another collector is working on the account {account}")


class Ledger:
    """What was taken, for all accounts of one person or machine.

    All calls block; any thread may call.  Each raises TemporaryFailure when the file cannot be
    read or written now, and ConfigurationError when it is no ledger of ours.
    """

    def __init__(self, path: Path | None) -> None:
        """``None`` is a ledger in memory, which locks nothing and is forgotten when closed."""
        self._path = path
        self._turn = threading.RLock()  # one transaction at a time, whatever the thread
        with _errors():
            is_new = path is not None and _create(path)
            # Committed means on disk: FULL syncs the log at each commit.
            self._database = sqlite3.connect(
                path or ":memory:",
                timeout=_PATIENCE,
                isolation_level=None,
                check_same_thread=False,
            )
            try:
                self._prepare()
            except BaseException:
                self._database.close()
                raise
            if path is not None and is_new:
                fsync_directory(path.parent)

    def _prepare(self) -> None:
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = FULL")
        with self.transaction():
            (version,) = self._database.execute("PRAGMA user_version").fetchone()
            if version == 0:
                if self._database.execute("SELECT 1 FROM sqlite_schema").fetchone():
                    raise ConfigurationError(f"{self._path} is a database of another program")
                self._execute_all(_SCHEMA)
                self._database.execute(f"PRAGMA user_version = {_VERSION}")
            elif version > _VERSION:
                raise ConfigurationError(f"{self._path} was written by a newer restante")
            else:
                for older in range(version, _VERSION):
                    self._execute_all(_CHANGES[older])
                self._database.execute(f"PRAGMA user_version = {_VERSION}")

    def _execute_all(self, statements: str) -> None:
        for statement in statements.split(";"):
            self._database.execute(statement)

    def close(self) -> None:
        self._database.close()

    @contextmanager
    def alone(self, account: str) -> Iterator[None]:
        """For as long as the context lasts no other process collects this account.

        Raises:
            AccountBusy: one does now.
        """
        if self._path is None:
            yield
            return
        with _errors():
            lock = _Lock(self._path, account)
        with closing(lock):
            yield

    def known(self, account: str, keys: Iterable[str]) -> dict[str, Taken]:
        """What is known of these messages, by key."""
        found = {}
        with self._turn, _errors():
            left = map(_octets, keys)
            while some := list(islice(left, _AT_ONCE)):
                marks = ",".join("?" * len(some))
                rows = self._database.execute(
                    "SELECT key, size, taken_at, taken_at NOTNULL AND digest IS NULL, was_held,"
                    " is_gone"
                    f" FROM messages WHERE account = ? AND key IN ({marks})",
                    (account, *some),
                )
                for key, size, at, *facts in rows:
                    found[_text(key)] = Taken(size, at, *map(bool, facts))
        return found

    def expected(self, account: str) -> int:
        """How many messages were taken and not deleted on the server."""
        with self._turn, _errors():
            (count,) = self._database.execute(
                "SELECT count(*) FROM messages"
                " WHERE account = ? AND taken_at IS NOT NULL AND NOT is_gone",
                (account,),
            ).fetchone()
        return int(count)

    def digest(self, account: str, key: str) -> bytes | None:
        """SHA-256 of the content that was taken under this key."""
        with self._turn, _errors():
            row = self._database.execute(
                "SELECT digest FROM messages WHERE account = ? AND key = ?",
                (account, _octets(key)),
            ).fetchone()
        return row[0] if row else None

    def has_content(self, account: str, digest: bytes) -> bool:
        """Whether a message of this content was taken, under whatever unique-id."""
        with self._turn, _errors():
            row = self._database.execute(
                "SELECT 1 FROM messages"
                " WHERE account = ? AND digest = ? AND taken_at IS NOT NULL LIMIT 1",
                (account, digest),
            ).fetchone()
        return row is not None

    def intend(self, account: str, messages: Iterable[tuple[str, int]]) -> None:
        """These, by key and announced size, are about to be stored."""
        rows = [(account, _octets(key), size) for key, size in messages]
        with self.transaction():
            self._database.executemany(
                "INSERT INTO messages (account, key, size) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
                rows,
            )

    def took(
        self,
        account: str,
        messages: Iterable[tuple[str, int, bytes]],
        at: float,
        *,
        is_gone: bool = False,
    ) -> None:
        """These, by key, announced size and SHA-256, are durable at their destination.

        ``is_gone`` is for what stands on no server, as a stub does not.
        """
        rows = [
            (account, _octets(key), size, digest, at, is_gone) for key, size, digest in messages
        ]
        with self.transaction():
            self._database.executemany(
                "INSERT INTO messages (account, key, size, digest, taken_at, is_gone)"
                " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET size = excluded.size,"
                " digest = excluded.digest, taken_at = excluded.taken_at,"
                " is_gone = excluded.is_gone",
                rows,
            )

    def adopt(self, account: str, messages: Iterable[tuple[str, int]], at: float) -> None:
        """These, by key and size, were taken by other means: they are never deleted there.

        What was taken by us stays as it is.
        """
        rows = [(account, _octets(key), size, at) for key, size in messages]
        with self.transaction():
            self._database.executemany(
                "INSERT INTO messages (account, key, size, taken_at) VALUES (?, ?, ?, ?)"
                " ON CONFLICT DO UPDATE SET size = excluded.size, taken_at = excluded.taken_at"
                " WHERE taken_at IS NULL",
                rows,
            )

    def held(self, account: str, keys: Iterable[str], *, is_held: bool) -> None:
        """These wait here for their end, or they do so no more since they were given back."""
        with self.transaction():
            self._database.executemany(
                "UPDATE messages SET was_held = ? WHERE account = ? AND key = ?",
                [(is_held, account, _octets(key)) for key in keys],
            )

    def gone(self, account: str, keys: Iterable[str]) -> None:
        """QUIT has confirmed that these are removed from the server."""
        with self.transaction():
            self._database.executemany(
                "UPDATE messages SET is_gone = 1 WHERE account = ? AND key = ?",
                [(account, _octets(key)) for key in keys],
            )

    def forget(self, account: str) -> int:
        """Everything about an account; returns how many messages."""
        with self.transaction():
            for table in ("sessions", "runs", "health", "told"):
                self._database.execute(f"DELETE FROM {table} WHERE account = ?", (account,))
            return self._database.execute(
                "DELETE FROM messages WHERE account = ?", (account,)
            ).rowcount

    def tried(self, account: str, at: float) -> int:
        """Somebody is about to log in; returns the number of this run, for ``used``."""
        with self.transaction():
            self._database.execute(
                "DELETE FROM runs WHERE account = ? AND used_at <= ?", (account, at - _DAY)
            )
            done = self._database.execute(
                "INSERT INTO runs (account, tried_at, used_at) VALUES (?, ?, ?)", (account, at, at)
            )
            assert done.lastrowid is not None
            return done.lastrowid

    def used(self, run: int, more: Used, at: float) -> None:
        """So much more came from the server."""
        with self.transaction():
            self._database.execute(
                "UPDATE runs SET messages = messages + ?, octets = octets + ?, used_at = ?"
                " WHERE number = ?",
                (more.messages, more.octets, at, run),
            )

    def used_in_a_day(self, account: str, now: float) -> Used:
        """What came in the last day, also in sessions that failed.

        A session counts until a day after its last octet.
        """
        with self._turn, _errors():
            row = self._database.execute(
                "SELECT coalesce(sum(messages), 0), coalesce(sum(octets), 0) FROM runs"
                " WHERE account = ? AND used_at > ?",
                (account, now - _DAY),
            ).fetchone()
        return Used(*row)

    def began(self, account: str, at: float, login_delay: float = 0.0) -> None:
        """A session has logged in; the server wants so many seconds until the next login."""
        with self.transaction():
            self._database.execute(
                "INSERT INTO sessions (account, began_at, login_delay) VALUES (?, ?, ?)"
                " ON CONFLICT DO UPDATE SET began_at = excluded.began_at,"
                " login_delay = excluded.login_delay, refusals = 0",
                (account, at, login_delay),
            )

    def refused(self, account: str, at: float) -> None:
        """The server has refused the login, for no reason that passes by itself."""
        with self.transaction():
            self._database.execute(
                "INSERT INTO sessions (account, began_at, refusals, refused_at)"
                " VALUES (?, 0, 1, ?) ON CONFLICT DO UPDATE SET refusals = refusals + 1,"
                " refused_at = excluded.refused_at",
                (account, at),
            )

    def withhold(self, account: str, now: float) -> None:
        """
        Raises:
            LoginWithheld: it was refused, and the time until the next try is not over.
        """
        with self._turn, _errors():
            row = self._database.execute(
                "SELECT refusals, refused_at FROM sessions WHERE account = ? AND refusals > 0"
                " AND refused_at <= ?",
                (account, now),
            ).fetchone()
        if row is not None:
            refusals, at = row
            wait = min(_PENANCE * 2.0 ** min(refusals - 1, 30), _DAY)
            if now < at + wait:
                raise LoginWithheld(account, refusals, at + wait - now)

    def succeeded(self, account: str, at: float) -> None:
        """A session has ended as it should."""
        with self.transaction():
            self._database.execute(
                "UPDATE sessions SET succeeded_at = ? WHERE account = ?", (at, account)
            )

    def last_begin(self, account: str) -> float:
        """Of a session, in seconds since the epoch; 0 when there was none."""
        with self._turn, _errors():
            row = self._database.execute(
                "SELECT began_at FROM sessions WHERE account = ?", (account,)
            ).fetchone()
        return row[0] if row else 0.0

    def may_begin(self, account: str, now: float, logins: int | None = None) -> float:
        """Not before this moment, in seconds since the epoch.

        For LOGIN-DELAY (RFC 2449 §6.5), and for so many ``logins`` in an hour, tried ones counted.
        A time stamp from the future keeps nobody out: the clock was put back.
        """
        with self._turn, _errors():
            rows = self._database.execute(
                "SELECT began_at + login_delay FROM sessions WHERE account = ? AND began_at <= ?",
                (account, now),
            ).fetchall()
            if logins is not None:
                rows += self._database.execute(
                    "SELECT tried_at + ? FROM runs WHERE account = ? AND tried_at <= ?"
                    " ORDER BY tried_at DESC LIMIT 1 OFFSET ?",
                    (_HOUR, account, now, logins - 1),
                ).fetchall()
        return max((at for (at,) in rows), default=0.0)

    def last_success(self, account: str) -> float | None:
        """Seconds since the epoch."""
        with self._turn, _errors():
            row = self._database.execute(
                "SELECT succeeded_at FROM sessions WHERE account = ?", (account,)
            ).fetchone()
        return row[0] if row else None

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """For questions of other modules; nothing is written."""
        with self._turn, _errors():
            yield self._database

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All of it or nothing, and on disk when it is left."""
        with self._turn, _errors():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise


def _create(path: Path) -> bool:
    """An empty file for nobody else to read, if there is none; whether it is new."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    is_new = not path.exists()
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    return is_new


class _Lock:
    """A lock file beside the ledger; the kernel frees it when the process dies."""

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
            text = "the ledger is damaged; nothing is fetched or deleted without it"
            raise ConfigurationError(text) from error
        raise TemporaryFailure(f"ledger: {error}") from error
    except OSError as error:
        raise TemporaryFailure(f"ledger: {error.strerror}") from error


def _octets(key: str) -> bytes:
    return key.encode("utf-8", "surrogateescape")


def _text(key: bytes) -> str:
    return key.decode("utf-8", "surrogateescape")
