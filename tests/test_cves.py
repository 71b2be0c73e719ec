"""Vulnerabilities of other programs (CVE numbers) that must not occur here.

The server's session and the client's dialogue are driven without sockets; what needs sockets
or TLS has its CVE number in the docstring of a test in ``server/``.
"""

from __future__ import annotations

import logging
import subprocess
from base64 import b64encode
from typing import Any, TypeVar

import pytest

import restante
from restante.errors import (
    CommandFailed,
    ConnectionLost,
    LoginFailed,
    ProtocolBroken,
    TLSUnavailable,
    UnsafeArgument,
)
from restante.log import Plain
from restante.pop3.dialogue import Dialogue, Procedure
from restante.pop3.listing import ListingBuilder, Message
from restante.sasl.exchange import ClientLogin
from restante.wire import Unstuffer

from .pop3.core import Core
from .pop3.test_session import LOGIN, MESSAGES

T = TypeVar("T")


def talk(procedure: Procedure[T], heard: bytes) -> tuple[bytes, T]:
    """Return what the client sends to a server that sends ``heard``, and its result."""
    said = bytearray()
    try:
        wanted = next(procedure)
        while True:
            if wanted is not None:
                said += wanted
                wanted = procedure.send(b"")
                continue
            if not heard:
                raise ConnectionLost("the server closed the connection")
            octets, heard = heard, b""
            wanted = procedure.send(octets)
    except StopIteration as end:
        return bytes(said), end.value


