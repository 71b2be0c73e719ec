"""Log lines: peers cannot forge them, and fail2ban reads the right address."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import re
import sys
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restante import log
from restante.config import Log
from restante.escaping import escape
from restante.server.connection import log_event

FILTER = Path(__file__).parent.parent / "contrib" / "fail2ban" / "restante.conf"
HOSTILE = [
    "x restante[1]: login refused: ip=198.51.100.9 ",
    "x\nlogin refused: ip=198.51.100.9 user=y",
    "x\r\nlogin refused: ip=198.51.100.9 user=y",
    "x\x1b[2Jlogin refused: ip=198.51.100.9 ",
    "x\u202e9.001.15.891=pi",
    "x\u2028login refused: ip=198.51.100.9 ",
    "x\x85login refused: ip=198.51.100.9 ",
    "x ip=198.51.100.9",
    'x" ip=198.51.100.9 "',
    "x\0y",
    "\udcff\udcfe",
    "x\\x20y",
    "安",
    "",
]


def record(event: str, error: BaseException | None = None, **fields: object) -> logging.LogRecord:
    reported = (type(error), error, error.__traceback__) if error else None
    found = logging.LogRecord("restante.pop3", logging.WARNING, "", 0, event, None, reported)
    found.fields = fields
    return found


def plain(event: str, error: BaseException | None = None, **fields: object) -> str:
    return log.Plain(with_time=False).format(record(event, error, **fields))


def refused(user: str, ip: str = "192.0.2.7") -> str:
    return plain("login refused", ip=ip, user=user, proto="pop3s", reason="bad-password")


def banned(line: str) -> str | None:
    """Return the address that fail2ban reads from a line with our filter."""
    expression = re.search(r"^failregex\s*=\s*(.+)$", FILTER.read_text(), re.M)
    assert expression
    address = r"(?P<address>\[?[0-9A-Fa-f:.]{2,45}\]?)"
    match = re.search(expression[1].replace("<ADDR>", address), line)
    return str(ip_address(match["address"])) if match else None


# One line per event.


def test_a_line_is_an_event_and_words() -> None:
    """The form `login refused: ip=… user=… …` must never change."""
    assert refused("ann") == "login refused: ip=192.0.2.7 user=ann proto=pop3s reason=bad-password"
    assert plain("stopping") == "stopping"


@pytest.mark.parametrize("user", HOSTILE)
def test_a_line_cannot_be_forged(user: str) -> None:
    line = refused(user)
    assert line.isascii()
    assert line.isprintable()
    assert line.count(" ") == 5
    assert line.count("ip=") == 1


@given(st.text() | st.binary().map(lambda octets: octets.decode("utf-8", "surrogateescape")))
def test_a_value_is_one_visible_word_and_can_be_read_back(text: str) -> None:
    word = escape(text)
    assert word.isascii()
    assert word.isprintable()
    assert not set(" =\"'") & set(word)
    back = re.sub(
        r"\\(?:x(..)|u(....)|U(.{8}))",
        lambda found: chr(int(found[1] or found[2] or found[3], 16)),
        word,
    )
    assert back == text


@pytest.mark.parametrize("user", HOSTILE)
def test_json_is_one_object_on_one_line(user: str) -> None:
    line = log.Json().format(record("login refused", ip="192.0.2.7", user=user))
    assert line.isascii()
    assert line.isprintable()
    reported = json.loads(line)
    assert reported["event"] == "login.refused"
    assert (reported["ip"], reported["user"], reported["level"]) == ("192.0.2.7", user, "warning")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", reported["t"])


@pytest.mark.parametrize("text", HOSTILE)
def test_the_text_of_a_bug_forges_no_line(text: str) -> None:
    """A traceback has many lines, and may quote octets of a peer."""
    try:
        raise ValueError(text)
    except ValueError as error:
        first, *rest = plain("bug", error, session="7QK2M").split("\n")
    assert first == "bug: session=7QK2M"
    for line in rest:
        assert line.isprintable()
        assert banned(line) is None
        assert banned(f"host restante[7]: {line}") is None


@pytest.mark.parametrize("text", HOSTILE)
def test_the_text_of_a_library_forges_no_line(text: str) -> None:
    line = plain(f"Fatal error on transport {text}")
    assert line.isprintable()
    assert banned(line) is None


# fail2ban.


@pytest.mark.parametrize("user", ["ann", *HOSTILE])
@pytest.mark.parametrize("ip", ["192.0.2.7", "2001:db8::7"])
@pytest.mark.parametrize("before", ["", "mail restante[7]: ", " mail restante: "])
def test_fail2ban_bans_refused_clients(user: str, ip: str, before: str) -> None:
    """fail2ban removes the time stamp before matching."""
    assert banned(before + refused(user, ip)) == ip


@pytest.mark.parametrize("user", ["ann", *HOSTILE])
@pytest.mark.parametrize("event", ["login ok", "session end", "tls refused", "purge failed"])
def test_fail2ban_bans_no_other_clients(user: str, event: str) -> None:
    assert banned(plain(event, ip="192.0.2.7", user=user)) is None
    assert banned(plain(event, user=user)) is None


def test_fail2ban_does_not_ban_a_local_peer() -> None:
    assert banned(refused("198.51.100.9", ip="")) is None


# Output of the log.


@pytest.fixture
def reported(loggers: None, monkeypatch: pytest.MonkeyPatch) -> Callable[[Log], io.StringIO]:
    """Return a function that sets up a log and returns its output."""

    def begin(wanted: Log) -> io.StringIO:
        written = io.StringIO()
        monkeypatch.setattr(sys, "stderr", written)
        log.set_up(wanted)
        return written

    return begin


Warn = Callable[[str], None]


@pytest.fixture(params=[log.write, log_event])
def warn(request: pytest.FixtureRequest) -> Warn:
    """Return a function that logs a refused login, directly or through ``logging``."""
    logger = logging.getLogger("restante.pop3")
    return lambda ip: request.param(logger, logging.WARNING, "login refused", {"ip": ip})


def test_each_format_has_the_same_content(
    reported: Callable[[Log], io.StringIO], warn: Warn
) -> None:
    lines = {}
    for format_ in ("journal", "human", "json", "auto"):
        written = reported(Log(format=format_))
        warn("192.0.2.7")
        lines[format_] = written.getvalue()
    assert lines["journal"] == "login refused: ip=192.0.2.7\n"
    for human in (lines["human"], lines["auto"]):
        time, _, line = human.partition(" ")
        assert time.endswith("Z")
        assert line == lines["journal"]
    assert json.loads(lines["json"])["ip"] == "192.0.2.7"


def test_events_below_the_log_level_are_not_written(
    reported: Callable[[Log], io.StringIO], warn: Warn
) -> None:
    written = reported(Log(format="journal", level="error"))
    warn("192.0.2.7")
    assert written.getvalue() == ""


def test_the_journal_gets_no_time(
    reported: Callable[[Log], io.StringIO],
    warn: Warn,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """systemd.exec(5), JOURNAL_STREAM: device and inode of standard error."""
    with open(tmp_path / "stderr", "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        status = (tmp_path / "stderr").stat()
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        log.set_up(Log())
        warn("192.0.2.7")
        reported(Log())
    assert (tmp_path / "stderr").read_text() == "login refused: ip=192.0.2.7\n"


def test_unwritable_log_stops_nothing(
    reported: Callable[[Log], io.StringIO], warn: Warn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example on a full disk, or to a closed pipe."""
    reported(Log())

    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(sys, "stderr", Full())
    log.set_up(Log())
    warn("192.0.2.7")


def test_event_reaches_the_handlers_of_an_embedding_program(
    caplog: pytest.LogCaptureFixture, warn: Warn
) -> None:
    with caplog.at_level(logging.INFO, "restante"):
        warn("192.0.2.7")
    [record] = caplog.records
    assert (record.name, record.levelno) == ("restante.pop3", logging.WARNING)
    assert record.getMessage() == "login refused"
    assert record.fields == {"ip": "192.0.2.7"}  # type: ignore[attr-defined]


@pytest.mark.parametrize("form", ["journal", "json"])
@pytest.mark.parametrize("value", [" " * 49_000, "x" * 49_000, "\U0001f4e7" * 49_000])
def test_no_line_is_longer_than_its_values_may_be(form: str, value: str) -> None:
    """Peers choose the length of some values, and journald splits lines at 48 KiB."""
    record = logging.LogRecord("restante.x", logging.WARNING, "", 0, "login refused", (), None)
    record.fields = {"user": value}
    line = log._formatter(form).format(record)
    assert len(line) < 32 * 1024
    if form == "journal":
        assert len(line) < 2200
