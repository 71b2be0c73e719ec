"""A POP3 client for asyncio: sockets around ``pop3.dialogue``.

Security: certificates are verified; an own Protocol instead of streams, so that no octet from
before TLS can be read after it.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar, cast

from ..errors import CommandFailed, DeadlineExceeded, UnsafeArgument
from ..pop3.dialogue import Capabilities, Dialogue, Message, Procedure
from .remote import TLS, Remote, explain

T = TypeVar("T")
_HIGH_WATER = 262_144  # octets that wait unread before we stop reading


class Client:
    """A session in the TRANSACTION state; ``connect`` makes it."""

    def __init__(self, dialogue: Dialogue, stream: _Stream, timeout: float) -> None:
        self._dialogue = dialogue
        self._stream = stream
        self._timeout = timeout
        self._is_lost = False

    @property
    def capabilities(self) -> Capabilities:
        """As announced after the login."""
        return self._dialogue.capabilities

    async def stat(self) -> tuple[int, int]:
        """How many messages, how many octets."""
        return await self._run(self._dialogue.stat())

    async def messages(self) -> AsyncIterator[Message]:
        """The listing; nothing is downloaded yet."""
        for message in await self._run(self._dialogue.listing()):
            yield message

    async def retrieve(self, message: Message) -> AsyncIterator[bytes]:
        """One message in pieces of CRLF text.

        Raises:
            CommandFailed: the server does not give it.
            ConnectionLost: it ended early; what came is not the message.
        """
        async for piece in await self._ask_for_one(message, "RETR"):
            yield piece

    async def top(self, message: Message, lines: int = 0) -> bytes:
        """The header, the blank line and so many lines of the body (RFC 1939 §7)."""
        body = await self._ask_for_one(message, f"TOP {lines}")
        return b"".join([piece async for piece in body])

    async def _ask_for_one(self, message: Message, command: str) -> AsyncIterator[bytes]:
        await self._run(self._dialogue.ask_for([message], command))
        answer = await self._run(self._dialogue.next_message())
        assert answer is not None
        return self._body(answer[1])

    async def retrieve_all(
        self, messages: Iterable[Message]
    ) -> AsyncIterator[tuple[Message, AsyncIterator[bytes]]]:
        """Many messages, pipelined where the server allows; their bodies in this order.

        A body that is not read to its end is skipped.  One that the server refuses raises
        CommandFailed when it is read.
        """
        await self._run(self._dialogue.ask_for(messages))
        while (answer := await self._run(self._dialogue.next_message())) is not None:
            yield answer[0], self._body(answer[1])

    async def _body(self, error: CommandFailed | None) -> AsyncIterator[bytes]:
        if error is not None:
            raise error
        while piece := await self._run(self._dialogue.piece()):
            yield piece

    async def delete(self, *messages: Message) -> None:
        """Mark as deleted; they are removed when the session ends normally."""
        await self._run(self._dialogue.delete(messages))

    async def reset(self) -> None:
        """Take back all deletions."""
        await self._run(self._dialogue.reset())

    async def noop(self) -> None:
        """Keep the session alive."""
        await self._run(self._dialogue.noop())

    async def quit(self) -> None:
        """End the session; what was marked is removed when this returns."""
        await self._run(self._dialogue.quit())
        self.abort()

    def abort(self) -> None:
        """Drop the connection: nothing is removed."""
        self._is_lost = True
        self._stream.transport.abort()

    async def _run(self, procedure: Procedure[T]) -> T:
        if self._is_lost:
            raise self._dialogue.lost("the connection is closed")
        try:
            wanted = next(procedure)
            while True:
                octets = b""
                if wanted is None:
                    octets = await self._receive()
                else:
                    self._stream.transport.write(wanted)
                wanted = procedure.send(octets)
        except StopIteration as end:
            return cast(T, end.value)
        except (CommandFailed, UnsafeArgument):
            raise
        except BaseException:
            self.abort()  # a response may be half read: nothing after it can be trusted
            raise

    async def _receive(self) -> bytes:
        try:
            async with asyncio.timeout(self._timeout):
                octets = await self._stream.receive()
        except TimeoutError as error:
            text = f"the server was silent for {self._timeout:g} s"
            raise self._dialogue.lost(text, DeadlineExceeded) from error
        except OSError as error:
            raise self._dialogue.lost(str(error)) from error
        if not octets:
            raise self._dialogue.lost("the server closed the connection")
        return octets

    async def _start_tls(self, context: ssl.SSLContext, host: str) -> None:
        await self._run(self._dialogue.start_tls())
        await self._stream.start_tls(context, host, self._timeout)


class _Stream(asyncio.Protocol):
    """What arrives, in one place, and no more of it than is taken."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport
        self._octets = bytearray()
        self._arrived = asyncio.Event()
        self._error: Exception | None = None
        self._is_closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._octets += data
        self._arrived.set()
        if len(self._octets) > _HIGH_WATER:
            self.transport.pause_reading()

    def connection_lost(self, error: Exception | None) -> None:
        self._is_closed = True
        self._error = error
        self._arrived.set()

    async def receive(self) -> bytes:
        """Some octets, or none at the end of the connection."""
        while not self._octets:
            if self._is_closed:
                if isinstance(self._error, OSError):
                    raise self._error
                return b""
            self._arrived.clear()
            await self._arrived.wait()
        octets = bytes(self._octets)
        self._octets.clear()
        if not self._is_closed and not self.transport.is_reading():
            self.transport.resume_reading()
        return octets

    async def start_tls(self, context: ssl.SSLContext, host: str, timeout: float) -> None:
        self.transport.pause_reading()
        if self._octets:
            raise ConnectionResetError("octets came before the TLS handshake")
        transport = await asyncio.get_running_loop().start_tls(
            self.transport, self, context, server_hostname=host, ssl_handshake_timeout=timeout
        )
        if transport is None:
            raise ConnectionResetError("connection lost in the TLS handshake")
        self.transport = transport


