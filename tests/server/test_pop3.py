"""The live server: timing, TLS and faults, which transcripts cannot show."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import ssl
import time
import warnings
from collections.abc import AsyncGenerator, AsyncIterator, Collection
from contextlib import asynccontextmanager
from hashlib import md5
from pathlib import Path
from threading import get_ident
from typing import Any, cast

import pytest

from restante.client.asynchronous import connect
from restante.client.remote import TLS
from restante.errors import (
    LoginFailed,
    MessageGone,
    PermanentFailure,
    RestanteError,
    TemporaryFailure,
)
from restante.maildrop import Entry, Maildrop, SessionRecord, Store
from restante.passdb import Digest, Terms
from restante.pop3.session import Policy
from restante.server.connection import BaseService, Timeouts
from restante.server.login import time_stamp
from restante.server.pop3 import Connection
from restante.store.maildir import MaildirStore
from restante.store.memory import MemoryStore

from ..pop3.core import transcript_core
from ..support import Client, Run, Server, once, serving, sizes, until
from ..transcript import Transcript, check, load
from .test_guessing import Guard

MESSAGE = b"Subject: x\r\n\r\nhello\r\n"
SHORT = Timeouts(login=0.2, idle=0.3, handshake=0.2, progress=0.2)


async def filled(*messages: bytes) -> MemoryStore:
    store = MemoryStore()
    for message in messages:
        await store.deliver("mrose", once(message))
    return store


# The transcripts over real sockets.


@pytest.mark.parametrize("transcript", load("pop3"), ids=lambda t: t.name)
def test_transcript(
    transcript: Transcript, run: Run[None], server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    async def dialogue(server: Server) -> None:
        async with server.client(client_tls if transcript.tls else None) as client:
            client.send(transcript.sent)
            core = transcript_core(transcript)
            expected = core.send(transcript.sent).count(b"\r\n")
            lines = [await client.line() for _ in range(expected)]
            is_closed = core.is_closed and await client.rest() == b""
            check(transcript, lines, is_closed)

    async def main() -> None:
        store = await filled(*transcript.messages)
        async with serving(
            store,
            password=transcript.password,
            policy=transcript.policy,
            tls=server_tls,
            implicit=transcript.tls,
            clear=False,
            time_stamp=(lambda: transcript.time_stamp) if transcript.time_stamp else None,
        ) as server:
            await dialogue(server)
        if transcript.left is not None:
            assert await sizes(store) == transcript.left

    run(main())


# STLS.


async def starts_tls(client: Client, tls: ssl.SSLContext) -> None:
    assert (await client.ask(b"STLS")).startswith(b"+OK")
    await client.writer.start_tls(tls, server_hostname="localhost")


@pytest.mark.rfc("P-120")
def test_stls_discards_state_from_before_tls(
    run: Run[None], server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    """RFC 2595 §4: USER before STLS is discarded, login works in TLS, STLS is offered once."""

    async def main() -> None:
        async with serving(MemoryStore(), tls=server_tls) as server, server.client() as client:
            assert (await client.ask(b"USER mrose")).startswith(b"+OK")
            await starts_tls(client, client_tls)
            assert (await client.ask(b"PASS tan staaf")).startswith(b"-ERR")
            assert (await client.ask(b"STLS")).startswith(b"-ERR")
            await client.log_in()
            assert (await client.ask(b"STLS")).startswith(b"-ERR")

    run(main())


@pytest.mark.parametrize("injected", [b"CAPA\r\n", b"USER mrose\r\n", b"US", b"\r\n"])
@pytest.mark.rfc("P-121", "N-07")
def test_octets_after_stls_end_the_connection(
    injected: bytes, run: Run[None], server_tls: ssl.SSLContext
) -> None:
    """CVE-2011-0411 and many similar ones: they never count as protected by TLS."""

    async def main() -> None:
        async with serving(MemoryStore(), tls=server_tls) as server, server.client() as client:
            client.send(b"STLS\r\n" + injected)
            assert await client.rest() == b""

    run(main())


@pytest.mark.rfc("P-121", "N-07")
def test_octets_between_stls_and_the_handshake_are_never_run(
    run: Run[None], server_tls: ssl.SSLContext
) -> None:
    async def main() -> None:
        async with serving(MemoryStore(), tls=server_tls) as server, server.client() as client:
            assert (await client.ask(b"STLS")).startswith(b"+OK")
            client.send(b"USER mrose\r\nPASS tan staaf\r\nSTAT\r\n")
            assert b"+OK" not in await client.rest()

    run(main())


@pytest.mark.rfc("P-128")
def test_stls_is_refused_without_a_certificate(run: Run[None]) -> None:
    async def main() -> None:
        async with serving(MemoryStore()) as server, server.client() as client:
            assert (await client.ask(b"STLS")).startswith(b"-ERR")

    run(main())


# APOP.


@pytest.mark.rfc("P-040", "P-041")
def test_client_logs_in_with_apop(
    run: Run[None], server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    """The first of each pair has the right password.  A failure counts as a guess."""

    async def main(implicit: bool) -> None:
        stamps: list[str] = []

        def make() -> str:
            stamps.append(time_stamp("mail.example.org"))
            return stamps[-1]

        async with serving(
            MemoryStore(), tls=server_tls, implicit=implicit, time_stamp=make
        ) as server:
            guard = Guard()
            server.service.guard = guard
            scheme = "pop3s" if implicit else "pop3"
            url = f"{scheme}://localhost:{server.port}"
            options: dict[str, Any] = {"user": "mrose", "mechanism": "APOP"}
            options |= {"context": client_tls, "tls": TLS.IMPLICIT if implicit else TLS.NONE}
            async with connect(url, password="tan staaf", **options) as client:
                assert await client.stat() == (0, 0)
            with pytest.raises(LoginFailed) as raised:
                async with connect(url, password="wrong", **options):
                    pass
        assert raised.value.code == "AUTH"
        (shown,) = guard.failures
        assert isinstance(shown, Digest)
        assert (shown.identity, shown.address) == ("mrose", "127.0.0.1")
        assert shown.time_stamp == stamps[1] != stamps[0]
        assert len(guard.successes) == 1

    run(main(True))
    run(main(False))


@pytest.mark.rfc("P-040")
def test_stls_invalidates_the_time_stamp(
    run: Run[None], server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    async def main() -> None:
        async with (
            serving(MemoryStore(), tls=server_tls, time_stamp=lambda: "<a@b>") as server,
            server.client() as client,
        ):
            await starts_tls(client, client_tls)
            digest = md5(b"<a@b>tan staaf").hexdigest().encode()
            assert await client.ask(b"APOP mrose " + digest) == b"-ERR unknown command"
            await client.log_in()

    run(main())


@pytest.mark.rfc("P-040")
def test_time_stamps_are_distinct_message_ids() -> None:
    hosts = ("mail.example.org", "grüße.example", "2001:db8::1", "localhost", "a" * 253)
    made = [time_stamp(host) for host in hosts for _ in range(100)]
    assert len(set(made)) == 500
    for each in made:
        assert re.fullmatch(r"<[0-9a-f]{32}\.[0-9]+@[A-Za-z0-9.-]+>", each)


# TLS first.


@pytest.mark.rfc("P-126", "N-06")
def test_plaintext_on_the_tls_port_gets_no_pop3_response(
    run: Run[None],
    server_tls: ssl.SSLContext,
    client_tls: ssl.SSLContext,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nor is it read if the client closes immediately: CVE-2023-40217."""

    async def main() -> None:
        async with serving(MemoryStore(), tls=server_tls, implicit=True) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            client = Client(reader, writer)
            client.send(b"CAPA\r\n")
            assert b"OK" not in await client.rest()
            writer.close()
            for _ in range(20):
                with socket.create_connection(("127.0.0.1", server.port)) as gone:
                    gone.sendall(b"USER mrose\r\nPASS tan staaf\r\nRETR 1\r\n")
            async with server.client(client_tls) as client:
                client.send(b"NOOP\r\n")
                await until(lambda: bool(heard))

    heard: list[bytes] = []
    monkeypatch.setattr(Connection, "data_received", lambda _, octets: heard.append(octets))
    run(main())
    assert heard == [b"NOOP\r\n"]


