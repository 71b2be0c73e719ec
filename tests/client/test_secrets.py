"""No form of a password appears in an exception, its chain, a repr or the record."""

from __future__ import annotations

import asyncio
import traceback
from base64 import b64encode
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

import restante
from restante.cli import command
from restante.client.remote import Remote
from restante.errors import LoginFailed, RestanteError, UnsafeArgument
from restante.pop3.dialogue import Capabilities, Dialogue
from restante.pop3.record import Record, Secrets
from restante.sasl.exchange import ClientLogin

from .shells import NONE, UNUSED, Peer, kinds, opened, scripted

PASSWORDS = [
    "tan staaf",
    "pw",
    "s3cr3t/with#all?kinds&of<signs>\"'\\%",
    "pässwörd und mehr",
    "x" * 300,
    "0123456789abcdef",
]


def everything(error: BaseException) -> str:
    """Return all text that may be shown of an exception and its chain."""
    seen: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop()
        if each is not None and each not in seen:
            seen.append(each)
            waiting += [each.__cause__, each.__context__]
    shown = [f"{each} {each!r} {each.args} {vars(each)}" for each in seen]
    return "\n".join([*shown, *traceback.format_exception(error)])


def forms(secret: str, sent: list[bytes]) -> dict[str, str]:
    """Return the forms in which a server could repeat the secret."""
    octets = secret.encode()
    lines = [line.removesuffix(b"\r\n").decode("utf-8", "replace") for line in sent]
    return {
        "as it is": secret,
        "in capitals": secret.upper(),
        "in base64": b64encode(octets).decode(),
        "in base64, behind something": b64encode(b"\0mrose\0" + octets).decode(),
        "in base64, behind something else": b64encode(b"user=mrose\1auth=" + octets).decode(),
        "percent-encoded": quote(secret, safe=""),
        "in HTML": escape(secret),
        "the last line": lines[-1],
        "all lines": " ".join(lines),
        "the beginning of the line": lines[-1][: len(lines[-1]) * 3 // 4],
    }


def shows(text: str, secret: str) -> bool:
    """Return whether the text contains a form of the secret; short ones as words only."""
    octets = secret.encode()
    parts = [secret, secret.upper(), quote(secret, safe=""), escape(secret)]
    parts += [b64encode(bytes(at) + octets).decode()[4:-4] for at in range(3)]
    longs = [part for part in parts if len(part) >= 6]
    words = text.replace("***", " ").replace("'", " ").split()
    return secret in words or any(part in text for part in longs)


Case = tuple[str, str, tuple[str, ...], str]
CASES: list[Case] = [
    *(("USER", password, (), "") for password in PASSWORDS if password.isascii()),
    *(("PLAIN", password, ("PLAIN",), "") for password in PASSWORDS),
    *(("LOGIN", password, ("LOGIN",), "LOGIN") for password in PASSWORDS),
    *(("SCRAM-SHA-256", password, ("SCRAM-SHA-256",), "") for password in PASSWORDS),
    ("XOAUTH2", "ya29.vF9dft4qmTc2Nvb3RlckBhdHRhdmlzdGEuY29tCg", ("XOAUTH2",), ""),
    ("OAUTHBEARER", "ya29.vF9dft4qmTc2Nvb3RlckBhdHRhdmlzdGEuY29tCg", ("OAUTHBEARER",), ""),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1][:6]}")
def test_a_refusal_that_repeats_the_password(case: Case) -> None:
    """RFC 1939 leaves the text of -ERR to the server, and some repeat the command."""
    _, secret, mechanisms, forced = case
    names = forms(secret, [b"x"])
    for name in names:
        recorded: list[str] = []
        dialogue = Dialogue(Record(recorded.append))
        dialogue.capabilities = Capabilities({"SASL": mechanisms} if mechanisms else {})
        is_token = "AUTH" in case[0]
        login = ClientLogin(
            "mrose",
            "" if is_token else secret,
            secret if is_token else "",
            mechanism=forced,
        )
        sent: list[bytes] = []
        with pytest.raises(LoginFailed) as caught:
            run_refused(dialogue, login, sent, lambda: forms(secret, sent)[name])  # noqa: B023
        assert not shows(everything(caught.value), secret), name
        assert not shows("\n".join(recorded), secret), name
        later = dialogue.stat()
        next(later)
        later.send(b"")
        with pytest.raises(RestanteError) as after:
            later.send(b"-ERR you said " + forms(secret, sent)[name].encode() + b"\r\n")
        assert not shows(everything(after.value), secret), name
        assert "you said" in str(after.value)  # the rest is still readable


