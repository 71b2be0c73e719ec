"""SRV records from a DNS server on loopback, and the certificates that are accepted then."""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dns.message
import dns.rdatatype
import dns.resolver
import dns.rrset
import pytest
from cryptography import x509

from restante import tls
from restante.client.asynchronous import connect
from restante.client.blocking import connect_blocking
from restante.client.discovery import Target, discover, discover_blocking, order_by_priority
from restante.client.remote import TLS, Service
from restante.errors import (
    ConfigurationError,
    ConnectionLost,
    DeadlineExceeded,
    TLSUnavailable,
    UnsafeArgument,
)
from restante.store.memory import MemoryStore

from ..support import serving
from .certificates import make, srv_name


@contextmanager
def answering(records: dict[str, list[str]], code: str = "NOERROR") -> Iterator[Any]:
    """Yield a resolver that uses a small server on loopback with these records.

    Names are those of SRV records, or names with a space and another type.
    """
    listening = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    listening.bind(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            octets, client = listening.recvfrom(4096)
            if not octets:
                return
            query = dns.message.from_wire(octets)
            response = dns.message.make_response(query)
            name = query.question[0].name.to_text()
            kind = dns.rdatatype.to_text(query.question[0].rdtype)
            if found := records.get(name if kind == "SRV" else f"{name} {kind}"):
                response.answer.append(dns.rrset.from_text(name, 60, "IN", kind, *found))
            response.set_rcode(
                dns.rcode.from_text(code if found or code != "NOERROR" else "NXDOMAIN")
            )
            if code != "SILENT":
                listening.sendto(response.to_wire(), client)

    def silent() -> None:
        while listening.recvfrom(4096)[0]:
            pass

    thread = threading.Thread(target=silent if code == "SILENT" else serve)
    thread.start()
    resolver = dns.resolver.Resolver(configure=False)
    resolver.nameservers = ["127.0.0.1"]
    resolver.port = listening.getsockname()[1]
    try:
        yield resolver
    finally:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ending:
            ending.sendto(b"", listening.getsockname())
        thread.join(10)
        listening.close()


RECORDS = {
    "_pop3._tcp.example.org.": ["0 1 110 pop.example.org."],
    "_pop3s._tcp.example.org.": [
        "20 1 995 backup.example.org.",
        "10 1 1995 Mail.Provider.example.",
    ],
    "_pop3._tcp.none.example.": ["0 0 0 ."],
    "_pop3s._tcp.none.example.": ["0 0 0 ."],
}


@pytest.mark.rfc("P-160", "P-161", "P-163")
def test_tls_first_then_priority() -> None:
    with answering(RECORDS) as resolver:
        found = discover_blocking("ann@Example.org", resolver=resolver)
        assert asyncio.run(discover("example.org.", resolver=resolver))[0].user == ""
    assert [(each.host, each.port, each.tls) for each in found] == [
        ("mail.provider.example", 1995, TLS.IMPLICIT),
        ("backup.example.org", 995, TLS.IMPLICIT),
        ("pop.example.org", 110, TLS.STARTTLS),
    ]
    assert {(each.domain, each.user) for each in found} == {("example.org", "ann@Example.org")}


@pytest.mark.rfc("P-160")
@pytest.mark.parametrize("domain", ["none.example", "unknown.example"])
def test_missing_service_is_not_an_error(domain: str) -> None:
    with answering(RECORDS) as resolver:
        assert discover_blocking(domain, resolver=resolver) == []


@pytest.mark.parametrize(
    ("code", "error"), [("SERVFAIL", ConnectionLost), ("SILENT", DeadlineExceeded)]
)
def test_missing_dns_answer_is_an_error(code: str, error: type[Exception]) -> None:
    with answering(RECORDS, code) as resolver, pytest.raises(error):
        discover_blocking("example.org", resolver=resolver, timeout=0.2)


@pytest.mark.parametrize(
    "address", ["", "ann@", "ann@..", "ann@a b", "ann@x\0y", "ann@" + "x" * 70]
)
def test_invalid_addresses_are_refused(address: str) -> None:
    with pytest.raises(UnsafeArgument):
        discover_blocking(address)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "dns", None)
    with pytest.raises(ConfigurationError, match=r"restante\[srv\]"):
        discover_blocking("example.org")