@pytest.mark.parametrize("implicit", [True, False])
@pytest.mark.rfc("N-07")
def test_silent_handshake_times_out(
    implicit: bool, run: Run[None], server_tls: ssl.SSLContext
) -> None:
    async def main() -> None:
        async with serving(
            MemoryStore(), tls=server_tls, implicit=implicit, timeouts=SHORT
        ) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            client = Client(reader, writer)
            if not implicit:
                await client.line()
                await client.ask(b"STLS")
            assert await client.rest() == b""
            writer.close()

    run(main())


def test_stop_does_not_wait_for_handshakes(run: Run[None], server_tls: ssl.SSLContext) -> None:
    async def main() -> None:
        async with serving(MemoryStore(), tls=server_tls) as server, server.client() as client:
            assert (await client.ask(b"STLS")).startswith(b"+OK")
            async with asyncio.timeout(5):
                await server.service.drain(0.01)
            assert await client.rest() == b""

    run(main())


@pytest.mark.rfc("P-127")
def test_old_tls_is_refused(
    run: Run[None], server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    """RFC 8997: nothing below TLS 1.2."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that is the point
        client_tls.minimum_version = ssl.TLSVersion.TLSv1
        client_tls.maximum_version = ssl.TLSVersion.TLSv1_1
    client_tls.set_ciphers("ALL:@SECLEVEL=0")

    async def main() -> None:
        async with serving(MemoryStore(), tls=server_tls, implicit=True) as server:
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await asyncio.open_connection(
                    "127.0.0.1", server.port, ssl=client_tls, server_hostname="localhost"
                )

    run(main())


# The lock.


@pytest.mark.rfc("P-035", "P-036", "P-083", "N-08")
def test_second_session_is_refused_immediately(run: Run[None]) -> None:
    """RFC 2449 §8.1.2: [IN-USE]; the client stays in AUTHORIZATION and may try again."""

    async def main() -> None:
        async with (
            serving(await filled(MESSAGE)) as server,
            server.client() as first,
            server.client() as second,
        ):
            await first.log_in()
            await second.ask(b"USER mrose")
            assert (await second.ask(b"PASS tan staaf")).startswith(b"-ERR [IN-USE] ")
            assert await first.ask(b"STAT") == b"+OK 1 21"
            await first.ask(b"QUIT")
            await second.log_in()  # the lock is free before QUIT is answered

    run(main())


@pytest.mark.rfc("P-117", "N-08")
def test_dropped_connection_releases_the_lock_and_removes_nothing(run: Run[None]) -> None:
    async def main() -> None:
        store = await filled(MESSAGE, MESSAGE)
        async with serving(store) as server:
            async with server.client() as client:
                await client.log_in()
                await client.ask(b"DELE 1")
            await server.service.drain(5)
            assert await sizes(store) == [21, 21]

    run(main())


# Faults of the store.


class Troubled:
    """A store whose maildrops fail where a test chooses."""

    def __init__(self, store: Store, *, read: object = None, left: int = 0) -> None:
        self.store = store
        self.deliver = store.deliver
        self._read = read
        self._left = left

    @asynccontextmanager
    async def open(self, user: str) -> AsyncIterator[Maildrop]:
        async with self.store.open(user) as maildrop:
            yield TroubledMaildrop(maildrop, self._read, self._left)


class TroubledMaildrop:
    def __init__(self, maildrop: Maildrop, read: object, left: int) -> None:
        self.listing = maildrop.listing
        self._maildrop = maildrop
        self._trouble = read
        self._left = left

    async def read(self, entry: Entry) -> AsyncGenerator[bytes, None]:
        if isinstance(self._trouble, bytes):
            yield self._trouble
        elif self._trouble == "at once":
            raise MessageGone
        elif self._trouble == "half-way":
            yield MESSAGE[:12]
            raise TemporaryFailure("disk error")

    async def remove(self, entries: Collection[Entry]) -> Collection[Entry]:
        if self._left < 0:
            raise TemporaryFailure("disk full")
        return list(entries)[: self._left]


@pytest.mark.rfc("P-110")
def test_missing_message_is_one_error(run: Run[None]) -> None:
    async def main() -> None:
        store = Troubled(await filled(MESSAGE), read="at once")
        async with serving(store) as server, server.client() as client:
            await client.log_in()
            assert (await client.ask(b"RETR 1")).startswith(b"-ERR [SYS/TEMP] ")
            assert await client.ask(b"STAT") == b"+OK 1 21"

    run(main())


@pytest.mark.parametrize(
    "trouble", ["half-way", MESSAGE[:-3], MESSAGE + b"more\r\n", b"", MESSAGE[:-2] + b"!\r\n"]
)
@pytest.mark.rfc("P-025")
def test_truncated_message_never_gets_final_dot(trouble: object, run: Run[None]) -> None:
    """Dovecot closes such a message with the termination octet, and mail is lost."""

    async def main() -> None:
        store = Troubled(await filled(MESSAGE), read=trouble)
        async with serving(store) as server, server.client() as client:
            await client.log_in()
            client.send(b"RETR 1\r\nDELE 1\r\nQUIT\r\n")
            assert b"\r\n.\r\n" not in await client.rest()
        assert await sizes(store) == [21]

    run(main())


@pytest.mark.parametrize(("left", "words"), [(2, b"2 deleted messages not removed"), (-1, b"disk")])
@pytest.mark.rfc("P-083", "P-115", "P-116")
def test_quit_reports_messages_that_were_not_removed(
    left: int, words: bytes, run: Run[None]
) -> None:
    """RFC 1939 §6: -ERR, but the connection is closed too."""

    async def main() -> None:
        store = Troubled(await filled(MESSAGE, MESSAGE, MESSAGE), left=left)
        async with serving(store) as server, server.client() as client:
            await client.log_in()
            client.send(b"DELE 1\r\nDELE 2\r\nQUIT\r\n")
            said = await client.rest()
            assert said.splitlines()[-1].startswith(b"-ERR [SYS/TEMP] " + words)

    run(main())


class Slow:
    """A store that waits for the test in ``remove`` and before it releases the lock."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.deliver = store.deliver
        self.steps = {name: (asyncio.Event(), asyncio.Event()) for name in ("remove", "leave")}

    @asynccontextmanager
    async def open(self, user: str) -> AsyncIterator[Maildrop]:
        async with self.store.open(user) as maildrop:
            yield SlowMaildrop(self, maildrop)
            await self.wait("leave")

    async def wait(self, name: str) -> None:
        begun, may_end = self.steps[name]
        begun.set()
        await may_end.wait()


class SlowMaildrop:
    def __init__(self, store: Slow, maildrop: Maildrop) -> None:
        self.listing, self.read = maildrop.listing, maildrop.read
        self._store, self._maildrop = store, maildrop

    async def remove(self, entries: Collection[Entry]) -> Collection[Entry]:
        await self._store.wait("remove")
        return await self._maildrop.remove(entries)


@pytest.mark.rfc("P-115")
def test_quit_is_answered_after_all_is_removed_and_the_lock_is_released(run: Run[None]) -> None:
    """Some servers answer first and remove later, or never."""

    async def main() -> None:
        memory = await filled(MESSAGE, MESSAGE)
        store, early = Slow(memory), []
        async with serving(store) as server, server.client() as client:
            await client.log_in()
            assert (await client.ask(b"DELE 1")).startswith(b"+OK")
            client.send(b"QUIT\r\n")
            for begun, may_end in store.steps.values():
                await begun.wait()
                await asyncio.sleep(0.01)  # an early answer would have arrived by now
                early.append(bytes(client.reader._buffer))  # type: ignore[attr-defined]
                may_end.set()
            assert early == [b"", b""]
            assert (await client.line()).startswith(b"+OK")
            assert await sizes(memory) == [len(MESSAGE)]

    run(main())


@pytest.mark.parametrize("step", ["", "remove", "leave"])
def test_operator_ends_a_session_but_not_a_removal(step: str, run: Run[None]) -> None:
    """A client that has sent QUIT gets the result, and before QUIT nothing is removed."""

    async def main() -> None:
        memory = await filled(MESSAGE, MESSAGE)
        store, ended = Slow(memory), list[bool]()
        async with serving(store) as server, server.client() as client:
            await client.log_in()
            assert (await client.ask(b"DELE 1")).startswith(b"+OK")
            [connection] = server.service.connections
            if not step:
                assert connection.end()
                store.steps["leave"][1].set()
                assert await client.rest() == b""
                assert await sizes(memory) == 2 * [len(MESSAGE)]
                return
            client.send(b"QUIT\r\n")
            for name, (begun, may_end) in store.steps.items():
                await begun.wait()
                ended += [connection.end() for _ in range(3 * (name == step))]
                may_end.set()
            assert ended == 3 * [False]
            assert (await client.line()).startswith(b"+OK")
            assert await sizes(memory) == [len(MESSAGE)]

    run(main())


@pytest.mark.rfc("P-119")
def test_tls_ends_with_close_notify(
    run: Run[None], server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    """RFC 8314 §3.4: without it clients report an error."""

    def quits(port: int) -> bytes:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=10) as raw,
            client_tls.wrap_socket(
                raw, server_hostname="localhost", suppress_ragged_eofs=False
            ) as client,
        ):
            client.sendall(b"QUIT\r\n")
            return b"".join(iter(lambda: client.recv(4096), b""))

    async def main() -> None:
        async with serving(MemoryStore(), tls=server_tls, implicit=True) as server:
            assert b"+OK" in await asyncio.to_thread(quits, server.port)

    run(main())


