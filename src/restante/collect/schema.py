"""The schema of the ledger's file, and its migration from older versions.

Before the migration, the file is copied to ``<file>.<version>``.  All changes are made in one
transaction, so a crash leaves either the old schema or the new one.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from ..client.sinks import fsync_directory
from ..errors import ConfigurationError

VERSION = 6  # stored as user_version

# The statements that migrate each version to the next.  A new file has version 0.
_MIGRATIONS = {
    0: """
CREATE TABLE messages (
    account TEXT NOT NULL,
    key BLOB NOT NULL,
    size INTEGER NOT NULL,
    digest BLOB,
    taken_at REAL,
    is_gone INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (account, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX messages_by_digest ON messages (account, digest) WHERE digest IS NOT NULL;
CREATE TABLE sessions (
    account TEXT PRIMARY KEY,
    began_at REAL NOT NULL,
    login_delay REAL NOT NULL DEFAULT 0,
    succeeded_at REAL
) STRICT, WITHOUT ROWID;
""",
    1: "ALTER TABLE messages ADD COLUMN was_held INTEGER NOT NULL DEFAULT 0",
    2: """
CREATE TABLE runs (
    number INTEGER PRIMARY KEY,
    account TEXT NOT NULL,
    tried_at REAL NOT NULL,
    used_at REAL NOT NULL,
    messages INTEGER NOT NULL DEFAULT 0,
    octets INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX runs_by_account ON runs (account, tried_at);
""",
    3: """
ALTER TABLE sessions ADD COLUMN refusals INTEGER NOT NULL DEFAULT 0;
ALTER TABLE sessions ADD COLUMN refused_at REAL NOT NULL DEFAULT 0;
""",
    4: """
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
""",
    # Fingerprints of stored messages, accounts by address, deletions, and messages set aside.
    5: """
ALTER TABLE messages ADD COLUMN likeness BLOB;
ALTER TABLE messages ADD COLUMN body BLOB;
ALTER TABLE messages ADD COLUMN identity BLOB;
ALTER TABLE messages ADD COLUMN seen_again REAL;
ALTER TABLE messages ADD COLUMN expected INTEGER NOT NULL DEFAULT 1;
ALTER TABLE messages ADD COLUMN doubt TEXT NOT NULL DEFAULT '';
CREATE INDEX messages_by_body ON messages (account, body) WHERE body IS NOT NULL;
CREATE INDEX messages_by_identity ON messages (account) WHERE identity IS NOT NULL;
CREATE TABLE accounts (
    account TEXT PRIMARY KEY,
    label TEXT NOT NULL,
    address TEXT NOT NULL DEFAULT '',
    rule TEXT NOT NULL DEFAULT '',
    limited_until REAL NOT NULL DEFAULT 0,
    answer TEXT NOT NULL DEFAULT '',
    one_by_one_until REAL NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;
CREATE TABLE removals (
    number INTEGER PRIMARY KEY,
    account TEXT NOT NULL,
    key BLOB NOT NULL,
    at REAL NOT NULL,
    why TEXT NOT NULL,
    evidence TEXT NOT NULL,
    answer TEXT
) STRICT;
CREATE INDEX removals_by_account ON removals (account, at);
CREATE INDEX removals_unanswered ON removals (account) WHERE answer IS NULL;
CREATE TABLE aside (
    account TEXT NOT NULL,
    key BLOB NOT NULL,
    tries INTEGER NOT NULL,
    reason TEXT NOT NULL,
    until REAL NOT NULL,
    PRIMARY KEY (account, key)
) STRICT, WITHOUT ROWID;
CREATE TABLE clock (
    number INTEGER PRIMARY KEY CHECK (number = 1),
    wall REAL NOT NULL,
    time REAL NOT NULL,
    pending REAL NOT NULL,
    pending_since REAL NOT NULL
) STRICT;
""",
}


def prepare(database: sqlite3.Connection, path: Path | None) -> None:
    """Create or migrate the schema; ``path`` is None for a database in memory.

    Raises:
        ConfigurationError: the file belongs to another program or to a newer version.
        sqlite3.Error, OSError: the file cannot be read or written now.
    """
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    if path is not None and 0 < (version := _version(database)) < VERSION:
        _copy(database, path.with_name(f"{path.name}.{version}"))
    database.execute("BEGIN IMMEDIATE")
    try:
        _migrate(database, path)
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise


def _migrate(database: sqlite3.Connection, path: Path | None) -> None:
    version = _version(database)  # read again: another process may have migrated the file
    if version == 0 and database.execute("SELECT 1 FROM sqlite_schema").fetchone():
        raise ConfigurationError(f"{path} belongs to another program")
    if version > VERSION:
        raise ConfigurationError(f"{path} was written by a newer restante")
    for older in range(version, VERSION):
        for statement in _MIGRATIONS[older].split(";"):
            database.execute(statement)
    database.execute(f"PRAGMA user_version = {VERSION}")


def _version(database: sqlite3.Connection) -> int:
    (version,) = database.execute("PRAGMA user_version").fetchone()
    return int(version)


def _copy(database: sqlite3.Connection, copy: Path) -> None:
    """Copy the file durably; an incomplete copy left by a crash is replaced."""
    temporary = copy.with_name(f"{copy.name}.part")
    temporary.unlink(missing_ok=True)
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    database.execute("VACUUM INTO ?", (str(temporary),))
    with closing(sqlite3.connect(temporary)) as written:  # check that the copy is not empty
        if _version(written) == 0:
            raise sqlite3.OperationalError("the copy of the ledger is empty")
    file = os.open(temporary, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)
    temporary.replace(copy)
    fsync_directory(copy.parent)
