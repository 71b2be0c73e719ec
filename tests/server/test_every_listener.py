"""Every listener has every guard, whatever its protocol.

A configured server runs in this process with all its listeners, and each guard is tested at each
of them.  A new listener fails here until it is in ``DOORS`` and has all guards.  Hours pass
immediately because the clock of the event loop is set forward.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from restante import config
from restante.app import stores
from restante.app.server import running
from restante.server.connection import BaseConnection

from ..store.helpers import listing
from ..support import once, until


class Door(NamedTuple):
    """Commands for one listener."""

    harmless: bytes
    """A valid command that makes no progress."""
    enter: tuple[bytes, ...] = ()
    """Commands before it; empty if no login is needed."""
    large: tuple[bytes, ...] = ()
    """Commands with large answers."""
    is_tls: bool = False
    greets: bool = True
    """Whether the server speaks first."""
    connections: int = 3
    """Maximum number of connections if the limits are 3."""
    mistake: bytes = b"XYZZY"
    """An invalid command."""

    @property
    def is_known(self) -> bool:
        return bool(self.enter)


LOGIN = (b"USER mrose", b"PASS tan staaf")
LARGE = (b"RETR 1", b"CAPA", b"TOP 1 9999999")
SCRAPE = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n"
DOORS = {
    "pop3": [Door(b"CAPA", large=(b"CAPA",)), Door(b"NOOP", LOGIN, LARGE)],
    "pop3s": [Door(b"CAPA", (), (b"CAPA",), True), Door(b"NOOP", LOGIN, LARGE, True)],
    "lmtp": [Door(b"NOOP", large=(b"LHLO x",))],
    "smtp": [Door(b"NOOP", large=(b"EHLO x",))],
    "metrics": [
        Door(b"X: y", (), (SCRAPE,), False, False, 32, b"XYZZY\r\n"),
        Door(SCRAPE, (), (), False, False, 32, b"XYZZY\r\n"),
    ],
}
BOUND = 512 * 1024  # octets buffered for one connection; its limits add up to about 200 KiB
PER_TURN = 150  # commands of one connection before others have a turn; the limit is 100


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop that counts its turns, with a clock that can be set forward."""

    ahead = 0.0
    turns = 0

    def time(self) -> float:
        return super().time() + self.ahead

    def _run_once(self) -> None:
        self.turns += 1
        super()._run_once()  # type: ignore[misc]  # asyncio's own, of all its versions


