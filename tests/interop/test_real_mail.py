"""Real mail through real clients, delivered by LMTP or stored by an MTA."""

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
    """Deliver by LMTP: every line ends with CRLF, and trace fields are added."""
    messages = list(map(as_sent, real_mail()))
    with serving() as server:
        server.deliver(messages)
        # Three fields, of which the last is folded, are ours.
        stored = [message.split(b"\r\n", 4)[4] for message in server.stored()]
        assert differences(stored, messages) == []
        yield server


@pytest.fixture(scope="module")
def dropped_in() -> Iterator[Server]:
    """Store the unchanged files in ``new/``: most lines end with LF."""
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
    """Our clients fetch it from another server in its form, and delete it there."""
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
    """Return the wire form: all lines end with CRLF (RFC 1939 §3)."""
    text = re.sub(rb"(?<!\r)\n", b"\r\n", stored)
    return text if text.endswith(b"\r\n") else text + b"\r\n"
