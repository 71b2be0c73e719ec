"""Send requests from a worker to the control sockets of the other workers.

A worker that hangs or sends nonsense counts as missing, like one that has died.  All these errors
are ``OSError``: ``TimeoutError``, ``ConnectionError`` and ``ProtocolBroken``.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors import ProtocolBroken
from ..server.address import socket_path
from ..server.http import ClientExchange
from .answers import PIECE, Document, Lines, Patience, parse

# Seconds for all waiting for an answer; well below the timeout of commands (``asking``).
TIMEOUT = 2.0


class Answer:
    """The response of another worker."""

    def __init__(self, connected: socket.socket, exchange: ClientExchange) -> None:
        self._loop = asyncio.get_running_loop()
        self._connected, self._exchange = connected, exchange
        self._patience = Patience(TIMEOUT, self._loop.time)

    async def begin(self, path: Path) -> None:
        """Connect, send the request, and read the head of the response.

        Raises:
            OSError: see ``ask``.
        """
        async with self._limited():
            with socket_path(path) as short:
                await self._loop.sock_connect(self._connected, short)
            await self._loop.sock_sendall(self._connected, self._exchange.request)
        while not self._exchange.status:
            await self._receive()
        if self._exchange.status != 200:
            raise ProtocolBroken(f"the response has the status {self._exchange.status}")

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """Yield the content.

        Raises:
            OSError: the connection has ended, or the content is late or malformed.
        """
        while True:
            for piece in self._exchange.take():
                yield piece
            if self._exchange.is_over:
                return
            await self._receive()

    async def lines(self) -> AsyncGenerator[list[bytes], None]:
        """Yield the lines of the content, as many as arrive together; each is a JSON object.

        Raises:
            OSError: see ``pieces``.
        """
        lines = Lines()
        async with aclosing(self.pieces()) as pieces:
            async for piece in pieces:
                complete = lines.add(piece)
                for line in complete:
                    parse(line)
                yield complete

    def live(self) -> None:
        """Remove the time limit, for content whose pieces may arrive at any time."""
        self._patience = Patience(None)

    async def _receive(self) -> None:
        async with self._limited():
            octets = await self._loop.sock_recv(self._connected, PIECE)
        self._patience.received(len(octets))
        self._exchange.receive(octets)

    @asynccontextmanager
    async def _limited(self) -> AsyncGenerator[None, None]:
        with self._patience.waiting() as seconds:
            async with asyncio.timeout(seconds):
                yield


@asynccontextmanager
async def ask(path: Path, method: str, target: str) -> AsyncGenerator[Answer, None]:
    """Send a request to a worker's socket, and yield the answer after reading its head.

    Raises:
        OSError: the worker is not running or did not answer in time, or the answer is an error.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connected:
        connected.setblocking(False)
        answer = Answer(connected, ClientExchange(method, target))
        await answer.begin(path)
        yield answer


async def document(path: Path, method: str, target: str) -> dict[str, Any] | None:
    """Return the content of an answer, which is a JSON object; None if there is no valid answer."""
    content = Document()
    with suppress(OSError):
        async with ask(path, method, target) as answer, aclosing(answer.pieces()) as pieces:
            async for piece in pieces:
                content.add(piece)
        return content.parse()
    return None
