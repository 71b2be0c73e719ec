"""The user database file: schema, migrations and transactions.

``ReadOnlyDatabase`` reads the file from the event loop, without waiting for a writer.

Security: only the file's owner can read it.  A database that belongs to a newer version or to
another program is refused and not changed.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from ..errors import ConfigurationError, TemporaryFailure

_LOCK_TIMEOUT = 5.0  # seconds for another process to finish writing; a write takes milliseconds
# Each step migrates the schema to the next version; user_version is the number of completed steps.
STEPS = (
    """
    CREATE TABLE users (
        name TEXT PRIMARY KEY,
        is_enabled INTEGER NOT NULL DEFAULT 1,
        networks TEXT NOT NULL DEFAULT '',
        created_at REAL NOT NULL
    ) STRICT;
    CREATE TABLE credentials (
        user TEXT NOT NULL REFERENCES users (name) ON DELETE CASCADE,
        label TEXT NOT NULL,
        hash TEXT NOT NULL,
        created_at REAL NOT NULL,
        PRIMARY KEY (user, label)
    ) STRICT
    """,
    # selector: the first characters of an app password, which identify it; empty for the user's own
    # password.  sha256, sha1: SCRAM's stored key and server key, concatenated.
    """
    ALTER TABLE users ADD COLUMN needs_tls INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE users ADD COLUMN mechanisms TEXT NOT NULL DEFAULT '';
    ALTER TABLE users ADD COLUMN is_read_only INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE users ADD COLUMN login_delay REAL NOT NULL DEFAULT 0;
    ALTER TABLE users ADD COLUMN salt BLOB;
    ALTER TABLE users ADD COLUMN iterations INTEGER;
    ALTER TABLE credentials ADD COLUMN selector TEXT NOT NULL DEFAULT '';
    ALTER TABLE credentials ADD COLUMN sha256 BLOB;
    ALTER TABLE credentials ADD COLUMN sha1 BLOB;
    ALTER TABLE credentials ADD COLUMN used_at REAL;
    ALTER TABLE credentials ADD COLUMN used_from TEXT;
    CREATE TABLE secrets (name TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT;
    INSERT INTO secrets VALUES ('scram', randomblob(32))
    """,
    # expire: minimum number of days for which mail is kept; NULL: the setting in the configuration.
    "ALTER TABLE users ADD COLUMN expire INTEGER",
    # quota: octets; 0: unlimited; NULL: the setting in the configuration.
    "ALTER TABLE users ADD COLUMN quota INTEGER",
    # folders: one line for each folder to show; empty: the store's default.
    "ALTER TABLE users ADD COLUMN folders TEXT NOT NULL DEFAULT ''",
    # hold: seconds for which deleted mail is held, -1 for ever; NULL: the setting in the
    # configuration.
    "ALTER TABLE users ADD COLUMN hold REAL",
)


@contextmanager
def transaction(path: Path, *, create: bool = False) -> Iterator[sqlite3.Connection]:
    """Open the database for one transaction; ``create`` creates it if it is missing.

    Without ``create``, a missing database is treated as a database without users.  A database
    of an older version is migrated.  An empty file is an error: if it counted as a database without
    users, a full disk would make every user unknown, and their mail would be refused.

    Raises:
        ConfigurationError: the file is empty, or belongs to another program or to a newer version.
        TemporaryFailure: the database cannot be used now.
    """
    try:
        if create and not path.exists():
            _create(path)
        name = str(path) if path.exists() else ":memory:"
        with closing(sqlite3.connect(name, timeout=_LOCK_TIMEOUT)) as database:
            _migrate(database, path, is_new=name == ":memory:")
            with database:
                yield database
    except (sqlite3.Error, OSError) as error:
        raise temporary_failure(f"{path}: {error}") from error


def _create(path: Path) -> None:
    """Create the database, first under a temporary name: a full disk leaves no partial file."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        os.close(os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        with closing(sqlite3.connect(temporary)) as database:
            _migrate(database, path, is_new=True)
        try:
            os.link(temporary, path)
        except FileExistsError:  # another process has created it
            pass
        except OSError:  # a file system without hard links
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def temporary_failure(note: str) -> TemporaryFailure:
    """Return an error whose text is for the peer, with a note for the operator."""
    failure = TemporaryFailure("user database cannot be used")
    failure.add_note(note)
    return failure


class ReadOnlyDatabase:
    """A read-only connection that stays open, for queries that take only microseconds."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._database: sqlite3.Connection | None = None
        self._file_id: tuple[int, int] | None = None  # device and inode number

    def rows(self, statement: str, *values: object) -> list[Any]:
        """Return the rows of a query.

        Raises:
            sqlite3.Error, OSError: another process is writing, or the file cannot be used; the
                caller should use ``transaction``, which waits and reports the reason.
        """
        status = os.stat(self._path)
        if self._database is None or self._file_id != (status.st_dev, status.st_ino):
            self.close()  # the file was replaced
            self._database = sqlite3.connect(
                f"{self._path.absolute().as_uri()}?mode=ro",
                uri=True,
                timeout=0,
                isolation_level=None,
                check_same_thread=False,
            )
            self._file_id = (status.st_dev, status.st_ino)
            if self._database.execute("PRAGMA user_version").fetchone() != (len(STEPS),):
                self.close()
                raise sqlite3.DatabaseError("unexpected schema version")
        return self._database.execute(statement, values).fetchall()

    def close(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None

    __del__ = close  # most commands do not close the connection


def _migrate(database: sqlite3.Connection, path: Path, *, is_new: bool) -> None:
    database.execute("PRAGMA foreign_keys = ON")
    if _version(database, path) == len(STEPS):
        return
    database.execute("BEGIN IMMEDIATE")  # another process may be migrating the database too
    version = _version(database, path)
    if not is_new and (version == 0 or not _has_users(database)):
        what = "is empty" if path.stat().st_size == 0 else "belongs to another program"
        raise ConfigurationError(f"{path} {what}; restore it from a backup, or remove it")
    for step in STEPS[version:]:
        for statement in step.split(";"):
            database.execute(statement)
    database.execute(f"PRAGMA user_version = {len(STEPS)}")
    database.commit()


def _has_users(database: sqlite3.Connection) -> bool:
    query = "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'users'"
    return database.execute(query).fetchone() is not None


def _version(database: sqlite3.Connection, path: Path) -> int:
    version: int = database.execute("PRAGMA user_version").fetchone()[0]
    if version > len(STEPS):
        raise ConfigurationError(f"{path} was written by a newer restante")
    return version