@dataclass
class Client:
    """A connection, and its object in the server."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    server: BaseConnection[Any]

    @property
    def is_closed(self) -> bool:
        return self.server._is_lost

    @property
    def held(self) -> int:
        """Return the octets that the server buffers for it."""
        waiting = self.server._transport.get_write_buffer_size() if not self.is_closed else 0
        return self.server._session.unread + self.server._output.collected + waiting

    async def send(self, octets: bytes) -> None:
        """Send without reading the answers; ``drink`` reads them."""
        with suppress(ConnectionError):
            self.writer.write(octets)
        await settled()

    async def drink(self) -> int:
        """Read what has arrived; returns the lines."""
        lines = 0
        await settled()
        with suppress(ConnectionError, ssl.SSLError):
            while self.reader._buffer:  # type: ignore[attr-defined]  # without a wait for more
                lines += (await self.reader.read(65_536)).count(b"\n")
                await settled()
        return lines


@dataclass
class Site:
    """A server with all its listeners."""

    addresses: dict[str, str]
    made: list[BaseConnection[Any]]
    clients: list[Client] = field(default_factory=list)

    async def connect(self, name: str, door: Door, *, enter: bool = True) -> Client:
        host, _, port = self.addresses[name].rpartition(":")
        raw = socket.create_connection((host, int(port)), timeout=10)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.setblocking(False)
        before = len(self.made)
        tls, host_name = (trusting(), "x") if door.is_tls else (None, None)
        reader, writer = await asyncio.open_connection(
            sock=raw, limit=4096, ssl=tls, server_hostname=host_name
        )
        await until(lambda: len(self.made) > before)
        client = Client(reader, writer, self.made[-1])
        self.clients.append(client)
        assert not door.greets or await reader.readline()
        for command in door.enter if enter else ():
            writer.write(command + b"\r\n")
            assert (await reader.readline()).startswith(b"+OK")
        return client

    @property
    def open(self) -> int:
        return sum(not each._is_lost for each in self.made)

    async def clear(self) -> None:
        for client in self.clients:
            client.writer.transport.abort()
        self.clients.clear()
        await until(lambda: self.open == 0)


def trusting() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


async def settled() -> None:
    """Wait until the server has read and answered everything that was sent."""
    for _ in range(6):
        await asyncio.sleep(0)


async def jump(seconds: float) -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, JumpingLoop)
    loop.ahead += seconds
    await settled()


# -- The guards


class Guard(NamedTuple):
    limits: str
    holds: Callable[[Site, str, Door], Awaitable[None]]


async def connections_of_one_address(site: Site, name: str, door: Door) -> None:
    for _ in range(door.connections + 5):
        with suppress(AssertionError):  # being refused is as good as an eviction
            await site.connect(name, door, enter=False)
    await until(lambda: site.open <= door.connections)


async def silence(site: Site, name: str, door: Door) -> None:
    client = await site.connect(name, door)
    for _ in range(20):
        await jump(60)
    assert client.is_closed


async def an_octet_now_and_then(site: Site, name: str, door: Door) -> None:
    client = await site.connect(name, door)
    for _ in range(200):
        await client.send(b"X")
        await jump(20)
    assert client.is_closed


async def a_command_now_and_then(site: Site, name: str, door: Door) -> None:
    """Send a command now and then: allowed after login, where the autologout applies."""
    client = await site.connect(name, door)
    for _ in range(70):
        await client.send(door.harmless + b"\r\n")
        await client.drink()
        await jump(60)
        if client.is_closed:
            break
    assert client.is_closed != door.is_known


async def a_line_without_end(site: Site, name: str, door: Door) -> None:
    client = await site.connect(name, door)
    for _ in range(256):
        await client.send(b"x" * 16_384)
        assert client.held < BOUND
    await until(lambda: client.is_closed)


async def commands_in_one_turn(site: Site, name: str, door: Door) -> None:
    client, loop = await site.connect(name, door), asyncio.get_running_loop()
    session = type(client.server._session)
    taken: Counter[int] = Counter()
    real = session.next

    def counted(self: Any) -> Any:
        taken[loop.turns] += 1  # type: ignore[attr-defined]
        return real(self)

    session.next = counted  # type: ignore[method-assign]
    try:
        await client.send((door.harmless + b"\r\n") * 5000)
        for _ in range(20):
            await client.drink()
    finally:
        session.next = real  # type: ignore[method-assign]
    assert taken
    assert max(taken.values()) <= PER_TURN


async def mistakes(site: Site, name: str, door: Door) -> None:
    client, answers = await site.connect(name, door), 0
    for _ in range(200):
        await client.send((door.mistake + b"\r\n") * 5)
        answers += await client.drink()
        if client.is_closed:
            break
    assert client.is_closed
    assert answers <= 60


async def commands_for_nothing(site: Site, name: str, door: Door) -> None:
    """Send commands without a login."""
    if door.is_known:
        return
    client = await site.connect(name, door)
    for _ in range(200):
        await client.send((door.harmless + b"\r\n") * 20)
        await client.drink()
        if client.is_closed:
            break
    assert client.is_closed


async def a_client_that_does_not_read(site: Site, name: str, door: Door) -> None:
    for command in door.large:
        client = await site.connect(name, door)
        for _ in range(100):
            await client.send((command + b"\r\n") * 100)
            assert client.held < BOUND
        for _ in range(70):
            await jump(60)
        await client.drink()  # with TLS the last octets may be missing
        await until(lambda client=client: client.is_closed)  # type: ignore[misc]
        await site.clear()


async def a_handshake_that_never_begins(site: Site, name: str, door: Door) -> None:
    """Stay silent on the TLS port; elsewhere this is plain silence."""
    if not door.is_tls:
        return
    host, _, port = site.addresses[name].rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    await settled()
    await jump(60)
    assert await reader.read() == b""
    writer.close()


GUARDS = {
    "connections of one address": Guard("per_address = 3", connections_of_one_address),
    "connections in all": Guard("sessions = 3", connections_of_one_address),
    "silence": Guard("", silence),
    "an octet now and then": Guard("", an_octet_now_and_then),
    "a command now and then": Guard("", a_command_now_and_then),
    "a line without end": Guard("", a_line_without_end),
    "commands in one turn": Guard("", commands_in_one_turn),
    "mistakes": Guard("", mistakes),
    "commands for nothing": Guard("", commands_for_nothing),
    "a client that does not read": Guard("", a_client_that_does_not_read),
    "a handshake that never begins": Guard("", a_handshake_that_never_begins),
}


# -- The server


def settings_to_listen(section: object, path: str = "") -> Iterator[str]:
    """Return the keys of the configuration that open listeners."""
    for each in fields(section):  # type: ignore[arg-type]
        value = getattr(section, each.name)
        if each.name == "listen":
            yield path.removeprefix(".")
        elif is_dataclass(value):
            yield from settings_to_listen(value, f"{path}.{each.name}")


@asynccontextmanager
async def site(folder: Path, limits: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    (folder / "passwd").write_text("mrose:{PLAIN}tan staaf\n")
    (folder / "restante.toml").write_text(
        f"""
