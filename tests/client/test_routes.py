"""Connecting through a proxy, by a socket or from an address; and accepted certificates."""

from __future__ import annotations

import asyncio
import socket
import ssl
from base64 import b64encode
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

import restante
from restante import tls
from restante.client.proxies import Proxy
from restante.client.remote import TLS, Remote
from restante.errors import CannotConnect, DeadlineExceeded, TLSUnavailable, UnsafeArgument
from restante.testing import Pop3Server

from ..support import until
from . import certificates
from .shells import NONE, UNUSED, Peer, kinds, opened, polite, scripted

SCHEMES = pytest.mark.parametrize("scheme", ["socks5", "socks5h", "http"])


@pytest.fixture
def server() -> Iterator[Pop3Server]:
    with Pop3Server() as server:
        server.deliver("ann", b"Subject: one\r\n\r\nx\r\n")
        yield server


# Proxies.


class Relay:
    """A proxy for one user, which records the requests."""

    def __init__(self, login: bytes = b"") -> None:
        self.login = login
        self.asked: list[tuple[str, int]] = []

    async def __call__(self, peer: Peer) -> None:
        first = await peer.reader.readexactly(1)
        answer = await (self.socks(peer) if first == b"\x05" else self.http(peer, first))
        if not answer:
            return
        port = self.asked[-1][1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        # The greeting, where the server speaks first, comes in one segment with the answer.
        with suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                answer += await reader.read(1000)
        await peer.say(answer)
        back = asyncio.create_task(self.copy(reader, peer.writer))
        try:
            await self.copy(peer.reader, writer)
        finally:
            writer.transport.abort()
            back.cancel()

    async def copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while octets := await reader.read(65_536):
                writer.write(octets)
                await writer.drain()
            writer.close()

    async def http(self, peer: Peer, first: bytes) -> bytes:
        head = first + await peer.reader.readuntil(b"\r\n\r\n")
        method, target, _ = head.split(b"\r\n")[0].decode().split(" ")
        assert method == "CONNECT"
        host, _, port = target.rpartition(":")
        assert f"\r\nHost: {target}\r\n".encode() in head
        if self.login and b"Basic " + b64encode(self.login) not in head:
            await peer.say(b"HTTP/1.1 407 secret\r\nX: y\r\n\r\nbody")
            return b""
        self.asked.append((host, int(port)))
        return b"HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\n"

    async def socks(self, peer: Peer) -> bytes:
        count = (await peer.reader.readexactly(1))[0]
        methods = await peer.reader.readexactly(count)
        if (2 if self.login else 0) not in methods:
            await peer.say(b"\x05\xff")
            return b""
        await peer.say(b"\x05\x02" if self.login else b"\x05\x00")
        if self.login:
            _, size = await peer.reader.readexactly(2)
            user = await peer.reader.readexactly(size)
            size = (await peer.reader.readexactly(1))[0]
            is_right = user + b":" + await peer.reader.readexactly(size) == self.login
            await peer.say(b"\x01\x00" if is_right else b"\x01\x01")
            if not is_right:
                return b""
        assert (
            await peer.reader.readexactly(4) == b"\x05\x01\x00\x03"
        )  # the proxy resolves the name
        size = (await peer.reader.readexactly(1))[0]
        host = (await peer.reader.readexactly(size)).decode()
        port = int.from_bytes(await peer.reader.readexactly(2), "big")
        self.asked.append((host, port))
        return b"\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x00"


async def stat(kind: str, url: str, **options: Any) -> Any:
    async with opened(kind, url, **options) as held:
        return await held.call("stat")


@kinds
@SCHEMES
@pytest.mark.parametrize("stls", [False, True])
@pytest.mark.parametrize("login", [b"", b"me:a b/c"])
def test_a_session_through_a_proxy(
    server: Pop3Server, kind: str, scheme: str, stls: bool, login: bytes
) -> None:
    relay = Relay(login)
    before = "me:a%20b%2Fc@" if login else ""

    async def main() -> None:
        async with scripted(relay) as (port, _):
            proxy = f"{scheme}://{before}127.0.0.1:{port}"
            url = server.url("ann", stls=stls)
            assert await stat(kind, url, ca_file=server.ca_file, proxy=proxy) == (1, 19)

    asyncio.run(main())
    assert relay.asked == [("localhost", server.stls_port if stls else server.port)]


@kinds
@SCHEMES
def test_a_wrong_login_at_the_proxy_is_refused_and_not_repeated(
    server: Pop3Server, kind: str, scheme: str
) -> None:
    async def main() -> None:
        async with scripted(Relay(b"me:right")) as (port, _):
            proxy = f"{scheme}://me:s3cret@127.0.0.1:{port}"
            await stat(kind, server.url("ann"), ca_file=server.ca_file, proxy=proxy)

    with pytest.raises(CannotConnect, match=r"proxy 127\.0\.0\.1:.*login") as caught:
        asyncio.run(main())
    assert "secret" not in str(caught.value)
    assert "s3cret" not in str(caught.value)


ANSWERS_OF_NO_USE = {
    "http": [
        b"HTTP/1.1 403 no\r\n\r\n",
        b"HTTP/1.1 502 \r\n\r\n",
        b"SSH-2.0-x\r\n\r\n",
        b"HTTP/1.1 200 ok\r\n",
        b"x" * 20_000,
        b"",
    ],
    "socks5": [
        b"\x05\xff",
        b"\x04\x00",
        b"\x05\x02",
        b"\x05",
        b"",
        b"HTTP/1.1 200 ok\r\n\r\n",
        *(b"\x05\x00\x05" + bytes([code]) + b"\x00\x01" for code in (1, 2, 3, 4, 5, 8, 99)),
        b"\x05\x00\x05\x00\x00\x09",
        b"\x05\x00\x05\x00\x00\x01\x7f",
    ],
}


@kinds
@pytest.mark.parametrize(
    ("scheme", "answer"),
    [(name, each) for name, answers in ANSWERS_OF_NO_USE.items() for each in answers],
)
def test_a_proxy_that_refuses_or_answers_nonsense(kind: str, scheme: str, answer: bytes) -> None:
    """The error comes at once, and does not repeat the answer."""

    async def script(peer: Peer) -> None:
        await peer.say(answer)
        peer.writer.write_eof()
        await peer.reader.read()

    async def main() -> None:
        async with scripted(script) as (port, _):
            proxy = f"{scheme}://127.0.0.1:{port}"
            await stat(kind, "pop3s://ann:x@mail.example.org", context=UNUSED, proxy=proxy)

    with pytest.raises(CannotConnect, match=r"^proxy 127\.0\.0\.1:\d+: "):
        asyncio.run(main())


@kinds
@pytest.mark.parametrize("scheme", ["http", "socks5"])
@pytest.mark.parametrize("limit", ["timeout", "deadline"])
def test_a_silent_proxy_is_left(kind: str, scheme: str, limit: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.reader.read()

    async def main() -> None:
        async with scripted(script) as (port, _):
            options: Any = {"proxy": f"{scheme}://127.0.0.1:{port}", limit: 0.1}
            await stat(kind, "pop3s://ann:x@mail.example.org", context=UNUSED, **options)

    with pytest.raises(DeadlineExceeded):
        asyncio.run(main())


@pytest.mark.parametrize(
    "proxy",
    [
        "socks4://localhost:1",
        "socks5://localhost",
        "http://me:s3cret@:1",
        "http://me:s3cret@localhost:0",
        "http://me:s3cret@localhost:99999",
        "http://me:s3cret@localhost:80/s3cret",
        "http://me:s3\ncret@localhost:80",
        "localhost:1080",
    ],
)
def test_invalid_proxies_are_refused(proxy: str) -> None:
    with pytest.raises(UnsafeArgument) as caught:
        Remote.parse("pop3s://ann:x@mail.example.org", proxy=proxy)
    assert "cret" not in str(caught.value)


def test_the_password_of_a_proxy_is_not_shown() -> None:
    remote = Remote.parse("pop3s://ann:x@mail.example.org", proxy="socks5://me:s3cret@[::1]:1080")
    assert remote.route.proxy == Proxy("::1", 1080, False, "me", "s3cret")
    assert "s3cret" not in repr(remote) + repr(remote.route)


def test_no_password_goes_to_a_proxy_in_clear() -> None:
    """localhost is then the proxy's machine, and the connection to it crosses a network."""
    with pytest.raises(TLSUnavailable):
        Remote.parse("pop3://ann:x@localhost", tls=TLS.NONE, proxy="socks5://localhost:1080")


# Sockets of the caller.


@kinds
@pytest.mark.parametrize("stls", [False, True])
def test_a_session_over_a_given_socket(server: Pop3Server, kind: str, stls: bool) -> None:
    async def main() -> None:
        given = socket.create_connection(("127.0.0.1", server.stls_port if stls else server.port))
        url = f"pop3{'' if stls else 's'}://ann:pw@localhost:1"  # no server listens at this port
        async with opened(kind, url, ca_file=server.ca_file, sock=given) as held:
            assert await held.call("stat") == (1, 19)
            for renew in ("commit", "reconnect"):
                with pytest.raises(UnsafeArgument, match="sock"):
                    await held.call(renew)
            assert await held.call("stat") == (1, 19)  # the session still works
        await until(lambda: given.fileno() == -1)

    asyncio.run(main())


@kinds
def test_a_session_over_a_unix_socket(kind: str) -> None:
    async def main() -> None:
        async with scripted(polite) as (port, _):
            ours, theirs = socket.socketpair()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            their_reader, their_writer = await asyncio.open_connection(sock=theirs)
            relay = Relay()
            copies = [
                asyncio.create_task(relay.copy(reader, their_writer)),
                asyncio.create_task(relay.copy(their_reader, writer)),
            ]
            options: Any = {"tls": NONE, "context": UNUSED, "sock": ours}
            async with opened(kind, "pop3://mrose:x@mail.example.org", **options) as held:
                assert len(await held.listing()) == 2
            await asyncio.gather(*copies)

    asyncio.run(main())


@pytest.mark.parametrize("what", ["unconnected", "with TLS", "with proxy", "with local_addr"])
def test_unusable_sockets_are_refused(what: str) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, socket.socket() as unconnected:
        options: Any = {"sock": ours}
        if what == "unconnected":
            options["sock"] = unconnected
        elif what == "with TLS":
            options["sock"] = UNUSED.wrap_socket(
                ours, server_hostname="x", do_handshake_on_connect=False
            )
        elif what == "with proxy":
            options["proxy"] = "socks5://localhost:1"
        else:
            options["local_addr"] = "127.0.0.1"
        with pytest.raises(UnsafeArgument, match="sock"):
            Remote.parse("pop3s://ann:x@localhost", **options)
        options["sock"].close()


# The local address.


@kinds
@pytest.mark.parametrize("local", ["127.0.0.9", ("127.0.0.9", 0)])
def test_the_local_address(kind: str, local: Any) -> None:
    seen: list[str] = []

    async def script(peer: Peer) -> None:
        seen.append(peer.writer.get_extra_info("peername")[0])
        await polite(peer)

    async def main() -> None:
        async with scripted(script) as (port, _):
            options: Any = {"tls": NONE, "context": UNUSED, "local_addr": local}
            async with opened(kind, f"pop3://mrose:x@localhost:{port}", **options) as held:
                await held.call("noop")

    asyncio.run(main())
    assert set(seen) == {"127.0.0.9"}


@kinds
@pytest.mark.parametrize("local", ["::1", "203.0.113.7"])
def test_a_local_address_that_does_not_fit(kind: str, local: str) -> None:
    """It has another family than the server's, or is not of this machine."""

    async def main() -> None:
        async with scripted(polite) as (port, _):
            options: Any = {"tls": NONE, "context": UNUSED, "local_addr": local}
            async with opened(kind, f"pop3://mrose:x@127.0.0.1:{port}", **options):
                pass

    with pytest.raises(CannotConnect):
        asyncio.run(main())


@pytest.mark.parametrize(
    ("local", "error"),
    [
        ("mail.example.org", UnsafeArgument),
        (("127.0.0.1",), TypeError),
        ((1, 2), TypeError),
        (7, TypeError),
    ],
)
def test_invalid_local_addresses_are_refused(local: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="local_addr"):
        Remote.parse("pop3s://ann:x@mail.example.org", local_addr=local)


# Accepted certificates.


@asynccontextmanager
async def secret_server(
    folder: Path, name: str
) -> AsyncIterator[tuple[int, list[Peer], Path, bytes]]:
    """Run a server with a self-signed certificate for ``name``; yields its SHA-256 too."""
    pair = certificates.make(folder, [certificates.dns_name(name)])
    digest = sha256(ssl.PEM_cert_to_DER_cert(pair[0].read_text())).digest()
    async with scripted(polite, tls=tls.server_context(*pair)) as (port, peers):
        yield port, peers, pair[0], digest


@kinds
def test_the_name_that_a_certificate_must_have(kind: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with secret_server(tmp_path, "mail.example.org") as (port, peers, ca_file, _):
            url = f"pop3s://mrose:x@127.0.0.1:{port}"
            options: Any = {"ca_file": ca_file, "server_hostname": "mail.example.org"}
            async with opened(kind, url, **options) as held:
                await held.call("noop")
            for wrong in ({"ca_file": ca_file}, {**options, "server_hostname": "example.org"}):
                with pytest.raises(TLSUnavailable, match="not trusted"):
                    async with opened(kind, url, **wrong):
                        pass
            assert not any(b"USER" in line for peer in peers[1:] for line in peer.heard)

    asyncio.run(main())


def spelled(digest: bytes) -> list[str | bytes]:
    return [digest, digest.hex(), digest.hex(":").upper()]


@kinds
@pytest.mark.parametrize("way", range(3))
def test_a_fingerprint_stands_for_the_signature_and_the_name(
    kind: str, way: int, tmp_path: Path
) -> None:
    async def main() -> None:
        async with secret_server(tmp_path, "other.example.org") as (port, _, __, digest):
            url, given = f"pop3s://mrose:x@127.0.0.1:{port}", spelled(digest)[way]
            async with opened(kind, url, fingerprint=given) as held:
                await held.call("noop")

    asyncio.run(main())


@kinds
@pytest.mark.parametrize("also", ["alone", "ca_file", "context"])
def test_another_fingerprint_is_refused_before_any_credential(
    kind: str, also: str, tmp_path: Path
) -> None:
    """Even if an authority has signed the certificate."""

    async def main() -> None:
        async with secret_server(tmp_path, "localhost") as (port, peers, ca_file, _):
            options: Any = {"fingerprint": sha256(b"another").digest()}
            if also == "ca_file":
                options["ca_file"] = ca_file
            elif also == "context":
                options["context"] = tls.client_context(ca_file)
            with pytest.raises(TLSUnavailable, match="different fingerprint"):
                async with opened(kind, f"pop3s://mrose:x@localhost:{port}", **options):
                    pass
            assert not any(peer.heard for peer in peers)

    asyncio.run(main())


@kinds
def test_with_a_fingerprint_a_ca_file_counts_as_well(
    kind: str, tmp_path: Path, certificate: tuple[Path, Path]
) -> None:
    async def main() -> None:
        async with secret_server(tmp_path, "localhost") as (port, _, __, digest):
            url = f"pop3s://mrose:x@localhost:{port}"
            with pytest.raises(TLSUnavailable, match="not trusted"):
                async with opened(kind, url, fingerprint=digest, ca_file=certificate[0]):
                    pass

    asyncio.run(main())


@pytest.mark.parametrize(
    "options",
    [
        {"fingerprint": "ab"},
        {"fingerprint": "x" * 64},
        {"fingerprint": b"x" * 31},
        {"fingerprint": ""},
        {"fingerprint": "ab" * 32, "tls": NONE},
        {"server_hostname": "mail.example.org", "tls": NONE},
    ],
    ids=str,
)
def test_unusable_certificate_checks_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UnsafeArgument):
        Remote.parse("pop3s://ann:x@localhost", **options)


def test_a_service_has_its_own_names() -> None:
    service = restante.Service("mail.example.org", 995, TLS.IMPLICIT, "example.org", "ann")
    with pytest.raises(UnsafeArgument, match="Service"):
        Remote.parse(service, password="x", server_hostname="mail.example.org")
