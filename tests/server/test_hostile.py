"""The live server with hostile peers: they are disconnected, and others are not affected."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import ssl
from contextlib import suppress
from pathlib import Path

import pytest

from restante.pop3.session import Policy
from restante.server.connection import Timeouts
from restante.store.memory import MemoryStore

from ..support import Client, Run, Server, once, serving, sizes, until

SHORT = Timeouts(login=0.3, handshake=0.2, progress=0.2)
HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"


async def serves(server: Server, tls: ssl.SSLContext | None) -> None:
    async with server.client(tls) as client:
        assert (await client.ask(b"NOOP")).startswith(b"-ERR")
        await client.log_in()


@pytest.mark.parametrize(
    "octets",
    [
        b"\0" * 100,
        b"\x17\x03\x03\xff\xff" + b"x" * 70_000,
        b"\x15\x03\x03\x00\x02\x01\x5a" * 1000,
        b"\x16\x03\x01\x00\x00" * 65_536,
        HELLO + b"\xff" * 600,
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"SSH-2.0-x\r\n",
        b"\x80\x2e\x01\x00\x02",
    ],
    ids=["zeros", "record", "alerts", "empty", "hello", "http", "ssh", "ssl2"],
)
@pytest.mark.rfc("N-07")
def test_garbage_in_place_of_a_handshake_is_refused(
    octets: bytes, run: Run[None], server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    """CVE-2015-3420: a failed handshake ends only its own connection."""

    async def main() -> None:
        async with serving(MemoryStore(), tls=server_tls, implicit=True, timeouts=SHORT) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(octets)
            assert b"OK" not in await Client(reader, writer).rest()
            writer.transport.abort()
            await serves(server, client_tls)

    run(main())


def test_slow_handshake_times_out(run: Run[None], server_tls: ssl.SSLContext) -> None:
    """CVE-2011-1947 at the server: slow octets do not extend the deadline."""

    async def main() -> None:
        async with serving(MemoryStore(), tls=server_tls, implicit=True, timeouts=SHORT) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            heard = asyncio.create_task(Client(reader, writer).rest())
            for octet in HELLO * 60:
                if heard.done():
                    break
                writer.write(bytes([octet]))
                await asyncio.wait([heard], timeout=0.02)
            assert await heard == b""
            writer.transport.abort()

    run(main())


def test_endless_handshakes_use_slots_of_their_source_only(
    run: Run[None], server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    """A flood of handshakes is bounded before they cost anything: by slots and a deadline.

    Silent connections must not keep active ones out: the oldest is evicted for a new one of the
    same source.
    """

    async def main() -> None:
        async with serving(
            MemoryStore(), tls=server_tls, implicit=True, timeouts=SHORT, per_address=3
        ) as server:
            silent = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(3)]
            one_more = await asyncio.open_connection("127.0.0.1", server.port)
            reader, writer = silent.pop(0)
            assert await Client(reader, writer).rest() == b""
            writer.transport.abort()
            assert server.listener._admission._tally.count("127.0.0.1") == 3
            other = socket.socket()
            with other:
                other.bind(("127.0.0.2", 0))
                other.setblocking(False)
                await asyncio.get_running_loop().sock_connect(other, ("127.0.0.1", server.port))
                reader, writer = await asyncio.open_connection(
                    sock=other, ssl=client_tls, server_hostname="localhost"
                )
                assert (await Client(reader, writer).line()).startswith(b"+OK")
                writer.transport.abort()
            for connection in (*silent, one_more):
                assert await Client(*connection).rest() == b""  # the deadline
            for _, writer in (*silent, one_more):
                writer.transport.abort()
            await serves(server, client_tls)

    run(main())


@pytest.mark.parametrize("last", [b"DELE 1\r\nQUIT", b"DELE 1\r\nQUIT\r", b"DELE 1\r\nQU"])
@pytest.mark.rfc("N-06")
def test_incomplete_command_is_not_run(
    last: bytes, run: Run[None], server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    """Neither without nor inside TLS, with close_notify or without."""

    async def main(implicit: bool, politely: bool) -> None:
        store = MemoryStore()
        await store.deliver("mrose", once(b"Subject: x\r\n\r\n"))
        async with (
            serving(store, tls=server_tls, implicit=implicit) as server,
            server.client(client_tls if implicit else None) as client,
        ):
            await client.log_in()
            client.send(last)
            assert (await client.line()).startswith(b"+OK")
            if politely:
                client.writer.close()
            else:
                client.writer.transport.abort()
            await until(lambda: not server.service.connections)
        assert await sizes(store) == [14]

    for implicit in (False, True):
        for politely in (False, True):
            run(main(implicit, politely))


def test_unread_answers_to_a_flood_of_commands_are_bounded(run: Run[None]) -> None:
    async def main() -> None:
        async with serving(MemoryStore(), timeouts=SHORT) as server, server.client() as client:
            await client.log_in()
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            client.send(b"CAPA\r\n" * 100_000)
            (connection,) = server.service.connections
            most = 0
            async with asyncio.timeout(10):
                while server.service.connections:
                    if not connection._is_lost:
                        waiting = connection._transport.get_write_buffer_size()
                        most = max(most, waiting, connection._session.unread)
                    await asyncio.sleep(0.005)
            assert most < 600_000

    run(main())


@pytest.mark.parametrize("offered", [None, "pop3", "x-unknown"])
@pytest.mark.rfc("P-136")
def test_clients_with_and_without_alpn_are_served(
    offered: str | None, run: Run[None], server_tls: ssl.SSLContext, certificate: tuple[str, str]
) -> None:
    """RFC 9325 §3.8: "pop3" is chosen when it is offered; most clients offer nothing."""
    client_tls = ssl.create_default_context(cafile=certificate[0])
    if offered:
        client_tls.set_alpn_protocols([offered, "h2", "pop3"])

    async def main() -> None:
        async with (
            serving(MemoryStore(), tls=server_tls, implicit=True) as server,
            server.client(client_tls) as client,
        ):
            chosen = client.writer.get_extra_info("ssl_object").selected_alpn_protocol()
            assert chosen == ("pop3" if offered else None)
            await client.log_in()

    run(main())


@pytest.mark.parametrize("offered", [["h2", "http/1.1"], ["imap"], ["ftp", "x-unknown"]])
@pytest.mark.parametrize("is_implicit", [True, False])
@pytest.mark.rfc("P-136")
def test_foreign_alpn_gets_no_response(
    offered: list[str],
    is_implicit: bool,
    run: Run[None],
    server_tls: ssl.SSLContext,
    certificate: tuple[str, str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """ALPACA: a browser that was redirected here gets no octet to display (RFC 7301 §3.2)."""
    browser = ssl.create_default_context(cafile=certificate[0])
    browser.set_alpn_protocols(offered)
    caplog.set_level(logging.INFO)

    async def main() -> None:
        async with serving(MemoryStore(), tls=server_tls, implicit=is_implicit) as server:
            streams = await asyncio.open_connection(
                "localhost", server.port, ssl=browser if is_implicit else None
            )
            client = Client(*streams)
            if not is_implicit:
                await client.line()
                assert (await client.ask(b"STLS")).startswith(b"+OK")
                await client.writer.start_tls(browser, server_hostname="localhost")
            client.send(b"GET /?<script>XYZZY</script> HTTP/1.1\r\nHost: localhost\r\n\r\n")
            with suppress(ConnectionResetError):
                assert await client.rest() == b""
            client.writer.close()

    run(main())
    reasons = [r.__dict__["fields"]["reason"] for r in caplog.records if r.message == "tls refused"]
    assert set(reasons) == {"no-application-protocol"}


def _contexts() -> int:
    """Return TLS contexts in memory."""
    gc.collect()
    return sum(isinstance(each, ssl.SSLContext) for each in gc.get_objects())


@pytest.mark.slow
def test_any_server_name_is_accepted_and_not_stored(
    run: Run[None], server_tls: ssl.SSLContext, certificate: tuple[str, str]
) -> None:
    """CVE-2017-15130: there is one certificate, and names are not stored."""
    client_tls = ssl.create_default_context(cafile=certificate[0])
    client_tls.check_hostname = False
    own = ssl.PEM_cert_to_DER_cert(Path(certificate[0]).read_text())

    async def main() -> None:
        async with serving(MemoryStore(), tls=server_tls, implicit=True) as server:
            shown, contexts = set(), _contexts()
            for at in range(20):
                _, writer = await asyncio.open_connection(
                    "127.0.0.1", server.port, ssl=client_tls, server_hostname=f"n{at}.example"
                )
                shown.add(writer.get_extra_info("ssl_object").getpeercert(binary_form=True))
                writer.transport.abort()
            await until(lambda: not server.service.connections)
            assert shown == {own}
            assert _contexts() == contexts

    run(main())


@pytest.mark.rfc("P-121", "N-07")
def test_octets_before_the_handshake_abort_it(run: Run[None], server_tls: ssl.SSLContext) -> None:
    """CVE-2021-38542: its first fix checked only one of two buffers."""

    async def main() -> None:
        async with serving(MemoryStore(), tls=server_tls) as server, server.client() as client:
            (connection,) = server.service.connections
            connection.data_received(b"STLS\r\n")
            connection.data_received(b"USER mrose\r\n")
            assert (await client.rest()).count(b"+OK") <= 1
            assert connection._is_lost

    run(main())


# -- No connection occupies the event loop.


@pytest.mark.parametrize("is_known", [False, True])
@pytest.mark.parametrize("is_tls", [False, True])
def test_pipelined_commands_take_turns_with_other_connections(
    is_known: bool,
    is_tls: bool,
    run: Run[None],
    server_tls: ssl.SSLContext,
    client_tls: ssl.SSLContext,
) -> None:
    """Another client is answered while most of the pipelined commands still wait."""
    count = 10_000

    async def main() -> None:
        store = MemoryStore()
        policy = Policy(commands_before_login=10**6)
        tls, trust = (server_tls, client_tls) if is_tls else (None, None)
        async with (
            serving(store, tls=tls, implicit=is_tls, policy=policy) as server,
            server.client(trust) as greedy,
            server.client(trust) as other,
        ):
            if is_known:
                await greedy.log_in()
            answered, has_begun = 0, asyncio.Event()

            async def read() -> None:
                nonlocal answered
                while answered < count:
                    answered += (await greedy.reader.read(65_536)).count(b"\n")
                    has_begun.set()

            greedy.send((b"NOOP\r\n" if is_known else b"USER x\r\n") * count)
            reading = asyncio.create_task(read())
            await has_begun.wait()
            assert (await other.ask(b"CAPA")).startswith(b"+OK")
            assert answered < count / 2
            await asyncio.wait_for(reading, 60)

    run(main())
