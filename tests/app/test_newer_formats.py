"""After a roll back, files of a newer version are refused with clear words and not changed.

A newer version may add fields and tables, or number its formats higher.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sqlite3
from contextlib import closing
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from restante.app import stores, tokens
from restante.auth import database, throttle
from restante.clock import Clock
from restante.collect.oauth.flow import Tokens
from restante.config import load
from restante.errors import ConfigurationError
from restante.maildrop import Entry, SessionRecord
from restante.store import files, journal, rules
from restante.store.partial import PartialDeliveries

from ..cli.conftest import Restante

MESSAGE = b"Subject: hello\n\nhi\n"
NEWER = "was written by a newer restante"


def make_newer(path: Path) -> bytes:
    """Give a database the version of a later schema; returns its octets."""
    with closing(sqlite3.connect(path)) as opened:
        opened.execute("CREATE TABLE later (n)")
        opened.execute("PRAGMA user_version = 99")
        opened.commit()
    return path.read_bytes()


def test_user_database(restante: Restante, ann: str, state: Path) -> None:
    octets = make_newer(state / "users.sqlite3")
    done = restante("deliver", "ann", stdin=MESSAGE)  # the mail server keeps the message
    assert (done.code, NEWER in done.err) == (os.EX_TEMPFAIL, True)
    for command in (("user", "list"), ("user", "add", "bob"), ("check",)):
        done = restante(*command, stdin=b"tan staaf\n")
        assert (done.code, NEWER in done.err) == (os.EX_CONFIG, True), command
    assert (state / "users.sqlite3").read_bytes() == octets


def test_ledger(restante: Restante, ann: str, home: Path, state: Path) -> None:
    folder = home / "config" / "restante"
    folder.mkdir()
    (folder / "restante.toml").write_text(
        "[account.isp]\nurl = 'pop3s://127.0.0.1:1'\nuser = 'u'\npassword = 'p'\n"
        "to = 'maildrop:ann'\n"
    )
    (folder / "restante.toml").chmod(0o600)
    restante("account", "log", "isp")
    octets = make_newer(state / "ledger.sqlite3")
    for command in (("collect", "isp"), ("account", "log", "isp")):
        done = restante(*command)
        assert (done.code, NEWER in done.err) == (os.EX_CONFIG, True), done
    assert (state / "ledger.sqlite3").read_bytes() == octets


def test_partial_deliveries(tmp_path: Path) -> None:
    path = tmp_path / "intake.sqlite3"
    asyncio.run(PartialDeliveries(path).remember(b"digest", ["ann"]))
    octets = make_newer(path)
    with pytest.raises(ConfigurationError, match=NEWER):
        asyncio.run(PartialDeliveries(path).recipients(b"digest"))
    assert path.read_bytes() == octets


def test_adopted_unique_ids(restante: Restante, ann: str, state: Path) -> None:
    """Only this maildrop is closed."""
    assert restante("user", "add", "bob", stdin=b"tan staaf\n").code == 0
    for user in ("ann", "bob"):
        assert restante("deliver", user, stdin=MESSAGE).code == 0
    path = state / "mail" / "ann" / "restante.ids"
    for number in (2, 10):
        octets = b"restante ids %d\n" % number + bytes(64)
        path.write_bytes(octets)
        done = restante("maildrop", "show", "ann")
        assert (done.code, NEWER.removeprefix("was ") in done.err) == (os.EX_DATAERR, True)
        assert restante("maildrop", "show", "bob").code == 0
        assert path.read_bytes() == octets


def test_tokens(home: Path, state: Path) -> None:
    file = tokens.token_file(load(), "isp")
    file.put(Tokens("access", 0.0))
    key = (state / "tokens" / "key").read_bytes()
    text = json.dumps({**asdict(Tokens("access", 0.0)), "later": 1}).encode()
    octets = bytes(12) + AESGCM(key).encrypt(bytes(12), text, b"isp")
    path = state / "tokens" / "isp.sealed"
    path.write_bytes(octets)
    with pytest.raises(ConfigurationError, match=NEWER):
        file.get()
    path.write_bytes(octets[:-1])
    with pytest.raises(ConfigurationError, match="cannot be decrypted"):
        file.get()
    assert (state / "tokens" / "key").read_bytes() == key


def test_index_is_made_again(restante: Restante, ann: str, state: Path) -> None:
    assert restante("deliver", "ann", stdin=MESSAGE).code == 0
    shown = restante("maildrop", "export", "ann").out
    path = state / "mail" / "ann" / "restante.index"
    octets = path.read_bytes()
    assert octets.startswith(b"restante index 2 ")
    path.write_bytes(octets.replace(b"restante index 2", b"restante index 3", 1))
    assert restante("maildrop", "export", "ann").out == shown


def test_guesses_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "guesses"
    with closing(throttle.Throttle()) as saved:
        saved.save(path)
    path.write_bytes(b"restante guesses 99\n" + path.read_bytes())
    with closing(throttle.Throttle()) as loaded:
        loaded.load(path)


def test_new_fields_of_a_session_are_ignored(tmp_path: Path) -> None:
    session = SessionRecord(1.0, 2.0, "192.0.2.1", "", "", (), (Entry("a", 1),), "quit")
    opened = os.open(tmp_path, os.O_RDONLY)
    journal.append(opened, session)
    (line,) = (tmp_path / journal.JOURNAL).read_bytes().splitlines()
    later = json.dumps({**json.loads(line.partition(b" ")[2]), "later": 1}).encode()
    digest = blake2b(later, digest_size=8).hexdigest().encode()
    (tmp_path / journal.JOURNAL).write_bytes(digest + b" " + later + b"\n")
    assert list(journal.read(opened)) == [session]
    os.close(opened)


def test_new_fields_of_rules_are_ignored(tmp_path: Path) -> None:
    opened = os.open(tmp_path, os.O_RDONLY)
    rules.record_change(opened, 10, hold=60.0)
    fields = json.loads(files.read(rules.RULES, opened).partition(b"\n")[2])
    later = json.dumps({**fields, "later": 1}).encode()
    digest = blake2b(later, digest_size=8).hexdigest().encode()
    (tmp_path / rules.RULES).write_bytes(digest + b"\n" + later)
    assert rules.read(opened).hold == (rules.RuleChange(10, 60.0),)
    os.close(opened)


def test_new_fields_of_the_clock_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "clock"
    mark = Clock(path).advance().mark
    path.write_text(json.dumps({**json.loads(path.read_text()), "later": 1}))
    assert abs(Clock(path).read().mark - mark) < 60


def test_roll_back_with_a_backup(
    restante: Restante, home: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Old version, backup, new version, old version: it refuses, and the backup helps."""
    steps = database.STEPS
    assert restante("user", "add", "ann", stdin=b"tan staaf\n").code == 0
    assert restante("deliver", "ann", stdin=MESSAGE).code == 0
    assert restante("backup", "--without-mail", home / "before.tar").code == 0
    # The new version converts the database at its first use.
    monkeypatch.setattr(database, "STEPS", (*steps, "ALTER TABLE users ADD COLUMN later REAL"))
    assert restante("user", "add", "bob", stdin=b"tan staaf\n").code == 0
    converted = (state / "users.sqlite3").read_bytes()
    monkeypatch.setattr(database, "STEPS", steps)
    refused = restante("user", "list")
    assert (refused.code, NEWER in refused.err) == (os.EX_CONFIG, True)
    assert (state / "users.sqlite3").read_bytes() == converted
    assert restante("restore", home / "before.tar", "--to", home / "to").code == 0
    shutil.copy(home / "to" / "state" / "users.sqlite3", state)
    assert "ann" in restante("user", "list").out

    async def count() -> int:
        async with stores.store(load()).open("ann") as maildrop:
            return len(maildrop.listing)

    assert asyncio.run(count()) == 1
