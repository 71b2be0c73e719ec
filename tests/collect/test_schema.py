"""Ledgers of every earlier version are migrated: completely or not at all, after a copy."""

from __future__ import annotations

import os
import signal
import sqlite3
from contextlib import closing
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from restante.collect import ledger_file
from restante.collect.accounts import Accounts, Mailbox
from restante.collect.fingerprint import Content
from restante.collect.health import AccountHealth, Health
from restante.collect.ledger import Ledger
from restante.collect.plan import Collected, Record
from restante.errors import TemporaryFailure

DIGEST = b"d" * 32

# As released versions made them; must never be changed.
MESSAGES = """
CREATE TABLE messages (
    account TEXT NOT NULL,
    key BLOB NOT NULL,
    size INTEGER NOT NULL,
    digest BLOB,
    taken_at REAL,
    is_gone INTEGER NOT NULL DEFAULT 0,
    {}PRIMARY KEY (account, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX messages_by_digest ON messages (account, digest) WHERE digest IS NOT NULL;
CREATE TABLE sessions (
    account TEXT PRIMARY KEY,
    began_at REAL NOT NULL,
    login_delay REAL NOT NULL DEFAULT 0,
    succeeded_at REAL
) STRICT, WITHOUT ROWID;
"""
HELD = "was_held INTEGER NOT NULL DEFAULT 0,\n    "
RUNS = """
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
REFUSALS = """
ALTER TABLE sessions ADD COLUMN refusals INTEGER NOT NULL DEFAULT 0;
ALTER TABLE sessions ADD COLUMN refused_at REAL NOT NULL DEFAULT 0;
"""
HEALTH = """
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
OLDER = {
    1: MESSAGES.format(""),
    2: MESSAGES.format(HELD),
    3: MESSAGES.format(HELD) + RUNS,
    4: MESSAGES.format(HELD) + RUNS + REFUSALS,
    5: MESSAGES.format(HELD) + RUNS + REFUSALS + HEALTH,
}
ROWS = [
    ("taken", DIGEST, 7.5),
    ("adopted", None, 7.5),
    ("present", b"", 7.5),
    ("begun", None, None),
]
KNOWN = {
    "taken": Collected(1, 7.5),
    "adopted": Collected(1, 7.5, is_adopted=True),
    "present": Collected(1, 7.5),
    "begun": Collected(1, None),
}


def older(path: Path, version: int) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("PRAGMA journal_mode = WAL")
        database.executescript(OLDER[version])
        database.executemany(
            "INSERT INTO messages (account, key, size, digest, taken_at)"
            " VALUES ('ann', ?, 1, ?, ?)",
            [(key.encode(), digest, at) for key, digest, at in ROWS],
        )
        database.execute("INSERT INTO sessions (account, began_at) VALUES ('ann', 7.5)")
        database.execute(f"PRAGMA user_version = {version}")


def layout(path: Path) -> dict[str, set[tuple[object, ...]]]:
    """Return the columns by table; their order may differ."""
    with closing(sqlite3.connect(path)) as database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_schema")]
        return {
            name: {
                row[1:] for row in database.execute(f"SELECT * FROM pragma_table_info('{name}')")
            }
            for name in tables
        }


@pytest.mark.parametrize("version", OLDER)
def test_every_earlier_version_is_brought_up_to_date(version: int, tmp_path: Path) -> None:
    path, new = tmp_path / "old", tmp_path / "new"
    older(path, version)
    with closing(Ledger(path)) as ledger:
        assert ledger.of("ann").known([key for key, _, _ in ROWS]) == KNOWN
        assert ledger.of("ann").records(KNOWN) == {"taken": Record(1, Content(DIGEST), "")}
        assert ledger.of("ann").last_begin() == 7.5
        assert Health(ledger.of("ann")).state() == AccountHealth()
        assert Accounts(ledger).enter(Mailbox("ann"), 9.0).limited_until == 0
    Ledger(new).close()
    assert layout(path) == layout(new)


@pytest.mark.parametrize("version", OLDER)
def test_the_earlier_ledger_is_kept_as_a_copy(version: int, tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite3"
    older(path, version)
    Ledger(path).close()
    copy = tmp_path / f"ledger.sqlite3.{version}"
    assert copy.stat().st_mode & 0o777 == 0o600
    with closing(sqlite3.connect(copy)) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (version,)
        assert database.execute("SELECT count(*) FROM messages").fetchone() == (len(ROWS),)
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert {each.name for each in tmp_path.iterdir()} == {path.name, copy.name}


def test_a_new_ledger_and_one_that_is_up_to_date_are_not_copied(tmp_path: Path) -> None:
    for _ in range(2):
        Ledger(tmp_path / "ledger").close()
    assert [each.name for each in tmp_path.iterdir()] == ["ledger"]


def test_without_a_copy_nothing_is_changed(tmp_path: Path) -> None:
    path, obstacle = tmp_path / "ledger", tmp_path / "ledger.5.part"
    older(path, 5)
    obstacle.mkdir()
    with pytest.raises(TemporaryFailure, match="ledger: "):
        Ledger(path)
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (5,)
    obstacle.rmdir()
    with closing(Ledger(path)) as ledger:
        assert ledger.of("ann").known(KNOWN) == KNOWN


class Deadly(sqlite3.Connection):
    """Kills this process before or after its k-th statement."""

    moment = 0

    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        self._wait()
        try:
            return super().execute(*arguments)
        finally:
            self._wait()

    def _wait(self) -> None:
        Deadly.moment -= 1
        if Deadly.moment < 0:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("version", [1, 5])
def test_killed_at_every_statement(version: int, tmp_path: Path) -> None:
    """Either the old ledger or the new one is there, and nothing is lost."""
    for moment in count():
        path = tmp_path / str(moment) / "ledger"
        path.parent.mkdir()
        older(path, version)
        child = os.fork()
        if child == 0:
            Deadly.moment = moment
            ledger_file.sqlite3.connect = partial(sqlite3.connect, factory=Deadly)  # type: ignore[attr-defined]
            Ledger(path)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        with closing(Ledger(path)) as ledger:
            assert ledger.of("ann").known(KNOWN) == KNOWN, moment
        copies = {each.name for each in path.parent.iterdir()}
        assert copies == {"ledger", f"ledger.{version}"}, moment
        if status == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
    assert moment > 2 * 20  # at least 20 statements
