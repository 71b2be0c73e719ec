"""``restante import`` as an operator sees it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from restante.cli.main import main
from restante.store import foreign
from restante.store.maildir import MaildirStore

from .helpers import contents, listing, names, put, run
from .test_foreign import SIZELIST, UIDLIST


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MaildirStore:
    (tmp_path / "mail").mkdir()
    monkeypatch.setenv("RESTANTE__STORE__PATH", f"{tmp_path}/mail/%u")
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return MaildirStore(f"{tmp_path}/mail/%u")


@pytest.fixture
def old(tmp_path: Path) -> Path:
    for name in ("cur/999.c:2,S", "new/1000.a.host", "cur/1001.b.host,S=15:2,S", "new/1003.d"):
        put(tmp_path / "old", name, b"Subject: x\n\nyy\n")
    (tmp_path / "old/dovecot-uidlist").write_bytes(UIDLIST)
    (tmp_path / "old/courierpop3dsizelist").write_bytes(SIZELIST)
    return tmp_path / "old"


def ids(store: MaildirStore) -> list[str]:
    return [entry.unique_id for entry in run(listing(store, "ann"))]


def test_dovecot(store: MaildirStore, old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json", "import", "dovecot", str(old), "ann"]) == 0
    assert json.loads(capsys.readouterr().out)["copied"] == 4
    assert ids(store) == ["bar", "foo", "000000074c0907b0", "000000094c0907b0"]


def test_dry_run_changes_nothing(
    store: MaildirStore, old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["import", "dovecot", str(old), "ann", "--dry-run"]) == 0
    assert names(tmp_path / "mail") == []
    assert "4 messages with the unique-ids of the old server. Nothing" in capsys.readouterr().out


def test_name_that_saslprep_would_change_is_refused(
    store: MaildirStore, old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A maildrop is made for future users, but not under such a name."""
    assert main(["user", "add", "bob", "--generate"]) == 0
    assert main(["import", "dovecot", str(old), "\uff41nn"]) == 64
    assert "use ann" in capsys.readouterr().err
    assert names(tmp_path / "mail") == []


def test_import_for_an_unknown_user_prints_an_error(
    store: MaildirStore, old: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It may be a typing error, or the user will be added later."""
    assert main(["user", "add", "bob", "--generate"]) == 0
    hint = "No such user: ann. Create it with: restante user add ann"
    assert main(["import", "dovecot", str(old), "ann", "--dry-run"]) == 0
    assert hint in capsys.readouterr().err
    assert main(["user", "add", "ann", "--generate"]) == 0
    assert main(["import", "dovecot", str(old), "ann"]) == 0
    assert hint not in capsys.readouterr().err


def test_courier(store: MaildirStore, old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for copied in (4, 0):
        assert main(["import", "courier", str(old), "ann"]) == 0
        reported = capsys.readouterr()
        assert "1 message had no unique-id on the old server" in reported.err
        assert reported.out == (
            "Imported 3 messages with the unique-ids of the old server and 1 message with a new "
            f"unique-id. This run copied {copied} messages.\n"
        )
    assert ids(store) == ["UID1-1795555760", "UID2-1795555760", "1001.b.host,S=15", "1003.d"]


def test_mail_missing_from_the_old_list_is_imported_too(store: MaildirStore, old: Path) -> None:
    """It arrived after the last login at the old server."""
    put(old, "new/1004.e", b"late\n")
    put(old, "new/1005.f" + "x" * 70, b"later\n")
    for _ in range(2):
        assert main(["import", "dovecot", str(old), "ann"]) == 0
    found = ids(store)
    assert found[:5] == ["bar", "foo", "000000074c0907b0", "000000094c0907b0", "1004.e"]
    assert run(contents(store, "ann"))[4:] == [b"late\r\n", b"later\r\n"]
    (old.parent / "ids").write_bytes(b"1 a\n2 b\n3 c\n4 d\n")
    arguments = ["import", "dovecot", str(old), "bob", "--uidl", str(old.parent / "ids")]
    assert main(arguments) == 0
    assert [entry.unique_id for entry in run(listing(store, "bob"))] == [*"abcd", *found[4:]]


@pytest.mark.parametrize("pairs", [1, 2, 3])
def test_imported_mail_comes_first_where_names_were_contested(
    store: MaildirStore, old: Path, tmp_path: Path, pairs: int
) -> None:
    """Two files with one unique part got their unique-ids before the import."""
    for pair in range(pairs):
        put(tmp_path / "mail/ann", f"cur/{pair}.x:2,S", b"old\n")
        put(tmp_path / "mail/ann", f"cur/{pair}.x,N=1:2,S", b"older\n")
    before = ids(store)
    assert len(before) == 2 * pairs
    assert main(["import", "dovecot", str(old), "ann"]) == 0
    imported = ["bar", "foo", "000000074c0907b0", "000000094c0907b0"]
    assert ids(store) == [*imported, *before]
    put(tmp_path / "mail/ann", "new/9.y", b"new\n")
    assert ids(store) == [*imported, *before, "9.y"]


def test_two_messages_of_one_name_are_refused(
    store: MaildirStore, old: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only one of them could be listed."""
    put(old, "cur/1003.d:2,S", b"another\n")
    assert main(["import", "dovecot", str(old), "ann"]) == 78
    assert "two message files have the name 1003.d" in capsys.readouterr().err
    (old / "cur/1003.d:2,S").unlink()
    (old / "cur/1003.d:2,S").hardlink_to(old / "new/1003.d")
    assert main(["import", "dovecot", str(old), "ann"]) == 0
    assert len(ids(store)) == 4


def test_ids_from_any_server(store: MaildirStore, tmp_path: Path) -> None:
    box = tmp_path / "box"
    box.write_bytes(b"From a\nSubject: 1\n\nx\n\nFrom b\nSubject: 2\n\nx\n")
    (tmp_path / "ids").write_bytes(b"1 one\n2 two\n")
    for at in (1_700_000_000, 1_800_000_000):  # the old server may write to it
        os.utime(box, (at, at))
        assert main(["import", "uw", str(box), "ann", "--uidl", str(tmp_path / "ids")]) == 0
        assert ids(store) == ["one", "two"]
    (tmp_path / "ids").write_bytes(b"1 one\n")
    assert main(["import", "uw", str(box), "ann", "--uidl", str(tmp_path / "ids")]) == 78


def test_cyrus(store: MaildirStore, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    for name in ("9.", "10.", "cyrus.index", "x."):
        (spool / name).write_bytes(b"x\r\n")
    assert main(["import", "cyrus", str(spool), "ann"]) == 64
    assert main(["import", "cyrus", str(spool), "ann", "--uidvalidity", "77"]) == 0
    assert ids(store) == ["77.9", "77.10"]


def test_export_lets_dovecot_show_the_same_unique_ids(
    store: MaildirStore, old: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert main(["import", "dovecot", str(old), "ann"]) == 0
    capfdbinary.readouterr()
    assert main(["maildrop", "export", "ann", "--uidlist"]) == 0
    back = foreign.dovecot(capfdbinary.readouterr().out)
    assert list(back.items()) == list(foreign.dovecot(UIDLIST).items())
    assert main(["maildrop", "export", "ann"]) == 0
    assert foreign.unique_id_list(capfdbinary.readouterr().out) == dict(enumerate(ids(store), 1))
