"""Requests over HTTPS end at their deadline, whatever the server sends."""

from __future__ import annotations

import socket
import ssl
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from restante import tls
from restante.errors import TemporaryFailure
from restante.https import JsonClient

CONTENT = b'{"a": 1}'
HEAD = b"HTTP/1.1 200 OK\r\nX: %b\r\nContent-Length: %d\r\n\r\n" % (b"x" * 300, len(CONTENT))


@contextmanager
def answering(answer: Callable[[socket.socket], object], certificate: Path | None) -> Iterator[str]:
    """Answer one request; yield the URL."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connected, _ = listening.accept()
            if certificate is not None:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(certificate, certificate.with_name("key.pem"))
                connected = context.wrap_socket(connected, server_side=True)
            with connected, suppress(OSError):
                while not connected.recv(65_536).endswith(b"\r\n\r\n"):
                    pass
                answer(connected)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            scheme = "http" if certificate is None else "https"
            yield f"{scheme}://127.0.0.1:{listening.getsockname()[1]}/"
        finally:
            thread.join()


def slowly(
    octets: bytes,
    stop: threading.Event,
    *,
    pause: float = 0.01,
    sent: bytearray | None = None,
) -> Callable[[socket.socket], object]:
    """Send one octet at a time, each long before the timeout."""

    def send(connected: socket.socket) -> None:
        for each in octets:
            connected.sendall(bytes([each]))
            if sent is not None:
                sent.append(each)
            if stop.wait(pause):
                return

    return send


@pytest.fixture(params=["http", "https"])
def certificate(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    if request.param == "http":
        return None
    path, key = tls.make_self_signed(tmp_path / "tls", ["127.0.0.1"])
    if key.name != "key.pem":
        key.with_name("key.pem").write_bytes(key.read_bytes())
    return path


def client(certificate: Path | None, *, deadline: float) -> JsonClient:
    context = tls.client_context(certificate)
    return JsonClient(context, timeout=5, deadline=deadline, use_proxy=False)


@pytest.mark.parametrize("fast", [0, 12, len(HEAD), len(HEAD) + 2])
def test_dripping_server_is_cut_off_at_the_deadline(fast: int, certificate: Path | None) -> None:
    """In the status line, the headers and the content; it would be complete after 3 seconds."""
    response, stop, sent = HEAD + CONTENT, threading.Event(), bytearray()

    def answer(connected: socket.socket) -> None:
        connected.sendall(response[:fast])
        if fast >= len(HEAD):  # few octets are left
            stop.wait(20)
        slowly(response[fast:], stop, sent=sent)(connected)

    with answering(answer, certificate) as url:
        try:
            with pytest.raises(TemporaryFailure, match=r"^127\.0\.0\.1: .*(slow|timed out)"):
                client(certificate, deadline=0.1).request(url)
        finally:
            stop.set()
    assert len(sent) < 200, "the client has read on"


def test_slow_server_may_use_the_time_before_the_deadline(certificate: Path | None) -> None:
    with answering(slowly(HEAD + CONTENT, threading.Event(), pause=0.001), certificate) as url:
        assert client(certificate, deadline=30).request(url) == (200, {"a": 1})


def test_connection_is_closed_after_the_response(certificate: Path | None) -> None:
    ended = []

    def answer(connected: socket.socket) -> None:
        connected.sendall(HEAD + CONTENT)
        ended.append(connected.recv(1))

    with answering(answer, certificate) as url:
        assert client(certificate, deadline=30).request(url) == (200, {"a": 1})
    assert ended == [b""]


@pytest.mark.parametrize(
    "url",
    [
        "https://a..b/SECRET",
        f"https://{'a' * 64}.example/SECRET",
        "https://127.0.0.1:SECRET/",
        "https://127.0.0.1:1/SECRET x",
        "https://127.0.0.1:1/SECRET\u00e9",
        "https://[SECRET/",
        "SECRET",
        "https:///SECRET",
    ],
)
def test_invalid_url_is_a_failure_that_does_not_quote_it(url: str) -> None:
    with pytest.raises(TemporaryFailure) as raised:
        client(None, deadline=5).request(url)
    assert "SECRET" not in "".join(traceback.format_exception(raised.value.with_traceback(None)))


def test_malformed_response_is_a_failure(certificate: Path | None) -> None:
    with (
        answering(lambda connected: connected.sendall(b"SECRET\r\n"), certificate) as url,
        pytest.raises(TemporaryFailure, match=r"^127\.0\.0\.1: BadStatusLine$"),
    ):
        client(certificate, deadline=5).request(url)