def run_refused(
    dialogue: Dialogue, login: ClientLogin, sent: list[bytes], said: Callable[[], str]
) -> None:
    """Log in at a server that accepts as much as possible, then repeats what it received."""
    procedure = dialogue.log_in(login)
    wanted = next(procedure)
    while True:
        if wanted is not None:
            dialogue.record.sent(wanted)
            sent.append(wanted)
            wanted = procedure.send(b"")
        elif sent[-1] == b"USER mrose\r\n":
            wanted = procedure.send(b"+OK\r\n")
        elif sent == [b"AUTH LOGIN\r\n"]:
            wanted = procedure.send(b"+ VXNlcm5hbWU6\r\n")
        elif sent[0] == b"AUTH LOGIN\r\n" and len(sent) == 2:
            wanted = procedure.send(b"+ UGFzc3dvcmQ6\r\n")
        else:
            wanted = procedure.send(b"-ERR [AUTH] you said " + said().encode() + b"\r\n")


@given(st.text(min_size=6, max_size=40), st.binary(max_size=9), st.binary(max_size=9))
@example("tan staaf", b"\0mrose\0", b"")
def test_password_is_hidden_at_any_position_in_base64(
    password: str, before: bytes, after: bytes
) -> None:
    """If the surrounding octets are unknown, six characters that depend on it alone suffice."""
    assume(not any("\ud800" <= each <= "\udfff" for each in password))
    secrets = Secrets()
    secrets.replace(password)
    octets = password.encode()
    encoded = b64encode(before + octets + after).decode()
    first, end = -(-4 * len(before) // 3), 4 * (len(before) + len(octets)) // 3
    inside = encoded[first:end]
    assert inside not in secrets.hide(f"you said {encoded}")


HOSTILE_URLS = [
    "pop3s://ann:s3cret/part@mail.example.org",
    "pop3s://ann:s3cret#part@mail.example.org",
    "pop3s://ann:s3cret?part@mail.example.org",
    "pop3s://ann:12345/s3cret@mail.example.org",
    "pop3s://ann:12345#s3cret@mail.example.org",
    "pop3s://ann:#s3cret@mail.example.org",
    "pop3s://ann:/s3cret@mail.example.org",
    "pop3s://ann:s3cret@",
    "pop3s://ann:s3cret@:995",
    "pop3s://ann:s3cret@mail.example.org:s3cret",
    "pop3s://ann:s3cret@mail.example.org:99999",
    "pop3s://ann:s3cret@[::1",
    "pop3s://ann:s3cret@::1",
    "pop3s://ann:s3cret\u2100@mail.example.org/x",
    "pop3s://ann:s3\ncret@mail.example.org",
    "pop3s://ann:s3cret@mail.example.org/s3cret",
    "pop3s://ann:s3cret%E9@mail.example.org",
    "pop3s:ann:s3cret@mail.example.org",
    "imaps://ann:s3cret@mail.example.org",
    "ann:s3cret@mail.example.org",
    "s3cret mail.example.org",
]


@pytest.mark.rfc("P-165")
@pytest.mark.parametrize("url", HOSTILE_URLS)
@pytest.mark.parametrize("connect", [restante.connect, restante.connect_blocking])
def test_invalid_url_is_not_repeated(connect: Any, url: str) -> None:
    """``urllib.parse`` would repeat it: a "/" in a password ends what it takes for the port."""

    async def enter() -> None:
        block = connect(url)
        if connect is restante.connect:
            async with block:
                pass
        else:
            with block:
                pass

    with pytest.raises(UnsafeArgument) as caught:
        asyncio.run(enter())
    for part in ("s3cret", "12345", "part", "s3", "99999"):
        assert part not in everything(caught.value)


@pytest.mark.parametrize("url", HOSTILE_URLS)
@pytest.mark.parametrize(
    "arguments", [["fetch", "URL", "--to", "maildir:x"], ["account", "add", "isp", "URL"]]
)
def test_command_line_does_not_repeat_an_invalid_url(
    arguments: list[str], url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It refuses passwords in URLs, but these cannot be recognised as such."""
    code: object
    try:
        code = command.run([url if each == "URL" else each for each in arguments])
    except SystemExit as end:
        code = end.code
    shown = "".join(capsys.readouterr())
    assert code not in (0, 70), shown
    for part in ("s3cret", "12345", "part", "99999"):
        assert part not in shown


async def echoes(peer: Peer) -> None:
    """Refuse the login, repeating everything received."""
    await peer.say(b"+OK ready\r\n")
    while command := await peer.hear():
        if command == b"CAPA":
            await peer.say(b"+OK\r\nSASL PLAIN\r\n.\r\n")
        else:
            await peer.say(b"-ERR [AUTH] you said " + command + b" or tan staaf\r\n")


@kinds
def test_a_login_that_fails_shows_no_password(kind: str) -> None:
    recorded: list[str] = []

    async def main() -> None:
        async with scripted(echoes) as (port, _):
            where = f"pop3://mrose:tan%20staaf@127.0.0.1:{port}"
            async with opened(kind, where, tls=NONE, context=UNUSED, record=recorded.append):
                pass

    with pytest.raises(LoginFailed, match="you said") as caught:
        asyncio.run(main())
    assert caught.value.code == "AUTH"
    for shown in (everything(caught.value), caught.value.text, "\n".join(recorded)):
        assert "staaf" not in shown.replace("tan%20staaf", "").lower()
        assert not shows(shown, "tan staaf")


@pytest.mark.parametrize(
    ("url", "password", "host"),
    [
        ("pop3s://ann:s3cret@mail.example.org", "s3cret", "mail.example.org"),
        ("pop3s://ann:s%2Fc%23r%3Fe%25t@mail.example.org", "s/c#r?e%t", "mail.example.org"),
        ("pop3s://ann:s@c:ret@mail.example.org", "s@c:ret", "mail.example.org"),
        ("pop3s://ann:tan staaf@mail.example.org", "tan staaf", "mail.example.org"),
        ("POP3S://ann:s%C3%A9cret@Mail.Example.Org:995/", "sécret", "mail.example.org"),
        ("pop3s://ann:s\u2100cret@mail.example.org", "s\u2100cret", "mail.example.org"),
        ("pop3://ann:s3cret@[2001:db8::1]:1110", "s3cret", "2001:db8::1"),
    ],
)
def test_passwords_in_urls(url: str, password: str, host: str) -> None:
    remote = Remote.parse(url)
    assert (remote.login.user, remote.login.password, remote.host) == ("ann", password, host)
    assert password not in repr(remote)


@pytest.mark.parametrize("where", [None, 7, b"pop3s://ann:s3cret@localhost", Path("x")])
def test_server_argument_must_be_text(where: Any) -> None:
    with pytest.raises(TypeError) as caught:
        Remote.parse(where, user="ann", password="x")
    assert "s3cret" not in str(caught.value)


def test_text_without_secrets_is_unchanged() -> None:
    secrets = Secrets()
    assert secrets.hide("no secret yet") == "no secret yet"
    secrets.replace("pw")
    assert secrets.hide("power, pwd and (pw)") == "power, pwd and (***)"
    secrets.replace("swordfish")
    assert secrets.hide("pw: a sword, a fish and sword of") == "pw: a sword, a fish and sword of"
    assert secrets.hide("SWORDFISHES") == "***ES"
    secrets.replace("")
    assert secrets.hide("swordfish") == "swordfish"


def test_a_text_of_any_length_is_bounded_work() -> None:
    """Text longer than any honest line is truncated before it is searched."""
    secrets = Secrets()
    secrets.replace("swordfish")
    assert len(secrets.hide("x" * 10**6)) < 3000
    assert "swordfish" not in secrets.hide("x" * 1995 + "swordfish")