@pytest.mark.rfc("P-160")
def test_weights_are_probabilities() -> None:
    """RFC 2782: three times the weight is chosen three times as often; 0 is rare but possible."""
    heavy, light, never = Target(1, 30, 1, "a"), Target(1, 10, 1, "b"), Target(1, 0, 1, "c")
    chance = random.Random(7)
    first = [
        order_by_priority([light, never, heavy, Target(0, 0, 1, ".")], chance)[0]
        for _ in range(4000)
    ]
    assert 2800 < first.count(heavy) < 3200
    assert first.count(never) < 10
    assert order_by_priority([Target(2, 99, 1, "z"), never], chance) == [
        never,
        Target(2, 99, 1, "z"),
    ]


# The name in the certificate.


@pytest.mark.rfc("P-131", "P-162")
@pytest.mark.parametrize(
    ("names", "domain", "is_confirmed", "is_good"),
    [
        ([srv_name("_pop3s.example.org")], "example.org", False, True),
        ([srv_name("_pop3.example.org")], "example.org", False, False),
        ([srv_name("_imaps.example.org")], "example.org", False, False),
        ([x509.DNSName("example.org")], "example.org", False, True),
        ([x509.DNSName("*.example.org")], "example.org", False, False),
        ([x509.DNSName("localhost")], "example.org", False, False),
        ([x509.DNSName("localhost")], "example.org", True, True),
        ([x509.DNSName("localhost")], "localhost", False, True),
        ([x509.UniformResourceIdentifier("pop:example.org")], "example.org", False, False),
        ([], "example.org", True, False),
    ],
)
@pytest.mark.parametrize("implicit", [True, False])
def test_the_certificate_is_for_the_mail_domain(
    names: list[x509.GeneralName],
    domain: str,
    is_confirmed: bool,
    is_good: bool,
    implicit: bool,
    tmp_path: Path,
) -> None:
    """RFC 7817 §3: a host name from an unsigned record proves nothing."""
    if not implicit and names and isinstance(names[0], x509.OtherName):
        is_good = names[0] == srv_name("_pop3.example.org")
    pair = make(tmp_path, names, common="localhost")

    def blocking(service: Service) -> None:
        with connect_blocking(service, password="tan staaf", ca_file=pair[0]) as client:
            client.stat()

    async def main() -> None:
        context = tls.server_context(*pair)
        async with serving(MemoryStore(), tls=context, implicit=implicit, clear=False) as server:
            begins = TLS.IMPLICIT if implicit else TLS.STARTTLS
            service = Service("localhost", server.port, begins, domain, "mrose", is_confirmed)
            if is_good:
                await asyncio.to_thread(blocking, service)
                async with connect(service, password="tan staaf", ca_file=pair[0]) as client:
                    await client.stat()
                return
            with pytest.raises(TLSUnavailable, match="is not valid for"):
                await asyncio.to_thread(blocking, service)
            with pytest.raises(TLSUnavailable, match="is not valid for"):
                async with connect(service, password="tan staaf", ca_file=pair[0]):
                    pass

    asyncio.run(main())


def test_the_chain_is_verified_all_the_same(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    pair = make(tmp_path, [x509.DNSName("example.org")])

    async def main() -> None:
        async with serving(MemoryStore(), tls=tls.server_context(*pair), implicit=True) as server:
            service = Service("localhost", server.port, TLS.IMPLICIT, "example.org", "mrose")
            with pytest.raises(TLSUnavailable, match="not trusted"):
                async with connect(service, password="x", ca_file=certificate[0]):
                    pass

    asyncio.run(main())


def test_only_subdomains_are_within_a_domain() -> None:
    def within(host: str) -> bool:
        return Service(host, 995, TLS.IMPLICIT, "example.org").is_within

    assert within("example.org")
    assert within("pop.example.org")
    assert not within("badexample.org")
    assert not within("example.org.evil.example")
    assert Service("x", 1, TLS.IMPLICIT, "example.org").confirmed().is_confirmed


def test_a_context_of_ones_own_does_not_know_the_domain() -> None:
    service = Service("localhost", 995, TLS.IMPLICIT, "example.org", "ann")
    with (
        pytest.raises(UnsafeArgument),
        connect_blocking(service, password="x", context=ssl.create_default_context()),
    ):
        pass
