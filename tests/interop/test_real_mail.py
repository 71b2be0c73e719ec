"""Real mail through real clients: as LMTP brings it, and as an MTA stores it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from .clients import CLIENTS, Dialect
from .corpus import as_sent, real_mail
from .dovecot import dovecot
from .programs import Server, differences, serving
from .test_clients import each

pytestmark = pytest.mark.interop


@pytest.fixture(scope="module")
def delivered() -> Iterator[Server]:
    """By LMTP: every line ends with CRLF, and trace fields are on top."""
    messages = list(map(as_sent, real_mail()))
    with serving() as server:
        server.deliver(messages)
        # Three fields, of which the last is folded, are ours.
        stored = [message.split(b"\r\n", 4)[4] for message in server.stored()]
        assert differences(stored, messages) == []
        yield server


@pytest.fixture(scope="module")
def dropped_in() -> Iterator[Server]:
    """Into ``new/``, as the files are: most lines end with LF."""
    with serving() as server:
        server.deliver([b"Subject: makes the maildrop\r\n\r\n"])
        for path in (server.maildir / "new").iterdir():
            path.unlink()
        for number, message in enumerate(real_mail(), 1):
            (server.maildir / "new" / f"{number}.M1P1.host").write_bytes(message)
        yield server


@each
def test_delivered_by_lmtp(name: str, scheme: str, delivered: Server, tmp_path: Path) -> None:
    fetches_all(CLIENTS[name], scheme, delivered, tmp_path)


@each
def test_dropped_into_new(name: str, scheme: str, dropped_in: Server, tmp_path: Path) -> None:
    fetches_all(CLIENTS[name], scheme, dropped_in, tmp_path)


@pytest.mark.parametrize("name", ["fetch", "collect"])
def test_served_by_dovecot(name: str, tmp_path: Path) -> None:
    """Our clients take it from another server as that server reads it, and delete it there."""
    with dovecot(real_mail()) as server:
        stored = server.stored()
        status, fetched = CLIENTS[name].fetch(server.account("pop3s"), tmp_path / "client")
        assert status == 0
        assert differences(fetched, map(on_the_wire, stored)) == []
        assert server.stored() == []


def fetches_all(client: Dialect, scheme: str, server: Server, folder: Path) -> None:
    status, fetched = client.fetch(server.account(scheme, keep=True), folder / "client")
    assert status == 0
    sent = [on_the_wire(message) for message in server.stored()]
    assert len(fetched) == len(sent) >= 500
    assert client.differences(fetched, sent) == []


def on_the_wire(stored: bytes) -> bytes:
    """RFC 1939 §3: lines end with CRLF, the last one too."""
    text = re.sub(rb"(?<!\r)\n", b"\r\n", stored)
    return text if text.endswith(b"\r\n") else text + b"\r\n"
