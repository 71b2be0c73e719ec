"""A task cancelled before its first step runs no ``finally``, but its resources are released.

The event loop may report the end of a connection in the same turn as its last commands, so that
the task that answers them is cancelled before it has begun.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_network
from pathlib import Path

import pytest

from restante.errors import MaildropInUse
from restante.maildrop import Maildrop
from restante.server.address import Address
from restante.server.admission import Admission
from restante.server.binding import bind
from restante.server.listener import Listener
from restante.server.pop3 import Connection
from restante.store.memory import MemoryStore
from restante.tls import server_context

from ..support import Run, Server, once, serving, sizes, until


async def logged_in(server: Server) -> tuple[asyncio.StreamWriter, Connection]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"USER mrose\r\nPASS tan staaf\r\n")
    for _ in range(3):
        assert (await reader.readline()).startswith(b"+OK")
    [connection] = server.service.connections
    assert isinstance(connection, Connection)
    return writer, connection


def is_lost(connection: Connection) -> None:
    transport = connection._transport
    connection.connection_lost(None)
    transport.abort()


def is_aborted(connection: Connection) -> None:
    connection.abort("stopped", is_forced=True)
    connection.connection_lost(None)


@pytest.mark.parametrize("in_tls", [False, True])
@pytest.mark.parametrize("end", ["drain", "eof_received"])
def test_closing_a_transport_that_is_closed_is_not_a_bug(
    run: Run[None],
    in_tls: bool,
    end: str,
    server_tls: ssl.SSLContext,
    client_tls: ssl.SSLContext,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """asyncio forgets a TLS connection that is closed twice; then the journal had no record of the
    session."""

    async def main() -> None:
        tls, client_side = (server_tls, client_tls) if in_tls else (None, None)
        async with (
            serving(MemoryStore(), tls=tls, implicit=in_tls) as server,
            server.client(client_side) as client,
        ):
            await client.log_in()
            [connection] = server.service.connections
            assert isinstance(connection, Connection)
            connection._transport.abort()  # ``connection_lost`` comes in the next turn
            getattr(connection, end)()
            assert connection._tls_version()
            await until(lambda: not server.service.connections)

    run(main())
    assert not [each for each in caplog.records if each.exc_info]


class SlowToClose(MemoryStore):
    """Keeps the lock of a maildrop until ``may_close`` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.may_close = asyncio.Event()

    @asynccontextmanager
    async def open(self, user: str) -> AsyncIterator[Maildrop]:
        async with super().open(user) as maildrop:
            yield maildrop
            await self.may_close.wait()


@pytest.mark.parametrize(
    "end", [is_lost, is_aborted, lambda connection: connection.data_received(b"NOOP\n")]
)
def test_session_ends_when_its_lock_is_free(
    run: Run[None], end: Callable[[Connection], None]
) -> None:
    """A drain must not return before that: the server that comes next needs the lock."""

    async def main() -> None:
        store = SlowToClose()
        async with serving(store) as server:
            writer, connection = await logged_in(server)
            end(connection)
            await until(lambda: connection._is_lost)
            draining = asyncio.create_task(server.service.drain(10))
            for _ in range(10):
                await asyncio.sleep(0)
            assert server.service.connections == {connection}
            assert not draining.done()
            store.may_close.set()
            await draining
            assert await sizes(store) == []
            writer.transport.abort()

    run(main())


@pytest.mark.parametrize("end", [is_lost, is_aborted])
@pytest.mark.parametrize(
    "commands",
    [b"RETR 1\r\n", b"RETR 1\r\nRETR 2\r\n", b"TOP 1 0\r\n", b"DELE 1\r\nRETR 2\r\n"],
)
def test_client_lost_during_a_command_leaves_no_lock(
    run: Run[None], commands: bytes, end: Callable[[Connection], None]
) -> None:
    async def main() -> None:
        store = MemoryStore()
        for _ in range(2):
            await store.deliver("mrose", once(b"x\r\n"))
        async with serving(store) as server:
            writer, connection = await logged_in(server)
            with pytest.raises(MaildropInUse):
                await sizes(store)
            connection.data_received(commands)
            end(connection)
            await until(lambda: not server.service.connections)
            assert await sizes(store) == [3, 3]  # marked messages are still there
            writer.transport.abort()

    run(main())


def test_quit_received_with_the_disconnect_is_executed(run: Run[None]) -> None:
    """The client did send QUIT, so this is UPDATE (RFC 1939 §6)."""

    async def main() -> None:
        store = MemoryStore()
        await store.deliver("mrose", once(b"x\r\n"))
        async with serving(store) as server:
            writer, connection = await logged_in(server)
            connection.data_received(b"DELE 1\r\nQUIT\r\n")
            is_lost(connection)
            await until(lambda: not server.service.connections)
            assert await sizes(store) == []
            writer.transport.abort()

    run(main())


def listening(
    admission: Admission, certificate: tuple[Path, Path], *, behind_proxy: bool
) -> tuple[Listener, int]:
    listens = bind(Address("pop3s", "127.0.0.1", 0))
    listener = Listener(
        listens,
        lambda *_: pytest.fail("no connection is handed over"),
        admission,
        name="pop3s",
        tls=server_context(*certificate),
        proxy_from=(ip_network("127.0.0.0/8"),) if behind_proxy else (),
    )
    return listener, int(listens.getsockname()[1])


@pytest.mark.parametrize("behind_proxy", [False, True])
def test_closing_a_listener_releases_new_connections(
    run: Run[None], certificate: tuple[Path, Path], behind_proxy: bool
) -> None:
    """Its socket is closed, and its slot is free."""

    async def main() -> None:
        admission = Admission(1, 1)
        listener, port = listening(admission, certificate, behind_proxy=behind_proxy)
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.setblocking(False)
            listener._accept()
            listener.close()
            assert await asyncio.get_running_loop().sock_recv(client, 1) == b""
        assert admission.admit("127.0.0.1")

    run(main())


def test_new_connection_may_evict_one_in_its_handshake(
    run: Run[None], certificate: tuple[Path, Path]
) -> None:
    async def main() -> None:
        admission = Admission(1, 1)
        listener, port = listening(admission, certificate, behind_proxy=False)
        with socket.create_connection(("127.0.0.1", port)) as first:
            first.setblocking(False)
            listener._accept()
            assert admission.admit("127.0.0.1")
            assert await asyncio.get_running_loop().sock_recv(first, 1) == b""
        listener.close()
        assert admission.admit("127.0.0.1") is None  # released once, not twice

    run(main())
