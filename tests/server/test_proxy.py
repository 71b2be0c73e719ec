"""The PROXY protocol: both headers in detail, then with a live server."""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import IPv4Network, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restante.errors import HostileInput
from restante.server.connection import Timeouts
from restante.server.proxy import MAX_V1, MAX_V2, SIGNATURE, Origin, crc32c, parse
from restante.store.memory import MemoryStore

from ..support import LOOPBACK, Client, Run, Server, serving

V1 = b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 995\r\n"
V1_IPV6 = b"PROXY TCP6 2001:DB8::7 2001:db8::1 56324 995\r\n"
LONGEST = b"PROXY UNKNOWN " + b"f" * (MAX_V1 - 16) + b"\r\n"
PORTS = struct.pack("!HH", 56324, 995)
IPV4 = bytes([192, 0, 2, 7, 198, 51, 100, 1]) + PORTS
IPV6 = bytes.fromhex("20010db8" + "0" * 23 + "7" + "20010db8" + "0" * 23 + "1") + PORTS


def v2(body: bytes, family: int = 0x11, command: int = 0x21, length: int | None = None) -> bytes:
    announced = len(body) if length is None else length
    return SIGNATURE + struct.pack("!BBH", command, family, announced) + body


def value(kind: int, octets: bytes) -> bytes:
    return struct.pack("!BH", kind, len(octets)) + octets


def tls_value(version: bytes = b"TLSv1.3", client: int = 1) -> bytes:
    return value(0x20, bytes([client]) + bytes(4) + value(0x21, version))


NO_TLS = v2(IPV4 + tls_value(client=0))


def checked(body: bytes) -> bytes:
    """Return the header with a checksum at the end."""
    blank = v2(body + value(3, bytes(4)))
    return blank[:-4] + struct.pack("!I", crc32c(blank))


