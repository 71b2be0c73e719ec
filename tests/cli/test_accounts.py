"""`restante account` and `restante collect` as users run them."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from restante import config
from restante.app.job import Job
from restante.cli import account
from restante.client.asynchronous import connect
from restante.collect.plan import Budget
from restante.pop3.quirks import Quirks
from restante.testing_hostile import PASSWORD, Attack, HostileServer

from ..client.shells import NONE, UNUSED, scripted
from ..collect.odd import MAIL, Odd
from .conftest import Restante

MESSAGE = b"Subject: one\n\nhello\n"


class Shell:
    """Runs ``restante`` with a separate home."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.environment = {
            **{key: value for key, value in os.environ.items() if "RESTANTE" not in key},
            "HOME": str(home),
            "XDG_CONFIG_HOME": str(home / "config"),
            "XDG_STATE_HOME": str(home / "state"),
        }

    def run(self, *words: str, give: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, "-m", "restante", *words],
            input=give,
            capture_output=True,
            env=self.environment,
            cwd=self.home,
            timeout=30,
        )

    def ok(self, *words: str, give: bytes = b"") -> str:
        done = self.run(*words, give=give)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()


@pytest.fixture(scope="module")
def server() -> Iterator[dict[str, object]]:
    """Run an ephemeral server with one message for its only user."""
    process = subprocess.Popen(
        [sys.executable, "-m", "restante", "serve", "--ephemeral"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    yield json.loads(process.stdout.readline())
    process.stdin.close()
    assert process.wait(20) == 0
    process.stdout.close()


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def deliver(server: dict[str, object]) -> None:
    new = Path(str(server["maildir"]).replace("%u", "me")) / "new"
    new.mkdir(parents=True, exist_ok=True)
    (new.parent / "cur").mkdir(exist_ok=True)
    (new.parent / "tmp").mkdir(exist_ok=True)
    for each in (*new.iterdir(), *(new.parent / "cur").iterdir()):
        each.unlink()
    (new / "1.one").write_bytes(MESSAGE)


def add(shell: Shell, server: dict[str, object], to: str, *words: str) -> str:
    users = server["users"]
    assert isinstance(users, dict)
    secret = shell.home / "secret"
    secret.write_text(users["me"] + "\n")
    return shell.ok(
        "account",
        "add",
        "isp",
        f"pop3s://me@{server['pop3s']}",
        "--to",
        to,
        "--ca-file",
        str(server["ca"]),
        *words,
        "--password-file",
        str(secret),
    )


@pytest.mark.slow
def test_story_of_an_account(shell: Shell, server: dict[str, object]) -> None:
    deliver(server)
    assert add(shell, server, f"maildir:{shell.home}/Mail") == "isp: 1 message, 23 bytes\n"
    (written,) = (shell.home / "config" / "restante" / "conf.d").iterdir()
    assert written.stat().st_mode & 0o777 == 0o600
    assert shell.ok("account", "test", "isp") == "isp: 1 message, 23 bytes\n"
    # A dry run reports only what would happen.
    shell.ok("collect", "isp", "--dry-run")
    assert list((shell.home / "Mail" / "new").iterdir()) == []
    assert shell.ok("collect", "isp") == "isp: 1 message stored, 23 bytes\n"
    (stored,) = (shell.home / "Mail" / "new").iterdir()
    assert stored.read_bytes() == MESSAGE.replace(b"\n", b"\r\n")
    # Without new mail there is no output for cron.
    again = shell.run("collect", "--all")
    assert (again.returncode, again.stdout, again.stderr) == (0, b"", b"")
    assert shell.run("collect", "isp", "--fail-if-empty").returncode == 1
    shown = json.loads(shell.ok("--json", "account", "show", "isp"))
    assert shown["schema"] == "restante/account-show/1"
    assert (shown["on_server"], shown["keep"]) == (1, "all")
    assert shown["last_success"] > 0
    shell.ok("account", "rm", "isp", "--yes")
    assert shell.run("collect", "isp").returncode == 64
    assert not written.exists()


@pytest.mark.parametrize(
    ("url", "option", "octets"),
    [
        ("pop3s://pop.gmail.com", "", 1_250_000_000),
        ("pop3s://pop.gmail.com", "octets_per_day = 0", None),
        ("pop.gmail.com", "", 1250 * 10**6),
        ("pop3s://pop.example.org", "", None),
        ("pop3s://pop.example.org", 'octets_per_day = "1GiB"', 2**30),
    ],
)
def test_a_budget_is_that_of_the_provider_or_ours(
    url: str, option: str, octets: int | None, tmp_path: Path
) -> None:
    file = tmp_path / "restante.toml"
    file.write_text(f'[account.isp]\nurl = "{url}"\nuser = "ann"\nto = "x"\n{option}\n')
    job = Job.of(config.load(file, environment={"HOME": str(tmp_path)}), "isp")
    assert job.policy().budget == Budget(octets=octets)


@pytest.mark.slow
def test_collecting_into_a_maildrop_of_this_server(shell: Shell, server: dict[str, object]) -> None:
    deliver(server)
    shell.ok("user", "add", "ann", "--generate")
    add(shell, server, "maildrop:ann", "--keep", "none")
    line = json.loads(shell.ok("--json", "collect", "isp"))
    assert (line["stored"], line["deleted"]) == (1, 1)
    rows = json.loads(shell.ok("--json", "maildrop", "show", "ann"))["messages"]
    assert [(row["size"], row["subject"]) for row in rows] == [(23, "one")]


@pytest.mark.slow
def test_adopted_mail_is_not_fetched_and_not_deleted(
    shell: Shell, server: dict[str, object]
) -> None:
    deliver(server)
    add(shell, server, f"maildir:{shell.home}/Mail", "--keep", "none")
    assert shell.ok("account", "adopt", "isp") == "isp: Marked 1 message as collected.\n"
    outcome = json.loads(shell.ok("--json", "collect", "isp"))
    assert (outcome["stored"], outcome["deleted"]) == (0, 0)


def letter(number: int) -> bytes:
    return (
        b"Message-ID: <%d@x>\r\nDate: Mon, 23 Nov 2026 10:00:00 +0000\r\nFrom: b@x\r\n"
        b"Subject: number\r\n %d\r\n\r\ntext\r\n" % (number, number)
    )


@pytest.mark.slow
def test_only_mail_that_is_in_a_maildir_is_adopted(shell: Shell, server: dict[str, object]) -> None:
    """Another program stored it, with other line ends, fields, folding, flags and folders."""
    deliver(server)
    new = Path(str(server["maildir"]).replace("%u", "me")) / "new"
    twins = (b"Message-ID: <9@x>\r\n\r\none\r\n", b"Message-ID: <9@x>\r\n\r\nother\r\n")
    for number, octets in enumerate((letter(2), letter(3), letter(4), *twins), 2):
        (new / f"{number}.x").write_bytes(octets)
    old = shell.home / "Old"
    for name in ("new", "cur", "tmp", ".Work/new", ".Work/cur"):
        (old / name).mkdir(parents=True)
    traced = b"Return-Path: <b@x>\nReceived: from a\n" + letter(2).replace(b"\r\n", b"\n")
    (old / "cur" / "7.y:2,S").write_bytes(traced.replace(b"number\n 2", b"number 2"))
    (old / ".Work" / "cur" / "8.y:2,RS").write_bytes(letter(3))
    (old / "new" / "9.y").write_bytes(twins[0])
    (old / ".Loop").symlink_to(old)  # must not be read twice
    (old / "new" / "10.y").write_bytes(MESSAGE)  # without Message-ID or Date
    add(shell, server, f"maildir:{shell.home}/Mail", "--keep", "none")
    reported = shell.ok("account", "adopt", "isp", "--like", str(old))
    assert reported == (f"isp: Marked 3 messages as collected; 3 others not found in {old}.\n")
    outcome = json.loads(shell.ok("--json", "collect", "isp"))
    assert (outcome["stored"], outcome["deleted"]) == (3, 3)
    stored = sorted(path.read_bytes() for path in (shell.home / "Mail" / "new").iterdir())
    assert stored == sorted([MESSAGE.replace(b"\n", b"\r\n"), letter(4), twins[1]])


def test_adopting_removes_no_message_whose_header_was_read() -> None:
    """The server removes retrieved messages at QUIT, and its TOP does not work."""
    odd = Odd(removes_what_was_read=True)

    async def main() -> None:
        async with scripted(odd) as (port, _):
            options: dict[str, Any] = {"user": "a", "password": "b", "tls": NONE, "context": UNUSED}
            quirks = Quirks(hidden=frozenset({"TOP"}))
            log_in = partial(connect, f"pop3://127.0.0.1:{port}", quirks=quirks, **options)
            job: Any = SimpleNamespace(connect=log_in)
            assert await account._listing(job, Counter()) == ([], 3)

    asyncio.run(main())
    assert odd.mail == MAIL
    assert odd.read == [*MAIL]


@pytest.mark.slow
def test_a_password_that_is_wrong_leaves_no_account(
    shell: Shell, server: dict[str, object]
) -> None:
    words = ("account", "add", "isp", f"pop3s://me@{server['pop3s']}", "--to", f"{shell.home}/M")
    done = shell.run(*words, "--ca-file", str(server["ca"]), give=b"wrong\n")
    assert done.returncode == 77
    assert b"authentication failed" in done.stderr
    assert shell.ok("account", "list") == ""


@pytest.mark.slow
def test_a_refused_password_is_tried_again_by_hand(shell: Shell, server: dict[str, object]) -> None:
    deliver(server)
    add(shell, server, f"maildir:{shell.home}/Mail")
    secret = shell.home / "secret"
    right = secret.read_text()
    secret.write_text("wrong\n")
    assert shell.run("collect", "isp").returncode == 77
    secret.write_text(right)
    done = shell.run("collect", "isp")
    assert done.returncode == 77
    assert b"to try now, run: restante account test isp" in done.stderr
    shown = shell.ok("account", "show", "isp")
    assert re.search("failing +1 session since 2", shown)
    shell.ok("account", "test", "isp")
    assert shell.ok("collect", "isp") == "isp: 1 message stored, 23 bytes\n"


@pytest.mark.slow
def test_an_untrusted_certificate_gets_no_password(shell: Shell, server: dict[str, object]) -> None:
    words = ("account", "add", "isp", f"pop3s://me@{server['pop3s']}", "--to", f"{shell.home}/M")
    done = shell.run(*words, give=b"wrong\n")
    assert done.returncode == 77
    assert b"is not trusted" in done.stderr
    assert b"; if it is the right one, trust it with ca_file (--ca-file)" in done.stderr


CONFIGURATION = """
[account.{name}]
url = "pop3s://127.0.0.1:1"
user = "ann"
password = {password}
to = "maildir:Mail"
"""


def configure(home: Path, name: str, password: str, mode: int = 0o600) -> None:
    folder = home / "config" / "restante" / "conf.d"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.toml"
    path.write_text(CONFIGURATION.format(name=name, password=password))
    path.chmod(mode)


@pytest.mark.parametrize(
    ("password", "words"),
    [
        ('{ env = "NO_SUCH_NAME" }', "account.isp.password: the value is empty or not set"),
        ('{ file = "/no/such/file" }', "account.isp.password: .*No such file"),
        ('{ command = ["false"] }', "account.isp.password: the command ended with exit code 1"),
        ('{ command = ["no-such-program"] }', "account.isp.password: .*No such file"),
        ('{ credential = "isp" }', "account.isp.password: the value is empty or not set"),
    ],
)
def test_secret_that_cannot_be_obtained_is_named(
    home: Path, restante: Restante, password: str, words: str
) -> None:
    configure(home, "isp", password)
    done = restante("collect", "isp")
    assert done.code == 78
    assert re.search(words, done.err)


@pytest.mark.parametrize(
    ("password", "mode", "words"),
    [
        ('"hunter2"', 0o644, "other users can read this file"),
        ('{ shell = "x" }', 0o600, "must be { command"),
        ('{ command = "pass show isp" }', 0o600, "must be { command"),
        ("7", 0o600, "must be { command"),
    ],
)
def test_passwords_in_unsafe_places_are_refused(
    home: Path, restante: Restante, password: str, mode: int, words: str
) -> None:
    configure(home, "isp", password, mode)
    done = restante("account", "list")
    assert done.code == 78
    assert words in done.err
    assert "isp.toml:5: account.isp.password" in done.err
    assert "hunter2" not in done.out + done.err


@pytest.mark.slow
def test_one_bad_account_does_not_stop_the_others(shell: Shell, server: dict[str, object]) -> None:
    deliver(server)
    configure(shell.home, "dead", '{ command = ["echo", "x"] }')
    add(shell, server, f"maildir:{shell.home}/Mail")
    done = shell.run("collect", "--all")
    assert done.returncode == 75  # connection refused
    assert b"isp: 1 message stored" in done.stdout
    assert b"dead: 127.0.0.1" in done.stderr


@pytest.mark.slow
def test_a_session_has_a_deadline(shell: Shell) -> None:
    """However much a server sends."""
    with HostileServer(Attack(what="", says={"UIDL": None})) as server:
        control = shell.home / "restante.toml"
        control.write_text(
            f"""[account.isp]
url = "pop3s://localhost:{server.port}"
user = "ann"
password = "{PASSWORD}"
ca_file = "{server.ca_file}"
to = "maildir:{shell.home}/Mail"
deadline = "1s"
quirks = ["hide:PIPELINING"]
"""
        )
        control.chmod(0o600)
        done = shell.run("-c", str(control), "collect", "isp")
    assert (done.returncode, done.stderr) == (os.EX_TEMPFAIL, b"isp: the deadline has passed\n")


@pytest.mark.slow
def test_watch_ends_on_sigterm(shell: Shell, server: dict[str, object]) -> None:
    deliver(server)
    add(shell, server, f"maildir:{shell.home}/Mail")
    process = subprocess.Popen(
        [sys.executable, "-m", "restante", "collect", "isp", "--watch"],
        stdout=subprocess.PIPE,
        env=shell.environment,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"isp: 1 message stored, 23 bytes\n"
    process.terminate()
    assert process.wait(20) == 0
    process.stdout.close()
