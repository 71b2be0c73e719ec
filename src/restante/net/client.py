"""A POP3 client for asyncio: sockets around ``pop3.dialogue``.

Security: certificates are verified; an own Protocol instead of streams, so that no octet from
before TLS can be read after it.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from email.message import EmailMessage
from pathlib import Path
from typing import TypeVar, Unpack, cast

from ..errors import BodySkipped, CommandFailed, DeadlineExceeded, UnsafeArgument
from ..pop3.dialogue import Answer, Capabilities, Dialogue, Procedure, Retrieval
from ..pop3.listing import Message
from ..pop3.quirks import Quirks
from ..pop3.record import Record
from .remote import PATIENCE, TLS, Options, Remote, Service, binding, explain
from .saving import Parsing, Saving

T = TypeVar("T")
Progress = Callable[[Message, int], None]
"""Is told the message and how many of its octets have come."""
_HIGH_WATER = 262_144  # octets that wait unread before we stop reading


class Body:
    """A message, or its beginning, as it comes: CRLF text in pieces, once.

    Reading it raises:
        CommandFailed: the server does not give it.
        ConnectionLost: it ended early; what came is not the message.
        BodySkipped: another command came before its end.
    """

    def __init__(self, client: Client, message: Message, progress: Progress | None = None) -> None:
        self.message = message
        self._client = client
        self._progress = progress
        self._command = "RETR"
        self._is_header = False
        self._answer: Answer | None = None
        self._is_begun = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if self._is_begun:
            raise BodySkipped("a body can be read once")
        self._is_begun = True
        answer = self._answer or await self._client._ask_for_one(self.message, self._command)
        octets = 0
        while piece := await self._client._run(self._client._dialogue.piece(answer)):
            octets += len(piece)
            if self._progress is not None:
                self._progress(self.message, octets)
            yield piece

    async def read(self) -> bytes:
        """All of it."""
        return b"".join([piece async for piece in self])

    async def email(self) -> EmailMessage:
        """All of it, parsed with the policy ``email.policy.default``."""
        parsing = Parsing(header=self._is_header)
        async for piece in self:
            parsing.write(piece)
        return parsing.close()

    async def save(self, path: Path | str) -> None:
        """Into a file, which is there whole and durable on return, or not at all.

        Raises:
            FileExistsError: nothing is ever replaced.
        """
        with Saving(Path(path)) as file:
            async for piece in self:
                file.write(piece)


class Client:
    """A session in the TRANSACTION state; ``connect`` makes it.  For one task at a time."""

    def __init__(self, remote: Remote, timeout: float, record: Record) -> None:
        self._remote = remote
        self._context = remote.context()
        self._timeout = timeout
        self._dialogue = Dialogue(record, remote.quirks)
        self._stream: _Stream | None = None  # None: there is no session
        self._is_busy = False

    @property
    def capabilities(self) -> Capabilities:
        """As announced after the login."""
        return self._dialogue.capabilities

    @property
    def quirks(self) -> Quirks:
        """What is held of this server: given to ``connect``, or known of its host."""
        return self._dialogue.quirks

    @property
    def deletions(self) -> int:
        """Messages marked as deleted in this session."""
        return self._dialogue.deletions

    @property
    def refused(self) -> Sequence[Message]:
        """Messages that the server would not mark as deleted in this session."""
        return self._dialogue.refused

    async def stat(self) -> tuple[int, int]:
        """How many messages, how many octets."""
        return await self._run(self._dialogue.stat())

    async def messages(self) -> AsyncIterator[Message]:
        """The listing; nothing is downloaded yet."""
        for message in await self._run(self._dialogue.listing()):
            yield message

    def retrieve(self, message: Message, *, progress: Progress | None = None) -> Body:
        """One message; it is asked for when it is read."""
        return Body(self, message, progress)

    def top(self, message: Message, lines: int = 0) -> Body:
        """The header, the blank line and so many lines of the body (RFC 1939 §7)."""
        body = Body(self, message)
        body._command = f"TOP {lines:d}"
        return body

    async def _ask_for_one(self, message: Message, command: str) -> Answer:
        retrieval = await self._run(self._dialogue.ask_for([message], command))
        answer = await self._run(self._dialogue.next_message(retrieval))
        assert answer is not None
        return answer

    def retrieve_all(
        self, messages: Iterable[Message], *, progress: Progress | None = None
    ) -> AsyncIterator[tuple[Message, Body]]:
        """Many messages, pipelined where the server allows; their bodies in this order.

        A body that is not read to its end is skipped.  One that the server refuses raises
        CommandFailed when it is read.  Messages may be deleted meanwhile; any other command ends
        it, and BodySkipped is raised.  What ``messages`` itself raises comes after the bodies of
        those before, and the session goes on.
        """
        return self._read_all(self._dialogue.ask_for(messages), progress)

    async def _read_all(
        self,
        asking: Procedure[Retrieval],
        progress: Progress | None = None,
        *,
        is_header: bool = False,
    ) -> AsyncIterator[tuple[Message, Body]]:
        retrieval = await self._run(asking)
        while (answer := await self._run(self._dialogue.next_message(retrieval))) is not None:
            body = Body(self, answer.message, progress)
            body._answer, body._is_header = answer, is_header
            yield answer.message, body
        if retrieval.failure is not None:
            raise retrieval.failure

    async def headers(
        self, messages: Iterable[Message]
    ) -> AsyncIterator[tuple[Message, EmailMessage]]:
        """The headers of many messages, by TOP, pipelined where the server allows.

        Raises:
            CommandFailed: the server does not give one of them, or has no TOP.  ``Quirks`` can say
                that it is not to be used.
        """
        asked = self._dialogue.ask_for_headers(messages)
        async for message, body in self._read_all(asked, is_header=True):
            yield message, await body.email()

    async def delete(self, *messages: Message) -> None:
        """Mark as deleted; they are removed when the session ends normally.

        While ``retrieve_all`` is at work they take their turn among its commands.  A message that
        the server refuses to mark is added to ``refused`` and disturbs no other: QUIT removes the
        others, and only then CommandFailed is raised.
        """
        await self._run(self._dialogue.delete(messages))

    async def reset(self) -> None:
        """Take back all deletions."""
        await self._run(self._dialogue.reset())

    async def noop(self) -> None:
        """Keep the session alive."""
        await self._run(self._dialogue.noop())

    async def quit(self) -> None:
        """End the session; what was marked is removed when this returns.

        Raises:
            CommandFailed: its ``command`` is QUIT: the server could not remove all of it; or DELE:
                all of it is removed, but the server had refused to mark another message.
        """
        try:
            await self._run(self._dialogue.quit())
        finally:
            self.abort()

    async def commit(self) -> None:
        """Remove what was marked, and go on in a new session: QUIT, connect, log in.

        The messages must be listed again.
        """
        refused: CommandFailed | None = None
        try:
            await self.quit()
        except CommandFailed as error:
            if error.command != "DELE":
                raise
            refused = error  # the others are removed
        await self.reconnect()
        if refused is not None:
            raise refused

    async def reconnect(self) -> int:
        """A new session, also after the connection was lost; returns how many deletions were lost.

        The messages must be listed again.
        """
        self.abort()
        lost = self._dialogue.deletions
        self._dialogue = Dialogue(self._dialogue.record, self._remote.quirks)
        await self._open()
        return lost

    def abort(self) -> None:
        """Drop the connection: nothing is removed."""
        if self._stream is not None:
            self._stream.transport.abort()
            self._stream = None

    async def _open(self) -> None:
        """Connect, secure, log in."""
        remote, dialogue = self._remote, self._dialogue
        is_implicit = remote.tls is TLS.IMPLICIT
        token = remote.ask_token()
        login = replace(remote.login, token=token if isinstance(token, str) else await token)
        try:
            async with asyncio.timeout(self._timeout):
                _, self._stream = await asyncio.get_running_loop().create_connection(
                    _Stream,
                    sock=await _reach(remote.host, remote.port),
                    ssl=self._context if is_implicit else None,
                    server_hostname=remote.host if is_implicit else None,
                )
        except OSError as error:
            raise explain(error, remote.host) from error
        try:
            if is_implicit:
                self._check_name()
            await self._run(dialogue.greeting())
            if remote.tls is TLS.STARTTLS:
                await self._run(dialogue.start_tls())
                await self._shake_hands()
                self._check_name()
            await self._run(dialogue.ask_capabilities())
            await self._run(dialogue.log_in(login, self._binding))
            await self._run(dialogue.ask_capabilities())
        except BaseException:
            self.abort()
            raise

    def _check_name(self) -> None:
        assert self._stream is not None
        self._remote.check_name(self._stream.transport.get_extra_info("ssl_object"))

    def _binding(self) -> bytes:
        assert self._stream is not None
        return binding(self._stream.transport.get_extra_info("ssl_object"))

    async def _shake_hands(self) -> None:
        assert self._stream is not None
        try:
            await self._stream.start_tls(self._context, self._remote.host, self._timeout)
        except OSError as error:
            raise explain(error, self._remote.host) from error

    async def _run(self, procedure: Procedure[T]) -> T:
        if self._stream is None:
            raise self._dialogue.lost("the connection is closed")
        if self._is_busy:
            raise RuntimeError("two tasks use one POP3 session")
        self._is_busy = True
        try:
            wanted = next(procedure)
            while True:
                octets = b""
                if wanted is None:
                    octets = await self._receive(self._stream)
                else:
                    self._dialogue.record.sent(wanted)
                    self._stream.transport.write(wanted)
                wanted = procedure.send(octets)
        except StopIteration as end:
            return cast(T, end.value)
        except (BodySkipped, CommandFailed, UnsafeArgument):
            raise
        except BaseException:
            self.abort()  # a response may be half read: nothing after it can be trusted
            raise
        finally:
            self._is_busy = False

    async def _receive(self, stream: _Stream) -> bytes:
        try:
            async with asyncio.timeout(self._timeout):
                octets = await stream.receive()
        except TimeoutError as error:
            text = f"the server was silent for {self._timeout:g} s"
            raise self._dialogue.lost(text, DeadlineExceeded) from error
        except OSError as error:
            raise self._dialogue.lost(str(error)) from error
        if not octets:
            raise self._dialogue.lost("the server closed the connection")
        return octets


async def _reach(host: str, port: int) -> socket.socket:
    """A connection to the first of the host's addresses that answers.

    Raises:
        OSError: none does.
    """
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for family, kind, protocol, _, address in found:
        connection = socket.socket(family, kind, protocol)
        connection.setblocking(False)
        is_last = address == found[-1][4]
        try:
            async with asyncio.timeout(None if is_last else PATIENCE):
                await loop.sock_connect(connection, address)
        except OSError:
            connection.close()
            if is_last:
                raise
        except BaseException:
            connection.close()
            raise
        else:
            return connection
    raise OSError(f"{host} has no address")


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
    where: str | Service,
    *,
    timeout: float = 60.0,
    deadline: float | None = None,
    record: Callable[[str], None] | None = None,
    **options: Unpack[Options],
) -> AsyncIterator[Client]:
    """Connect, secure, log in; QUIT when the block ends normally.

    An exception inside the block drops the connection without QUIT, so nothing is removed.
    ``where`` is ``pop3s://user@host``, ``pop3://user@host`` (with STLS), a host, or
    what ``discover`` found.  ``timeout``
    is for each wait, ``deadline`` for all of it, both in seconds.  ``record`` is told, line by
    line, what both sides say, without passwords and without the contents of messages.

    The strongest mechanism is taken that both sides know, and no other after a failure.

    Raises:
        TLSUnavailable: no connection that is safe; no credential was sent.
        LoginFailed: refused (``code`` tells whether for the credentials), or not strong enough.
        ConnectionLost: with the number of deletions that were lost by it.
        CommandFailed: at the end: the server could not remove what was deleted (``command`` is
            QUIT), or it has removed that but had refused to mark another message (DELE).
        UnsafeArgument: what was asked for makes no sense; nothing was sent.
    """
    client = Client(Remote.parse(where, **options), timeout, Record(record))
    try:
        async with asyncio.timeout(deadline) as total:
            try:
                await client._open()
                yield client
                if client._stream is not None:
                    await client.quit()
            finally:
                client.abort()
    except TimeoutError as error:
        if not total.expired():
            raise
        raise client._dialogue.lost("the deadline is over", DeadlineExceeded) from error