RIGHT = {
    "v1": (V1, Origin("192.0.2.7")),
    "v1 IPv6": (V1_IPV6, Origin("2001:db8::7")),
    "v1 unknown": (b"PROXY UNKNOWN\r\n", Origin()),
    "v1 unknown, longest": (LONGEST, Origin()),
    "v2": (v2(IPV4), Origin("192.0.2.7")),
    "v2 IPv6": (v2(IPV6, 0x21), Origin("2001:db8::7")),
    "v2 unix": (v2(bytes(216), 0x31), Origin()),
    "v2 unspecified": (v2(b"", 0x00), Origin()),
    "v2 local": (v2(b"", 0x00, 0x20), Origin()),
    "v2 local, to be skipped": (v2(b"any\r\n octets", 0x99, 0x20), Origin()),
    "v2 with values": (v2(IPV4 + value(4, b"") + value(2, b"example.org")), Origin("192.0.2.7")),
    "v2 with an unknown value": (v2(IPV4 + value(0xE0, b"x" * 300)), Origin("192.0.2.7")),
    "v2 with TLS": (v2(IPV4 + tls_value()), Origin("192.0.2.7", "1.3")),
    "v2 without TLS": (v2(IPV4 + tls_value(client=0)), Origin("192.0.2.7", "no")),
    "v2 with strange TLS": (v2(IPV4 + tls_value(b"x\r\ny")), Origin("192.0.2.7", "unknown")),
    "v2 with a checksum": (checked(IPV4), Origin("192.0.2.7")),
    "v2 of the greatest length": (v2(IPV4 + value(4, bytes(MAX_V2 - 15))), Origin("192.0.2.7")),
}
WRONG = {
    "another word": b"HELLO",
    "lower case": b"proxy TCP4",
    "a greeting": b"CAPA\r\n",
    "a ClientHello": b"\x16\x03\x01\x02\x00\x01",
    "bare LF": V1.replace(b"\r\n", b"\n"),
    "bare CR inside": V1.replace(b" 995", b"\r995"),
    "bare LF inside an unknown one": b"PROXY UNKNOWN x\ny\r\n",
    "two spaces": V1.replace(b" 995", b"  995"),
    "tab": V1.replace(b" 995", b"\t995"),
    "space at the end": V1.replace(b"\r\n", b" \r\n"),
    "leading zero in a port": V1.replace(b" 995", b" 0995"),
    "leading zero in an address": V1.replace(b"192.0.2.7", b"192.0.02.7"),
    "port too great": V1.replace(b" 995", b" 65536"),
    "no port": V1.replace(b" 56324 995", b""),
    "address of another family": V1.replace(b"TCP4", b"TCP6"),
    "mixed families": V1.replace(b"198.51.100.1", b"2001:db8::1"),
    "a name": V1.replace(b"192.0.2.7", b"example"),
    "a zone": V1_IPV6.replace(b"::7", b"::7%1"),
    "a signed number": V1.replace(b" 995", b" +995"),
    "another digit": V1.replace(b"192", "\u0661".encode() + b"92"),
    "UDP": V1.replace(b"TCP4", b"UDP4"),
    "UNKNOWNS": b"PROXY UNKNOWNS\r\n",
    "too long": b"PROXY UNKNOWN " + b"f" * MAX_V1 + b"\r\n",
    "one octet too long": LONGEST.replace(b"\r\n", b"f\r\n"),
    "v2 of version 3": v2(IPV4, command=0x31),
    "v2 of command 2": v2(IPV4, command=0x22),
    "v2 of family 4": v2(IPV4, 0x41),
    "v2 of datagrams": v2(IPV4, 0x12),
    "v2 shorter than its addresses": v2(IPV4[:-1]),
    "v2 of IPv6, shorter": v2(IPV4, 0x21),
    "v2 too long": v2(b"", length=MAX_V2 + 1),
    "v2 with a cut value": v2(IPV4 + b"\x04\x00"),
    "v2 with an overlong value": v2(IPV4 + b"\x04\x00\x09xx"),
    "v2 with an overlong unique id": v2(IPV4 + value(5, bytes(129))),
    "v2 with a cut TLS value": v2(IPV4 + value(0x20, b"\x01")),
    "v2 with a wrong checksum": checked(IPV4)[:-1] + b"x",
    "v2 with a changed address": checked(IPV4).replace(b"\xc0\x00\x02\x07", b"\xc0\x00\x02\x08"),
    "v2 with a short checksum": v2(IPV4 + value(3, b"xxx")),
}


@pytest.mark.parametrize(("header", "origin"), RIGHT.values(), ids=RIGHT)
@pytest.mark.rfc("P-181", "P-182", "P-183", "P-184")
def test_header_is_consumed_exactly_to_its_end(header: bytes, origin: Origin) -> None:
    """A ClientHello or another header may follow (cpython#142352)."""
    for rest in (b"", b"\x16\x03\x01\x02\x00", b"USER ann\r\n", header, b"\n"):
        assert parse(header + rest) == (origin, len(header))
    for end in range(1, len(header)):
        assert parse(header[:end]) is None


@pytest.mark.parametrize("header", WRONG.values(), ids=WRONG)
@pytest.mark.rfc("P-181", "P-182", "P-183")
def test_malformed_proxy_headers_are_refused(header: bytes) -> None:
    with pytest.raises(HostileInput):
        parse(header)


def test_the_checksum_is_castagnolis() -> None:
    assert crc32c(b"123456789") == 0xE3069283


@given(st.binary(max_size=300) | st.binary(max_size=300).map(lambda each: SIGNATURE + each))
def test_random_octets_are_refused_or_incomplete(octets: bytes) -> None:
    try:
        found = parse(octets)
    except HostileInput:
        return
    assert found is None or found[1] <= len(octets)


# A live server behind a proxy.


