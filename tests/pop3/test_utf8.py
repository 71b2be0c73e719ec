"""UTF8 (RFC 6856 §2), and names and passwords in UTF-8."""

from __future__ import annotations

from base64 import b64encode

import pytest

from restante.errors import AuthenticationFailed
from restante.sasl.prepare import saslprep

from .core import Core

LOGIN = b"USER mrose\r\nPASS tan staaf\r\n"


@pytest.mark.rfc("P-140", "P-141", "P-030", "N-07")
def test_utf8_before_login_disables_stls() -> None:
    core = Core([], tls=False)
    assert b"\r\nSTLS\r\n" in core.send(b"CAPA\r\n")
    assert core.send(b"UTF8 x\r\n").startswith(b"-ERR ")
    assert core.send(b"UTF8\r\n").startswith(b"+OK ")
    assert core.send(b"STLS\r\n").startswith(b"-ERR ")
    said = core.send(b"CAPA\r\n")
    assert b"\r\nUTF8 USER\r\n" in said
    assert b"STLS" not in said


@pytest.mark.rfc("P-142")
def test_messages_are_unchanged_in_utf8_mode() -> None:
    message = "Subject: Grüße\r\n\r\nBäh\r\n".encode()
    core = Core([message])
    core.send(b"UTF8\r\n" + LOGIN)
    assert core.send(b"RETR 1\r\n") == b"+OK %d octets\r\n" % len(message) + message + b".\r\n"
    assert core.send(b"LIST 1\r\n") == b"+OK 1 %d\r\n" % len(message)


@pytest.mark.rfc("P-140")
def test_outlook_may_send_utf8_after_pass() -> None:
    """It fails (0x800CCC90) after -ERR; the messages announced at login stay unchanged."""
    core = Core([b"Subject: \xc3\xa4\r\n\r\n"])
    core.send(LOGIN)
    before = core.send(b"LIST\r\nRETR 1\r\n")
    assert core.send(b"UTF8\r\n").startswith(b"+OK ")
    assert core.send(b"LIST\r\nRETR 1\r\n") == before


@pytest.mark.parametrize(
    ("typed", "password"),
    [
        ("pa\u0308ss", "p\u00e4ss"),  # decomposed and composed
        ("\u2168", "IX"),  # RFC 4013 §3
        ("I\u00adX", "IX"),
        ("tan\u00a0staaf", "tan staaf"),
        ("\u5bc6\u7801", "\u5bc6\u7801"),
        ("\U0001f600", "\U0001f600"),  # unassigned in Unicode 3.2, so allowed in a query
        ("\u0627\u0031\u0628", "\u0627\u0031\u0628"),
    ],
)
@pytest.mark.rfc("P-147")
def test_equivalent_passwords_are_equal(typed: str, password: str) -> None:
    assert saslprep(typed) == password
    core = Core([], password=password)
    assert core.send(b"USER mrose\r\nPASS %s\r\n" % typed.encode()).count(b"+OK") == 2
    core = Core([], password=password)
    plain = b64encode(b"\0mrose\0" + typed.encode())
    assert b"+OK" in core.send(b"AUTH PLAIN " + plain + b"\r\n")


@pytest.mark.parametrize(
    "forbidden",
    [
        b"a\tb",
        b"\x7f",
        b"\xc2\xad",  # nothing is left
        b"\xc2\x85",
        b"\xee\x80\x80",
        b"\xef\xbf\xbd",
        b"\xe2\x80\xae",
        b"\xff",
        "\u06271".encode(),
        "\u0627x\u0628".encode(),
    ],
)
@pytest.mark.rfc("P-066", "P-147", "P-070")
def test_forbidden_characters_fail_like_a_wrong_password(forbidden: bytes) -> None:
    """And USER does not report it, because that would reveal names."""
    with pytest.raises(AuthenticationFailed):
        saslprep(forbidden.decode("utf-8", "surrogateescape"))
    wrong = b"-ERR [AUTH] authentication failed\r\n"
    for name, password in ((forbidden, b"x"), (b"mrose", forbidden)):
        core = Core([])
        assert core.send(b"USER %s\r\n" % name).startswith(b"+OK")
        assert core.send(b"PASS %s\r\n" % password) == wrong
    for parts in (
        (forbidden, b"mrose", b"x"),
        (b"", forbidden, b"x"),
        (b"", b"mrose", forbidden),
    ):
        core = Core([])
        assert core.send(b"AUTH PLAIN " + b64encode(b"\0".join(parts)) + b"\r\n") == wrong
