"""Our clients, and Python's poplib, against the kit of hostile servers."""

from __future__ import annotations

import asyncio
import poplib as original
import socket
import ssl
from base64 import b64decode
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from restante import poplib
from restante.client.asynchronous import connect
from restante.client.blocking import connect_blocking
from restante.errors import LoginFailed, ProtocolBroken
from restante.pop3.quirks import Quirks
from restante.testing_hostile import ATTACKS, Attack, Fetch, HostileServer, Keep, cuts, try_client


def with_asyncio(url: str, ca_file: Path, keep: Keep) -> None:
    async def main() -> None:
        async with connect(url, ca_file=ca_file, timeout=10, deadline=20) as client:
            listing = await client.list()
            async for message, body in client.retrieve_all(listing):
                keep(await body.read())
                await client.delete(message)

    asyncio.run(main())


def with_blocking(url: str, ca_file: Path, keep: Keep) -> None:
    with connect_blocking(url, ca_file=ca_file, timeout=10, deadline=20) as client:
        for message, body in client.retrieve_all(client.list()):
            keep(body.read())
            client.delete(message)


def one_by_one(url: str, ca_file: Path, keep: Keep) -> None:
    with connect_blocking(url, ca_file=ca_file, timeout=10, deadline=20) as client:
        for message in client.list():
            keep(client.retrieve(message).read())
            client.delete(message)


def port(url: str) -> int:
    return urlsplit(url).port or 0


def with_poplib(url: str, ca_file: Path, keep: Keep) -> None:
    _poplib(poplib.POP3, poplib.POP3_SSL, url, ca_file, keep)


def with_original(url: str, ca_file: Path, keep: Keep) -> None:
    _poplib(original.POP3, original.POP3_SSL, url, ca_file, keep)


def _poplib(
    clear: type[original.POP3] | type[poplib.POP3],
    inside: type[original.POP3_SSL] | type[poplib.POP3_SSL],
    url: str,
    ca_file: Path,
    keep: Keep,
) -> None:
    """Fetch all mail as the documentation of poplib shows."""
    parts = urlsplit(url)
    context = ssl.create_default_context(cafile=ca_file)
    client: original.POP3 | poplib.POP3
    if parts.scheme == "pop3s":
        client = inside("localhost", port(url), timeout=10, context=context)
    else:
        client = clear("localhost", port(url), timeout=10)
    try:
        if parts.scheme == "pop3":
            client.stls(context=context)
        client.user(unquote(parts.username or ""))
        client.pass_(unquote(parts.password or ""))
        for number in range(1, client.stat()[0] + 1):
            keep(b"\r\n".join([*client.retr(number)[1], b""]))
            client.dele(number)
        client.quit()
    finally:
        client.close()


OURS = [with_asyncio, with_blocking, one_by_one, with_poplib]


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("fetch", OURS)
def test_hostile_server_does_no_harm(fetch: Fetch, name: str) -> None:
    # The old interface has no SCRAM: USER and PASS are what its callers send.
    if fetch is with_poplib and name.startswith(("scram", "auth")):
        return
    assert try_client(fetch, ATTACKS[name]) == []


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("fetch", OURS)
def test_connection_lost_at_every_octet(fetch: Fetch) -> None:
    # Three of the clients share a dialogue, so not all need every case.
    for name, attack in cuts(1 if fetch in (with_asyncio, with_poplib) else 5):
        assert try_client(fetch, attack) == [], name


@pytest.mark.parametrize("fetch", OURS)
def test_an_end_at_some_octets(fetch: Fetch) -> None:
    for name, attack in cuts(41):
        assert try_client(fetch, attack) == [], name


def kept(fetch: Fetch, attack: Attack) -> list[bytes]:
    found: list[bytes] = []

    def watched(url: str, ca_file: Path, keep: Keep) -> None:
        fetch(url, ca_file, found.append)
        for message in found:
            keep(message)

    assert try_client(watched, attack) == []
    return found


@pytest.mark.parametrize("fetch", OURS)
@pytest.mark.parametrize("name", ["polite", "size-lie", "dot-lf", "dot-cr", "dot-half"])
def test_all_mail_is_downloaded_despite_the_fault(fetch: Fetch, name: str) -> None:
    """Odd mail from an honest server is mail."""
    assert kept(fetch, ATTACKS[name]) == list(ATTACKS[name].messages)


@pytest.mark.parametrize("name", ["dot-lf", "dot-half"])
def test_kit_finds_faults_of_a_client(name: str) -> None:
    """Python's poplib ends a message at a dot between bare LFs."""
    found = try_client(with_original, ATTACKS[name])
    assert any("accepted as a message" in each for each in found)


@pytest.mark.parametrize("two_step_auth", [False, True])
@pytest.mark.parametrize("name", [name for name in ATTACKS if name.startswith("scram")])
def test_scram_is_attacked_however_a_client_begins(name: str, two_step_auth: bool) -> None:
    """With an initial response or without; no attack occurs before."""
    quirks = Quirks(two_step_auth=two_step_auth)
    with (
        HostileServer(ATTACKS[name]) as server,
        pytest.raises((LoginFailed, ProtocolBroken)),
        connect_blocking(server.url, ca_file=server.ca_file, quirks=quirks),
    ):
        pass
    first = next(at for at, line in enumerate(server.heard) if line.startswith(b"AUTH"))
    opening = server.heard[first + two_step_auth].rpartition(b" ")[2]
    assert b",n=ann,r=" in b64decode(opening)


def test_kit_finds_partial_messages_lost_mail_and_leaked_passwords() -> None:
    def half(url: str, ca_file: Path, keep: Keep) -> None:
        with connect_blocking(url, ca_file=ca_file) as client:
            for message in client.list():
                keep(client.top(message).read()[:-5])
                client.delete(message)

    found = try_client(half, ATTACKS["polite"])
    assert len([each for each in found if each.startswith("accepted as")]) == 3
    assert len([each for each in found if each.startswith("removed message")]) == 3

    def tells(url: str, ca_file: Path, keep: Keep) -> None:
        with socket.create_connection(("127.0.0.1", port(url))) as connection:
            connection.recv(100)
            connection.sendall(b"USER ann\r\n")
            connection.recv(100)
            connection.sendall(b"PASS tan staaf\r\n")
            connection.recv(100)

    assert try_client(tells, ATTACKS["stls-stripped"]) == ["revealed the password"]


def test_kit_finds_clients_that_hang() -> None:
    def waits(url: str, ca_file: Path, keep: Keep) -> None:
        with socket.create_connection(("127.0.0.1", urlsplit(url).port)) as connection:
            while connection.recv(100):
                pass

    found = try_client(waits, ATTACKS["stls-refused"], patience=0.2)
    assert found == ["did not end within 0.2 s"]
