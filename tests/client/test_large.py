"""One gigabyte and one million messages, in bounded memory."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

pytestmark = pytest.mark.slow

PROGRAM = """
import asyncio, resource, sys
import restante

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

options = dict(user="ann", password="pw", tls=restante.TLS.NONE)

async def with_asyncio(url):
    async with restante.connect(url, **options) as client:
        before = peak()
        messages = await client.list() if WANT == 1 else None
        if messages:
            return before, sum([len(piece) async for piece in client.retrieve(messages[0])])
        count = 0
        for message in await client.list():
            assert message.unique_id
            count += 1
        return before, count

def with_blocking(url):
    with restante.connect_blocking(url, **options) as client:
        before = peak()
        if WANT == 1:
            [message] = client.list()
            return before, sum(map(len, client.retrieve(message)))
        count = 0
        for message in client.list():
            assert message.unique_id
            count += 1
        return before, count

url, kind, WANT = sys.argv[1], sys.argv[2], int(sys.argv[3])
before, found = asyncio.run(with_asyncio(url)) if kind == "asyncio" else with_blocking(url)
print(found, peak() - before)
"""


@contextmanager
def serving(answer: Callable[[bytes], Iterator[bytes]]) -> Iterator[int]:
    """Serve one connection in a thread."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listening.accept()
        with connection, connection.makefile("rb") as commands:
            connection.sendall(b"+OK\r\n")
            for line in commands:
                for piece in answer(line.strip()):
                    connection.sendall(piece)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listening.getsockname()[1]
    finally:
        thread.join(60)
        listening.close()


def fetched(port: int, kind: str, want: int) -> tuple[int, int]:
    """Return what was received, and by how many octets memory grew."""
    command = [sys.executable, "-c", PROGRAM, f"pop3://127.0.0.1:{port}", kind, str(want)]
    done = subprocess.run(command, capture_output=True, check=True, timeout=300)
    found, growth = map(int, done.stdout.split())
    return found, growth


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["asyncio", "blocking"])
def test_a_message_of_one_gigabyte(kind: str) -> None:
    piece = (b"x" * 998 + b"\r\n") * 1000

    def answer(command: bytes) -> Iterator[bytes]:
        match command:
            case b"LIST":
                yield b"+OK\r\n1 1000000000\r\n.\r\n"
            case b"UIDL":
                yield b"+OK\r\n1 a\r\n.\r\n"
            case b"RETR 1":
                yield b"+OK\r\n"
                for _ in range(1000):
                    yield piece
                yield b".\r\n"
            case b"CAPA":
                yield b"-ERR\r\n"
            case _:
                yield b"+OK\r\n"

    with serving(answer) as port:
        octets, growth = fetched(port, kind, 1)
    assert octets == 1_000_000_000
    assert growth < 8 * 2**20


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["asyncio", "blocking"])
def test_a_million_messages(kind: str) -> None:
    def answer(command: bytes) -> Iterator[bytes]:
        if command in (b"LIST", b"UIDL"):
            line = b"%d 1234\r\n" if command == b"LIST" else b"%d 0123456789abcdef%016d\r\n"
            yield b"+OK\r\n"
            for first in range(1, 1_000_001, 10_000):
                numbers = range(first, first + 10_000)
                yield b"".join(line % ((at,) if command == b"LIST" else (at, at)) for at in numbers)
            yield b".\r\n"
        else:
            yield b"-ERR\r\n" if command == b"CAPA" else b"+OK\r\n"

    with serving(answer) as port:
        count, growth = fetched(port, kind, 1_000_000)
    assert count == 1_000_000
    assert growth < 100 * 2**20
