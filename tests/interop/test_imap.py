"""Collecting into a folder of Dovecot's IMAP server: unchanged, and once even after kills."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

import imapclient
import pytest

from restante.client.asynchronous import Client
from restante.collect.account_ledger import AccountLedger
from restante.collect.collector import Outcome, collect
from restante.collect.destinations.opening import open_destination
from restante.collect.ledger import Ledger
from restante.collect.plan import Policy
from restante.tls import client_context

from ..collect.shelf import account
from ..collect.test_killed import Death, remote_server
from ..support import once, sizes
from .dovecot import USER, Dovecot, dovecot
from .test_clients import MESSAGES

pytestmark = pytest.mark.interop

WORDS = ("one", "two", "three")
STEPS: tuple[tuple[Any, str], ...] = (
    (imapclient.IMAPClient, "append"),
    (imapclient.IMAPClient, "search"),
    (AccountLedger, "record_login"),
    (AccountLedger, "intend"),
    (AccountLedger, "took"),
    (AccountLedger, "gone"),
    (Client, "delete"),
    (Client, "quit"),
)


@pytest.fixture(scope="module")
def server() -> Iterator[Dovecot]:
    with dovecot() as running:
        yield running


def place(server: Dovecot, folder: str) -> str:
    return f"imaps://{USER}@localhost:{server.ports['imaps']}/{folder}"


def stored(server: Dovecot, folder: str) -> list[bytes]:
    """Return the messages without our mark, which is the first line."""
    context = client_context(server.ca)
    port = server.ports["imaps"]
    with imapclient.IMAPClient("localhost", port, ssl_context=context) as client:
        client.login(USER, server.password)
        client.select_folder(folder, readonly=True)
        found = client.fetch(client.search(), ["BODY.PEEK[]"])
        texts = [row[b"BODY[]"] for row in found.values()]
    assert all(each.startswith(b"X-Restante: ") for each in texts)
    return sorted(each.split(b"\r\n", 1)[1] for each in texts)


@pytest.mark.parametrize("message", MESSAGES)
def test_every_octet_arrives(message: bytes, server: Dovecot) -> None:
    """Except that bare CR and LF become line ends, and that Dovecot cannot store NUL."""
    wanted = message.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\r\n")
    folder = f"one-{MESSAGES.index(message)}"
    with closing(
        open_destination(place(server, folder), password=lambda: server.password, ca_file=server.ca)
    ) as destination:
        destination.begin("any")
        destination.write(message)
        destination.commit()
        assert destination.has("any")
        assert not destination.has("another")
    assert stored(server, folder) == [wanted.replace(b"\0", b"\x80")]


def test_killed_at_every_step(
    server: Dovecot,
    tmp_path: Path,
    certificate: tuple[Path, Path],
    server_tls: Any,
) -> None:
    text = {word: f"Subject: {word}\r\n\r\n{word}\r\n".encode() for word in WORDS}

    def run(port: int, at: Path) -> Outcome:
        with (
            closing(Ledger(at / "ledger")) as ledger,
            closing(
                open_destination(
                    place(server, at.name), password=lambda: server.password, ca_file=server.ca
                )
            ) as destination,
        ):
            isp = account(port, certificate[0], Policy(keep=0.0))
            return asyncio.run(collect(isp, ledger, destination))

    with remote_server(tmp_path, server_tls) as (store, port):

        async def fill() -> None:
            for octets in text.values():
                await store.deliver("mrose", once(octets))

        for moment in count():
            asyncio.run(fill())
            at = tmp_path / f"at-{moment}"
            at.mkdir()
            child = os.fork()
            if child == 0:
                Death(moment).stalk(STEPS)
                run(port, at)
                os._exit(0)
            status = os.waitpid(child, 0)[1]
            assert run(port, at).in_doubt == 0
            assert stored(server, at.name) == sorted(text.values()), f"killed at moment {moment}"
            assert asyncio.run(sizes(store)) == [], f"killed at moment {moment}"
            if status == 0:
                break
            assert os.WTERMSIG(status) == signal.SIGKILL
        assert moment == 2 * (len(WORDS) + 6)
