"""Failed logins at a real server: answered late, and counted whatever the client does."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import struct
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from restante.errors import AuthenticationFailed, BackendUnavailable, TemporaryFailure
from restante.passdb import AnyCredentials, Credentials, FailedProof, ScramSecrets, UserAccount
from restante.pop3.session import Policy
from restante.sasl import scram
from restante.server.admission import Admission
from restante.server.pop3 import Connection
from restante.shared import SharedTally, Tally
from restante.store.memory import MemoryStore

from ..support import Client, OneUser, Run, Server, serving, until


@dataclass
class Slow(OneUser):
    """Takes as long to check a password as a test decides."""

    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    begun: asyncio.Event = field(default_factory=asyncio.Event)

    async def verify(self, credentials: Credentials) -> UserAccount:
        self.begun.set()
        await self.go_on.wait()
        return await super().verify(credentials)


@dataclass
class Guard:
    """Counts failures; the answer to a failure takes ``wait`` seconds."""

    wait: float = 0.0
    failures: list[AnyCredentials] = field(default_factory=list)
    successes: list[tuple[AnyCredentials, UserAccount]] = field(default_factory=list)
    heard: asyncio.Event = field(default_factory=asyncio.Event)

    def record_success(
        self, shown: AnyCredentials, account: UserAccount, *, is_cached: bool = False
    ) -> None:
        self.successes.append((shown, account))
        self.heard.set()

    def record_failure(self, shown: AnyCredentials) -> float:
        self.failures.append(shown)
        self.heard.set()
        return self.wait


@asynccontextmanager
async def guarded(
    guard: Guard, passdb: OneUser | None = None, *, per_address: int = 100
) -> AsyncIterator[Server]:
    policy = Policy(mechanisms=("PLAIN", "SCRAM-SHA-256"))
    async with serving(MemoryStore(), policy=policy, per_address=per_address) as server:
        server.service.guard = guard
        server.service.passdb = passdb or OneUser()
        yield server


async def guess(client: Client, password: bytes = b"wrong") -> None:
    assert (await client.ask(b"USER mrose")).startswith(b"+OK")
    client.send(b"PASS " + password + b"\r\n")


def hang_up(client: Client) -> None:
    """Reset the connection: a busy server does not notice anything less."""
    connected = client.writer.get_extra_info("socket")
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.writer.transport.abort()


def test_guard_gets_the_address_of_failures_and_successes() -> None:
    async def main() -> None:
        guard = Guard()
        async with guarded(guard) as server, server.client() as client:
            await guess(client)
            assert (await client.line()).startswith(b"-ERR [AUTH]")
            await client.log_in()
        assert guard.failures == [Credentials("USER", "mrose", "wrong", address="127.0.0.1")]
        ((shown, account),) = guard.successes
        assert (shown.address, account.user) == ("127.0.0.1", "mrose")

    asyncio.run(main())


def test_only_failed_logins_are_delayed() -> None:
    """There is no answer during the penalty; another connection can log in meanwhile."""

    async def main() -> None:
        guard = Guard(wait=3600.0)
        async with guarded(guard) as server, server.client() as client:
            await guess(client)
            await guard.heard.wait()
            async with server.client() as other:
                await other.log_in()
            assert client.reader._buffer == b""  # type: ignore[attr-defined]

    asyncio.run(main())


def test_delay_counts_from_the_attempt() -> None:
    """So the time does not reveal the work: here the work takes longer than the delay."""

    async def main() -> None:
        guard, passdb = Guard(wait=0.05), Slow()
        async with guarded(guard, passdb) as server, server.client() as client:
            await guess(client)
            await passdb.begun.wait()
            await asyncio.sleep(0.06)
            passdb.go_on.set()
            await guard.heard.wait()
            connection = next(iter(server.service.connections))
            assert isinstance(connection, Connection)
            assert connection._penalty_end < asyncio.get_running_loop().time()
            assert (await client.line()).startswith(b"-ERR [AUTH]")

    asyncio.run(main())


def test_wrong_scram_proof_is_a_failed_login(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged and counted like a wrong password."""

    async def main() -> None:
        guard = Guard()
        async with guarded(guard) as server, server.client() as client:
            half = scram.client("SCRAM-SHA-256", "mrose", "wrong")
            opening = b64encode(next(half).response)
            challenge = await client.ask(b"AUTH SCRAM-SHA-256 " + opening)
            closing = half.send(b64decode(challenge.removeprefix(b"+ "))).response
            assert (await client.ask(b64encode(closing))).startswith(b"-ERR [AUTH]")
        assert guard.failures == [FailedProof("SCRAM-SHA-256", "mrose", "127.0.0.1")]

    with caplog.at_level(logging.WARNING):
        asyncio.run(main())
    (record,) = (each for each in caplog.records if each.message == "login refused")
    assert record.__dict__["fields"]["user"] == "mrose"
    assert record.__dict__["fields"]["reason"] == "bad-password"


