"""Send requests from a worker to the control sockets of the other workers."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from ..server.address import socket_path
from ..server.http import ClientExchange

TIMEOUT = 2.0  # seconds for each step of an answer; well below the timeout of commands (``asking``)
_PIECE = 65_536  # octets that are read at a time


class Silent(Exception):
    """A worker did not answer in time, or its answer is incomplete."""


class Answer:
    """The response of another worker."""

    def __init__(self, connected: socket.socket, exchange: ClientExchange) -> None:
        self._connected, self._exchange = connected, exchange
        self._received: list[bytes] = []

    @property
    def status(self) -> int:
        """The status code."""
        return self._exchange.status

    async def begin(self) -> None:
        """Read the head of the response."""
        while not self._exchange.status:
            self._received += await self._more(TIMEOUT)

    async def pieces(self, timeout: float | None = TIMEOUT) -> AsyncGenerator[bytes, None]:
        """Yield the content; ``timeout`` is in seconds, for each piece.

        Raises:
            Silent: the next piece did not arrive in time.
        """
        while True:
            received, self._received = self._received, []
            for piece in received:
                yield piece
            if self._exchange.is_over:
                return
            self._received += await self._more(timeout)

    async def _more(self, timeout: float | None) -> Sequence[bytes]:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout):
                octets = await loop.sock_recv(self._connected, _PIECE)
            return list(self._exchange.receive(octets))
        except OSError as error:  # TimeoutError and ConnectionLost too
            raise Silent(str(error)) from error


@asynccontextmanager
async def asked(path: Path, method: str, target: str) -> AsyncGenerator[Answer, None]:
    """Send a request to a worker's socket, and yield the answer after reading its head.

    Raises:
        Silent: the worker is not running or did not answer in time.
    """
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connected:
        connected.setblocking(False)
        answer = Answer(connected, exchange := ClientExchange(method, target))
        try:
            async with asyncio.timeout(TIMEOUT):
                with socket_path(path) as short:
                    await loop.sock_connect(connected, short)
                await loop.sock_sendall(connected, exchange.request)
        except OSError as error:
            raise Silent(str(error)) from error
        await answer.begin()
        yield answer


async def content(path: Path, method: str, target: str) -> bytes | None:
    """Return the content of a short answer; None unless it is complete and its status is 200."""
    with suppress(Silent, TimeoutError):
        async with asyncio.timeout(TIMEOUT), asked(path, method, target) as answer:
            octets = b"".join([piece async for piece in answer.pieces()])
            return octets if answer.status == 200 else None
    return None
