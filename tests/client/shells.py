"""A session with either of the two clients, and a scripted server."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from restante.client.asynchronous import Client, connect
from restante.client.blocking import BlockingClient, connect_blocking
from restante.client.remote import TLS
from restante.pop3.listing import Message

NONE = TLS.NONE
UNUSED = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # loading the system's certificates is slow

Session = Callable[..., Awaitable[list[bytes]]]


async def with_asyncio(url: str, *, keep: bool = False, **options: Any) -> list[bytes]:
    """Fetch all messages and delete them."""
    options.setdefault("context", _context(options))
    async with connect(url, user="mrose", password="tan staaf", **options) as client:
        listing = await client.list()
        found = [await body.read() async for _, body in client.retrieve_all(listing)]
        if not keep:
            await client.delete(*listing)
    return found


def _context(options: dict[str, Any]) -> ssl.SSLContext | None:
    return UNUSED if options.get("tls") is NONE else None


def _blocking(url: str, *, keep: bool = False, **options: Any) -> list[bytes]:
    options.setdefault("context", _context(options))
    with connect_blocking(url, user="mrose", password="tan staaf", **options) as client:
        listing = client.list()
        found = [body.read() for _, body in client.retrieve_all(listing)]
        if not keep:
            client.delete(*listing)
    return found


async def with_blocking(url: str, **options: Any) -> list[bytes]:
    return await asyncio.to_thread(_blocking, url, **options)


both = pytest.mark.parametrize("session", [with_asyncio, with_blocking])
kinds = pytest.mark.parametrize("kind", ["asyncio", "blocking"])


class Held:
    """An entered client of either kind, with the same methods for both."""

    def __init__(self, client: Client | BlockingClient) -> None:
        self.client = client

    async def call(self, name: str, *arguments: Any, **options: Any) -> Any:
        """Call a method such as ``stat``, ``delete`` or ``quit``."""
        return await called(getattr(self.client, name), *arguments, **options)

    async def listing(self) -> list[Message]:
        return list(await self.call("list"))

    def each(self, name: str, *arguments: Any, **options: Any) -> AsyncIterator[Any]:
        """Call ``retrieve_all`` or ``headers``, which begins when it is iterated."""
        return iterated(getattr(self.client, name)(*arguments, **options))


async def called(method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call a coroutine function, or in a thread a blocking one; returns the result."""
    if asyncio.iscoroutinefunction(method):
        return await method(*arguments, **options)
    return await asyncio.to_thread(method, *arguments, **options)


async def iterated(items: Any) -> AsyncIterator[Any]:
    if hasattr(items, "__aiter__"):
        async for item in items:
            yield item
        return
    iterator, end = iter(items), object()
    while (item := await asyncio.to_thread(next, iterator, end)) is not end:
        yield item


async def gathered(items: Any) -> list[Any]:
    return [item async for item in iterated(items)]


@asynccontextmanager
async def opened(kind: str, where: Any, **options: Any) -> AsyncIterator[Held]:
    """Enter ``connect`` or ``connect_blocking``, and leave it in the same way as this block."""
    if kind == "asyncio":
        async with connect(where, **options) as client:
            yield Held(client)
        return
    blocking = await asyncio.to_thread(connect_blocking, where, **options)
    try:
        yield Held(blocking)
    except BaseException as error:
        await asyncio.to_thread(blocking.__exit__, type(error), error, None)
        raise
    else:
        await asyncio.to_thread(blocking.__exit__, None, None, None)


class Peer:
    """The server's end of a connection, scripted by a test."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.heard: list[bytes] = []

    async def say(self, octets: bytes) -> None:
        self.writer.write(octets)
        await self.writer.drain()

    async def hear(self) -> bytes:
        """Read the next command; empty when the client has closed."""
        try:
            line = (await self.reader.readline()).removesuffix(b"\r\n")
        except (ConnectionError, ssl.SSLError):
            line = b""
        if line:
            self.heard.append(line)
        return line

    async def until_gone(self) -> None:
        while await self.hear():
            pass

    def reset(self) -> None:
        """End the connection with RST."""
        found: socket.socket = self.writer.get_extra_info("socket")
        found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


@asynccontextmanager
async def scripted(
    script: Callable[[Peer], Awaitable[None]],
    *,
    buffers: int | None = None,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[tuple[int, list[Peer]]]:
    """Run a server on loopback that runs ``script`` and hangs up; yields its port and peers."""
    peers: list[Peer] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer)
        peers.append(peer)
        try:
            await script(peer)
        except (ConnectionError, ssl.SSLError):
            pass
        finally:
            writer.transport.abort()

    listening = socket.create_server(("127.0.0.1", 0))
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if buffers is not None:  # octets; accepted connections inherit it
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffers)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffers)
    server = await asyncio.start_server(serve, sock=listening, limit=buffers or 65_536, ssl=tls)
    try:
        yield listening.getsockname()[1], peers
    finally:
        server.close()
        for peer in peers:
            peer.writer.transport.abort()


ANSWERS = {
    b"CAPA": b"+OK\r\nPIPELINING\r\nUIDL\r\n.\r\n",
    b"LIST": b"+OK\r\n1 12\r\n2 3\r\n.\r\n",
    b"UIDL": b"+OK\r\n1 a\r\n2 b\r\n.\r\n",
    b"RETR 1": b"+OK\r\nx\n.\n+OK\n..y\r\n.\r\n",
    b"RETR 2": b"+OK\r\n..\r\n.\r\n",
}


async def polite(peer: Peer) -> None:
    """Serve two messages."""
    await peer.say(b"+OK ready\r\n")
    while command := await peer.hear():
        await peer.say(ANSWERS.get(command, b"+OK\r\n"))
        if command == b"QUIT":
            return