# Timeouts, slow clients and limits.


@pytest.mark.rfc("P-016")
def test_autologout_sends_and_removes_nothing(run: Run[None]) -> None:
    """RFC 1939 §3."""

    async def main() -> None:
        store = await filled(MESSAGE)
        async with serving(store, timeouts=SHORT) as server, server.client() as client:
            await client.log_in()
            await client.ask(b"DELE 1")
            assert await client.rest() == b""
        assert await sizes(store) == [21]

    run(main())


@pytest.mark.rfc("P-017")
def test_connection_without_a_login_times_out(run: Run[None]) -> None:
    async def main() -> None:
        async with serving(MemoryStore(), timeouts=SHORT) as server, server.client() as client:
            await client.ask(b"CAPA")
            assert (await client.rest()).endswith(b".\r\n")

    run(main())


@pytest.mark.rfc("P-091")
def test_client_that_stops_reading_is_disconnected(run: Run[None]) -> None:
    """The output and the unread input of one connection stay bounded."""
    big = b"Subject: big\r\n\r\n" + (b"x" * 998 + b"\r\n") * 20_000

    async def main() -> None:
        store = await filled(big)
        async with serving(store, timeouts=SHORT) as server, server.client() as client:
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            client.send(b"USER mrose\r\nPASS tan staaf\r\n" + b"RETR 1\r\n" * 20_000)
            (connection,) = server.service.connections
            most = 0
            async with asyncio.timeout(10):
                while server.service.connections:
                    if not connection._is_lost:
                        waiting = connection._transport.get_write_buffer_size()
                        most = max(most, waiting, connection._session.unread)
                    await asyncio.sleep(0.005)
            assert 0 < most < 600_000
        assert await sizes(store) == [len(big)]  # and the lock is free

    run(main())


