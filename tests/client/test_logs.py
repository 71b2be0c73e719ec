"""The logger ``restante.client``, which logs the commands and answers of sessions."""

from __future__ import annotations

import asyncio
import logging

import pytest

from restante.errors import ConnectionLost, LoginFailed
from restante.testing import Pop3Server

from .shells import kinds, opened

SECRET = "c0rrect h0rse"


@kinds
@pytest.mark.parametrize("recorded", [False, True])
def test_a_session_is_logged(kind: str, recorded: bool, caplog: pytest.LogCaptureFixture) -> None:
    lines: list[str] = []

    async def main(server: Pop3Server) -> None:
        server.deliver("ann", b"Subject: private\r\n\r\nvery private\r\n")
        record = lines.append if recorded else None
        url = server.url("ann", stls=True)
        async with opened(kind, url, ca_file=server.ca_file, record=record) as held:
            body = held.client.retrieve((await held.listing())[0])
            await held.call("delete", body.message)

    with caplog.at_level(logging.DEBUG, "restante.client"), Pop3Server(users={"ann": SECRET}) as s:
        asyncio.run(main(s))
    ours = [each for each in caplog.records if each.name == "restante.client"]
    texts = [each.getMessage() for each in ours]
    assert {each.levelno for each in ours} == {logging.DEBUG}
    assert all(each.startswith("localhost ") for each in texts)
    assert "localhost connected to port" in texts[0]
    assert any("secured by TLSv1.3" in each for each in texts)
    assert "localhost C: DELE 1" in texts
    assert texts[-1].startswith("localhost S: +OK")
    said = [each.removeprefix("localhost ") for each in texts if ": " in each[:13]]
    assert said == lines if recorded else said
    for private in (SECRET, "private", "h0rse"):
        assert private not in caplog.text


@kinds
def test_a_refused_login_shows_no_password(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    async def main(server: Pop3Server) -> None:
        url = server.url("ann").replace(":pw@", ":s3cret@")
        async with opened(kind, url, ca_file=server.ca_file):
            pass

    with caplog.at_level(logging.DEBUG), Pop3Server() as server, pytest.raises(LoginFailed):
        asyncio.run(main(server))
    assert "AUTH" in caplog.text
    assert "s3cret" not in caplog.text


@kinds
def test_a_lost_session_is_logged(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    async def main(server: Pop3Server) -> None:
        server.fault.drop("NOOP")
        async with opened(kind, server.url("ann"), ca_file=server.ca_file) as held:
            await held.call("noop")

    with caplog.at_level(logging.DEBUG), Pop3Server() as server, pytest.raises(ConnectionLost):
        asyncio.run(main(server))
    assert "localhost session lost: ConnectionLost: the server closed" in caplog.text


@kinds
def test_nothing_is_logged_above_debug(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    async def main(server: Pop3Server) -> None:
        async with opened(kind, server.url("ann"), ca_file=server.ca_file) as held:
            await held.call("noop")

    with caplog.at_level(logging.INFO), Pop3Server() as server:
        asyncio.run(main(server))
    assert [each for each in caplog.records if each.name == "restante.client"] == []