@asynccontextmanager
async def connect(
    url: str,
    *,
    user: str = "",
    password: str = "",
    tls: TLS | None = None,
    ca_file: Path | None = None,
    context: ssl.SSLContext | None = None,
    timeout: float = 60.0,
    deadline: float | None = None,
) -> AsyncIterator[Client]:
    """Connect, secure, log in; QUIT when the block ends normally.

    An exception inside the block drops the connection without QUIT, so nothing is removed.
    ``url`` is ``pop3s://user@host`` or ``pop3://user@host`` (with STLS).  ``timeout`` is for
    each wait, ``deadline`` for all of it, both in seconds.

    Raises:
        TLSUnavailable: no connection that is safe; no credential was sent.
        LoginFailed: refused; ``code`` tells whether it was for the credentials.
        ConnectionLost: with the number of deletions that were lost by it.
        CommandFailed: at the end: the server could not remove what was deleted.
    """
    remote = Remote.parse(url, user=user, password=password, tls=tls)
    dialogue = Dialogue()
    try:
        async with asyncio.timeout(deadline) as total:
            client = await _open(remote, dialogue, remote.context(context, ca_file), timeout)
            try:
                yield client
                if not client._is_lost:
                    await client.quit()
            finally:
                client.abort()
    except TimeoutError as error:
        if not total.expired():
            raise
        raise dialogue.lost("the deadline is over", DeadlineExceeded) from error


async def _open(
    remote: Remote, dialogue: Dialogue, context: ssl.SSLContext, timeout: float
) -> Client:
    implicit = remote.tls is TLS.IMPLICIT
    try:
        async with asyncio.timeout(timeout):
            _, stream = await asyncio.get_running_loop().create_connection(
                _Stream,
                remote.host,
                remote.port,
                ssl=context if implicit else None,
                server_hostname=remote.host if implicit else None,
            )
    except TimeoutError as error:
        raise dialogue.lost(f"{remote.host} does not answer", DeadlineExceeded) from error
    except OSError as error:
        raise explain(error, remote.host) from error
    client = Client(dialogue, stream, timeout)
    try:
        await client._run(dialogue.greeting())
        if remote.tls is TLS.STARTTLS:
            try:
                await client._start_tls(context, remote.host)
            except OSError as error:
                raise explain(error, remote.host) from error
        await client._run(dialogue.ask_capabilities())
        await client._run(dialogue.log_in(remote.user, remote.password))
        await client._run(dialogue.ask_capabilities())
    except BaseException:
        client.abort()
        raise
    return client