[server]
hostname = "localhost"
listen = ["pop3s://127.0.0.1:0", "pop3://127.0.0.1:0"]
[intake.lmtp]
listen = ["127.0.0.1:0"]
[intake.smtp]
listen = ["127.0.0.1:0"]
[metrics]
listen = ["127.0.0.1:0"]
[store]
kind = "memory"
[auth]
chain = ["passwd-file"]
passwd_file.path = "{folder}/passwd"
allow_plaintext_from = ["127.0.0.0/8"]
failure_delay = 0
[limits]
{limits}
"""
    )
    found = config.load(
        folder / "restante.toml", environment={"STATE_DIRECTORY": str(folder), "HOME": str(folder)}
    )
    assert set(settings_to_listen(found)) == {"server", "intake.lmtp", "intake.smtp", "metrics"}
    made: list[BaseConnection[Any]] = []
    real = BaseConnection.connection_made

    def noted(self: BaseConnection[Any], transport: asyncio.BaseTransport) -> None:
        made.append(self)
        real(self, transport)

    monkeypatch.setattr(BaseConnection, "connection_made", noted)
    users = stores.users(found)
    store = stores.store(found, users)
    if not await listing(store, "mrose"):
        await store.deliver("mrose", once(b"Subject: x\r\n\r\n" + b"y" * 76 + b"\r\n" * 500_000))
    async with running(found, users, store) as server:
        assert set(server.addresses) == set(DOORS), "a new listener: say how it is attacked"
        made_here = Site(server.addresses, made)
        yield made_here
        await made_here.clear()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("site")


@pytest.mark.parametrize("guard", GUARDS)
def test_every_listener_has_every_guard(
    guard: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with site(folder, GUARDS[guard].limits, monkeypatch) as served:
            for name, doors in DOORS.items():
                for door in doors:
                    try:
                        await GUARDS[guard].holds(served, name, door)
                    except (AssertionError, TimeoutError) as error:
                        raise AssertionError(f"{name} {door.enter}: {error!r}") from error
                    await served.clear()

    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        runner.run(main())
