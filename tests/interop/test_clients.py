"""Other clients fetch mail from our server."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from .clients import CLIENTS
from .programs import Server, differences, serving

pytestmark = pytest.mark.interop

MESSAGES = [
    b"Subject: plain\r\n\r\nhello\r\n",
    b"Subject: dots\r\n\r\n.\r\n..\r\n.hidden\r\na.b\r\n",
    b"Subject: 8 bit\r\n\r\nn\xc3\xa4chste \xe4\xff\r\n",
    b"Subject: empty body\r\n\r\n",
    b"Subject: long line\r\n\r\n" + b"x" * 8000 + b"\r\n",
    b"Subject: looks like an mbox\r\n\r\nFrom here on\r\n>From there\r\n\r\n\r\n",
    b"Subject: folded\r\n\tover\r\n lines\r\nStatus: RO\r\nX-UIDL: 1\r\n\r\n \r\n\t\r\n",
    b"Subject: large\r\n\r\n" + b"0123456789abcdef\r\n" * 60_000,
]

EACH = [
    (name, scheme)
    for name, client in CLIENTS.items()
    for scheme in ("pop3s", "pop3")
    if scheme == "pop3s" or client.has_stls
]
each = pytest.mark.parametrize(("name", "scheme"), EACH, ids=[" ".join(pair) for pair in EACH])


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        server.deliver(MESSAGES)
        yield server


@each
def test_fetches_every_octet_and_deletes(
    name: str, scheme: str, server: Server, tmp_path: Path
) -> None:
    client, stored = CLIENTS[name], server.stored()
    status, fetched = client.fetch(server.account(scheme), tmp_path / "client")
    assert status == 0
    assert client.differences(fetched, stored) == []
    assert server.stored() == []
    assert differences(server.held(), stored) == []


@each
def test_keep_option_leaves_mail_on_the_server(
    name: str, scheme: str, server: Server, tmp_path: Path
) -> None:
    client, stored = CLIENTS[name], server.stored()
    account = server.account(scheme, keep=True)
    assert client.fetch(account, tmp_path / "client")[0] == 0
    assert differences(server.stored(), stored) == []
    assert server.held() == []
    if client.remembers:
        assert client.fetch(account, tmp_path / "client") == (0, [])
        server.deliver([b"Subject: later\r\n\r\n"])
        status, fetched = client.fetch(account, tmp_path / "client")
        assert (status, len(fetched)) == (0, 1)


@each
def test_refused_login_is_reported(name: str, scheme: str, server: Server, tmp_path: Path) -> None:
    client = CLIENTS[name]
    account = replace(server.account(scheme), password="wrong")
    assert client.fetch(account, tmp_path / "client") == (client.login_refused, [])
    assert len(server.stored()) == len(MESSAGES)


@pytest.mark.parametrize("name", [name for name, its in CLIENTS.items() if its.long_lines])
@pytest.mark.rfc("P-027")
def test_a_line_may_have_any_length(name: str, server: Server, tmp_path: Path) -> None:
    server.deliver([b"Subject: long\r\n\r\n" + b"x" * 300_000 + b"\r\n"])
    client, stored = CLIENTS[name], server.stored()
    status, fetched = client.fetch(server.account("pop3s"), tmp_path / "client")
    assert status == 0
    assert client.differences(fetched, stored) == []