def broken(procedure: Procedure[Any], heard: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        talk(procedure, heard)


# STLS, server (CVE-2011-0411, CVE-2011-1926, CVE-2021-33515, CVE-2021-38084, CVE-2021-38542,
# CVE-2022-28220, CVE-2024-34083): plaintext commands were run as if TLS had protected them.


@pytest.mark.parametrize("behind", [b"USER mrose\r\n", b"STLS\r\n", b"U", b"\r\n", b"\x16\x03"])
@pytest.mark.rfc("P-121", "N-07")
def test_octets_after_stls_end_the_connection(behind: bytes) -> None:
    core = Core(list(MESSAGES), tls=False)
    assert core.send(b"STLS\r\n" + behind) == b""
    assert core.is_closed


@pytest.mark.rfc("P-120")
def test_pre_tls_state_is_discarded() -> None:
    core = Core(list(MESSAGES), tls=False)
    core.session._allow_plaintext = True
    core.send(b"USER mrose\r\n")
    core.send(b"STLS\r\n")
    core.shake_hands()
    assert core.send(b"PASS tan staaf\r\n").startswith(b"-ERR")


# STLS, client (CVE-2021-22947, CVE-2021-38371, CVE-2020-14093, CVE-2020-14154, CVE-2020-14928,
# CVE-2026-41319): plaintext responses were read after the handshake, or affected the login.


@pytest.mark.parametrize("behind", [b"+OK\r\n", b"+O", b"+OK\r\nSASL PLAIN\r\n.\r\n", b"\r"])
@pytest.mark.rfc("P-122")
def test_response_after_the_stls_response_ends_the_session(behind: bytes) -> None:
    broken(Dialogue().start_tls(), b"+OK\r\n" + behind, ProtocolBroken)


@pytest.mark.rfc("P-093", "P-122")
def test_capabilities_from_before_tls_are_discarded() -> None:
    dialogue = Dialogue()
    talk(dialogue.request_capabilities(), b"+OK\r\nSASL PLAIN\r\n.\r\n")
    talk(dialogue.start_tls(), b"+OK\r\n")
    assert dialogue.capabilities.sasl == ()


@pytest.mark.rfc("P-124", "P-135")
def test_no_stls_means_no_login() -> None:
    """CVE-2021-22946, CVE-2020-15954, CVE-2020-28896, CVE-2021-39272, CVE-2006-5867."""
    broken(Dialogue().start_tls(), b"-ERR no TLS here\r\n", TLSUnavailable)
    broken(Dialogue().start_tls(), b"+OK\r\n+OK already logged in\r\n", ProtocolBroken)


# Arguments and lines.


@pytest.mark.parametrize("character", ["\r\n", "\n", "\r", "\0", "\x1b", "\x7f"])
@pytest.mark.rfc("P-014")
def test_no_argument_can_contain_a_second_command(character: str) -> None:
    """CVE-2025-15367, CVE-2012-0036, CVE-2025-7962."""
    for user, password in ((f"a{character}DELE 1", "x"), ("a", f"x{character}DELE 1")):
        broken(Dialogue().log_in(ClientLogin(user, password)), b"", UnsafeArgument)


def test_base64_cannot_hide_a_command() -> None:
    """Like CVE-2025-15367 in proxies: CR and LF that SASL decodes."""
    core = Core(list(MESSAGES))
    hidden = b64encode(b"\0mrose\r\nPASS tan staaf\r\n\0x")
    assert core.send(b"AUTH PLAIN " + hidden + b"\r\n") == b"-ERR [AUTH] authentication failed\r\n"


@pytest.mark.rfc("P-021", "P-022")
def test_every_line_that_begins_with_a_dot_is_stuffed() -> None:
    """CVE-2001-0996: in RETR and TOP, wherever the dot is."""
    core = Core([b".\r\n..\r\n\r\n.\r\n"])
    core.send(LOGIN)
    for command in (b"RETR 1\r\n", b"TOP 1 9\r\n"):
        said = core.send(command)
        body = Unstuffer()
        assert body.feed(said.partition(b"\r\n")[2]) == core.messages[0]
        assert body.is_finished


@pytest.mark.parametrize("octets", [b"NOOP \0\r\n", b"\0", b"USER a\0b\r\n"])
def test_nul_ends_the_connection(octets: bytes) -> None:
    """CVE-2019-11500."""
    core = Core(list(MESSAGES))
    core.send(octets + b"\r\n")
    assert core.is_closed


@pytest.mark.parametrize("keyword", [b"USER", b"PASS", b"APOP", b"XTND", b"STAT", b"LIST"])
def test_overlong_arguments_are_refused(keyword: bytes) -> None:
    """CVE-2006-2502 and the many overflows of USER and XTND."""
    core = Core(list(MESSAGES))
    for size in (254, 255, 1000, 60_000):
        core = Core(list(MESSAGES))
        assert core.send(keyword + b" " + b"a" * size + b"\r\n").startswith(b"-ERR line longer")
        assert b"+OK" in core.send(b"CAPA\r\n")


@pytest.mark.parametrize("octets", [1001, 70_000])
@pytest.mark.rfc("N-09")
def test_overlong_unique_id_is_ignored(octets: int) -> None:
    """CVE-2005-2335: 128 octets on a stack.  Other mail must still be collected."""
    long = b"u" * octets
    heard = b"+OK\r\n1 10\r\n2 10\r\n.\r\n+OK\r\n1 " + long + b"\r\n2 two\r\n.\r\n"
    _, found = talk(Dialogue().listing(), heard)
    assert list(found) == [Message(1, None, 10), Message(2, "two", 10)]


def test_empty_unique_id_is_ignored() -> None:
    """CVE-2018-14356; for unique-ids as paths (CVE-2018-14362) see the collector's tests."""
    _, found = talk(Dialogue().listing(), b"+OK\r\n1 10\r\n.\r\n+OK\r\n1 \r\n.\r\n")
    assert list(found) == [Message(1, None, 10)]


@pytest.mark.rfc("P-029")
def test_message_numbers_of_a_server_are_not_hashed_as_integers() -> None:
    """CVE-2021-33582: a predictable hash.  In Python only hashes of integers are predictable."""
    listing = ListingBuilder()
    for number in (5, 3 * 2**61, 7):
        assert listing.add(number, 1)
        assert not listing.add(number, 1)
    assert {type(key) for key in listing._positions_by_number} == {str}
    assert [message.number for message in listing] == [5, 3 * 2**61, 7]
    assert [message.number for message in listing[-2:]] == [3 * 2**61, 7]


@pytest.mark.parametrize("host", ["-oProxyCommand=false", "x -oProxyCommand=false", "$(false)"])
def test_a_host_is_looked_up_and_no_more(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """CVE-2018-19518: it became an option of ssh."""
    for name in ("Popen", "run"):
        monkeypatch.delattr(subprocess, name)
    with pytest.raises((ConnectionLost, UnsafeArgument)):
        restante.connect_blocking(f"pop3s://ann@{host}", password="x", timeout=10).__enter__()


def test_long_lines_of_mail_are_no_error() -> None:
    """CVE-2013-1752 was fixed with a limit of 2048 octets, which real mail exceeds."""
    line = b"x" * 300_000
    dialogue = Dialogue()
    retrieval = talk(dialogue.request_messages([Message(1, None, 1)]), b"")[1]
    answer = talk(dialogue.next_message(retrieval), b"+OK\r\n" + line + b"\r\n.\r\n")[1]
    assert answer is not None
    body = b""
    while piece := talk(dialogue.piece(answer), b"")[1]:
        body += piece
    assert body == line + b"\r\n"


@pytest.mark.rfc("P-029", "N-09")
def test_endless_response_ends_the_session() -> None:
    """The other part of CVE-2013-1752."""
    broken(Dialogue().greeting(), b"+OK " + b"x" * 70_000, ProtocolBroken)


@pytest.mark.parametrize(
    "name", [b"%%%s%n", b"%{env:HOME}", b"%u", b"\xff\xfe", b"\xc3", b"\xe2\x82"]
)
def test_names_are_not_templates_and_need_not_be_utf8(name: bytes) -> None:
    """CVE-2017-2669, CVE-2019-10691, CVE-2020-7046."""
    core = Core(list(MESSAGES))
    core.send(b"USER " + name + b"\r\n")
    assert core.send(b"PASS x\r\n") == b"-ERR [AUTH] authentication failed\r\n"


def test_bad_base64_affects_no_other_session() -> None:
    """CVE-2025-59028: it ended other logins in progress."""
    one, other = Core(list(MESSAGES)), Core(list(MESSAGES))
    other.send(b"AUTH PLAIN\r\n")
    one.send(b"AUTH PLAIN !!!!\r\n")
    assert b"+OK" in other.send(b64encode(b"\0mrose\0tan staaf") + b"\r\n")


@pytest.mark.parametrize("typed", ["a\r\nlogin ok: user=root", "a\x1b[2J", "a\u202eb", "a user=x"])
def test_no_log_line_is_forged(typed: str) -> None:
    """CVE-2008-2711, CVE-2010-1167, CVE-2021-36386: fetchmail's logging."""
    record = logging.makeLogRecord({"msg": "login refused", "fields": {"user": typed}})
    line = Plain(with_time=False).format(record)
    assert line.startswith("login refused: user=a\\")
    assert line.isascii()
    assert line.isprintable()
    assert line.count("user=") == 1


@pytest.mark.parametrize(
    "head",
    [
        b"To: " + b"a@b, " * 20_000 + b"\r\n",
        b"To: " + b"a:;" * 20_000 + b";" * 20_000 + b"\r\n",
        b"X: y\r\n" * 50_000,
        b'Content-Type: multipart/mixed; boundary="a"\r\n\r\n' + b"--a\r\n" * 5000,
        b"Content-Type: a/b; " + b"c*0*=d; " * 20_000 + b"\r\n",
    ],
)
def test_mail_is_not_parsed(head: bytes) -> None:
    """CVE-2024-23184, CVE-2024-23185, CVE-2020-12100, CVE-2021-3181, CVE-2026-27859,
    CVE-2026-26312."""
    core = Core([head + b"\r\nhello\r\n"])
    core.send(LOGIN)
    assert core.send(b"RETR 1\r\n").endswith(b"\r\nhello\r\n.\r\n")


def test_refused_login_is_not_retried_with_another_mechanism() -> None:
    """The client's side of CVE-2026-41319: no fallback to a weaker mechanism."""
    dialogue = Dialogue()
    talk(dialogue.request_capabilities(), b"+OK\r\nSASL PLAIN\r\nUSER\r\n.\r\n")
    with pytest.raises(LoginFailed) as caught:
        talk(
            dialogue.log_in(ClientLogin("mrose", "tan staaf")), b"-ERR [AUTH] no\r\n+OK\r\n+OK\r\n"
        )
    assert isinstance(caught.value, CommandFailed)
    assert caught.value.code == "AUTH"
