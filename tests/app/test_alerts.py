"""Alerts about failing accounts: one for each series of failures, also across restarts."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from itertools import count
from pathlib import Path

import pytest

from restante import config
from restante.app import alerts
from restante.app.job import Job
from restante.collect.collector import LooksMoved
from restante.collect.health import Health
from restante.collect.ledger import Ledger
from restante.collect.oauth.flow import Tokens
from restante.config import Configuration
from restante.errors import (
    ConfigurationError,
    ConnectionLost,
    ConsentNeeded,
    LoginFailed,
    MessageRefused,
    RestanteError,
    TemporaryFailure,
    TLSUnavailable,
)
from restante.testing import Pop3Server

from ..cli.conftest import Restante
from ..collect.test_killed import Death

LOST = ConnectionLost("the server closed the connection")


@pytest.fixture
def server() -> Iterator[Pop3Server]:
    with Pop3Server(users={"ann": "hunter2"}, sasl=()) as running:
        yield running


def configure(home: Path, url: str = "pop3s://pop.example.org", more: str = "") -> Configuration:
    folder = home / "config" / "restante" / "conf.d"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "isp.toml"
    path.touch(0o600)
    text = f'[account.isp]\nurl = "{url}"\nuser = "ann"\npassword = "hunter2"\n'
    path.write_text(f'{text}to = "maildir:{home}/Mail"\n{more}')
    return config.load()


def letters(home: Path, folder: str = "Mail") -> list[EmailMessage]:
    found = [path.read_bytes() for path in (home / folder / "new").glob("*")]
    return [message_from_bytes(each, _class=EmailMessage, policy=default) for each in found]


def subjects(home: Path, folder: str = "Mail") -> list[str]:
    return sorted(each["Subject"] for each in letters(home, folder))


FAILS, WORKS = "restante cannot collect isp", "restante collects isp again"


def test_one_mail_for_a_streak_and_one_at_its_end(
    home: Path, server: Pop3Server, restante: Restante
) -> None:
    url = server.url("ann").replace("ann:hunter2@", "")
    configure(home, url, f'ca_file = "{server.ca_file}"\nalert = {{ after = 3 }}\n')
    server.fault.err("LIST", "[SYS/TEMP] the disk is on holiday")
    reported = []
    for _ in range(5):
        assert restante("collect", "isp").code == 75
        reported.append(len(subjects(home)))
    assert reported == [0, 0, 1, 1, 1]
    (letter,) = letters(home)
    assert letter["Subject"] == FAILS
    assert letter["Auto-Submitted"] == "auto-generated"
    text = letter.get_content()
    assert "3 sessions in a row have failed" in text
    assert "the disk is on holiday" in text
    assert "restante account test isp" in text
    server.fault.clear()
    for _ in range(2):
        assert restante("collect", "isp").code == 0
        assert subjects(home) == [FAILS, WORKS]
    server.fault.err("LIST")
    for _ in range(3):
        restante("collect", "isp")
    assert subjects(home) == [FAILS, FAILS, WORKS]


def test_fewer_failures_are_no_streak(home: Path, server: Pop3Server, restante: Restante) -> None:
    url = server.url("ann").replace("ann:hunter2@", "")
    configure(home, url, f'ca_file = "{server.ca_file}"\nalert = {{ after = 2 }}\n')
    for _ in range(3):
        server.fault.err("LIST", times=1)
        assert restante("collect", "isp").code == 75
        assert restante("collect", "isp").code == 0
    server.fault.err("LIST")
    for _ in range(3):
        assert restante("collect", "isp", "--dry-run").code == 75  # nor does a dry run
    assert subjects(home) == []


def test_password_in_a_server_reply_is_masked_everywhere(
    home: Path, server: Pop3Server, restante: Restante
) -> None:
    url = server.url("ann").replace("ann:hunter2@", "")
    configure(home, url, f'ca_file = "{server.ca_file}"\nalert = {{ after = 1 }}\n')
    server.fault.err("PASS", "[AUTH] hunter2 is not the password")
    done = restante("collect", "isp")
    assert done.code == 77
    assert "hunter2" not in done.out + done.err
    (letter,) = letters(home)
    assert "hunter2" not in str(letter)
    assert "*** is not the password" in letter.get_content()


@pytest.fixture
def ledger(home: Path) -> Iterator[Ledger]:
    with closing(Ledger(home / "ledger")) as opened:
        yield opened


def fail(found: Configuration, ledger: Ledger, error: RestanteError = LOST) -> None:
    Health(ledger.of("isp")).record_failure(time.time())
    alerts.send(Job.of(found, "isp"), ledger, error)


def test_alert_to_another_destination_needs_no_password_of_the_first(
    home: Path, ledger: Ledger
) -> None:
    """The alert may be about this very password."""
    more = (
        f'alert = {{ after = 1, to = "maildir:{home}/Alerts" }}\n'
        f'to = "imaps://ann@127.0.0.1:1/In"\nto_password = {{ file = "{home}/missing" }}\n'
    )
    configure(home)
    path = home / "config" / "restante" / "conf.d" / "isp.toml"
    lines = [each for each in path.read_text().splitlines() if not each.startswith("to = ")]
    path.write_text("\n".join([*lines, more]))
    fail(config.load(), ledger, ConfigurationError("to_password: No such file or directory"))
    (letter,) = letters(home, "Alerts")
    assert "to_password" in letter.get_content()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (LoginFailed("PASS", "no", "AUTH"), "Correct the password that the setting"),
        (LoginFailed("PASS", "busy", "IN-USE"), "restante tries again automatically"),
        (ConsentNeeded("gone"), "restante account auth isp"),
        (LooksMoved(30, 30), "restante collect isp --again dedupe"),
        (TLSUnavailable("not trusted"), "no password was sent"),
        (ConfigurationError("account.isp.password: is empty"), "Correct the configuration"),
        (LOST, "restante tries again automatically"),
    ],
)
def test_alert_names_the_next_step(
    error: RestanteError, words: str, home: Path, ledger: Ledger
) -> None:
    fail(configure(home, more="alert = { after = 1 }"), ledger, error)
    (letter,) = letters(home)
    assert words in letter.get_content()
    assert all(len(line) <= 78 for line in letter.get_content().splitlines())


def test_no_stranger_steers_a_terminal_or_writes_a_header(home: Path, ledger: Ledger) -> None:
    evil = TemporaryFailure("\x1b[2J\r\n\r\nrestante cannot collect \u202e" + "x" * 500)
    fail(configure(home, more="alert = { after = 1 }"), ledger, evil)
    (letter,) = letters(home)
    assert subjects(home) == [FAILS]
    assert all(line.isprintable() for line in letter.get_content().splitlines())


def test_alert_goes_to_the_configured_destination(home: Path, ledger: Ledger) -> None:
    write = f'import sys; open("{home}/told", "ab").write(sys.stdin.buffer.read())'
    write = f"{sys.executable} -c '{write}'"
    more = f'alert = {{ after = 1, to = """command:{write}""", recipient = "boss@example.org" }}'
    found = configure(home, more=more)
    fail(found, ledger)
    fail(found, ledger)
    reported = (home / "told").read_bytes()
    assert reported.count(b"Subject:") == 1
    assert b"To: boss@example.org" in reported
    assert not (home / "Mail").exists()


def test_failed_alert_is_sent_after_the_next_session(home: Path, ledger: Ledger) -> None:
    found = configure(home, more='alert = { after = 1, to = "command:false" }')
    with pytest.raises(MessageRefused):
        fail(found, ledger)
    fail(configure(home, more="alert = { after = 1 }"), ledger)
    assert subjects(home) == [FAILS]


@contextmanager
def ends_child() -> Iterator[None]:
    """End a forked process after the block, also after an exception, which pytest would report."""
    try:
        yield
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


@pytest.mark.slow
@pytest.mark.parametrize("is_repeatable", [True, False])
def test_crash_at_any_step_sends_no_second_alert(is_repeatable: bool, home: Path) -> None:
    """A Maildir recognises the alert; elsewhere a crash may lose it, but never repeats it."""
    write = f'{sys.executable} -c \'import sys; open("told", "a").write("x")\''
    for moment in count():
        place = home / f"at-{moment}"
        place.mkdir()
        to = f"maildir:{place}/Mail" if is_repeatable else f"command:{write}"
        found = configure(home, more=f'alert = {{ after = 1, to = """{to}""" }}')
        child = os.fork()
        if child == 0:
            with ends_child():
                os.chdir(place)
                ledger = Ledger(place / "ledger")
                steps = (Health, "record_failure"), (Health, "set_reported")
                Death(moment).stalk(((os, "fsync"), (os, "rename"), *steps))
                fail(found, ledger)
        status = os.waitpid(child, 0)[1]
        with closing(Ledger(place / "ledger")) as ledger, pytest.MonkeyPatch.context() as patch:
            patch.chdir(place)
            fail(found, ledger)
            fail(found, ledger)
        if is_repeatable:
            assert subjects(place) == [FAILS], f"killed at moment {moment}"
        else:
            reported = (place / "told").read_text() if (place / "told").exists() else ""
            assert reported in ("", "x"), f"killed at moment {moment}"
        if status == 0:
            assert is_repeatable or reported == "x"
            break
        assert os.WIFSIGNALED(status), "the child ended with an exception"
        assert os.WTERMSIG(status) == signal.SIGKILL
    assert moment >= 4


def test_expiring_consent_is_announced_once(home: Path, ledger: Ledger) -> None:
    oauth = '\n[account.isp.oauth]\nprovider = "microsoft"\nclient_id = "app"\n'
    found = configure(home, more=f"alert = {{ after = 3 }}\n{oauth}")
    job = Job.of(found, "isp")
    file = job.grant.file()
    day = 86_400
    tokens = Tokens("access", 0.0, "refresh", 0.0)
    reported = []
    for days in (90, 10, 10, 5):  # the last is a new consent
        end = float(int(time.time() / 1000) * 1000 + days * day)
        file.put(replace(tokens, refresh_expires_at=end))
        alerts.send(job, ledger, None)
        reported.append(len(subjects(home)))
    assert reported == [0, 1, 1, 2]
    for letter in letters(home):
        assert "restante account auth isp\r\n" in letter.get_content()
        assert "refresh" not in str(letter)
