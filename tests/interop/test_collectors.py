"""Migration from Debian's collectors: messages they have seen are not downloaded again."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from restante.collect.foreign.fetchmail import fetchmail

from . import clients
from .programs import RESTANTE, Server, call, need, serving

pytestmark = pytest.mark.interop

CONFIGURATIONS = {"fetchmail": "fetchmailrc", "getmail": "getmailrc", "mpop": "mpoprc"}


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        running.deliver(b"Subject: %d\r\n\r\nold\r\n" % at for at in range(30))
        yield running


@pytest.mark.parametrize("kind", CONFIGURATIONS)
def test_the_first_run_downloads_nothing_again(kind: str, server: Server, tmp_path: Path) -> None:
    """And the second run only new messages."""
    program: clients.Client = getattr(clients, kind)
    status, messages = program(server.account("pop3s", keep=True), tmp_path)
    assert (status, len(messages)) == (0, 30)

    environment = {
        "HOME": str(tmp_path),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "XDG_STATE_HOME": str(tmp_path / "state"),
    }

    def restante(*words: str | Path) -> dict[str, object]:
        done = call(*RESTANTE, "--json", *words, environment=environment)
        assert done.returncode == os.EX_OK, done.stderr
        return dict(json.loads(done.stdout))

    control = tmp_path / CONFIGURATIONS[kind]
    inbox = tmp_path / "Mail"
    taken = restante("import", kind, control, "--to", f"maildir:{inbox}")
    assert (taken["seen"], taken["keep"]) == (30, "all")
    assert restante("collect", "--all")["stored"] == 0
    server.deliver([b"Subject: new\r\n\r\nnew\r\n"])
    assert restante("collect", "--all")["stored"] == 1
    (new,) = (inbox / "new").iterdir()
    assert new.read_bytes().endswith(b"Subject: new\r\n\r\nnew\r\n")


RCS = [
    "defaults proto pop3 user joe is joe here smtphost mx.example.org\n"
    "poll pop1.example.net with proto pop3 port 1110 interval 3 auth password\n"
    '  user "a b" there has password "x#y" wants is "ann" and fetchall; ssl\n'
    "  user bob, password p, options stripcr mimedecode antispam 571 550 limit 1000\n"
    'poll "x" via y.example.org protocol APOP aka z.example.org w.example.org\n'
    "  user c pass d to e keep\n"
    "poll k.example.org user u pass p mda /bin/true fetchlimit 7\n"
    "skip l.example.org user u pass p lmtp smtphost localhost/24\n"
    "poll m.example.org\n",
    'set no bouncemail\nset postmaster "ann"\nset logfile /tmp/l\nset daemon 300\n'
    "server pop.example.net proto pop3 user ann here is ann42 there pass x\n"
    'poll a.example proto pop3 envelope 1 "Delivered-To" no dns localdomains b.example c.example\n'
    '  user "ann@a.example" pass "q\\"uo\\x41\\0101\\065te" is bob here keep\n'
    "  user bob pass y no keep ssl\n",
]


@pytest.mark.parametrize("text", RCS)
def test_fetchmailrc_is_parsed_as_fetchmail_does(text: str, tmp_path: Path) -> None:
    """fetchmail prints its own interpretation as Python."""
    rc = tmp_path / "rc"
    rc.write_text(text)
    rc.chmod(0o600)
    dumped = call(need("fetchmail"), "--configdump", "-f", rc, environment={"HOME": str(tmp_path)})
    names: dict[str, Any] = {}
    exec(dumped.stdout.decode(), names)  # fetchmailconf does the same with this output
    theirs = [
        (
            server["via"] or server["pollname"],
            (user["remote"], user["localnames"][0]),
            (user["keep"], user["ssl"], user["limit"], user["fetchlimit"]),
            server["active"],
        )
        for server in names["fetchmailrc"]["servers"]
        for user in server["users"]
    ]
    passwords = [
        user["password"] for server in names["fetchmailrc"]["servers"] for user in server["users"]
    ]
    ours = fetchmail(rc)
    assert theirs == [
        (
            each.host,
            (each.user, each.recipient.partition("@")[0] or user[1]),
            (each.keep == "all", each.is_implicit, each.largest, each.limit),
            not any("skip" in note for note in each.notes),
        )
        for each, (_, user, _, _) in zip(ours, theirs, strict=True)
    ]
    for each, password in zip(ours, passwords, strict=True):  # with or without quotes
        assert not each.password or each.password in (password, password.strip('"'))