class Down(OneUser):
    """A back end that cannot be reached."""

    async def verify(self, credentials: Credentials) -> UserAccount:
        raise BackendUnavailable("ldap: no route")

    async def scram(self, identity: str, digest: str) -> ScramSecrets:
        raise BackendUnavailable("ldap: no route")


@pytest.mark.parametrize("command", [b"PASS tan staaf", b"AUTH SCRAM-SHA-256 biwsbj1tcm9zZSxyPXg="])
def test_unavailable_back_end_does_not_count_as_a_guess(
    command: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """FAULTS.md I 195: [SYS/TEMP] at once, no penalty, and no log line that fail2ban matches."""

    async def main() -> None:
        guard = Guard()
        async with guarded(guard, Down()) as server, server.client() as client:
            await client.ask(b"USER mrose")
            assert await client.ask(command) == b"-ERR [SYS/TEMP] logins cannot be checked now"
            (connection,) = server.service.connections
            assert isinstance(connection, Connection)
            assert connection._penalty_end < asyncio.get_running_loop().time()
        assert guard.failures == []

    with caplog.at_level(logging.INFO):
        asyncio.run(main())
    (record,) = (each for each in caplog.records if each.message.startswith("login"))
    assert record.message == "login impossible"
    assert record.__dict__["fields"]["reason"] == "ldap: no route"


@pytest.mark.parametrize("is_right", [False, True])
def test_guess_counts_even_if_the_client_hangs_up(
    is_right: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        guard, passdb = Guard(), Slow()
        async with guarded(guard, passdb) as server:
            async with server.client() as client:
                await guess(client, b"tan staaf" if is_right else b"wrong")
                await passdb.begun.wait()
                (connection,) = server.service.connections
                hang_up(client)
            await until(lambda: connection._is_lost)
            passdb.go_on.set()
            await guard.heard.wait()
            await until(lambda: server.listener._admission._tally.count("127.0.0.1") == 0)
        assert len(guard.failures) == (not is_right)

    with caplog.at_level(logging.INFO):
        asyncio.run(main())
    reported = [each.message for each in caplog.records if each.message.startswith("login")]
    assert reported == ([] if is_right else ["login refused"])


@pytest.mark.parametrize("is_gone", [False, True])
def test_stop_does_not_wait_for_a_password_check(is_gone: bool) -> None:
    """The check takes longer than the grace period."""

    async def main() -> None:
        passdb = Slow()
        async with guarded(Guard(), passdb) as server, server.client() as client:
            await guess(client)
            await passdb.begun.wait()
            (connection,) = server.service.connections
            if is_gone:
                hang_up(client)
                await until(lambda: connection._is_lost)
            async with asyncio.timeout(10):
                await server.service.drain(0.01)
            assert not server.service.connections

    asyncio.run(main())


def test_hanging_up_does_not_release_the_slot_early() -> None:
    async def main() -> None:
        guard = Guard(wait=3600.0)
        async with guarded(guard) as server:
            taken = server.listener._admission._tally
            async with server.client() as client:
                await guess(client)
                await guard.heard.wait()
                (connection,) = server.service.connections
                hang_up(client)
            await until(lambda: connection._is_lost)
            async with server.client() as client:
                await client.log_in()
                assert taken.count("127.0.0.1") == 2
            await until(lambda: taken.count("127.0.0.1") == 1)

    asyncio.run(main())


def test_slot_of_a_lost_connection_counts_for_its_source_only() -> None:
    for tally in (Tally(), SharedTally(2)):
        admission = Admission(2, 2, tally)
        first, second = admission.admit("192.0.2.1"), admission.admit("192.0.2.1")
        assert first is not None
        assert second is not None
        assert admission.admit("192.0.2.2") is None
        first.release_total()
        first.release_total()
        assert admission.admit("192.0.2.1") is None
        other = admission.admit("192.0.2.2")
        assert other is not None
        first.release()
        assert admission.admit("192.0.2.1") is None, "all are taken"
        other.release()
        assert admission.admit("192.0.2.1")
        if isinstance(tally, SharedTally):
            tally.close()


def test_last_slots_are_reserved_for_known_networks() -> None:
    """I 187: guesses that wait for their answers leave slots for other networks."""
    admission = Admission(10, 100)
    admission.reserved = lambda address: address == "192.0.2.1"
    assert all(admission.admit("198.51.100.1") for _ in range(9))
    assert admission.admit("198.51.100.1") is None
    assert admission.admit("203.0.113.1") is None
    assert admission.admit("192.0.2.1")
    assert admission.admit("192.0.2.1") is None


def test_crowded_server_disconnects_failed_logins_at_once() -> None:
    """The failure is answered and the connection closed; its source's slot is released later."""

    async def main() -> None:
        guard = Guard(wait=3600.0)
        async with guarded(guard) as server:
            server.service.is_crowded = lambda: True
            taken = server.listener._admission._tally
            async with server.client() as client:
                await guess(client)
                assert (await client.line()).startswith(b"-ERR [AUTH]")
                assert await client.rest() == b""
                await until(lambda: not server.service.connections)
            assert (taken.total(), taken.count("127.0.0.1")) == (0, 1)
            async with server.client() as client:
                await client.log_in()

    asyncio.run(main())


def test_before_opening_is_called_after_login_only() -> None:
    """I 201: a wrong password causes no queries elsewhere."""

    async def main() -> None:
        polled: list[str] = []

        async def poll(maildrop: str) -> None:
            polled.append(maildrop)

        async with guarded(Guard()) as server, server.client() as client:
            server.service.before_opening = poll
            await guess(client)
            assert (await client.line()).startswith(b"-ERR [AUTH]")
            assert polled == []
            await client.log_in()
            assert polled == ["mrose"]

    asyncio.run(main())


# Connections that use all slots of an address are evicted if they do not log in.


async def refused(server: Server) -> bytes:
    """Return the answer to a new connection for which there is no slot."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    said = await Client(reader, writer).rest()
    writer.transport.abort()
    return said


def test_oldest_connection_before_login_is_evicted(
    run: Run[None], caplog: pytest.LogCaptureFixture
) -> None:
    """A logged-in session is never evicted, and the limit holds."""

    async def main() -> None:
        async with serving(MemoryStore(), per_address=3) as server:
            taken = server.listener._admission._tally
            async with (
                server.client() as mrose,
                server.client() as first,
                server.client() as second,
            ):
                await mrose.log_in()
                async with server.client() as third:
                    assert await first.rest() == b"", "nothing that answers no command"
                    assert taken.count("127.0.0.1") == 3
                    async with server.client() as fourth:
                        assert await second.rest() == b""
                        assert taken.count("127.0.0.1") == taken.total() == 3
                        for each in (third, fourth):
                            assert (await each.ask(b"USER ann")).startswith(b"+OK")
                        assert await mrose.ask(b"NOOP") == b"+OK"
                        async with server.client():
                            assert await third.rest() == b""
            await until(lambda: taken.total() == 0)

    with caplog.at_level(logging.INFO):
        run(main())
    reported = [each for each in caplog.records if each.message == "seat given up"]
    assert [each.__dict__["fields"]["ip"] for each in reported] == ["127.0.0.1"] * 3


def test_logged_in_sessions_are_never_evicted() -> None:
    async def main() -> None:
        async with serving(MemoryStore(), per_address=1) as server, server.client() as client:
            await client.log_in()
            assert (await refused(server)).startswith(b"-ERR [SYS/TEMP] ")
            assert await client.ask(b"NOOP") == b"+OK"

    asyncio.run(main())


@pytest.mark.parametrize("is_gone", [False, True])
def test_eviction_does_not_speed_up_guessing(is_gone: bool) -> None:
    """A connection that waits for the answer to a guess keeps its slot even if it was closed: an
    address gets no more guesses during a penalty than it has slots."""

    async def main() -> None:
        guard = Guard(wait=3600.0)
        async with guarded(guard, per_address=2) as server:
            taken = server.listener._admission._tally
            async with server.client() as first, server.client() as second:
                for client in (first, second):
                    await guess(client)
                await until(lambda: len(guard.failures) == 2)
                if is_gone:
                    connections = list(server.service.connections)
                    hang_up(first)
                    hang_up(second)
                    await until(lambda: all(each._is_lost for each in connections))
                for _ in range(3):
                    assert (await refused(server)).startswith(b"-ERR [SYS/TEMP] ")
                assert taken.count("127.0.0.1") == 2
                if not is_gone:
                    assert first.reader._buffer == b""  # type: ignore[attr-defined]
        assert len(guard.failures) == 2

    asyncio.run(main())


def test_password_check_protects_from_eviction() -> None:
    """The password may be right, so the connection is not evicted."""

    async def main() -> None:
        passdb = Slow()
        async with guarded(Guard(), passdb, per_address=1) as server, server.client() as client:
            await guess(client, b"tan staaf")
            await passdb.begun.wait()
            assert (await refused(server)).startswith(b"-ERR [SYS/TEMP] ")
            passdb.go_on.set()
            assert (await client.line()).startswith(b"+OK")

    asyncio.run(main())


def test_connection_is_evictable_again_after_its_delay() -> None:
    async def main() -> None:
        async with guarded(Guard(), per_address=1) as server, server.client() as client:
            await guess(client)
            assert (await client.line()).startswith(b"-ERR [AUTH]")
            async with server.client():
                assert await client.rest() == b""

    asyncio.run(main())


@pytest.mark.parametrize("implicit", [True, False])
def test_stalled_handshake_is_evicted(
    implicit: bool, run: Run[None], server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    """With TLS from the first octet and with STLS."""

    async def main() -> None:
        async with serving(
            MemoryStore(), tls=server_tls, implicit=implicit, per_address=1
        ) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            silent = Client(reader, writer)
            if not implicit:
                await silent.line()
                assert (await silent.ask(b"STLS")).startswith(b"+OK")
            await until(lambda: server.listener._admission._tally.total() == 1)
            async with server.client(client_tls if implicit else None) as client:
                assert await silent.rest() == b""
                await client.log_in()
                assert server.listener._admission._tally.total() == 1
            writer.transport.abort()

    run(main())


@pytest.mark.parametrize("error", [TemporaryFailure("down"), AuthenticationFailed("disabled")])
def test_internal_errors_are_not_guesses(error: Exception) -> None:
    @dataclass
    class Failing(OneUser):
        async def verify(self, credentials: Credentials) -> UserAccount:
            raise error

    async def main() -> None:
        guard = Guard()
        async with guarded(guard, Failing()) as server, server.client() as client:
            await guess(client)
            code = b"[SYS/TEMP]" if isinstance(error, TemporaryFailure) else b"[AUTH]"
            assert (await client.line()).startswith(b"-ERR " + code)
        assert len(guard.failures) == isinstance(error, AuthenticationFailed)

    asyncio.run(main())