def test_a_slow_reader_gets_everything(run: Run[None]) -> None:
    big = b"Subject: big\r\n\r\n" + (b".dots\r\n" + b"x" * 700 + b"\r\n") * 20_000

    async def main() -> None:
        async with serving(await filled(big)) as server, server.client() as client:
            await client.log_in()
            client.send(b"RETR 1\r\nQUIT\r\n")
            said = await client.rest()
            head, _, body = said.partition(b"\r\n")
            assert head == b"+OK %d octets" % len(big)
            assert body.startswith(big.replace(b"\r\n.", b"\r\n..") + b".\r\n+OK")

    run(main())


def test_half_closed_clients_get_their_responses(run: Run[None]) -> None:
    async def main() -> None:
        store = await filled(MESSAGE, MESSAGE)
        async with serving(store) as server, server.client() as client:
            client.send(b"USER mrose\r\nPASS tan staaf\r\nRETR 2\r\nDELE 1\r\nQUIT\r\n")
            client.writer.write_eof()
            assert (await client.rest()).count(b"+OK") == 5
        assert await sizes(store) == [21]

    run(main())


def test_connections_from_one_source_are_counted(run: Run[None]) -> None:
    async def main() -> None:
        async with serving(MemoryStore(), per_address=1) as server:
            async with server.client() as first:
                await first.log_in()
                reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
                client = Client(reader, writer)
                assert (await client.rest()).startswith(b"-ERR [SYS/TEMP] ")
                writer.close()
            await server.service.drain(5)
            async with server.client():
                pass

    run(main())