@asynccontextmanager
async def connected(server: Server) -> AsyncIterator[Client]:
    """Connect without sending or reading anything."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        yield Client(reader, writer)
    finally:
        writer.transport.abort()


def reported(caplog: pytest.LogCaptureFixture, event: str) -> list[dict[str, str]]:
    return [vars(each)["fields"] for each in caplog.records if each.getMessage() == event]


@pytest.mark.parametrize("header", [V1, v2(IPV4), v2(IPV4 + tls_value())], ids=["v1", "v2", "tls"])
@pytest.mark.rfc("P-180", "P-184")
def test_address_reported_by_a_proxy_is_the_clients(
    header: bytes, run: Run[None], caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, and decides with TLS at the proxy whether a plaintext login is allowed."""
    caplog.set_level(logging.INFO)

    async def main() -> None:
        async with serving(MemoryStore(), proxy_from=LOOPBACK, clear=False) as server:
            if header == V1:
                server.service.allow_plaintext_from = (ip_network("192.0.2.0/24"),)
            async with connected(server) as client:
                client.send(header + b"USER mrose\r\nPASS tan staaf\r\n")
                heard = [await client.line() for _ in range(3)]
        may = header != v2(IPV4)
        assert [line.startswith(b"+OK") for line in heard] == [True, may, may]

    run(main())
    for fields in reported(caplog, "login ok"):
        assert (fields["ip"], fields["proxy"]) == ("192.0.2.7", "127.0.0.1")
        assert fields["tls"] == ("no" if header == V1 else "1.3")


