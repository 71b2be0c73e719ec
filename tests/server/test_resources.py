"""The live server when resources run out: descriptors, memory, slots."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import socket
import ssl
import subprocess
from collections.abc import AsyncGenerator, AsyncIterator, Collection
from contextlib import asynccontextmanager

import pytest

from restante.maildrop import Entry, Maildrop
from restante.server import listener
from restante.store.memory import MemoryStore

from ..support import Client, Run, once, serving, sizes

MESSAGE = b"Subject: x\r\n\r\nhello\r\n"


async def filled(*messages: bytes) -> MemoryStore:
    store = MemoryStore()
    for message in messages:
        await store.deliver("mrose", once(message))
    return store


def test_storm_of_connections_leaks_nothing(run: Run[None]) -> None:
    """Many clients connect and vanish: every slot is released."""

    async def main() -> None:
        async with serving(MemoryStore(), per_address=1000) as server:
            for _ in range(30):
                storm = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(15)]
                for each in storm:
                    each.close()
                await asyncio.sleep(0)
            async with server.client() as last, asyncio.timeout(10):
                while len(server.service.connections) > 1:
                    await last.ask(b"CAPA")
                assert server.listener._admission._tally.total() == 1

    run(main())


def test_accepting_pauses_while_no_descriptor_is_free(
    run: Run[None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """EMFILE: one log line and no busy loop; queued connections are served afterwards."""
    monkeypatch.setattr(listener, "_PAUSE", 0.2)

    async def main() -> None:
        async with serving(MemoryStore()) as server:
            waiting = socket.socket()
            waiting.setblocking(False)
            before = resource.getrlimit(resource.RLIMIT_NOFILE)
            full = max(map(int, os.listdir("/proc/self/fd")))
            spare = [os.dup(0) for _ in range(full)]  # no gap is left below the limit
            try:
                resource.setrlimit(resource.RLIMIT_NOFILE, (max(spare) + 1, before[1]))
                with pytest.raises(BlockingIOError):
                    waiting.connect(("127.0.0.1", server.port))
                await asyncio.sleep(0.3)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, before)
                for each in spare:
                    os.close(each)
            reader, writer = await asyncio.open_connection(sock=waiting)
            assert (await Client(reader, writer).line()).startswith(b"+OK")
            writer.transport.abort()

    with caplog.at_level(logging.ERROR):
        run(main())
    paused = [record for record in caplog.records if record.message == "accept paused"]
    assert 1 <= len(paused) <= 3


class Exhausted:
    """A store whose messages raise MemoryError."""

    def __init__(self, store: MemoryStore) -> None:
        self.store = store
        self.deliver = store.deliver

    @asynccontextmanager
    async def open(self, user: str) -> AsyncIterator[Maildrop]:
        async with self.store.open(user) as maildrop:
            yield ExhaustedMaildrop(maildrop)


class ExhaustedMaildrop:
    def __init__(self, maildrop: Maildrop) -> None:
        self.listing = maildrop.listing
        self._maildrop = maildrop

    async def read(self, entry: Entry) -> AsyncGenerator[bytes, None]:
        yield MESSAGE[:5]
        raise MemoryError

    async def remove(self, entries: Collection[Entry]) -> Collection[Entry]:
        return await self._maildrop.remove(entries)


def test_memory_error_ends_only_its_session(run: Run[None]) -> None:
    """It ends without the termination octet and without UPDATE, and the lock is free."""

    async def main() -> None:
        store = await filled(MESSAGE, MESSAGE)
        async with serving(Exhausted(store)) as server, server.client() as other:
            async with server.client() as client:
                await client.log_in()
                client.send(b"DELE 2\r\nRETR 1\r\nDELE 1\r\nQUIT\r\n")
                assert b"\r\n.\r\n" not in await client.rest()
            await other.log_in()
        assert await sizes(store) == [len(MESSAGE)] * 2

    run(main())


def test_a_thousand_listings_in_one_session(run: Run[None]) -> None:
    """Each is complete, also when all are requested at once."""

    async def main() -> None:
        store = await filled(*[MESSAGE] * 50)
        async with serving(store) as server, server.client() as client:
            await client.log_in()
            client.send(b"UIDL\r\n" * 1000 + b"QUIT\r\n")
            said = await client.rest()
        assert said.count(b"\r\n.\r\n") == 1000
        assert said.count(b"\r\n50 m50\r\n") == 1000

    run(main())


@pytest.mark.interop
def test_the_client_cannot_renegotiate(run: Run[None], server_tls: ssl.SSLContext) -> None:
    """In TLS 1.2 clients could request costly new handshakes any number of times."""

    async def main() -> None:
        async with serving(MemoryStore(), tls=server_tls, implicit=True) as server:
            command = ["openssl", "s_client", "-tls1_2", "-connect", f"127.0.0.1:{server.port}"]
            client = await asyncio.create_subprocess_exec(
                *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
            assert client.stdin is not None
            assert client.stdout is not None
            async with asyncio.timeout(10):
                await client.stdout.readuntil(b"+OK")
                client.stdin.write(b"R\n")  # "renegotiate", to s_client
                reported = await client.stdout.read()
                await client.wait()
            assert b"RENEGOTIATING" in reported
            assert b"no renegotiation" in reported
            await asyncio.sleep(0)

    run(main())