@pytest.mark.rfc("P-117")
def test_stop_lets_busy_sessions_finish_without_update(run: Run[None]) -> None:
    big = b"Subject: big\r\n\r\n" + (b"x" * 998 + b"\r\n") * 10_000

    async def main() -> None:
        store = await filled(big, MESSAGE)
        async with serving(store) as server, server.client() as busy, server.client() as idle:
            await busy.log_in()
            busy.send(b"DELE 2\r\nRETR 1\r\n")
            await busy.line()
            server.listener.close()
            stop = asyncio.create_task(server.service.drain(10))
            assert await idle.rest() == b""
            assert (await busy.rest()).endswith(b"\r\n.\r\n")
            await stop
            with pytest.raises(OSError, match=r"Connect call failed|refused"):
                await asyncio.open_connection("127.0.0.1", server.port)
        assert await sizes(store) == [len(big), len(MESSAGE)]

    run(main())


def test_stop_does_not_wait_for_missing_close_notify(
    run: Run[None], server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    """The session is idle, and the client does not read."""

    async def main() -> None:
        store = await filled(MESSAGE)
        first = serving(store, tls=server_tls, implicit=True)
        async with first as server, server.client(client_tls) as quiet:
            await quiet.log_in()
            quiet.writer.transport.pause_reading()  # type: ignore[attr-defined]
            async with asyncio.timeout(20):
                await server.service.drain(60)

    run(main())


@pytest.mark.parametrize("when", ["as_the_last_one_ends", "after_the_grace"])
def test_stop_ends_a_connection_whose_handshake_was_still_running(
    when: str, run: Run[None]
) -> None:
    """Closing the listener cancels handshakes, but one may have finished in the same moment."""

    service = BaseService()

    class Stub:
        def drain(self) -> None:
            """Its client is busy."""

        abort_if_awaiting_close_notify = drain

        def abort(self, _: str, *, is_forced: bool) -> None:
            assert is_forced
            asyncio.get_running_loop().call_soon(service.discard, cast(Any, self))
            if when == "after_the_grace" and self is first:
                asyncio.get_running_loop().call_soon(service.add, late)

    first, late = cast(Any, Stub()), cast(Any, Stub())

    def replace() -> None:
        service.discard(first)
        service.add(late)

    async def main() -> None:
        service.add(first)
        if when == "as_the_last_one_ends":
            asyncio.get_running_loop().call_soon(replace)
        async with asyncio.timeout(20):
            await service.drain(0.1)
        assert not service.connections

    run(main())


@pytest.mark.rfc("P-117")
def test_connection_reset_during_a_session_removes_nothing(run: Run[None]) -> None:
    big = b"Subject: big\r\n\r\n" + (b"x" * 998 + b"\r\n") * 5000

    async def main() -> None:
        store = await filled(big, MESSAGE)
        async with serving(store) as server:
            async with server.client() as client:
                linger = b"\1\0\0\0\0\0\0\0"
                raw = client.writer.get_extra_info("socket")
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                await client.log_in()
                assert (await client.ask(b"DELE 2")).startswith(b"+OK")
                client.send(b"RETR 1\r\nDELE 1\r\nQUIT\r\n")
                assert await client.line() == b"+OK %d octets" % len(big)
                client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            await server.service.drain(5)
        assert await sizes(store) == [len(big), len(MESSAGE)]

    run(main())


# LOGIN-DELAY.


@pytest.mark.rfc("P-083", "P-087")
def test_second_login_too_soon_is_refused_and_releases_the_lock(run: Run[None]) -> None:
    """RFC 2449 §8.1.1; the answer to a wrong password does not mention it."""

    async def main() -> None:
        store = await filled(MESSAGE)
        policy = Policy(terms=Terms(login_delay=300))
        async with serving(store, policy=policy) as server:
            async with server.client() as client:
                await client.log_in()
                assert (await client.ask(b"QUIT")).startswith(b"+OK")
                await client.rest()
            async with server.client() as client:
                for _ in range(5):  # not a guess, so the client is not disconnected
                    await client.ask(b"USER mrose")
                    reported = await client.ask(b"PASS tan staaf")
                    assert reported == b"-ERR [LOGIN-DELAY] log in again in 300 s"
                await client.ask(b"USER mrose")
                assert (await client.ask(b"PASS wrong")).startswith(b"-ERR [AUTH] ")
                assert await sizes(store) == [len(MESSAGE)], "the lock is free"

    run(main())


def test_journal_records_retrieved_and_removed_messages(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext, run: Run[None]
) -> None:
    """They are recorded before the response to QUIT."""

    async def main() -> None:
        store = await filled(MESSAGE, MESSAGE + b"two\r\n", MESSAGE)
        async with (
            serving(store, tls=server_tls, implicit=True) as server,
            server.client(client_tls) as client,
        ):
            await client.log_in()
            client.send(b"RETR 2\r\nTOP 1 0\r\nDELE 2\r\nDELE 3\r\nQUIT\r\n")
            for _ in range(2):
                while await client.line() != b".":
                    pass
            assert [(await client.line())[:3] for _ in range(3)] == [b"+OK"] * 3
            (found,) = await store.sessions("mrose")
        assert (found.address, found.tls, found.credential) == ("127.0.0.1", "1.3", "password")
        assert [entry.unique_id for entry in found.retrieved] == ["m2"]
        assert found.retrieved[0].size == len(MESSAGE) + 5
        assert [entry.unique_id for entry in found.removed] == ["m2", "m3"]
        assert found.end == "quit"
        assert 0 <= found.ended_at - found.began_at < 60

    run(main())


def test_journal_records_retrievals_of_a_dropped_connection(run: Run[None]) -> None:
    async def main() -> None:
        store = await filled(MESSAGE)
        async with serving(store) as server:
            async with server.client() as client:
                await client.log_in()
                client.send(b"RETR 1\r\nDELE 1\r\n")
                while await client.line() != b".":
                    pass
                client.writer.write_eof()
                await client.rest()
            await server.service.drain(5)
        (found,) = await store.sessions("mrose")
        assert [entry.unique_id for entry in found.retrieved] == ["m1"]
        assert found.removed == ()
        assert found.end == "dropped"

    run(main())


# Requirements of docs/rfc.toml.


class Shut(MemoryStore):
    """A store that opens no maildrop while ``trouble`` is set."""

    trouble: RestanteError | None = None

    @asynccontextmanager
    async def open(self, user: str) -> AsyncIterator[Maildrop]:
        if self.trouble is not None:
            raise self.trouble
        async with super().open(user) as maildrop:
            yield maildrop


@pytest.mark.parametrize(
    ("trouble", "code"),
    [(TemporaryFailure("no disk"), b"SYS/TEMP"), (PermanentFailure("no place"), b"SYS/PERM")],
)
@pytest.mark.rfc("P-036", "P-083", "P-086")
def test_unreadable_maildrop_is_not_shown_as_empty(
    trouble: RestanteError, code: bytes, run: Run[None]
) -> None:
    """It is not a wrong password either, and no lock is left for the next attempt."""

    async def main() -> None:
        store = Shut()
        await store.deliver("mrose", once(MESSAGE))
        store.trouble = trouble
        async with serving(store) as server, server.client() as client:
            for _ in range(5):
                await client.ask(b"USER mrose")
                assert (await client.ask(b"PASS tan staaf")).startswith(b"-ERR [%s] " % code)
            assert (await client.ask(b"STAT")).startswith(b"-ERR")
            store.trouble = None
            await client.log_in()
            assert await client.ask(b"STAT") == b"+OK 1 21"

    run(main())


@pytest.mark.rfc("P-015")
def test_every_command_restarts_the_autologout_timer(run: Run[None]) -> None:
    """RFC 1939 §3; invalid commands too."""

    async def main() -> None:
        async with serving(MemoryStore()) as server, server.client() as client:
            await client.log_in()
            (connection,) = server.service.connections
            for command in (b"NOOP", b"XYZ", b"LIST", b"RETR 9"):
                connection._last_command = 0.0  # long ago
                await client.ask(command)
                assert connection._last_command > 0
                connection._check_deadlines()
                assert not connection._is_closing
                if command == b"LIST":
                    assert await client.line() == b"."

    run(main())


@pytest.mark.rfc("P-128")
def test_tls_version_is_logged(
    run: Run[None],
    server_tls: ssl.SSLContext,
    client_tls: ssl.SSLContext,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)

    async def main() -> None:
        async with serving(MemoryStore(), tls=server_tls) as server, server.client() as client:
            await starts_tls(client, client_tls)
            await client.log_in()

    run(main())
    (found,) = (each for each in caplog.records if each.getMessage() == "login ok")
    assert vars(found)["fields"]["tls"] == "1.3"


@pytest.mark.rfc("N-05")
def test_disconnect_during_an_exchange_leaks_nothing(run: Run[None]) -> None:
    async def main() -> None:
        async with serving(MemoryStore()) as server:
            for half in (b"AUTH PLAIN\r\n", b"AUTH PLAIN\r\nAG1yb", b"AUTH PLA"):
                async with server.client() as client:
                    client.send(half)
                    client.writer.write_eof()
                    assert b"+OK" not in await client.rest()
            async with server.client() as client:
                await client.log_in()

    run(main())


# Surrogates (RFC 6858).

INTERNATIONAL = (
    b"Received: by mx.example.org (restante) with LMTP\r\n\tfor <mrose@example.org>; Tue\r\n" * 3
    + "From: j\u00f6rg@example.org\r\nSubject: Gr\u00fc\u00dfe\r\n\r\nB\u00e4h\r\n".encode()
)
TINY = "From: \u00e4@b\r\n\r\nx\r\n".encode()


@pytest.mark.parametrize("in_files", [True, False])
@pytest.mark.rfc("P-143", "P-145", "P-146", "P-025", "P-083")
def test_surrogate_has_the_announced_size_and_the_original_is_kept(
    in_files: bool, run: Run[None], tmp_path: Path
) -> None:
    store = MaildirStore(f"{tmp_path}/%u") if in_files else MemoryStore()
    size = len(INTERNATIONAL)

    async def multi(client: Client, command: bytes) -> bytes:
        assert (await client.ask(command)).startswith(b"+OK")
        found = b""
        while (line := await client.line()) != b".":
            found += line + b"\r\n"
        return found

    async def main() -> None:
        for message in (INTERNATIONAL, MESSAGE, TINY):
            await store.deliver("mrose", once(message))
        policy = Policy(makes_surrogates=True)
        async with serving(store, policy=policy) as server:
            async with server.client() as client:
                await client.ask(b"UTF8")
                await client.log_in()
                assert await multi(client, b"RETR 1") == INTERNATIONAL
                assert await multi(client, b"RETR 3") == TINY
                await client.ask(b"QUIT")
            async with server.client() as client:
                await client.log_in()
                assert await client.ask(b"LIST 1") == b"+OK 1 %d" % size
                shown = await multi(client, b"RETR 1")
                assert len(shown) == size
                assert shown.partition(b"\r\n\r\n")[0].isascii()
                assert b"@internationalized-address.invalid" in shown
                assert shown.endswith("\r\n\r\nB\u00e4h\r\n".encode())
                assert await multi(client, b"TOP 1 0") == shown[: -len("B\u00e4h\r\n".encode())]
                assert await multi(client, b"RETR 2") == MESSAGE
                assert (await client.ask(b"RETR 3")).startswith(b"-ERR [UTF8] ")
                assert (await client.ask(b"TOP 3 0")).startswith(b"-ERR [UTF8] ")
                await client.ask(b"DELE 1")
                assert (await client.ask(b"QUIT")).startswith(b"+OK")
        (held,) = await store.held("mrose")
        kept = [octets async for octets in store.read_held("mrose", held)]
        assert b"".join(kept) == INTERNATIONAL

    run(main())


@pytest.mark.parametrize(
    "value", ["(" * 500 + ")" * 500, '"', "<", "a@b, (", ",é" * 900, "é:" * 900]
)
def test_message_without_surrogate_does_not_affect_others(value: str, run: Run[None]) -> None:
    """Each command is answered, that for this message with its surrogate or -ERR (RFC 6856 §5)."""
    odd = f"From: a@b\r\nTo: {value} é <c@d>\r\nSubject: é\r\n\r\nhello\r\n".encode()

    async def main() -> None:
        store = await filled(MESSAGE, odd, MESSAGE)
        async with (
            serving(store, policy=Policy(makes_surrogates=True)) as server,
            server.client() as client,
        ):
            await client.log_in()
            for command in (b"TOP 2 0", b"RETR 2"):
                if (await client.ask(command)).startswith(b"+OK"):
                    while await client.line() != b".":
                        pass
            assert (await client.ask(b"RETR 3")).startswith(b"+OK")

    run(main())


def test_surrogates_are_made_outside_the_event_loop(
    run: Run[None], monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: set[int] = set()

    def noted(header: bytes) -> bytes:
        threads.add(get_ident())
        return header

    monkeypatch.setattr("restante.surrogate.surrogate", noted)

    async def main() -> None:
        store = await filled(MESSAGE, b"Subject: no body\r\n")
        async with (
            serving(store, policy=Policy(makes_surrogates=True)) as server,
            server.client() as client,
        ):
            await client.log_in()
            for number in (1, 2):
                assert (await client.ask(b"RETR %d" % number)).startswith(b"+OK")
                while await client.line() != b".":
                    pass
        assert threads
        assert get_ident() not in threads

    run(main())


async def delete_and_quit(server: Server, count: int) -> bytes:
    async with server.client() as client:
        await client.log_in()
        for number in range(1, count + 1):
            assert (await client.ask(b"DELE %d" % number)).startswith(b"+OK")
        return await client.ask(b"QUIT")


def test_new_password_has_a_deletion_limit(
    run: Run[None], caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        store = await filled(*[MESSAGE] * 8)
        async with serving(store) as server:
            server.service.deletions_by_new_credential = 3
            for _ in range(2):  # trying again does not help
                refused = await delete_and_quit(server, 4)
                assert refused.startswith(b"-ERR [SYS/TEMP] this password is too new to delete 4 ")
                assert len(await sizes(store)) == 8
            assert (await delete_and_quit(server, 2)).startswith(b"+OK")
            assert (await delete_and_quit(server, 2)).startswith(b"-ERR [SYS/TEMP] ")  # in all
            assert (await delete_and_quit(server, 1)).startswith(b"+OK")
            assert len(await sizes(store)) == 5
            assert [each.end for each in await store.sessions("mrose")] == [
                *("braked", "braked", "quit", "braked", "quit")
            ]
        assert "deletion braked" in {record.message for record in caplog.records}

    run(main())


def test_password_older_than_a_day_has_no_deletion_limit(run: Run[None]) -> None:
    async def main() -> None:
        store = await filled(*[MESSAGE] * 4)
        before = time.time() - 86_401
        async with store.open("mrose") as maildrop:
            first = maildrop.listing[0]
            known = SessionRecord(before, before, "", "", "password", [first], (), "quit")
            await maildrop.record(known)  # type: ignore[attr-defined]
        async with serving(store) as server:
            server.service.deletions_by_new_credential = 1
            assert (await delete_and_quit(server, 4)).startswith(b"+OK")
        assert await sizes(store) == []

    run(main())


@pytest.mark.parametrize(
    ("ago", "ahead", "may"),
    [
        (86_401, 0, True),
        (86_399, 0, False),
        (-9000 * 86_400, 0, False),  # recorded by a clock that was ahead
        (1_700_000_000, 0, False),  # recorded in the 1970s, before the clock was set
        (3600, 300 * 86_400, False),  # the clock has jumped
    ],
)
def test_clock_jump_does_not_lift_the_deletion_limit(
    run: Run[None], ago: float, ahead: float, may: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        store = await filled(*[MESSAGE] * 4)
        now = time.time()
        async with store.open("mrose") as maildrop:
            first = maildrop.listing[0]
            known = SessionRecord(now - ago, now - ago, "", "", "password", [first], (), "quit")
            await maildrop.record(known)  # type: ignore[attr-defined]
        async with serving(store) as server:
            server.service.deletions_by_new_credential = 1
            server.service.proven_time = lambda: now
            monkeypatch.setattr(time, "time", lambda: now + ahead)
            answer = await delete_and_quit(server, 4)
            assert answer.startswith(b"+OK" if may else b"-ERR [SYS/TEMP]")

    run(main())


@pytest.mark.parametrize("removed", [0, 1, 3])
@pytest.mark.parametrize("marked", [1, 3])
@pytest.mark.parametrize("deletions_by_new", [0, 1, 3, 4, 6])
def test_changed_deletion_limit_counts_earlier_removals(
    run: Run[None], deletions_by_new: int, removed: int, marked: int
) -> None:
    """The limit is added, lowered, raised or removed on the first day of a password."""

    async def main() -> None:
        store = await filled(*[MESSAGE] * 6)
        async with serving(store) as server:
            if removed:
                assert (await delete_and_quit(server, removed)).startswith(b"+OK")
            server.service.deletions_by_new_credential = deletions_by_new
            answer = await delete_and_quit(server, marked)
            may = not deletions_by_new or removed + marked <= deletions_by_new
            assert answer.startswith(b"+OK" if may else b"-ERR [SYS/TEMP]")

    run(main())


def test_session_with_a_future_time_limits_deletions_for_only_a_day(run: Run[None]) -> None:
    """A session with a credible time counts, wherever it is in the journal."""

    async def main() -> None:
        store = await filled(*[MESSAGE] * 4)
        now = time.time()
        async with store.open("mrose") as maildrop:
            first = maildrop.listing[0]
            for at in (now + 300 * 86_400, now - 86_401):
                known = SessionRecord(at, at, "", "", "password", [first], (), "quit")
                await maildrop.record(known)  # type: ignore[attr-defined]
        async with serving(store) as server:
            server.service.deletions_by_new_credential = 1
            assert (await delete_and_quit(server, 4)).startswith(b"+OK")

    run(main())


def test_deletions_are_unlimited_by_default(run: Run[None]) -> None:
    async def main() -> None:
        store = await filled(*[MESSAGE] * 4)
        async with serving(store) as server:
            assert (await delete_and_quit(server, 4)).startswith(b"+OK")
        assert await sizes(store) == []

    run(main())


@pytest.mark.parametrize(
    ("lines", "quit_"),
    [
        ([b"DELE 1", b"QUIT"], "clean"),
        ([b"QUIT"], "clean"),
        ([b"DELE 1"], "dropped"),
        ([], "dropped"),
    ],
)
def test_log_shows_the_result_of_deletions_not_the_end_of_the_connection(
    lines: list[bytes], quit_: str, run: Run[None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")

    async def main() -> None:
        store = MemoryStore()
        await store.deliver("mrose", once(b"Subject: x\r\n\r\n"))
        async with serving(store) as server:
            async with server.client() as client:
                await client.log_in()
                for line in lines:
                    await client.ask(line)
                client.writer.transport.abort()  # reset the connection
            await until(lambda: not server.service.connections)

    run(main())
    (end,) = [each for each in caplog.records if each.message == "session end"]
    assert end.fields["quit"] == quit_  # type: ignore[attr-defined]


def test_cancelled_login_is_in_the_log(run: Run[None], caplog: pytest.LogCaptureFixture) -> None:
    """mutt cancels an exchange that it cannot finish, and quits: the log must show that."""
    caplog.set_level("INFO")

    async def main() -> None:
        async with serving(MemoryStore()) as server:
            async with server.client() as client:
                await client.ask(b"AUTH PLAIN")
                await client.ask(b"*")
                await client.ask(b"QUIT")
            await until(lambda: not server.service.connections)

    run(main())
    (line,) = [each for each in caplog.records if each.message == "login cancelled"]
    assert line.fields["mech"] == "PLAIN"  # type: ignore[attr-defined]


@pytest.mark.parametrize("turns", range(6))
def test_stop_ends_a_connection_that_is_being_accepted(turns: int, run: Run[None]) -> None:
    async def main() -> None:
        async with serving(MemoryStore()) as server:
            with socket.create_connection(("127.0.0.1", server.port)):
                for _ in range(turns):
                    await asyncio.sleep(0)
                server.listener.close()
                async with asyncio.timeout(5):
                    await server.service.drain(0.1)
                for _ in range(6):
                    await asyncio.sleep(0)
                assert not server.service.connections

    run(main())
