"""Commands that ask a server which hangs, sends single octets or sends nonsense."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from restante.app.asking import Reply, ask
from restante.errors import (
    NotPermitted,
    NotRunning,
    ProtocolBroken,
    TemporaryFailure,
    UnsafeArgument,
)

HEAD = b"HTTP/1.1 200 OK\r\n"
CLOSED = HEAD + b"Connection: close\r\n\r\n"
Sender = Callable[[socket.socket], None]


@contextmanager
def answering(path: Path, send: Sender) -> Iterator[None]:
    """Answer each connection to a socket, until the client closes it."""

    def serve() -> None:
        while True:
            try:
                client, _ = listening.accept()
            except OSError:
                return
            with client, suppress(OSError):
                client.settimeout(10)
                client.recv(8192)
                send(client)

    path.parent.mkdir(exist_ok=True)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


def sending(octets: bytes) -> Sender:
    return lambda client: client.sendall(octets)


def hanging_after(octets: bytes) -> Sender:
    def send(client: socket.socket) -> None:
        client.sendall(octets)
        client.recv(1)

    return send


def one_by_one(octets: bytes) -> Sender:
    def send(client: socket.socket) -> None:
        for octet in octets:
            client.sendall(bytes([octet]))
            time.sleep(0.05)

    return send


def refusing(status: int) -> Sender:
    text = b"reason\n"
    head = b"HTTP/1.1 %d No\r\nContent-Length: %d\r\n\r\n" % (status, len(text))
    return sending(head + text)


def json(reply: Reply) -> object:
    return reply.json()


def lines(reply: Reply) -> object:
    return list(reply.lines())


@pytest.mark.parametrize("read", [json, lines])
@pytest.mark.parametrize(
    ("send", "error"),
    [
        (hanging_after(b""), TemporaryFailure),
        (hanging_after(CLOSED), TemporaryFailure),
        (one_by_one(HEAD * 20), TemporaryFailure),
        (one_by_one(CLOSED + b" " * 500), TemporaryFailure),
        (sending(b""), TemporaryFailure),
        (sending(HEAD), TemporaryFailure),
        (sending(HEAD + b"Content-Length: 9\r\n\r\n{}\n"), TemporaryFailure),
        (sending(b"+OK POP3 ready\r\n\r\n" * 10), TemporaryFailure),
        (sending(CLOSED + b"hello\n"), ProtocolBroken),
        (sending(CLOSED + b"[1]\n"), ProtocolBroken),
        (sending(CLOSED + b"[" * 60_000 + b"\n"), ProtocolBroken),
        (sending(CLOSED + b"x" * 2_000_000), ProtocolBroken),
    ],
)
def test_server_without_a_valid_answer_is_an_error(
    send: Sender, error: type[Exception], read: Callable[[Reply], object], tmp_path: Path
) -> None:
    with answering(tmp_path / "0.sock", send), pytest.raises(error):
        read(ask(tmp_path, "GET", "/", timeout=0.3))


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, UnsafeArgument),
        (403, NotPermitted),
        (404, ProtocolBroken),
        (405, ProtocolBroken),
        (409, ProtocolBroken),
        (431, UnsafeArgument),
        (500, ProtocolBroken),
        (503, TemporaryFailure),
    ],
)
def test_refusal_is_never_taken_for_an_answer(
    status: int, error: type[Exception], tmp_path: Path
) -> None:
    with answering(tmp_path / "0.sock", refusing(status)):
        with pytest.raises(error, match="reason"):
            ask(tmp_path, "GET", "/")
        assert ask(tmp_path, "GET", "/", accept=status).text() == "reason"


def test_first_worker_that_answers_is_asked(tmp_path: Path) -> None:
    """The others are dead, hang, or are not sockets."""
    folder = tmp_path / "control"
    folder.mkdir()
    (folder / "0.sock").mkdir()
    (folder / "1.sock").write_text("a file")
    (folder / "2.sock").symlink_to("2.sock")
    (folder / "3.sock").symlink_to("nothing")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(folder / "4.sock"))
    with (
        answering(folder / "5.sock", sending(b"")),
        answering(folder / "6.sock", hanging_after(b"")),
        answering(folder / "10.sock", sending(CLOSED + b'{"worker": 10}')),
        answering(folder / "11.sock", sending(CLOSED + b'{"worker": 11}')),
    ):
        assert ask(folder, "GET", "/", timeout=0.3).json() == {"worker": 10}


def test_no_server_is_running(tmp_path: Path) -> None:
    folder = tmp_path / "control"
    for make in (lambda: None, lambda: folder.write_text("a file")):
        make()
        with pytest.raises(NotRunning):
            ask(folder, "GET", "/")
    folder.unlink()
    folder.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(folder / "0.sock"))
    with pytest.raises(NotRunning):
        ask(folder, "GET", "/")
    (folder / "1.sock").symlink_to("1.sock")
    with pytest.raises(OSError, match=os.strerror(40)):
        ask(folder, "GET", "/")


def test_live_answer_that_ends_means_that_the_server_has_stopped(tmp_path: Path) -> None:
    for send in (
        sending(CLOSED + b'{"event": "one"}\n'),
        sending(HEAD + b"Content-Length: 99\r\n\r\n" + b'{"event": "one"}\n'),
        sending(HEAD + b"Content-Length: 17\r\n\r\n" + b'{"event": "one"}\n'),
    ):
        path = tmp_path / "0.sock"
        with answering(path, send):
            reply = ask(tmp_path, "GET", "/")
            reply.live()
            events = reply.lines()
            assert next(events) == {"event": "one"}
            with pytest.raises(NotRunning):
                next(events)
        path.unlink()
