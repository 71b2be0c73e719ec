"""Helpers for several test modules: event loops, a passdb with one user, a running server."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from hashlib import md5, sha256
from ipaddress import ip_network
from typing import Any, TypeVar

from scramp import ScramMechanism

from restante.errors import AuthenticationFailed
from restante.maildrop import Store
from restante.passdb import (
    AnyCredentials,
    Credentials,
    Digest,
    Network,
    Proof,
    ScramKey,
    ScramSecrets,
    Token,
    UserAccount,
)
from restante.pop3.session import Policy
from restante.server.address import Address
from restante.server.admission import Admission, Slot
from restante.server.binding import bind
from restante.server.connection import Timeouts
from restante.server.listener import Listener
from restante.server.pop3 import Service
from restante.server.proxy import Origin

try:
    import uvloop
except ImportError:  # uvloop is not available on Windows
    LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
else:
    LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}

T = TypeVar("T")
Run = Callable[[Coroutine[Any, Any, T]], T]
LOOPBACK: tuple[Network, ...] = (ip_network("127.0.0.0/8"),)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition that no event signals."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def once(octets: bytes) -> AsyncIterator[bytes]:
    """Yield a message in one piece."""
    yield octets


async def sizes(store: Store, user: str = "mrose") -> list[int]:
    async with store.open(user) as maildrop:
        return [entry.size for entry in maildrop.listing]


@dataclass
class OneUser:
    """A passdb with every add-on for user "mrose"; the token is "vF9dft4qmT"."""

    password: str = "tan staaf"

    async def verify(self, credentials: Credentials) -> UserAccount:
        return self.open(credentials)

    async def scram(self, identity: str, digest: str) -> ScramSecrets:
        return self.keys(identity, digest)

    async def proved(self, proof: Proof) -> UserAccount:
        return self.open(proof)

    async def digested(self, shown: Digest) -> UserAccount:
        return self.open(shown)

    async def verify_token(self, token: Token) -> UserAccount:
        return self.open(token)

    async def certified(self, proof: Proof) -> UserAccount:
        return self.open(proof)

    def keys(self, identity: str, digest: str) -> ScramSecrets:
        """Return two credentials; the second is the password."""
        mechanism = ScramMechanism({"sha256": "SCRAM-SHA-256", "sha1": "SCRAM-SHA-1"}[digest])
        keys = []
        salt = sha256(identity.encode()).digest()[:16]
        for label, password in (("phone", "another"), ("password", self.password)):
            secret = password if identity == "mrose" else "nobody knows"
            _, stored, server, _ = mechanism.make_auth_info(secret, 4100, salt)
            keys.append(ScramKey(label, stored, server))
        return ScramSecrets(salt, 4100, tuple(keys))  # not the minimum, which is a default

    def open(self, shown: AnyCredentials) -> UserAccount:
        match shown:
            case Credentials("PLAIN" | "LOGIN" | "USER", "mrose", password):
                is_right = password == self.password
            case Digest("APOP", "mrose", time_stamp, digest):
                is_right = md5((time_stamp + self.password).encode()).hexdigest() == digest
            case Token(_, "mrose", token):
                is_right = token == "vF9dft4qmT"
            case Proof("EXTERNAL", "mrose@example.org", "certificate", wanted):
                is_right = wanted in ("", "mrose@example.org")
            case Proof(mechanism, "mrose", credential, ""):
                is_right = mechanism.startswith("SCRAM-") and credential != ""
            case _:
                is_right = False
        if not is_right:
            raise AuthenticationFailed
        return UserAccount("mrose", "mrose")


class Client:
    """A client that sends and receives octets."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, octets: bytes) -> None:
        self.writer.write(octets)

    async def line(self) -> bytes:
        """Read the next line; returns it without CRLF, empty if the server closed."""
        async with asyncio.timeout(10):
            return (await self.reader.readline()).removesuffix(b"\r\n")

    async def ask(self, command: bytes) -> bytes:
        self.send(command + b"\r\n")
        return await self.line()

    async def log_in(self) -> None:
        assert (await self.ask(b"USER mrose")).startswith(b"+OK")
        assert (await self.ask(b"PASS tan staaf")).startswith(b"+OK")

    async def rest(self) -> bytes:
        """Read everything until the server closes in any way."""
        heard = bytearray()
        async with asyncio.timeout(10):
            try:
                while octets := await self.reader.read(65_536):
                    heard += octets
            except (ConnectionError, ssl.SSLError):
                pass
        return bytes(heard)


@dataclass
class Server:
    """A POP3 server on loopback."""

    service: Service
    port: int
    listener: Listener

    @asynccontextmanager
    async def client(self, tls: ssl.SSLContext | None = None) -> AsyncIterator[Client]:
        """Connect a client and read the greeting."""
        name = "localhost" if tls else None
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.port, ssl=tls, server_hostname=name
        )
        client = Client(reader, writer)
        try:
            assert (await client.line()).startswith(b"+OK")
            yield client
        finally:
            writer.transport.abort()


@contextmanager
def listening(
    build: Callable[[str, Slot, Origin], asyncio.BaseProtocol], *, per_address: int = 100
) -> Iterator[int]:
    """Run a listener without TLS, such as ``Intake.lmtp()``; yields its port."""
    opened = bind(Address("", "127.0.0.1", 0))
    port: int = opened.getsockname()[1]
    listener = Listener(opened, build, Admission(1000, per_address), name="test")
    try:
        yield port
    finally:
        listener.close()


@asynccontextmanager
async def serving(
    store: Store,
    *,
    password: str = "tan staaf",
    tls: ssl.SSLContext | None = None,
    implicit: bool = False,
    clear: bool = True,
    timeouts: Timeouts | None = None,
    per_address: int = 100,
    policy: Policy | None = None,
    time_stamp: Callable[[], str] | None = None,
    proxy_from: tuple[Network, ...] = (),
    xclient_from: tuple[Network, ...] = (),
    tls_at_proxy: bool = False,
) -> AsyncIterator[Server]:
    service = Service(
        store,
        OneUser(password),
        policy=policy or Policy(),
        time_stamp=time_stamp,
        tls=tls,
        allow_plaintext_from=LOOPBACK if clear else (),
        xclient_from=xclient_from,
        timeouts=timeouts or Timeouts(),
    )
    listening = bind(Address("pop3", "127.0.0.1", 0))
    listener = Listener(
        listening,
        service.connection,
        Admission(1000, per_address),
        name="pop3",
        tls=tls if implicit else None,
        handshake=service.timeouts.handshake,
        busy=b"-ERR [SYS/TEMP] too many connections\r\n",
        proxy_from=proxy_from,
        tls_at_proxy=tls_at_proxy,
    )
    try:
        yield Server(service, listening.getsockname()[1], listener)
    finally:
        listener.close()
        await service.drain(0.1)