@pytest.mark.parametrize(
    ("tls_at_proxy", "proxy_from", "header", "tls"),
    [
        (True, LOOPBACK, V1, "proxy"),
        (True, LOOPBACK, v2(IPV4), "proxy"),
        (True, LOOPBACK, v2(IPV4 + tls_value()), "1.3"),
        (True, LOOPBACK, NO_TLS, None),  # it was not TLS
        (True, LOOPBACK, b"PROXY UNKNOWN\r\n", None),  # from the proxy itself, such as a probe
        (True, LOOPBACK, v2(b"", 0, 0x20), None),
        (True, (), b"", None),  # another machine connects directly
        (False, LOOPBACK, V1, None),
        (False, LOOPBACK, v2(IPV4), None),
    ],
)
@pytest.mark.rfc("P-180")
def test_tls_at_proxy_counts_only_if_configured(
    tls_at_proxy: bool,
    proxy_from: tuple[IPv4Network, ...],
    header: bytes,
    tls: str | None,
    run: Run[None],
    server_tls: ssl.SSLContext,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """``tls`` is the logged TLS version of a login; None if it is refused."""
    caplog.set_level(logging.INFO)

    async def main() -> None:
        async with (
            serving(
                MemoryStore(),
                tls=server_tls,
                clear=False,
                proxy_from=proxy_from,
                tls_at_proxy=tls_at_proxy,
            ) as server,
            connected(server) as client,
        ):
            client.send(header + b"CAPA\r\nUSER mrose\r\nPASS tan staaf\r\nQUIT\r\n")
            _, capabilities, answers = re.split(rb"\+OK cap|\r\n\.\r\n", await client.rest())
            assert (b"\r\nUSER" in capabilities) == (tls is not None)
            assert (b"\r\nSTLS" in capabilities) == (tls is None and header != NO_TLS)
            assert answers.startswith(b"+OK" if tls else b"-ERR")

    run(main())
    logged = [fields["tls"] for fields in reported(caplog, "login ok")]
    assert logged == ([] if tls is None else [tls])


@pytest.mark.rfc("P-180")
def test_nothing_is_sent_before_the_proxy_header(run: Run[None]) -> None:
    async def main() -> None:
        async with (
            serving(MemoryStore(), proxy_from=LOOPBACK) as server,
            connected(server) as client,
        ):
            for octet in V1[:-1]:
                client.send(bytes([octet]))
                await asyncio.sleep(0)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await client.reader.read(1)
            client.send(V1[-1:])
            assert (await client.line()).startswith(b"+OK")

    run(main())


@pytest.mark.parametrize(
    "header", [V1, v2(IPV6, 0x21), v2(b"", 0, 0x20)], ids=["v1", "v2", "local"]
)
@pytest.mark.parametrize("implicit", [True, False])
@pytest.mark.rfc("P-183", "P-184")
def test_header_and_client_hello_may_share_a_segment(
    header: bytes,
    implicit: bool,
    run: Run[None],
    server_tls: ssl.SSLContext,
    client_tls: ssl.SSLContext,
) -> None:
    """cpython#142352: no octet of the handshake is lost or taken for the header."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    secure = client_tls.wrap_bio(incoming, outgoing, server_hostname="localhost")

    async def handshake(client: Client, before: bytes) -> None:
        while True:
            try:
                secure.do_handshake()
            except ssl.SSLWantReadError:
                client.send(before + outgoing.read())
                before = b""
                incoming.write(await client.reader.read(65_536))
            else:
                client.send(outgoing.read())
                return

    async def heard(client: Client) -> bytes:
        while True:
            try:
                return secure.read(65_536)
            except ssl.SSLWantReadError:
                incoming.write(await client.reader.read(65_536))

    async def main() -> None:
        async with (
            serving(
                MemoryStore(), tls=server_tls, implicit=implicit, proxy_from=LOOPBACK
            ) as server,
            connected(server) as client,
        ):
            if implicit:
                await handshake(client, header)
                assert (await heard(client)).startswith(b"+OK")
            else:
                client.send(header)
                assert (await client.line()).startswith(b"+OK")
                assert (await client.ask(b"STLS")).startswith(b"+OK")
                await handshake(client, b"")
            secure.write(b"NOOP x\r\n")
            client.send(outgoing.read())
            assert (await heard(client)).startswith(b"-ERR")

    run(main())


@pytest.mark.parametrize("header", WRONG.values(), ids=WRONG)
@pytest.mark.rfc("P-180", "P-181", "P-182")
def test_malformed_proxy_header_gets_no_response(
    header: bytes, run: Run[None], caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with (
            serving(MemoryStore(), proxy_from=LOOPBACK) as server,
            connected(server) as client,
        ):
            client.send(header + b"USER mrose\r\n")
            assert await client.rest() == b""

    run(main())
    assert len(reported(caplog, "proxy refused")) == 1


@pytest.mark.parametrize("implicit", [True, False])
@pytest.mark.parametrize("header", [V1, v2(IPV4)], ids=["v1", "v2"])
@pytest.mark.rfc("P-180", "P-184")
def test_unlisted_and_second_proxy_headers_are_not_parsed(
    implicit: bool, header: bytes, run: Run[None], server_tls: ssl.SSLContext
) -> None:
    async def main() -> None:
        for proxy_from, sent in (((), header), (LOOPBACK, header + header)):
            async with (
                serving(
                    MemoryStore(), tls=server_tls, implicit=implicit, proxy_from=proxy_from
                ) as server,
                connected(server) as client,
            ):
                client.send(sent + b"USER mrose\r\nPASS tan staaf\r\n")
                greeting, *answers = (await client.rest()).split(b"\r\n")
                assert implicit or greeting.startswith(b"+OK")
                assert not any(answer.startswith(b"+OK") for answer in answers)

    run(main())


@pytest.mark.rfc("P-180")
def test_late_proxy_header_times_out(run: Run[None]) -> None:
    async def main() -> None:
        async with serving(
            MemoryStore(), timeouts=Timeouts(handshake=0.1), proxy_from=LOOPBACK
        ) as server:
            async with connected(server) as client:
                client.send(b"USER mrose\r\n" + V1)
                assert await client.rest() == b""
            async with connected(server) as client:
                client.send(V1[:20])
                assert await client.rest() == b"", "its time is over"
        async with serving(MemoryStore()) as server, server.client() as client:
            client.send(b"CAPA x\r\n" + V1 + b"USER mrose\r\n")
            assert (await client.line()).startswith(b"-ERR")
            assert await client.rest() == b""

    run(main())


def test_limits_count_the_client_and_not_the_proxy(run: Run[None]) -> None:
    async def main() -> None:
        async with (
            serving(MemoryStore(), proxy_from=LOOPBACK, per_address=1) as server,
            connected(server) as first,
            connected(server) as second,
            connected(server) as third,
        ):
            first.send(V1)
            assert (await first.line()).startswith(b"+OK")
            third.send(V1_IPV6)
            assert (await third.line()).startswith(b"+OK")
            second.send(v2(IPV4))
            assert (await second.line()).startswith(b"+OK")
            assert await first.rest() == b"", "it made room for another of its client"
            assert (await third.ask(b"USER ann")).startswith(b"-ERR login requires TLS")

    run(main())


# XCLIENT.


def test_xclient_sets_the_client_address(run: Run[None], caplog: pytest.LogCaptureFixture) -> None:
    """As sent by Dovecot's proxy; then limits, permissions and the log use that address."""
    caplog.set_level(logging.INFO)

    async def main() -> None:
        async with serving(
            MemoryStore(), xclient_from=LOOPBACK, clear=False, per_address=1
        ) as server:
            server.service.allow_plaintext_from = (ip_network("192.0.2.0/24"),)
            async with connected(server) as client:
                assert (await client.line()).startswith(b"+OK [XCLIENT] ")
                assert (await client.ask(b"USER mrose")).startswith(b"-ERR")
                client.send(
                    b"XCLIENT ADDR=192.0.2.7 PORT=4711 SESSION=abc TTL=5 LOGIN=root "
                    b"FORWARD=" + b"A" * 2000 + b"\r\n"
                )
                assert (await client.line()).startswith(b"+OK")
                assert (await client.ask(b"XCLIENT ADDR=192.0.2.8")).startswith(b"-ERR")
                assert (await client.ask(b"STAT")).startswith(b"-ERR"), "nobody is logged in by it"
                await client.log_in()
                async with connected(server) as next_one:
                    assert (await next_one.line()).startswith(b"+OK"), "the proxy's slot is free"
                    reported = await next_one.ask(b"XCLIENT ADDR=192.0.2.7")
                    assert reported.startswith(b"-ERR [SYS/TEMP]")
                    assert await next_one.rest() == b""

    run(main())
    (fields,) = reported(caplog, "login ok")
    assert (fields["ip"], fields["proxy"], fields["tls"]) == ("192.0.2.7", "127.0.0.1", "no")


@pytest.mark.parametrize(
    ("transport", "may"), [(b"TLS", True), (b"insecure", False), (b"TLSv1.3", True)]
)
def test_xclient_sets_the_clients_tls(
    transport: bytes,
    may: bool,
    run: Run[None],
    server_tls: ssl.SSLContext,
    client_tls: ssl.SSLContext,
) -> None:
    """A password that was plaintext before the proxy is not protected by TLS behind it."""

    async def main() -> None:
        for implicit in (True, False):
            async with (
                serving(
                    MemoryStore(),
                    tls=server_tls,
                    implicit=implicit,
                    xclient_from=LOOPBACK,
                    clear=False,
                ) as server,
                server.client(client_tls if implicit else None) as client,
            ):
                said = b"XCLIENT ADDR=IPV6:2001:db8::7 CLIENT-TRANSPORT=" + transport
                assert (await client.ask(said)).startswith(b"+OK")
                assert (await client.ask(b"USER mrose")).startswith(b"+OK") == may
                assert (await client.ask(b"STLS")).startswith(b"-ERR")

    run(main())


def test_xclient_is_unknown_to_other_clients(run: Run[None]) -> None:
    async def main() -> None:
        async with serving(MemoryStore()) as server, server.client() as client:
            unknown = await client.ask(b"XYZ")
            assert await client.ask(b"XCLIENT ADDR=192.0.2.7") == unknown
        async with (
            serving(MemoryStore(), xclient_from=LOOPBACK) as server,
            server.client() as client,
        ):
            for wrong in (b"XCLIENT ADDR=x", b"XCLIENT ADDR=[UNAVAILABLE]", b"XCLIENT ADDR"):
                async with server.client() as client:
                    assert (await client.ask(wrong)).startswith(b"-ERR")

    run(main())
