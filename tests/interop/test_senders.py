"""Other programs deliver mail to our server."""

from __future__ import annotations

import smtplib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .programs import Server, call, differences, need, serving
from .test_clients import MESSAGES

pytestmark = pytest.mark.interop

Send = Callable[[Server, bytes, Path], None]


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


def curl(server: Server, message: bytes, folder: Path) -> None:
    """curl delivers by SMTP; it doubles dots at the beginning of lines."""
    (folder / "message").write_bytes(message)
    people = ("--mail-from", "sender@example.org", "--mail-rcpt", f"{server.user}@localhost")
    url = f"smtp://127.0.0.1:{server.port('smtp')}/client.example.org"
    done = call(need("curl"), "-sS", url, *people, "--upload-file", folder / "message")
    assert done.returncode == 0, done.stderr


def python_smtp(server: Server, message: bytes, folder: Path) -> None:
    with smtplib.SMTP("127.0.0.1", server.port("smtp")) as smtp:
        smtp.sendmail("sender@example.org", [f"{server.user}@localhost"], message)


def python_lmtp(server: Server, message: bytes, folder: Path) -> None:
    """Deliver over the Unix socket, as Postfix does."""
    with smtplib.LMTP(server.told["lmtp_unix"]) as lmtp:
        lmtp.sendmail("sender@example.org", [server.user], message)


@pytest.mark.parametrize("send", [curl, python_smtp, python_lmtp])
def test_every_octet_is_stored(server: Server, send: Send, tmp_path: Path) -> None:
    for message in MESSAGES:
        send(server, message, tmp_path)
    # Three fields, of which the last is folded, are ours.
    stored = [message.split(b"\r\n", 4)[4] for message in server.stored()]
    assert differences(stored, MESSAGES) == []
