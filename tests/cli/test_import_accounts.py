"""`restante import` of accounts of other collectors: none is omitted silently."""

from __future__ import annotations

import json
from contextlib import chdir
from pathlib import Path

import pytest

from restante import config
from restante.app.job import open_ledger

from .conftest import Outcome, Restante

RC = """\
poll pop.example.org proto pop3 user ann password x ssl
poll imap.example.org proto imap user ann password y ssl
poll pop.example.net proto pop3 user bob password z ssl mda "deliver %T"
"""


@pytest.fixture
def rc(home: Path) -> Path:
    path = home / "fetchmailrc"
    path.write_text(RC)
    (home / ".fetchids").write_text("ann@pop.example.org u1\n")
    return path


def accounts() -> dict[str, str]:
    return {name: each.to for name, each in config.load().account.items()}


def test_each_account_is_imported_or_reported(restante: Restante, rc: Path) -> None:
    for dry_run in (["--dry-run"], []):
        assert accounts() == {}
        done = restante("import", "fetchmail", rc, *dry_run)
        assert done.code == 78
        assert "imap-example-org (ann at imap.example.org): not imported: its protoc" in done.err
        assert "pop-example-net (bob at pop.example.net): not imported: its mda" in done.err
        assert "add --to PLACE" in done.err
        assert "pop-example-org: ann at pop3s://pop.example.org" in done.out
    assert accounts() == {"pop-example-org": "smtp:localhost:25"}


def test_an_import_can_be_repeated(restante: Restante, rc: Path, home: Path) -> None:
    assert restante("import", "fetchmail", rc).code == 78
    done = restante("import", "fetchmail", rc, "--to", f"maildir:{home}/Mail")
    assert "pop-example-org: ann at pop3s://pop.example.org: already imported" in done.out
    assert accounts() == {
        "pop-example-org": "smtp:localhost:25",
        "pop-example-net": f"maildir:{home}/Mail",
    }


def test_an_account_of_the_same_name_is_not_overwritten(
    restante: Restante, rc: Path, home: Path
) -> None:
    words = ("account", "add", "pop-example-org", "pop3s://eve@h", "--to", "maildir:M")
    assert restante(*words, "--no-test", stdin=b"secret\n").code == 0
    done = restante("import", "fetchmail", rc, "--to", "maildir:Mail")
    assert "not imported: another account has this name" in done.err
    assert config.load().account["pop-example-org"].user == "eve"


def test_complete_import_exits_with_0(restante: Restante, home: Path) -> None:
    path = home / "rc"
    path.write_text(RC.splitlines()[0])
    done = restante("import", "fetchmail", path)
    assert (done.code, done.err.count("not imported")) == (0, 0)


def lines(done: Outcome) -> list[dict[str, object]]:
    return [json.loads(line) for line in done.out.splitlines()]


def test_for_programs(restante: Restante, rc: Path) -> None:
    done = restante("--json", "import", "fetchmail", rc)
    found = {str(row["account"]): row["refused"] for row in lines(done)}
    assert (done.code, len(found)) == (78, 3)
    assert found["pop-example-org"] is None
    assert "IMAP" in str(found["imap-example-org"])


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("maildir:Mail", "maildir:{home}/Mail"),
        ("maildir:~/Mail", "maildir:{home}/Mail"),
        ("mbox:Mail", "mbox:{home}/Mail"),
        ("Mail", "{home}/Mail"),
        ("command:./store -d x", "command:{home}/./store -d x"),
        ("command:procmail -d 'a b'", "command:procmail -d 'a b'"),
        ("maildrop:ann", "maildrop:ann"),
    ],
)
def test_a_relative_path_is_made_absolute(
    given: str, written: str, restante: Restante, rc: Path, home: Path
) -> None:
    """Cron runs the command in another directory."""
    with chdir(home):
        restante("import", "fetchmail", rc, "--to", given)
    expected = written.format(home=home).replace("/./", "/")
    assert accounts()["pop-example-org"] == expected


def test_value_refused_by_the_configuration_does_not_stop_others(
    restante: Restante, home: Path
) -> None:
    """And the configuration stays valid, since every command reads it."""
    path = home / "rc"
    path.write_text('poll h proto pop3 user u pass "a\\nb" ssl\n' + RC)
    done = restante("import", "fetchmail", path)
    assert "h (u at h): not imported: account.h.password: must be text" in done.err
    assert accounts().keys() == {"pop-example-org"}
    assert restante("check").code == 0


def test_names_that_become_one_stay_two(restante: Restante, home: Path) -> None:
    (home / "getmail").mkdir()
    for name in ("a.b.rc", "a-b.rc", "a_b"):
        (home / "getmail" / name).write_text(
            f"[retriever]\ntype = SimplePOP3SSLRetriever\nserver = h\nusername = {name}\n"
            "password = p\n[destination]\ntype = Maildir\npath = /tmp/m\n"
        )
    assert restante("import", "getmail", home / "getmail").code == 0
    users = {name: each.user for name, each in config.load().account.items()}
    assert users == {"a-b": "a-b.rc", "a-b-2": "a.b.rc", "a_b": "a_b"}


def test_seen_messages_are_in_the_ledger(restante: Restante, rc: Path) -> None:
    restante("import", "fetchmail", rc)
    ledger = open_ledger(config.load())
    known = ledger.of("pop-example-org").known(["u1", "u2"])
    ledger.close()
    assert list(known) == ["u1"]
