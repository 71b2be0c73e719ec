"""`--json` with every command prints only JSON on standard output, or is refused."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from restante.cli.command import make_parser
from restante.testing import Pop3Server

from .conftest import Restante, program

MESSAGE = b"Subject: hello\n\nhi\n"
# Arguments for each command, in an order that provides what each needs; None: no JSON.
COMMANDS: dict[str, list[str] | None] = {
    "user add": ["user", "add", "bob", "--generate"],
    "user passwd": ["user", "passwd", "bob", "--generate"],
    "user list": ["user", "list"],
    "user disable": ["user", "disable", "bob"],
    "user enable": ["user", "enable", "bob"],
    "user permit": ["user", "permit", "bob", "--tls"],
    "user quota": ["user", "quota", "bob", "2GiB"],
    "user hold": ["user", "hold", "bob", "30d"],
    "user show": ["user", "show", "bob"],
    "user app-password new": ["user", "app-password", "new", "bob", "phone"],
    "user app-password list": ["user", "app-password", "list", "bob"],
    "user app-password revoke": ["user", "app-password", "revoke", "bob", "phone"],
    "user rm": ["user", "rm", "bob", "--yes"],
    "auth why": ["auth", "why", "ann", "127.0.0.1"],
    "deliver": ["deliver", "ann"],
    "maildrop list": ["maildrop", "list"],
    "maildrop show": ["maildrop", "show", "ann"],
    "maildrop held": ["maildrop", "held", "ann"],
    "maildrop restore": ["maildrop", "restore", "ann", "--all"],
    "maildrop undelete": ["maildrop", "undelete", "ann", "--all"],
    "maildrop export": ["maildrop", "export", "ann"],
    "maildrop log": ["maildrop", "log", "ann"],
    "maildrop verify": ["maildrop", "verify", "ann"],
    "maildrop reindex": ["maildrop", "reindex", "ann"],
    "maildrop purge": ["maildrop", "purge", "ann", "--yes"],
    "import dovecot": ["import", "dovecot", "{home}/old", "ann"],
    "import courier": ["import", "courier", "{home}/old", "ann", "--dry-run"],
    "import cyrus": ["import", "cyrus", "{home}/old", "ann", "--uidvalidity", "1"],
    "import mbox": ["import", "mbox", "{home}/box", "ann"],
    "import uw": ["import", "uw", "{home}/box", "ann"],
    "import fetchmail": ["import", "fetchmail", "{home}/fetchmailrc"],
    "import getmail": ["import", "getmail", "{home}/getmailrc"],
    "import mpop": ["import", "mpop", "{home}/mpoprc"],
    "fetch": ["fetch", "{url}", "--to", "{home}/Fetched", "--ca-file", "{ca}", "--keep"],
    "account add": [
        *("account", "add", "isp", "{url}", "--to", "maildir:{home}/M", "--ca-file", "{ca}"),
        *("--password-file", "{home}/password"),
    ],
    "account list": ["account", "list"],
    "account show": ["account", "show", "isp"],
    "account test": ["account", "test", "isp"],
    "account adopt": ["account", "adopt", "isp"],
    "collect": ["collect", "isp"],
    "account log": ["account", "log", "isp"],
    "account rename": ["account", "rename", "isp", "other"],
    "account rm": ["account", "rm", "other", "--yes"],
    "backup": ["backup", "{home}/backup.tar"],
    "restore": ["restore", "{home}/backup.tar", "--to", "{home}/restored"],
    "check": ["check"],
    "doctor": [],  # tests/app/test_doctor.py
    "demo": None,
    "init": [],  # tests/cli/test_init.py
    "account auth": [],  # tests/collect/test_oauth.py
    "serve": [],  # tests/cli/test_serve.py
    "log": [],  # tests/app/test_control.py
    "reload": [],  # the same
    "sessions list": [],  # the same
    "sessions end": [],  # the same
    "status": [],  # the same
}


def leaves(parser: argparse.ArgumentParser) -> Iterator[str]:
    below = [each for each in parser._actions if isinstance(each, argparse._SubParsersAction)]
    if not below:
        yield parser.prog.removeprefix("restante ")
    for each in below:
        for child in each.choices.values():
            yield from leaves(child)


def test_every_command_is_in_the_table() -> None:
    assert set(leaves(make_parser(is_complete=True))) == COMMANDS.keys()


@pytest.fixture
def world(home: Path, ann: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    for name in ("new", "cur", "tmp"):
        (home / "old" / name).mkdir(parents=True)
    (home / "old/cur/1.a:2,S").write_bytes(MESSAGE)
    (home / "old/1.").write_bytes(MESSAGE)
    (home / "old/dovecot-uidlist").write_text("3 V1 N2 G0\n1 :1.a\n")
    (home / "old/courierpop3dsizelist").write_text("/3 1\n")
    (home / "box").write_bytes(b"From - \n" + MESSAGE)
    (home / "password").write_text("pw\n")
    (home / "fetchmailrc").write_text("poll a.example proto pop3 user u pass p ssl\n")
    (home / "mpoprc").write_text("account b\nhost b\nuser u\ndelivery mbox /tmp/x\n")
    (home / "getmailrc").write_text(
        "[retriever]\ntype = SimplePOP3SSLRetriever\nserver = h\nusername = u\npassword = p\n"
        "[destination]\ntype = Mboxrd\npath = /tmp/x\n"
    )
    monkeypatch.setenv("RESTANTE_PASSWORD", "pw")
    with Pop3Server(users={"ann": "pw"}) as server:
        server.deliver("ann", MESSAGE)
        url = f"pop3s://ann@localhost:{server.port}"
        yield {"home": str(home), "url": url, "ca": str(server.ca_file)}


def test_every_command_prints_json_and_nothing_else(
    restante: Restante, world: dict[str, str]
) -> None:
    for name, words in COMMANDS.items():
        if words is None:
            done = restante(name, "--json")
            assert (done.code, done.out, "does not support --json" in done.err) == (64, "", True), (
                name
            )
        elif words:
            done = restante(*(word.format(**world) for word in words), "--json", stdin=MESSAGE)
            assert done.code == 0, (name, done)
            rows = [json.loads(line) for line in done.out.splitlines()]
            assert rows, name
            assert all(row["schema"].startswith("restante/") for row in rows), name


def test_examples_have_no_json(home: Path) -> None:
    assert program("check", "--example", "--json").code == 64
