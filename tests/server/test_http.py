"""HTTP requests and responses without I/O: whole, octet by octet, followed by more, malformed."""

from __future__ import annotations

import pytest

from restante.errors import ProtocolBroken
from restante.server.http import (
    MAX_REQUEST,
    BadRequest,
    ClientExchange,
    Request,
    ServerExchange,
)

GET = b"GET /sessions?user=ann%40example.org HTTP/1.1\r\nHost: x\r\n\r\n"
PARSED = Request("GET", "/sessions", {"user": "ann@example.org"}, "x")


def parsed(*pieces: bytes) -> Request | BadRequest | None:
    exchange = ServerExchange()
    for piece in pieces:
        exchange.receive(piece)
        if (event := exchange.next()) is not None:
            return event
        assert exchange.unread == 0
    return None


def padded(octets: int) -> bytes:
    """Return a request of this size."""
    head = b"GET / HTTP/1.1\r\nHost: x\r\nPadding: "
    return head + b"x" * (octets - len(head) - 4) + b"\r\n\r\n"


@pytest.mark.parametrize("octets", [GET, GET + b"GET / HTTP/1.1\r\n\r\n", GET + b"\0" * 100])
def test_one_request_is_read_whole_and_octet_by_octet(octets: bytes) -> None:
    assert parsed(octets) == PARSED
    assert parsed(*(octets[at : at + 1] for at in range(len(octets)))) == PARSED


def test_part_of_a_request_is_no_request() -> None:
    for end in range(len(GET)):
        assert parsed(GET[:end]) is None


def test_octets_after_a_request_are_ignored() -> None:
    exchange = ServerExchange()
    exchange.receive(GET + GET)
    assert exchange.next() == PARSED
    for _ in range(3):
        exchange.receive(GET * 1000)
        assert exchange.next() is None
        assert exchange.unread == 0


@pytest.mark.parametrize("is_split", [False, True])
@pytest.mark.parametrize(
    ("octets", "is_accepted"), [(MAX_REQUEST, True), (MAX_REQUEST + 1, False), (10_000, False)]
)
def test_too_large_request_is_refused(octets: int, is_accepted: bool, is_split: bool) -> None:
    sent = padded(octets)
    assert len(sent) == octets
    pieces = [sent[at : at + 1000] for at in range(0, octets, 1000)] if is_split else [sent]
    expected = Request("GET", "/", host="x") if is_accepted else BadRequest(431)
    assert parsed(*pieces) == expected


@pytest.mark.parametrize(
    ("octets", "status"),
    [
        (b"POST /reload HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", 413),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx", 413),
        (b"GET / HTTP/1.1\r\n\r\n", 400),  # Host is required (RFC 9112 §3.2)
        (b"CAPA\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400),
        (b"GET //[ HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /?" + b"a=1&" * 11 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"\r\n" * 5000, 400),
    ],
)
def test_a_bad_request_is_refused(octets: bytes, status: int) -> None:
    assert parsed(octets) == BadRequest(status)


@pytest.mark.parametrize("length", [None, 6])
@pytest.mark.parametrize("step", [1, 7, 1000])
def test_the_client_reads_the_response_of_the_server(length: int | None, step: int) -> None:
    client, server = ClientExchange("GET", "/status?here=1"), ServerExchange()
    server.receive(client.request)
    assert server.next() == Request("GET", "/status", {"here": "1"}, "restante")
    sent = server.head(200, "text/plain", length)
    sent += server.content(b"one") + server.content(b"two") + server.end()
    pieces: list[bytes] = []
    for at in range(0, len(sent), step):
        assert not client.is_over
        client.receive(sent[at : at + step])
        pieces += client.take()
    assert (client.status, b"".join(pieces), client.is_over) == (200, b"onetwo", True)


@pytest.mark.parametrize(
    "octets",
    [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", b"HTTP/1.1 200 OK\r\nTransfer-"],
)
def test_a_response_that_ends_early_is_an_error(octets: bytes) -> None:
    client = ClientExchange("GET", "/")
    if octets:
        client.receive(octets)
    with pytest.raises(ProtocolBroken):
        client.receive(b"")
